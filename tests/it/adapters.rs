//! Adapters end to end: folders as PEFT writes them and as they should never be, on a real base made small.

mod bad;
mod draft;
mod fetching;
mod following;
mod healthy;
mod mutations;
mod planted;
mod publishing;
mod rebased;
mod roles;
mod store;
mod tiers;
mod trial;
mod under_traffic;

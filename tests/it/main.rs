//! End-to-end tests, one module for each room, in one binary.

mod adapters;
mod api;
mod client;
mod commands;
mod crash;
mod demo;
mod engine;
mod feedback;
mod gateway;
mod house;
mod journal;
mod memory;
mod parity;
mod replay;
mod support;
mod text;

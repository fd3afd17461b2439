//! What a step costs a device, counted on a CPU; and that steps judged on the device answer as those judged on the host.

pub mod bench;
mod costs;
mod judging;
mod kernels;
pub mod paged;
mod stacks;

//! The feed-forward: `down(silu(gate(x)) ⊙ up(x))`.

use candle_core::{Result, Tensor};

use super::{deltas::StepDeltas, linear::Linear, ops};

pub struct Mlp {
    /// Gate, then up.
    pub gate_up: Linear,
    pub down: Linear,
}

impl Mlp {
    /// `[rows, hidden]` to the same.
    pub fn forward(&self, x: &Tensor, layer: usize, deltas: &StepDeltas) -> Result<Tensor> {
        let halves = self.gate_up.forward(x, layer, deltas)?;
        let activated = ops::mul(&ops::silu(&halves[0])?, &halves[1])?;
        Ok(self.down.forward(&activated, layer, deltas)?.remove(0))
    }
}

//! Linear maps: one base product for all rows, then each adapter's delta for its rows.

use candle_core::{Result, Tensor};

use super::{deltas::StepDeltas, ops};
use crate::model::Projection;

/// One or more projections of the same input, held as one matrix.
pub struct Linear {
    /// `[out of all projections, in]`
    weight: Tensor,
    /// `[out of all projections]`
    bias: Option<Tensor>,
    /// Each projection with its number of output features, in the matrix's order.
    parts: Vec<(Projection, usize)>,
}

impl Linear {
    pub fn new(weight: Tensor, bias: Option<Tensor>, parts: Vec<(Projection, usize)>) -> Self {
        Self { weight, bias, parts }
    }

    /// Applies every projection to `x` (`[rows, in]`), giving `[rows, out]` for each.
    pub fn forward(&self, x: &Tensor, layer: usize, deltas: &StepDeltas) -> Result<Vec<Tensor>> {
        let base = ops::product(&self.weight, x)?;
        let base = match &self.bias {
            Some(bias) => ops::add(&base, bias)?,
            None => base,
        };
        let inputs = deltas.inputs(x, layer, self.parts.iter().map(|part| part.0))?;
        let mut start = 0;
        let mut outputs = Vec::with_capacity(self.parts.len());
        for &(projection, width) in &self.parts {
            let part = if self.parts.len() == 1 { base.clone() } else { base.narrow(1, start, width)? };
            outputs.push(deltas.apply(part, &inputs, layer, projection)?);
            start += width;
        }
        Ok(outputs)
    }

    /// The matrix rows and the bias of one projection.
    pub fn part(&self, projection: Projection) -> Result<Option<(Tensor, Option<Tensor>)>> {
        let mut start = 0;
        for &(other, width) in &self.parts {
            if other == projection {
                let bias = self.bias.as_ref().map(|bias| bias.narrow(0, start, width)).transpose()?;
                return Ok(Some((self.weight.narrow(0, start, width)?, bias)));
            }
            start += width;
        }
        Ok(None)
    }
}

//! The deltas that both decoders apply: plain low rank at a layer's projections. Everything else is refused by name.

use super::{Matrix, ModelShape, PackError, Projection, Site, SiteDelta};

/// `y += scale · B (A x)` at one projection, its shapes checked.
pub struct PlainDelta {
    pub layer: usize,
    pub projection: Projection,
    /// `[r, in]`
    pub a: Matrix,
    /// `[out, r]`
    pub b: Matrix,
    pub scale: f32,
}

impl PlainDelta {
    /// # Errors
    /// [`PackError`] if the base has no such site, a shape does not fit it, or the delta is of another kind.
    pub fn of(shape: &ModelShape, site: Site, delta: SiteDelta) -> Result<Self, PackError> {
        let unsupported = |what| PackError::Unsupported { site: site.to_string(), what };
        let (out, input) = shape.site_shape(site).ok_or_else(|| PackError::NoSuchSite { site: site.to_string() })?;
        let (layer, projection) = match site {
            Site::Layer { layer, projection } => (usize::from(layer), projection),
            Site::Embedding => return Err(unsupported("a change of the embedding")),
            Site::Head => return Err(unsupported("a change of the output head")),
        };
        let (a, b, scale) = match delta {
            SiteDelta::LowRank { lora_bias: Some(_), .. } => return Err(unsupported("lora_bias")),
            SiteDelta::LowRank { base_bias: Some(_), .. } => return Err(unsupported("a trained bias")),
            SiteDelta::LowRank { gain: Some(_), .. } => return Err(unsupported("DoRA's magnitude")),
            SiteDelta::LowRank { a, b, scale, lora_bias: None, base_bias: None, gain: None } => (a, b, scale),
            SiteDelta::Bias(_) => return Err(unsupported("a trained bias")),
            SiteDelta::Full(_) => return Err(unsupported("a whole matrix")),
            SiteDelta::EmbedLowRank { .. } => return Err(unsupported("a change of the embedding")),
            SiteDelta::TokenRows { .. } => return Err(unsupported("trained tokens")),
        };
        let rank = a.rows.max(1);
        let a = fitting(site, "A", a, (rank, input))?;
        let b = fitting(site, "B", b, (out, rank))?;
        Ok(Self { layer, projection, a, b, scale })
    }
}

fn fitting(site: Site, what: &'static str, matrix: Matrix, expected: (usize, usize)) -> Result<Matrix, PackError> {
    let (rows, cols) = expected;
    if (matrix.rows, matrix.cols) == expected && matrix.values.len() == rows * cols {
        return Ok(matrix);
    }
    let (got, expected) = (vec![matrix.rows, matrix.cols], vec![rows, cols]);
    Err(PackError::Shape { site: site.to_string(), what, got, expected })
}

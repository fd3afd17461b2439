//! What an adapter changes, site by site, every shape checked: what both decoders pack.

use super::{Matrix, ModelShape, PackError, Projection, Site, SiteDelta};

/// All changes of one adapter.
pub struct Changes {
    /// For each layer, by [`Projection`].
    pub layers: Vec<[Option<Change>; Projection::ALL.len()]>,
    /// Its low rank has A `[r, vocab]` and B `[hidden, r]`, its magnitude `[hidden]`.
    pub embedding: Option<Change>,
    pub head: Option<Change>,
}

/// What happens at one site, `y = b + g⊙(base − b₀) + g⊙s·(B(Ax) + c)`; at least one part is there.
#[derive(Default)]
pub struct Change {
    /// Replaces the base's matrix, `[out, in]`: at embedding and head only.
    pub whole: Option<Matrix>,
    pub low_rank: Option<LowRank>,
    /// c, `[out]`
    pub lora_bias: Option<Vec<f32>>,
    /// b, `[out]`
    pub base_bias: Option<Vec<f32>>,
    /// m, `[out]`
    pub magnitude: Option<Vec<f32>>,
}

/// `s·B(A x)`
pub struct LowRank {
    /// `[r, in]`
    pub a: Matrix,
    /// `[out, r]`
    pub b: Matrix,
    pub scale: f32,
}

impl Change {
    /// Whether outputs are changed otherwise than by a product.
    pub fn turns(&self) -> bool {
        self.lora_bias.is_some() || self.base_bias.is_some() || self.magnitude.is_some()
    }
}

impl Changes {
    /// # Errors
    /// [`PackError`] if the base has no such site, a shape does not fit it, a site is given twice, or the delta is of a kind that is
    /// not applied there.
    pub fn of(shape: &ModelShape, sites: Vec<(Site, SiteDelta)>) -> Result<Self, PackError> {
        let mut changes = Self { layers: Vec::new(), embedding: None, head: None };
        changes.layers.resize_with(shape.layers, Default::default);
        for (site, delta) in sites {
            changes.add(shape, site, delta)?;
        }
        Ok(changes)
    }

    fn add(&mut self, shape: &ModelShape, site: Site, delta: SiteDelta) -> Result<(), PackError> {
        let named = || site.to_string();
        let unsupported = |what| PackError::Unsupported { site: named(), what };
        let (out, input) = shape.site_shape(site).ok_or_else(|| PackError::NoSuchSite { site: named() })?;
        let place = match site {
            Site::Embedding => &mut self.embedding,
            Site::Head => &mut self.head,
            Site::Layer { layer, projection } => &mut self.layers[usize::from(layer)][projection as usize],
        };
        if place.as_ref().is_some_and(|there| there.collides(&delta)) {
            return Err(PackError::Twice { site: named() });
        }
        let change = place.get_or_insert_default();
        let vector = |what, values: Option<Vec<f32>>, length: usize| match values {
            Some(values) if values.len() != length => {
                Err(PackError::Shape { site: named(), what, got: vec![values.len()], expected: vec![length] })
            }
            values => Ok(values),
        };
        match (site, delta) {
            (Site::Embedding, SiteDelta::EmbedLowRank { a, b, scale, magnitude }) => {
                let rank = a.rows.max(1);
                let (a, b) = (fitting(site, "A", a, (rank, out))?, fitting(site, "B", b, (input, rank))?);
                change.low_rank = Some(LowRank { a, b, scale });
                change.magnitude = vector("the magnitude", magnitude, input)?;
            }
            (Site::Embedding, SiteDelta::LowRank { .. }) => return Err(unsupported("a linear map's change")),
            (Site::Layer { .. } | Site::Head, SiteDelta::LowRank { a, b, scale, lora_bias, base_bias, magnitude }) => {
                let rank = a.rows.max(1);
                let (a, b) = (fitting(site, "A", a, (rank, input))?, fitting(site, "B", b, (out, rank))?);
                change.low_rank = Some(LowRank { a, b, scale });
                change.lora_bias = vector("the bias of B", lora_bias, out)?;
                change.base_bias = vector("the bias", base_bias, out)?;
                change.magnitude = vector("the magnitude", magnitude, out)?;
            }
            (Site::Layer { .. } | Site::Head, SiteDelta::EmbedLowRank { .. }) => {
                return Err(unsupported("an embedding's change"));
            }
            (Site::Layer { .. } | Site::Head, SiteDelta::Bias(bias)) => {
                change.base_bias = vector("the bias", Some(bias), out)?;
            }
            (Site::Embedding, SiteDelta::Bias(_)) => return Err(unsupported("a bias")),
            (Site::Embedding | Site::Head, SiteDelta::Full(matrix)) => {
                change.whole = Some(fitting(site, "the matrix", matrix, (out, input))?);
            }
            (Site::Layer { .. }, SiteDelta::Full(_)) => return Err(unsupported("a whole matrix")),
            (_, SiteDelta::TokenRows { .. }) => return Err(unsupported("a set of trained token rows")),
        }
        Ok(())
    }
}

impl Change {
    /// Whether `delta` says again what is there. A whole matrix and a low-rank delta stand beside each other.
    fn collides(&self, delta: &SiteDelta) -> bool {
        match delta {
            SiteDelta::Full(_) | SiteDelta::TokenRows { .. } => self.whole.is_some(),
            SiteDelta::LowRank { .. } | SiteDelta::EmbedLowRank { .. } | SiteDelta::Bias(_) => {
                self.low_rank.is_some() || self.base_bias.is_some()
            }
        }
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

//! An adapter's change of the embedding.

use half::{bf16, f16};

use super::{Class, network::Network, whole};
use crate::{
    kernels::pack::Packed,
    model::{
        Matrix, PackError, Site,
        changes::{Change, LowRank},
        dora::{embedding_gains, transposed},
        lora::Values,
    },
};

/// A token's embedding on an adapter: `g⊙(e + s·(Aᵀ[id])Bᵀ)`, where e is the base's, or that of a matrix in its place.
pub struct Embedder {
    whole: Option<Packed>,
    low: Option<Low>,
}

struct Low {
    rank: usize,
    /// `[vocab, r]`, in the dtype of the file.
    a: Values,
    /// `[r, hidden]`
    b: Vec<f32>,
    scale: f32,
    /// `[hidden]`
    gain: Option<Vec<f32>>,
}

impl Embedder {
    /// # Errors
    /// [`PackError`] if a matrix cannot be packed, or DoRA scales zeros.
    pub fn pack(class: Class, network: &Network, change: Change) -> Result<Self, PackError> {
        let whole = change.whole.map(|matrix| whole::pack(class, Site::Embedding, &matrix)).transpose()?;
        let low = change.low_rank.map(|low| {
            let row = |token: usize, out: &mut [f32]| base(&whole, network, token, out);
            let gain = change.magnitude.map(|m| embedding_gains(Site::Embedding, &m, &low, row)).transpose()?;
            let LowRank { a, b, scale } = low;
            let rank = a.rows;
            Ok(Low { rank, a: by_token(&a), b: transposed(&b.values.to_f32(), rank), scale, gain })
        });
        Ok(Self { low: low.transpose()?, whole })
    }

    /// Bytes that a low rank takes.
    pub fn bytes(a: &Matrix, b: &Matrix, gained: bool) -> usize {
        let number = match &a.values {
            Values::F32(_) => 4,
            Values::F16(_) | Values::BF16(_) => 2,
        };
        number * a.values.len() + size_of::<f32>() * (b.values.len() + if gained { b.rows } else { 0 })
    }

    /// `[hidden]`
    pub fn embed(&self, network: &Network, token: usize, out: &mut [f32]) {
        base(&self.whole, network, token, out);
        let Some(low) = &self.low else { return };
        for (rank, b) in low.b.chunks_exact(out.len()).enumerate() {
            let a = low.scale * number(&low.a, token * low.rank + rank);
            out.iter_mut().zip(b).for_each(|(out, b)| *out += a * b);
        }
        if let Some(gain) = &low.gain {
            out.iter_mut().zip(gain).for_each(|(out, gain)| *out *= gain);
        }
    }
}

fn base(whole: &Option<Packed>, network: &Network, token: usize, out: &mut [f32]) {
    match whole {
        Some(whole) => whole.row(token, out),
        None => network.embed(token, out),
    }
}

fn by_token(a: &Matrix) -> Values {
    match &a.values {
        Values::F32(values) => Values::F32(transposed(values, a.cols)),
        Values::F16(values) => Values::F16(transposed(values, a.cols)),
        Values::BF16(values) => Values::BF16(transposed(values, a.cols)),
    }
}

fn number(values: &Values, at: usize) -> f32 {
    match values {
        Values::F32(values) => values[at],
        Values::F16(values) => f16::to_f32(values[at]),
        Values::BF16(values) => bf16::to_f32(values[at]),
    }
}

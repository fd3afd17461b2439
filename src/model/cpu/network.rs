//! The resident weights, and their packing.

use std::ops::Range;

use crate::{
    kernels::{
        dequant::{Encoding, decode},
        memory::Memory,
        pack::{PackFault, Packed, Slot},
        pool::Pool,
        share::cut,
    },
    model::{
        BaseWeights, LoadError, ModelShape, Projection, Site,
        weights::{EncodedRows, Weights},
    },
};

/// Panels that are packed at once by one thread.
const PANELS_AT_ONCE: usize = 16;

/// The resident weights; they never change.
pub struct Network {
    pub shape: ModelShape,
    /// `None` where the head is the embedding.
    embedding: Option<Table>,
    pub layers: Vec<Layer>,
    /// `[hidden]`
    pub final_norm: Vec<f32>,
    /// `[vocab, hidden]`
    pub head: Packed,
}

/// One layer: attention, then feed-forward, each on a normed input and added to what came in.
pub struct Layer {
    /// `[hidden]`
    pub attention_norm: Vec<f32>,
    /// `[hidden]`
    pub mlp_norm: Vec<f32>,
    /// By [`Projection`].
    linears: Vec<Linear>,
    /// Norms on each head's query and key, `[head_dim]`.
    pub qk_norm: Option<(Vec<f32>, Vec<f32>)>,
    pub rotary: bool,
    pub window: Option<usize>,
}

/// One projection.
pub struct Linear {
    /// `[out, in]`
    pub weights: Packed,
    /// `[out]`
    pub bias: Option<Vec<f32>>,
}

/// A matrix that is only read row by row, as the file encodes it.
struct Table {
    encoding: Encoding,
    width: usize,
    bytes: Vec<u8>,
}

impl Table {
    fn row(&self, row: usize, out: &mut [f32]) {
        let length = self.encoding.bytes_for(self.width).unwrap_or(0);
        decode(self.encoding, &self.bytes[row * length..(row + 1) * length], out);
    }
}

impl Network {
    /// Bytes of memory that the weights take.
    pub fn bytes(&self) -> u64 {
        let layer = |layer: &Layer| {
            let linears = layer.linears.iter();
            let linears: usize =
                linears.map(|of| of.weights.bytes() + of.bias.as_ref().map_or(0, |bias| size_of_val(&**bias))).sum();
            let heads = layer.qk_norm.as_ref().map_or(0, |(query, key)| size_of_val(&**query) + size_of_val(&**key));
            linears + heads + size_of_val(&*layer.attention_norm) + size_of_val(&*layer.mlp_norm)
        };
        let layers: usize = self.layers.iter().map(layer).sum();
        let embedding = self.embedding.as_ref().map_or(0, |table| table.bytes.len());
        (layers + embedding + self.head.bytes() + size_of_val(&*self.final_norm)) as u64
    }

    /// The input embedding of a token, `[hidden]`.
    pub fn embed(&self, token: usize, out: &mut [f32]) {
        match &self.embedding {
            Some(table) => table.row(token, out),
            None => self.head.row(token, out),
        }
    }
}

impl Layer {
    pub fn linear(&self, projection: Projection) -> &Linear {
        &self.linears[projection as usize]
    }
}

impl BaseWeights for Network {
    fn row(&self, site: Site, row: usize) -> Option<Vec<f32>> {
        let (_, width) = self.shape.site_shape(site).filter(|(rows, _)| row < *rows)?;
        let mut out = vec![0.0; width];
        match site {
            Site::Embedding => self.embed(row, &mut out),
            Site::Head => self.head.row(row, &mut out),
            Site::Layer { layer, projection } => {
                self.layers[usize::from(layer)].linear(projection).weights.row(row, &mut out);
            }
        }
        Some(out)
    }

    fn bias(&self, site: Site) -> Option<Vec<f32>> {
        match site {
            Site::Embedding | Site::Head => None,
            Site::Layer { layer, projection } => self.layers.get(usize::from(layer))?.linear(projection).bias.clone(),
        }
    }
}

/// Takes tensors by Hugging Face's names and packs them.
pub struct Builder<'a> {
    pub weights: &'a mut Weights,
    pub shape: &'a ModelShape,
    pub pool: &'a mut Pool,
    pub memory: Memory,
}

type Built<T> = Result<T, LoadError>;

impl Builder<'_> {
    pub fn network(mut self) -> Built<Network> {
        let (vocab, hidden) = (self.shape.vocab, self.shape.hidden);
        let embedding = "model.embed_tokens.weight";
        let (embedding, head) = match self.shape.tied {
            true => (None, self.matrix(embedding, vocab, hidden)?),
            false => (Some(self.table(embedding, vocab, hidden)?), self.matrix("lm_head.weight", vocab, hidden)?),
        };
        let layers = (0..self.shape.layers).map(|layer| self.layer(layer)).collect::<Built<_>>()?;
        let final_norm = self.weights.take("model.norm.weight", &[hidden])?;
        Ok(Network { shape: self.shape.clone(), embedding, layers, final_norm, head })
    }

    fn layer(&mut self, layer: usize) -> Built<Layer> {
        let shape = self.shape;
        let mut vector = |module: &str, length: usize| {
            self.weights.take(&format!("model.layers.{layer}.{module}.weight"), &[length])
        };
        let qk_norm = match shape.qk_norm {
            true => Some((vector("self_attn.q_norm", shape.head_dim)?, vector("self_attn.k_norm", shape.head_dim)?)),
            false => None,
        };
        let attention_norm = vector("input_layernorm", shape.hidden)?;
        let mlp_norm = vector("post_attention_layernorm", shape.hidden)?;
        let linears = Projection::ALL.iter().map(|&projection| self.linear(layer, projection)).collect::<Built<_>>()?;
        let (rotary, window) = (!shape.no_rope[layer], shape.window[layer]);
        Ok(Layer { attention_norm, mlp_norm, linears, qk_norm, rotary, window })
    }

    fn linear(&mut self, layer: usize, projection: Projection) -> Built<Linear> {
        let module = format!("model.layers.{layer}.{}", projection.module());
        let (out, input) = self.shape.projection_shape(projection);
        let weights = self.matrix(&format!("{module}.weight"), out, input)?;
        let biased = self.shape.has_bias(Site::Layer { layer: layer as u16, projection });
        let bias = if biased { Some(self.weights.take(&format!("{module}.bias"), &[out])?) } else { None };
        Ok(Linear { weights, bias })
    }

    fn matrix(&mut self, name: &str, outputs: usize, inputs: usize) -> Built<Packed> {
        let stored = self.weights.take_stored(name, &[outputs, inputs])?;
        let rows = self.weights.rows(&stored);
        pack(self.pool, &mut self.memory, stored.encoding, outputs, inputs, &rows)
            .map_err(|fault| LoadError::Unsupported(format!("tensor '{name}': {fault}")))
    }

    fn table(&mut self, name: &str, rows: usize, width: usize) -> Built<Table> {
        let stored = self.weights.take_stored(name, &[rows, width])?;
        let encoded = self.weights.rows(&stored);
        let mut bytes = Vec::new();
        (0..rows).for_each(|row| bytes.extend_from_slice(encoded.row(row)));
        Ok(Table { encoding: stored.encoding, width, bytes })
    }
}

/// Packs a matrix on all threads.
fn pack(
    pool: &mut Pool,
    memory: &mut Memory,
    encoding: Encoding,
    outputs: usize,
    inputs: usize,
    rows: &EncodedRows,
) -> Result<Packed, PackFault> {
    let mut packed = Packed::zeroed_in(memory, encoding, outputs, inputs)?;
    let slots = packed.slots(PANELS_AT_ONCE);
    let mut slots: Vec<(Option<Slot>, Result<(), PackFault>)> = slots.map(|slot| (Some(slot), Ok(()))).collect();
    pool.each(cut(&mut slots, 1), |_, piece| {
        for (slot, outcome) in piece {
            *outcome = slot.take().map_or(Ok(()), |slot| slot.fill(|row| rows.row(row)));
        }
    });
    slots.into_iter().try_for_each(|(_, outcome)| outcome)?;
    Ok(packed)
}

/// The panels of several projections of one input, one after the other.
pub struct PanelsOf<'a> {
    parts: Vec<(Projection, &'a Linear, Range<usize>)>,
}

impl<'a> PanelsOf<'a> {
    pub fn new(layer: &'a Layer, projections: &[Projection]) -> Self {
        let mut next = 0;
        let parts = projections.iter().map(|&projection| {
            let linear = layer.linear(projection);
            let panels = next..next + linear.weights.panels();
            next = panels.end;
            (projection, linear, panels)
        });
        Self { parts: parts.collect() }
    }

    pub fn count(&self) -> usize {
        self.parts.last().map_or(0, |(_, _, panels)| panels.end)
    }

    /// The projection that panel `panel` of all belongs to, and its place there.
    pub fn find(&self, panel: usize) -> (Projection, &'a Linear, usize) {
        let found = self.parts.iter().find(|(_, _, panels)| panels.contains(&panel));
        let (projection, linear, panels) = found.expect("a panel of these projections");
        (*projection, linear, panel - panels.start)
    }

    /// Where a projection's first panel is.
    pub fn start(&self, projection: Projection) -> usize {
        self.parts.iter().find(|(other, _, _)| *other == projection).map_or(0, |(_, _, panels)| panels.start)
    }
}

//! What a family looks like: sizes, norms, biases, rope, tied or not. A description; the decoders read it.

use super::{Projection, Site};

/// The families that the decoders know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Family {
    Llama,
    Mistral,
    Qwen2,
    Qwen3,
    SmolLm3,
}

/// The sizes and habits of one model.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelShape {
    pub family: Family,
    pub hidden: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub ffn: usize,
    pub vocab: usize,
    /// The longest context served: the model's own, or less where a setting says so.
    pub max_positions: usize,
    pub norm_eps: f64,
    pub rope: Rope,
    /// Layers without rotary positions (SmolLM3); one flag for each layer.
    pub no_rope: Vec<bool>,
    /// For each layer, how many positions back it sees, itself included; `None` sees all.
    pub window: Vec<Option<usize>>,
    /// Output head and embedding are one matrix.
    pub tied: bool,
    /// Biases on query, key and value.
    pub qkv_bias: bool,
    /// A bias on the attention's output projection.
    pub output_bias: bool,
    /// Biases in the feed-forward.
    pub ffn_bias: bool,
    /// Norms on each head's query and key (Qwen3).
    pub qk_norm: bool,
}

/// How rotary frequencies are made from `theta`. Formulas as `transformers`' `modeling_rope_utils`.
#[derive(Clone, Debug, PartialEq)]
pub enum Rope {
    Plain {
        theta: f64,
    },
    /// Positions divided by `factor`.
    Linear {
        theta: f64,
        factor: f64,
    },
    /// Llama 3.1: low frequencies divided by `factor`, a smooth band between.
    Llama3 {
        theta: f64,
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: usize,
    },
    /// YaRN, as SmolLM3 and Qwen use it for long contexts.
    Yarn {
        theta: f64,
        factor: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        original_max_positions: usize,
        truncate: bool,
    },
    /// Frequencies divided by given factors, one for each pair of dimensions (a GGUF's `rope_freqs`).
    Factors {
        theta: f64,
        factors: Vec<f32>,
    },
}

impl ModelShape {
    /// Output and input features of the matrix at `site`; `None` if the model has no such layer.
    /// The embedding is `[vocab, hidden]`, as is the head.
    pub fn site_shape(&self, site: Site) -> Option<(usize, usize)> {
        match site {
            Site::Embedding | Site::Head => Some((self.vocab, self.hidden)),
            Site::Layer { layer, projection } => {
                (usize::from(layer) < self.layers).then(|| self.projection_shape(projection))
            }
        }
    }

    /// Output and input features of a projection, the same in every layer.
    pub fn projection_shape(&self, projection: Projection) -> (usize, usize) {
        let (queries, keys) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        match projection {
            Projection::Query => (queries, self.hidden),
            Projection::Key | Projection::Value => (keys, self.hidden),
            Projection::Output => (self.hidden, queries),
            Projection::Gate | Projection::Up => (self.ffn, self.hidden),
            Projection::Down => (self.hidden, self.ffn),
        }
    }

    /// Whether the linear map at `site` has a bias.
    pub fn has_bias(&self, site: Site) -> bool {
        match site {
            Site::Embedding | Site::Head => false,
            Site::Layer { projection, .. } => match projection {
                Projection::Query | Projection::Key | Projection::Value => self.qkv_bias,
                Projection::Output => self.output_bias,
                Projection::Gate | Projection::Up | Projection::Down => self.ffn_bias,
            },
        }
    }

    /// Every linear site of the layers, in order.
    pub fn layer_sites(&self) -> impl Iterator<Item = Site> + '_ {
        (0..self.layers)
            .flat_map(|layer| Projection::ALL.map(|projection| Site::Layer { layer: layer as u16, projection }))
    }
}

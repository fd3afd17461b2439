//! Decoders on the golden models, batches and adapters, for the tests beside this file.

use std::{path::Path, sync::Arc};

use candle_core::{DType, Device};

use crate::{
    model::{
        AdapterRows, Adjustments, Batch, KvShape, LanguageModel, LoraAdapter, Matrix, Packer, Projection, RowAnswer,
        RowAsk, SampleAsk, SequenceRows, Site, SiteDelta, StepOutput, Want, describe,
        lora::Values,
        tensor::{
            answer::Scoring,
            decoder::{Parts, TensorDecoder, assemble},
            ops::Counts,
        },
        weights::safetensors,
    },
    terms::{AdapterVersion, Digest},
};

pub const BLOCK_TOKENS: usize = 4;

/// A decoder and what is needed to feed it.
pub struct Bench {
    pub decoder: TensorDecoder,
    pub packer: Arc<dyn Packer>,
    output: StepOutput,
}

impl Bench {
    /// The golden model of this name, judging on the device as a GPU would.
    pub fn open(model: &str, dtype: DType) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(model);
        let (described, _) = describe::read_folder(&path).expect("a model");
        let mut weights = safetensors::open(&path).expect("its weights");
        let kv = KvShape { block_tokens: BLOCK_TOKENS, blocks: 1024, block_bytes: 0 };
        let base = Digest::of(b"base");
        let Parts { mut decoder, packer, .. } =
            assemble(&mut weights, described.shape, kv, base, Device::Cpu, dtype).expect("a decoder");
        decoder.set_scoring(Scoring::Device);
        Self { decoder, packer, output: StepOutput::default() }
    }

    pub fn run(&mut self, batch: &Batch) -> (Vec<RowAnswer>, Counts) {
        self.decoder.forward(batch, &mut self.output).expect("a step");
        (std::mem::take(&mut self.output.answers), self.decoder.counts().clone())
    }

    /// An adapter of `rank` on the projections that `has` names, of small seeded values.
    pub fn adapter(&self, seed: u64, rank: usize, has: impl Fn(usize, Projection) -> bool) -> Arc<LoraAdapter> {
        let mut noise = Noise(seed);
        let shape = self.packer.shape();
        let mut sites = Vec::new();
        for layer in 0..shape.layers {
            for projection in Projection::ALL.into_iter().filter(|projection| has(layer, *projection)) {
                let (out, input) = shape.projection_shape(projection);
                let a = noise.matrix(rank, input, 0.1);
                let b = noise.matrix(out, rank, 0.1);
                let scale = 0.5 + (seed % 4) as f32 / 2.0;
                let delta = SiteDelta::LowRank { a, b, scale, lora_bias: None, base_bias: None, magnitude: None };
                sites.push((Site::Layer { layer: layer as u16, projection }, delta));
            }
        }
        let version = AdapterVersion(Digest::of(&seed.to_le_bytes()));
        Arc::new(self.packer.pack(version, sites).expect("an adapter"))
    }
}

/// Seeded values.
pub struct Noise(pub u64);

impl Noise {
    /// Between 0 and 1 (SplitMix64).
    pub fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    pub fn below(&mut self, bound: usize) -> usize {
        (self.unit() * bound as f64) as usize
    }

    fn matrix(&mut self, rows: usize, cols: usize, size: f32) -> Matrix {
        let values = (0..rows * cols).map(|_| (self.unit() as f32 * 2.0 - 1.0) * size).collect();
        Matrix { rows, cols, values: Values::F32(values) }
    }
}

/// A batch of as many sequences as `lengths`, each with that many rows from position `first` on, and nothing asked.
pub fn sequences(lengths: &[usize], first: usize) -> Batch {
    let mut batch = Batch::default();
    for (index, &length) in lengths.iter().enumerate() {
        let blocks = (first + length).div_ceil(BLOCK_TOKENS);
        let each = 1024 / lengths.len();
        assert!(blocks <= each, "too few blocks");
        batch.sequences.push(SequenceRows {
            first_row: batch.rows() as u32,
            rows: length as u32,
            blocks: (0..blocks).map(|block| (index * each + block) as u32).collect(),
        });
        batch.tokens.extend((0..length).map(|row| ((index * 31 + (first + row) * 7) % 512) as u32));
        batch.positions.extend((first..first + length).map(|position| position as u32));
    }
    batch
}

/// Puts each sequence's rows on the adapter of the same place, listing the last first.
pub fn assign(batch: &mut Batch, adapters: &[Arc<LoraAdapter>]) {
    let rows = |sequence: &SequenceRows| (sequence.first_row..sequence.first_row + sequence.rows).collect();
    let pairs = batch.sequences.iter().zip(adapters);
    batch.adapters = pairs.map(|(s, weights)| AdapterRows { rows: rows(s), weights: weights.clone() }).rev().collect();
}

/// Asks the last row of each sequence.
pub fn ask(batch: &mut Batch, want: impl Fn(usize) -> Want) {
    let last = |sequence: &SequenceRows| sequence.first_row + sequence.rows - 1;
    let rows = batch.sequences.iter().map(last).enumerate();
    batch.asks = rows.map(|(index, row)| RowAsk { row, want: want(index) }).collect();
}

/// An ask for a sample at temperature 0.8 with everything off.
pub fn sample() -> SampleAsk {
    SampleAsk {
        temperature: 0.8,
        top_k: 40,
        top_p: 1.0,
        min_p: 0.0,
        u: 0.4,
        adjustments: Adjustments::default(),
        top: 0,
    }
}

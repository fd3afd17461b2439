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
        assert_eq!(self.output.fetched, self.decoder.counts().undecided);
        (std::mem::take(&mut self.output.answers), self.decoder.counts().clone())
    }

    pub fn forge(&self) -> Forge<'_> {
        Forge(&*self.packer)
    }

    /// See [`Forge::adapter`].
    pub fn adapter(&self, seed: u64, rank: usize, has: impl Fn(usize, Projection) -> bool) -> Arc<LoraAdapter> {
        self.forge().adapter(seed, rank, has)
    }
}

/// Makes adapters for any decoder.
pub struct Forge<'p>(pub &'p dyn Packer);

impl Forge<'_> {
    /// An adapter of `rank` on the projections that `has` names, of small seeded values.
    pub fn adapter(&self, seed: u64, rank: usize, has: impl Fn(usize, Projection) -> bool) -> Arc<LoraAdapter> {
        self.adapter_with(seed, rank, has, |_, delta| delta)
    }

    /// DoRA with biases of rank 4 on every projection: all that is done to outputs.
    pub fn turning(&self, seed: u64) -> Arc<LoraAdapter> {
        self.adapter_with(seed, 4, |_, _| true, turned)
    }

    /// With each site's delta changed by `alter`.
    fn adapter_with(
        &self,
        seed: u64,
        rank: usize,
        has: impl Fn(usize, Projection) -> bool,
        alter: impl Fn(&mut Noise, SiteDelta) -> SiteDelta,
    ) -> Arc<LoraAdapter> {
        let mut noise = Noise(seed);
        let shape = self.0.shape();
        let mut sites = Vec::new();
        for layer in 0..shape.layers {
            for projection in Projection::ALL.into_iter().filter(|projection| has(layer, *projection)) {
                let site = Site::Layer { layer: layer as u16, projection };
                let delta = self.low_rank(&mut noise, site, rank, 0.5 + (seed % 4) as f32 / 2.0);
                sites.push((site, alter(&mut noise, delta)));
            }
        }
        self.packed(seed, sites)
    }

    /// One adapter for each thing that can be done beside low ranks on projections: outputs turned, biases alone, and each change
    /// of embedding and head.
    pub fn kinds(&self) -> Vec<Arc<LoraAdapter>> {
        let mut noise = Noise(77);
        let (hidden, vocab) = (self.0.shape().hidden, self.0.shape().vocab);
        let embedding = |noise: &mut Noise, magnitude| {
            let (a, b) = (noise.matrix(4, vocab, 0.1), noise.matrix(hidden, 4, 0.1));
            SiteDelta::EmbedLowRank { a, b, scale: 0.5, magnitude }
        };
        let bias = |noise: &mut Noise, site: Site| {
            let outputs = self.0.shape().site_shape(site).expect("a site").0;
            SiteDelta::Bias(noise.matrix(1, outputs, 0.1).values.to_f32())
        };
        let query = Site::Layer { layer: 0, projection: Projection::Query };
        let head = self.low_rank(&mut noise, Site::Head, 4, 1.5);
        let deltas = [
            vec![(query, bias(&mut noise, query))],
            vec![(Site::Embedding, embedding(&mut noise, None))],
            vec![(Site::Embedding, embedding(&mut noise, Some(vec![5.0; hidden])))],
            vec![(Site::Embedding, SiteDelta::Full(noise.matrix(vocab, hidden, 0.1)))],
            vec![(Site::Head, self.low_rank(&mut noise, Site::Head, 4, 1.5))],
            vec![(Site::Head, turned(&mut noise, head))],
            vec![(Site::Head, SiteDelta::Full(noise.matrix(vocab, hidden, 0.1)))],
            vec![(Site::Head, bias(&mut noise, Site::Head))],
        ];
        let kinds = (100u64..).zip(deltas).map(|(seed, sites)| self.packed(seed, sites));
        [self.turning(1), self.turning(2)].into_iter().chain(kinds).collect()
    }

    fn low_rank(&self, noise: &mut Noise, site: Site, rank: usize, scale: f32) -> SiteDelta {
        let (out, input) = self.0.shape().site_shape(site).expect("a site");
        let (a, b) = (noise.matrix(rank, input, 0.1), noise.matrix(out, rank, 0.1));
        SiteDelta::LowRank { a, b, scale, lora_bias: None, base_bias: None, magnitude: None }
    }

    fn packed(&self, seed: u64, sites: Vec<(Site, SiteDelta)>) -> Arc<LoraAdapter> {
        let version = AdapterVersion(Digest::of(&seed.to_le_bytes()));
        Arc::new(self.0.pack(version, sites).expect("an adapter"))
    }
}

/// A low rank with all else that it can have.
fn turned(noise: &mut Noise, delta: SiteDelta) -> SiteDelta {
    let SiteDelta::LowRank { a, b, scale, .. } = delta else { return delta };
    let mut vector = |least: f32| {
        let values = noise.matrix(1, b.rows, 0.1).values.to_f32();
        Some(values.into_iter().map(|value| least + value).collect::<Vec<f32>>())
    };
    let (lora_bias, base_bias, magnitude) = (vector(0.0), vector(0.0), vector(1.0));
    SiteDelta::LowRank { a, b, scale, lora_bias, base_bias, magnitude }
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

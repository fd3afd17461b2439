//! A decoder driven by hand: ragged batches of whole requests, with chunk sizes, blocks and adapters as a test wants them.

use std::{path::Path, sync::Arc};

use tunegate::{
    adapters::{AdapterLimits, folder::AdapterFiles, peft},
    config::Dtype,
    model::{
        AdapterRows, Adjustments, Batch, CpuDecoder, CpuOptions, Isa, LoadOptions, Loaded, LoraAdapter, ModelSource,
        RowAnswer, RowAsk, SampleAsk, SequenceRows, Site, SiteDelta, StepOutput, Want, load,
    },
    terms::TokenScore,
};

use super::golden::{Answer, Greedy};
use crate::support::device_choice;

const LIMITS: AdapterLimits = AdapterLimits { max_rank: 512, max_file_bytes: 64 << 20 };

/// The decoders that are held to the oracle's numbers.
pub const EXACT: [CpuOptions; 2] = [on(CpuDecoder::Tensor, true), on(CpuDecoder::Fused, true)];

pub const FAST: CpuOptions = on(CpuDecoder::Fused, false);

const fn on(decoder: CpuDecoder, exact: bool) -> CpuOptions {
    CpuOptions { decoder, exact, threads: Some(2), pin: false, isa: None }
}

/// The same at every level of instructions that the machine has. Tensors have their own.
pub fn levels(cpu: CpuOptions) -> Vec<CpuOptions> {
    match cpu.decoder {
        CpuDecoder::Fused => Isa::all().into_iter().map(|isa| CpuOptions { isa: Some(isa), ..cpu }).collect(),
        CpuDecoder::Tensor => vec![cpu],
    }
}

pub struct Desk {
    pub loaded: Loaded,
    output: StepOutput,
}

/// One prompt, its adapter, and how many rows each of its prompt chunks has.
#[derive(Clone)]
pub struct Request<'a> {
    pub tokens: &'a [u32],
    pub adapter: Option<Arc<LoraAdapter>>,
    pub chunk: usize,
}

impl<'a> Request<'a> {
    pub fn of(tokens: &'a [u32], adapter: Option<Arc<LoraAdapter>>) -> Self {
        Self { tokens, adapter, chunk: usize::MAX }
    }
}

/// A request on its way.
struct Running<'a> {
    request: &'a Request<'a>,
    /// Prompt and what was drawn since.
    tokens: Vec<u32>,
    done: usize,
    blocks: Vec<u32>,
    answer: Answer,
}

impl Desk {
    pub fn open(path: &Path, max_model_len: usize, cpu: CpuOptions) -> Self {
        Self::open_with(path, max_model_len, 4, cpu)
    }

    pub fn open_with(path: &Path, max_model_len: usize, block_tokens: usize, cpu: CpuOptions) -> Self {
        let source = ModelSource::detect(path).unwrap_or_else(|error| panic!("{error}"));
        let options = LoadOptions {
            device: device_choice(),
            dtype: Some(Dtype::Float32),
            kv_bytes: 64 << 20,
            block_tokens,
            max_model_len: Some(max_model_len),
            cpu,
        };
        let loaded = load(&source, &options).unwrap_or_else(|error| panic!("{error}"));
        Self { loaded, output: StepOutput::default() }
    }

    /// Reads a PEFT folder as the server would.
    pub fn adapter(&self, folder: &Path) -> Arc<LoraAdapter> {
        self.altered_adapter(folder, |_| ())
    }

    /// The same, with its sites changed before they are packed.
    pub fn altered_adapter(&self, folder: &Path, alter: impl Fn(&mut SiteDelta)) -> Arc<LoraAdapter> {
        let files = AdapterFiles::read(folder, folder, LIMITS.max_file_bytes).expect("an adapter folder");
        let read = peft::read(&files, &self.loaded.shape, LIMITS, Some(&*self.loaded.base)).expect("a good adapter");
        let mut sites: Vec<(Site, SiteDelta)> = read.sites;
        sites.iter_mut().for_each(|(_, delta)| alter(delta));
        Arc::new(self.loaded.packer.pack(files.version(), sites).expect("a supported adapter"))
    }

    /// Answers every request, all of them in the same steps: prompts by chunks, then `greedy` tokens each.
    pub fn answer(&mut self, requests: &[Request], greedy: usize) -> Vec<Answer> {
        self.answer_shifted(requests, greedy, 0)
    }

    /// The same; with `shift`, adapters are put on rows that many too late (round about), which is a defect to be caught.
    pub fn answer_shifted(&mut self, requests: &[Request], greedy: usize, shift: usize) -> Vec<Answer> {
        let mut running = self.seat(requests, greedy);
        let mut batch = Batch::default();
        loop {
            batch.clear();
            // Which request and which of its positions each ask belongs to.
            let mut asked = Vec::new();
            for (index, run) in running.iter().enumerate() {
                run.contribute(index, greedy, &mut batch, &mut asked);
            }
            if batch.rows() == 0 {
                return running.into_iter().map(|run| run.answer).collect();
            }
            assign_adapters(&running, greedy, shift, &mut batch);
            self.loaded.decoder.forward(&batch, &mut self.output).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(self.output.answers.len(), asked.len(), "one answer for each ask");
            for ((index, position), answer) in asked.into_iter().zip(&self.output.answers) {
                let RowAnswer::Score(score) = answer else {
                    panic!("position {position} of request {index}: {answer:?}")
                };
                running[index].take(position, score);
            }
            running.iter_mut().for_each(|run| run.done += run.rows(greedy));
        }
    }

    /// Gives out the blocks round about, so that no sequence's lie side by side.
    fn seat<'a>(&self, requests: &'a [Request<'a>], greedy: usize) -> Vec<Running<'a>> {
        let kv = self.loaded.decoder.kv_shape();
        let longest = requests.iter().map(|r| r.tokens.len() + greedy).max().unwrap_or(0).div_ceil(kv.block_tokens);
        assert!(longest * requests.len() <= kv.blocks, "{longest} blocks for each of {} requests", requests.len());
        requests
            .iter()
            .enumerate()
            .map(|(index, request)| Running {
                request,
                tokens: request.tokens.to_vec(),
                done: 0,
                blocks: (0..longest).rev().map(|block| (block * requests.len() + index) as u32).collect(),
                answer: Answer::default(),
            })
            .collect()
    }
}

impl Running<'_> {
    /// Rows in the next step: a prompt chunk, one drawn token, or none when all is said.
    fn rows(&self, greedy: usize) -> usize {
        let prompt = self.request.tokens.len();
        if self.done < prompt {
            self.request.chunk.min(prompt - self.done)
        } else {
            usize::from(self.answer.greedy.tokens.len() < greedy)
        }
    }

    fn contribute(&self, index: usize, greedy: usize, batch: &mut Batch, asked: &mut Vec<(usize, usize)>) {
        let rows = self.rows(greedy);
        if rows == 0 {
            return;
        }
        let first_row = batch.rows() as u32;
        for position in self.done..self.done + rows {
            let row = batch.rows() as u32;
            batch.tokens.push(self.tokens[position]);
            batch.positions.push(position as u32);
            let want = match self.tokens.get(position + 1) {
                Some(&token) => Want::Score { token, top: 0 },
                None => Want::Sample(Box::new(SampleAsk {
                    temperature: 0.0,
                    top_k: 0,
                    top_p: 1.0,
                    min_p: 0.0,
                    u: 0.0,
                    adjustments: Adjustments::default(),
                    top: 5,
                })),
            };
            batch.asks.push(RowAsk { row, want });
            asked.push((index, position));
        }
        batch.sequences.push(SequenceRows { first_row, rows: rows as u32, blocks: self.blocks.clone() });
    }

    fn take(&mut self, position: usize, score: &TokenScore) {
        let prompt = self.request.tokens.len();
        if position < prompt {
            self.answer.entropies.push((position, score.entropy));
        }
        if position + 1 < prompt {
            self.answer.logprobs.push(score.logprob);
            return;
        }
        if position + 1 == prompt {
            self.answer.top = score.top.clone();
        }
        let Greedy { tokens, logprobs, .. } = &mut self.answer.greedy;
        tokens.push(score.token);
        logprobs.push(score.logprob);
        self.tokens.push(score.token);
    }
}

/// Lists each adapter once with all its rows in this step.
fn assign_adapters(running: &[Running], greedy: usize, shift: usize, batch: &mut Batch) {
    let (mut row, rows) = (0u32, batch.rows() as u32);
    for run in running {
        let count = run.rows(greedy) as u32;
        if let Some(weights) = &run.request.adapter {
            let own = (row..row + count).map(|row| (row + shift as u32) % rows);
            match batch.adapters.iter_mut().find(|listed| Arc::ptr_eq(&listed.weights, weights)) {
                Some(listed) => listed.rows.extend(own),
                None => batch.adapters.push(AdapterRows { rows: own.collect(), weights: weights.clone() }),
            }
        }
        row += count;
    }
    batch.adapters.retain(|listed| !listed.rows.is_empty());
    batch.adapters.iter_mut().for_each(|listed| listed.rows.sort_unstable());
}

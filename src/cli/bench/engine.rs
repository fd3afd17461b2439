//! `tunegate bench engine`: steps of the decoder by themselves, and where their time goes.

mod profile;

use std::{fmt, path::PathBuf, sync::Arc, time::Instant};

use serde::Serialize;

use self::profile::{Machine, Profile};

use crate::{
    model::{
        self, AdapterRows, Adjustments, Batch, CpuDecoder, CpuOptions, DeviceChoice, Isa, LoadOptions, Loaded,
        LoraAdapter, MachineLimits, Matrix, ModelSource, RowAsk, SampleAsk, SequenceRows, SiteDelta, StepOutput, Want,
        lora::Values,
    },
    terms::{AdapterVersion, Digest},
};

/// Measure steps of the CPU decoder without a server: one stream, several, several adapters, a prompt
#[derive(Debug, clap::Args)]
pub struct EngineArgs {
    /// A GGUF file or a Hugging Face folder
    model: PathBuf,
    /// Compute in f32 throughout
    #[arg(long)]
    exact: bool,
    /// Compute threads; one for each core by default
    #[arg(long, value_name = "COUNT", value_parser = threads)]
    cpu_threads: Option<usize>,
    /// Which vector instructions to compute with: auto, or what the machine has of plain, avx2, avx512, amx
    #[arg(long, value_name = "LEVEL", default_value = "auto")]
    cpu_instructions: String,
    /// Keep each compute thread on a core of its own
    #[arg(long)]
    cpu_pin: bool,
    /// Streams beside a single one
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(2..=256))]
    streams: u16,
    /// Rank of the adapters of random weights, on all projections
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    rank: u16,
    /// Tokens before the first measured one
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    prompt_tokens: u16,
    /// Measured steps
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    steps: u16,
    /// Show where a step goes, by phase, beside what the machine can do, which is measured first
    #[arg(long)]
    profile: bool,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn threads(text: &str) -> Result<usize, String> {
    text.parse()
        .ok()
        .filter(|threads| (1..=1024).contains(threads))
        .ok_or_else(|| "it is a number from 1 to 1024".into())
}

/// Adapters that many streams share.
const SOME_ADAPTERS: usize = 8;

/// What is measured.
struct Workload {
    name: String,
    streams: usize,
    adapters: usize,
    /// Rows of each stream in a step: 1 for answers, more for prompts.
    rows: usize,
    /// Drawn at random, from the most likely tokens.
    drawn: bool,
    /// Rows of a long prompt beside them, which has been read up to [`DEEP`].
    beside: usize,
}

/// All that was measured.
#[derive(Serialize)]
struct Measured {
    /// Without a profile the machine is not measured.
    machine: Option<Machine>,
    workloads: Vec<Figures>,
}

/// One workload's figures.
#[derive(Serialize)]
struct Figures {
    workload: String,
    tokens_per_second_median: f64,
    tokens_per_second_best: f64,
    step_ms_median: f64,
    profile: Option<Profile>,
}

/// Runs the measurement and prints it. An error is one line for a person.
pub fn run(args: &EngineArgs) -> Result<(), String> {
    let mut desk = Desk::open(args)?;
    let limits = if args.profile { desk.loaded.decoder.limits().map_err(|error| error.to_string())? } else { None };
    let machine = limits.as_ref().map(Machine::from);
    if let Some(machine) = &machine {
        println!("{machine}");
    }
    let many = usize::from(args.streams);
    let decode =
        |name: String, streams, adapters| Workload { name, streams, adapters, rows: 1, drawn: false, beside: 0 };
    let few = SOME_ADAPTERS.min(many);
    let mut workloads = vec![
        decode("1 stream, base".to_owned(), 1, 0),
        decode("1 stream, 1 adapter".to_owned(), 1, 1),
        decode(format!("{many} streams, base"), many, 0),
        decode(format!("{many} streams, 1 adapter"), many, 1),
        decode(format!("{many} streams, {few} adapters"), many, few),
    ];
    if many > few {
        workloads.push(decode(format!("{many} streams, {many} adapters"), many, many));
    }
    workloads.extend([
        Workload { drawn: true, ..decode("1 stream, drawn".to_owned(), 1, 0) },
        Workload { drawn: true, ..decode(format!("{many} streams, drawn"), many, 0) },
        Workload { rows: 512, ..decode("prompt, 512 rows a step".to_owned(), 1, 0) },
        Workload { beside: BESIDE, ..decode(format!("{many} streams, {BESIDE} prompt rows"), many, 0) },
    ]);
    let mut all = Vec::new();
    for workload in &workloads {
        let figures = desk.measure(workload, limits.as_ref())?;
        print!("{figures}");
        all.push(figures);
    }
    if let Some(path) = &args.json {
        let measured = Measured { machine, workloads: all };
        let text = serde_json::to_string_pretty(&measured).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { workload, tokens_per_second_median, tokens_per_second_best, step_ms_median, profile } = self;
        writeln!(
            f,
            "{workload:28} {tokens_per_second_median:7.1} tokens/s median, {tokens_per_second_best:7.1} best; \
             {step_ms_median:.2} ms a step"
        )?;
        profile.as_ref().map_or(Ok(()), |profile| profile.fmt(f))
    }
}

/// The decoder, its adapters, and how it is asked.
struct Desk {
    loaded: Loaded,
    adapters: Vec<Arc<LoraAdapter>>,
    prompt: usize,
    steps: usize,
    blocks_each: usize,
    deep: usize,
    output: StepOutput,
}

const BLOCK_TOKENS: usize = 32;
const PROMPT_ROWS: usize = 512;
/// How much of a long prompt has been read where rows of one are beside answers, if the model takes as much.
const DEEP: usize = 2048;
/// How many rows of one that are.
const BESIDE: usize = 16;

impl Desk {
    fn open(args: &EngineArgs) -> Result<Self, String> {
        let source = ModelSource::detect(&args.model).map_err(|error| error.to_string())?;
        let shape = model::shape_of(&source).map_err(|error| error.to_string())?;
        let (prompt, steps) = (usize::from(args.prompt_tokens), usize::from(args.steps));
        let blocks_each = (prompt + steps).max(PROMPT_ROWS).div_ceil(BLOCK_TOKENS);
        let deep = DEEP.min(shape.max_positions.saturating_sub(BESIDE));
        let blocks_deep = (deep + BESIDE).div_ceil(BLOCK_TOKENS);
        let position = 2 * shape.layers * shape.kv_heads * shape.head_dim * size_of::<f32>();
        let isa = Isa::named(&args.cpu_instructions).map_err(|error| format!("--cpu-instructions: {error}"))?;
        let (threads, pin) = (args.cpu_threads, args.cpu_pin);
        let cpu = CpuOptions { decoder: CpuDecoder::Fused, exact: args.exact, threads, pin, isa };
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            dtype: None,
            kv_bytes: (position * BLOCK_TOKENS * (blocks_each * usize::from(args.streams) + blocks_deep)) as u64,
            block_tokens: BLOCK_TOKENS,
            max_model_len: Some(blocks_each.max(blocks_deep) * BLOCK_TOKENS),
            cpu,
        };
        let began = Instant::now();
        let loaded = model::load(&source, &options).map_err(|error| error.to_string())?;
        println!("loaded in {:.2} s", began.elapsed().as_secs_f64());
        let adapters = (0..usize::from(args.streams))
            .map(|seed| adapter(&loaded, seed, usize::from(args.rank)))
            .collect::<Result<_, _>>()?;
        Ok(Self { loaded, adapters, prompt, steps, blocks_each, deep, output: StepOutput::default() })
    }

    /// Reads a prompt in each stream, then measures steps.
    fn measure(&mut self, workload: &Workload, limits: Option<&MachineLimits>) -> Result<Figures, String> {
        let answers = workload.rows == 1;
        if answers {
            for stream in 0..workload.streams {
                let mut batch = Batch::default();
                self.extend(&mut batch, stream, 0, self.prompt);
                self.forward(&batch)?;
            }
        }
        for position in (0..if workload.beside > 0 { self.deep } else { 0 }).step_by(PROMPT_ROWS) {
            let mut batch = Batch::default();
            self.extend(&mut batch, workload.streams, position, PROMPT_ROWS.min(self.deep - position));
            self.forward(&batch)?;
        }
        let steps = if answers { self.steps } else { 5 };
        let mut seconds = Vec::with_capacity(steps);
        self.loaded.decoder.take_timings();
        for step in 0..steps {
            let position = if answers { self.prompt + step } else { 0 };
            let batch = self.batch(workload, position);
            let began = Instant::now();
            self.forward(&batch)?;
            seconds.push(began.elapsed().as_secs_f64());
        }
        let timings = self.loaded.decoder.take_timings();
        // The context grows step by step: the middle one stands for all.
        let position = if answers { self.prompt + steps / 2 } else { 0 };
        let needs = self.loaded.decoder.needs(&self.batch(workload, position)).map_err(|error| error.to_string())?;
        seconds.sort_by(f64::total_cmp);
        let rows = (workload.streams * workload.rows + workload.beside) as f64;
        let median = seconds[seconds.len() / 2];
        Ok(Figures {
            workload: workload.name.clone(),
            tokens_per_second_median: rows / median,
            tokens_per_second_best: rows / seconds[0],
            step_ms_median: 1e3 * median,
            profile: limits.zip(timings).map(|(limits, timings)| Profile::of(limits, &needs, &timings)),
        })
    }

    fn batch(&self, workload: &Workload, position: usize) -> Batch {
        let mut batch = Batch::default();
        for stream in 0..workload.streams {
            self.extend(&mut batch, stream, position, workload.rows);
            let want = if workload.drawn { drawn(stream, position) } else { greedy() };
            batch.asks.push(RowAsk { row: batch.rows() as u32 - 1, want });
        }
        if workload.beside > 0 {
            // The same rows in every step: they are written where they were.
            self.extend(&mut batch, workload.streams, self.deep, workload.beside);
        }
        for (place, weights) in self.adapters.iter().take(workload.adapters).enumerate() {
            let rows = (place..workload.streams).step_by(workload.adapters).map(|row| row as u32).collect();
            batch.adapters.push(AdapterRows { rows, weights: Arc::clone(weights) });
        }
        batch
    }

    /// Adds `rows` rows of one stream, from `position` on.
    fn extend(&self, batch: &mut Batch, stream: usize, position: usize, rows: usize) {
        let first_row = batch.rows() as u32;
        let vocab = self.loaded.shape.vocab;
        for position in position..position + rows {
            batch.tokens.push(((stream * 7919 + position * 104_729 + 11) % vocab) as u32);
            batch.positions.push(position as u32);
        }
        let first_block = (stream * self.blocks_each) as u32;
        let count = (position + rows).div_ceil(BLOCK_TOKENS).max(self.blocks_each);
        let blocks = (first_block..first_block + count as u32).collect();
        batch.sequences.push(SequenceRows { first_row, rows: rows as u32, blocks });
    }

    fn forward(&mut self, batch: &Batch) -> Result<(), String> {
        self.loaded.decoder.forward(batch, &mut self.output).map_err(|error| error.to_string())
    }
}

fn greedy() -> Want {
    sample(0.0, 1.0, 0.0)
}

/// As many clients ask for it; `u` goes round evenly.
fn drawn(stream: usize, position: usize) -> Want {
    sample(0.8, 0.95, (stream as f64 * 0.377 + position as f64 * 0.618_034).fract())
}

fn sample(temperature: f32, top_p: f32, u: f64) -> Want {
    Want::Sample(Box::new(SampleAsk {
        temperature,
        top_k: 0,
        top_p,
        min_p: 0.0,
        u,
        adjustments: Adjustments::default(),
        top: 0,
    }))
}

/// An adapter of small weights on every projection of every layer.
fn adapter(loaded: &Loaded, seed: usize, rank: usize) -> Result<Arc<LoraAdapter>, String> {
    let matrix = |rows: usize, cols: usize| {
        let value = |index: usize| ((index * 31 + seed * 7) % 17) as f32 * 1e-3 - 8e-3;
        Matrix { rows, cols, values: Values::F32((0..rows * cols).map(value).collect()) }
    };
    let low_rank = |out, input| SiteDelta::LowRank {
        a: matrix(rank, input),
        b: matrix(out, rank),
        scale: 1.0,
        lora_bias: None,
        base_bias: None,
        magnitude: None,
    };
    let shape = &loaded.shape;
    let sites =
        shape.layer_sites().filter_map(|site| shape.site_shape(site).map(|(out, input)| (site, low_rank(out, input))));
    let version = AdapterVersion(Digest::of(&seed.to_le_bytes()));
    loaded.packer.pack(version, sites.collect()).map(Arc::new).map_err(|error| error.to_string())
}

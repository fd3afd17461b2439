//! `tunegate bench numerics`: what the fast class changes, held against its gates.

pub mod compare;

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Value, json};

use self::compare::{Comparison, GATES, Side};
use crate::{
    adapters::{AdapterLimits, Refusal, folder::AdapterFiles, peft},
    config::AdapterConfig,
    model::{self, CpuOptions, DeviceChoice, Isa, LoadOptions, Loaded, LoraAdapter, ModelSource},
    text::{Text, TextSource},
};

/// Compare the fast class of the CPU decoder with the exact one, token by token, on a text
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  tunegate bench numerics models/demo.gguf --text benches/reading.txt --adapter adapters/ticket-triage

The exit code is 1 if a gate does not hold: mean KL divergence, how far the exact class's best token is ahead of its second
where the fast class prefers another, and from 10000 tokens on also the 99th percentile of the error in the next token's
log-probability and the ratio of the perplexities.")]
pub struct NumericsArgs {
    /// GGUF files or Hugging Face folders
    #[arg(required = true)]
    models: Vec<PathBuf>,
    /// A UTF-8 text; both classes read it in windows, and are asked for every next token
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// A PEFT folder (repeatable): the text is read once more on each
    #[arg(long, value_name = "DIR")]
    adapter: Vec<PathBuf>,
    /// Read the text on the adapters only, not on the base
    #[arg(long, requires = "adapter")]
    no_base: bool,
    /// At least this many tokens are compared
    #[arg(long, default_value_t = compare::ENOUGH)]
    tokens: usize,
    /// Tokens in a window, which begins without any context
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(u16).range(2..=4096))]
    window: u16,
    /// Compute threads; one for each core by default
    #[arg(long, value_name = "COUNT", value_parser = super::engine::threads)]
    cpu_threads: Option<usize>,
    /// Which vector instructions to compute with, in both classes: auto, or what the machine has of plain, avx2, avx512, amx
    #[arg(long, value_name = "LEVEL", default_value = "auto")]
    cpu_instructions: String,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Runs the comparison and prints it. An error is one line for a person.
pub fn run(args: &NumericsArgs) -> Result<(), String> {
    let isa = Isa::named(&args.cpu_instructions).map_err(|error| format!("--cpu-instructions: {error}"))?;
    let (mut all, mut faults) = (Vec::new(), Vec::new());
    for model in &args.models {
        let mut pair = Pair::open(model, args, isa)?;
        let base = (!args.no_base).then_some(None);
        for folder in base.into_iter().chain(args.adapter.iter().map(Some)) {
            let name = folder.map_or("base".to_owned(), |folder| folder.display().to_string());
            let figures = pair.compare(folder.map(PathBuf::as_path))?.figures();
            println!("{} / {name}, {figures}", model.display());
            let found = figures.faults(&GATES, false);
            faults.extend(found.iter().map(|fault| format!("{} / {name}: {fault}", model.display())));
            all.push(json!({ "model": model, "adapter": folder, "figures": figures, "faults": found }));
        }
    }
    if let Some(path) = &args.json {
        let text = format!("{:#}\n", Value::from(all));
        fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("the gates do not hold: {}", faults.join("; "))) }
}

/// Both classes of one model, and the text in its tokens.
struct Pair {
    exact: Loaded,
    fast: Loaded,
    windows: Vec<Vec<u32>>,
}

impl Pair {
    fn open(path: &Path, args: &NumericsArgs, isa: Option<Isa>) -> Result<Self, String> {
        let named = |error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
        let source = ModelSource::detect(path).map_err(|error| error.to_string())?;
        let text = match &source {
            ModelSource::Folder(path) => TextSource::Folder(path.clone()),
            ModelSource::Gguf(path) => TextSource::Gguf(path.clone()),
        };
        let text = Text::load(&text, None).map_err(|error| error.to_string())?;
        let words = fs::read_to_string(&args.text).map_err(|error| format!("{}: {error}", args.text.display()))?;
        let tokens = text.encode(&words, true).map_err(|error| named(&error))?;
        let window = usize::from(args.window);
        // The last token of a window has no next one.
        let windows: Vec<Vec<u32>> =
            tokens.chunks_exact(window).take(args.tokens.div_ceil(window - 1)).map(<[u32]>::to_vec).collect();
        let compared = windows.len() * (window - 1);
        if compared < args.tokens {
            let text = args.text.display();
            return Err(named(&format!("{text} has whole windows for {compared} tokens, not for {}", args.tokens)));
        }
        let cpu = CpuOptions { threads: args.cpu_threads, isa, ..CpuOptions::default() };
        let load = |exact| load(&source, window, CpuOptions { exact, ..cpu });
        Ok(Self { exact: load(true)?, fast: load(false)?, windows })
    }

    /// Reads the text in both classes, on the adapter in `folder` or on the base.
    fn compare(&mut self, folder: Option<&Path>) -> Result<Comparison, String> {
        let pack = |loaded: &Loaded| folder.map(|folder| adapter(loaded, folder)).transpose();
        let (in_exact, in_fast) = (pack(&self.exact)?, pack(&self.fast)?);
        let mut exact = Side { decoder: &mut *self.exact.decoder, adapter: in_exact.as_ref() };
        let mut fast = Side { decoder: &mut *self.fast.decoder, adapter: in_fast.as_ref() };
        let mut comparison = Comparison::default();
        for window in &self.windows {
            comparison.read(window, &mut exact, &mut fast)?;
        }
        Ok(comparison)
    }
}

const BLOCK_TOKENS: usize = 32;

fn load(source: &ModelSource, window: usize, cpu: CpuOptions) -> Result<Loaded, String> {
    let shape = model::shape_of(source).map_err(|error| error.to_string())?;
    let position = 2 * shape.layers * shape.kv_heads * shape.head_dim * size_of::<f32>();
    let options = LoadOptions {
        device: DeviceChoice::Cpu,
        dtype: None,
        kv_bytes: (position * window.next_multiple_of(BLOCK_TOKENS)) as u64,
        block_tokens: BLOCK_TOKENS,
        max_model_len: Some(window),
        cpu,
    };
    model::load(source, &options).map_err(|error| error.to_string())
}

/// An adapter as a server would read it.
fn adapter(loaded: &Loaded, folder: &Path) -> Result<Arc<LoraAdapter>, String> {
    let limits = AdapterLimits::from(&AdapterConfig::default());
    let reasons = |refusals: Vec<Refusal>| {
        let reasons: Vec<String> = refusals.iter().map(ToString::to_string).collect();
        format!("{}: {}", folder.display(), reasons.join("; "))
    };
    let files = AdapterFiles::read(folder, folder, limits.max_file_bytes).map_err(reasons)?;
    let read = peft::read(&files, &loaded.shape, limits, Some(&*loaded.base)).map_err(reasons)?;
    let packed = loaded.packer.pack(files.version(), read.sites).map_err(|error| error.to_string())?;
    Ok(Arc::new(packed))
}

//! The trained demo model as `scripts/make-formats` writes it: the fast class's gate, and that the model made wider for K-quants
//! is the same function. `make numerics` reads ten times as many tokens, in every format, and judges tails too.

use std::{path::Path, process::Command};

use tempfile::TempDir;
use tunegate::{
    cli::bench::numerics::compare::GATES,
    text::{Text, TextSource},
};

use super::{
    demo_model,
    desk::{Desk, EXACT},
    fast::Pair,
    second_opinion::last_logits,
};

const WINDOW: usize = 512;

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A folder with the demo model in one format and, made wider, the demo adapter.
fn made(name: &str) -> TempDir {
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a folder below target");
    let adapter = repository("adapters/ticket-triage");
    run("make-formats", &[&demo_model(), folder.path()], &["--only", name, "--adapter", &adapter.to_string_lossy()]);
    folder
}

/// Runs one of the scripts that write models and adapters.
fn run(script: &str, paths: &[&Path], options: &[&str]) {
    let python = std::env::var("TUNEGATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(&python);
    command.arg(repository(&format!("scripts/{script}"))).args(paths).args(options);
    let output = command.output().unwrap_or_else(|error| panic!("'{python}' cannot be run ({error})"));
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !error.contains("No module named"),
        "this Python has no gguf or no numpy: run `make test`, which installs them, or set TUNEGATE_TEST_PYTHON"
    );
    assert!(output.status.success(), "{script} {options:?}:\n{error}");
}

/// Windows of the text that `make numerics` reads, from the middles of `count` equal parts: it begins with one kind of text and
/// ends with another.
fn windows(count: usize) -> Vec<Vec<u32>> {
    let text = Text::load(&TextSource::Gguf(demo_model()), None).expect("the demo model's tokenizer");
    let words = std::fs::read_to_string(repository("benches/reading.txt")).expect("the text");
    let tokens = text.encode(&words, true).expect("tokens");
    assert!(tokens.len() > 10_000, "the text has {} tokens", tokens.len());
    let all: Vec<&[u32]> = tokens.chunks_exact(WINDOW).collect();
    (0..count).map(|part| all[(2 * part + 1) * all.len() / (2 * count)].to_vec()).collect()
}

/// Beside the demo model's own file ([`super::fast`]): Q4_K and Q6_K, which it cannot have. All other formats are read by `make
/// numerics` alone, for their seconds.
#[test]
fn the_trained_model_keeps_the_gate_in_k_quants() {
    let folder = made("Q4_K_M");
    let mut pair = Pair::open(&folder.path().join("Q4_K_M.gguf"));
    let (windows, adapter) = (windows(2), folder.path().join("adapters/ticket-triage"));
    // 1,022 tokens: too few to judge more than the mean.
    let figures = pair.compare(windows.iter().map(Vec::as_slice), Some(&adapter)).figures();
    assert_eq!(figures.faults(&GATES, false), [""; 0], "{figures}");
}

/// 1,022 tokens, for the mean alone; `make numerics` has every kind, reads ten times as many tokens and judges tails too.
#[test]
fn the_trained_model_keeps_the_gate_with_dora_on_its_head() {
    let folder = made("Q8_0");
    let model = folder.path().join("Q8_0.gguf");
    run("make-kinds", &[&model, folder.path()], &["--only", "head-dora"]);
    let adapter = folder.path().join("head-dora");
    let windows = windows(2);
    let figures = Pair::open(&model).compare(windows.iter().map(Vec::as_slice), Some(&adapter)).figures();
    assert_eq!(figures.faults(&GATES, false), [""; 0], "{figures}");
}

#[test]
fn the_model_made_wider_is_the_same_function() {
    let folder = made("padded");
    let tokens = &windows(1)[0][..48];
    let logits = |model: &Path, adapter: Option<&Path>| {
        let mut desk = Desk::open_with(model, WINDOW, 16, EXACT[1]);
        let adapter = adapter.map(|adapter| desk.adapter(adapter));
        last_logits(&mut desk, tokens, adapter.as_ref())
    };
    let (narrow, wide) = (demo_model(), folder.path().join("padded.gguf"));
    let adapters = (repository("adapters/ticket-triage"), folder.path().join("adapters/ticket-triage"));
    let mut before: Option<Vec<f32>> = None;
    for (narrow_adapter, wide_adapter) in [(None, None), (Some(adapters.0.as_path()), Some(adapters.1.as_path()))] {
        let (narrow, wide) = (logits(&narrow, narrow_adapter), logits(&wide, wide_adapter));
        let apart = |one: &[f32], other: &[f32]| {
            assert_eq!(one.len(), other.len());
            one.iter().zip(other).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max)
        };
        assert!(apart(&narrow, &wide) < 1e-4, "with {narrow_adapter:?}: {}", apart(&narrow, &wide));
        if let Some(before) = before.replace(wide) {
            assert!(apart(&before, &narrow) > 0.5, "the adapter changes nothing");
        }
    }
}

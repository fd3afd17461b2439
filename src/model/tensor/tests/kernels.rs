//! That candle has a CUDA kernel for everything that this decoder does.

use std::{collections::BTreeSet, fs, path::Path};

use candle_core::DType;

use super::bench::{Bench, ask, assign, sample, sequences};
use crate::model::{Adjustments, Batch, SampleAsk, SeenToken, Want, tensor::ops::Counts};

/// Operation, dtype, kernel, source file, and the text there that makes the kernel; tabs between them.
const TABLE: &str = include_str!("../cuda.tsv");

/// Every operation and dtype of a step that does all there is to do, in each dtype that a device may compute in.
fn used() -> BTreeSet<String> {
    let mut used = BTreeSet::new();
    let mut add = |counts: &Counts| used.extend(counts.used().map(|(op, dtype)| format!("{op:?}\t{}", dtype.as_str())));
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        for model in ["llama", "mistral", "qwen2", "qwen3", "smollm3"] {
            let mut bench = Bench::open(model, dtype);
            let adapters: Vec<_> =
                (0..6).map(|seed| bench.adapter(seed, 2 + 2 * (seed as usize % 2), |_, _| true)).collect();
            for lengths in [[1, 2, 1, 9, 1, 30], [1; 6], [1; 6]] {
                let mut batch = sequences(&lengths, 40);
                batch.copies = vec![(900, 901)];
                assign(&mut batch, &adapters);
                ask_everything(&mut batch);
                add(&bench.run(&batch).1);
            }
            // What a build with flash-attn does on CUDA, in the dtypes for which it does.
            if dtype != DType::F32 {
                bench.decoder.set_paged(true);
                let mut batch = sequences(&[1, 9, 30], 40);
                ask_everything(&mut batch);
                add(&bench.run(&batch).1);
                bench.decoder.set_paged(false);
            }
            // Every other kind of adapter, each on a sequence of its own, and two that turn outputs in one step.
            let kinds = bench.forge().kinds();
            let mut batch = sequences(&vec![2; kinds.len()], 40);
            assign(&mut batch, &kinds);
            ask(&mut batch, |_| Want::Sample(Box::new(sample())));
            add(&bench.run(&batch).1);
            // Others take the places of some, so that the rest no longer lie side by side.
            let mut batch = sequences(&[1; 4], 50);
            assign(&mut batch, &[0, 2, 4, 0].map(|index| adapters[index].clone()));
            ask_everything(&mut batch);
            add(&bench.run(&batch).1);
        }
    }
    add(&large_vocabulary());
    used
}

fn ask_everything(batch: &mut Batch) {
    let seen = vec![SeenToken { token: 3, in_answer: 2 }];
    let adjustments = Adjustments { repetition: 1.1, seen, banned: vec![5], ..Adjustments::default() };
    ask(batch, |index| match index {
        0 => Want::Hidden,
        1 => Want::Logits,
        2 => Want::Score { token: 7, top: 2 },
        3 => Want::Sample(Box::new(SampleAsk { top_p: 0.9, top_k: 0, adjustments: adjustments.clone(), ..sample() })),
        _ => Want::Sample(Box::new(sample())),
    });
}

/// The golden models' vocabulary fits one sort; this one takes two rounds, the second of them padded.
fn large_vocabulary() -> Counts {
    use crate::model::tensor::candidates::Candidates;
    use candle_core::{Device, Tensor};
    Counts::take();
    let logits = Tensor::rand(0.0f32, 1.0, (2, 20_011), &Device::Cpu).expect("a tensor");
    Candidates::of(&logits, 256).expect("candidates");
    Counts::take()
}

#[test]
fn candle_has_a_cuda_kernel_for_every_operation_and_dtype() {
    let key = |line: &str| line.splitn(3, '\t').take(2).collect::<Vec<_>>().join("\t");
    let table: BTreeSet<String> = TABLE.lines().filter(|line| !line.starts_with('#')).map(key).collect();
    let used = used();
    let missing: Vec<_> = used.difference(&table).collect();
    let unused: Vec<_> = table.difference(&used).collect();
    assert!(missing.is_empty() && unused.is_empty(), "not in the table: {missing:#?}, not used: {unused:#?}");
    assert!(TABLE.lines().all(|line| line.starts_with('#') || line.split('\t').count() == 5));
}

#[test]
fn nothing_passes_by_the_counts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/tensor");
    // `rows.rs` reads the base for checks, on other threads and not in a step.
    let counted = ["ops.rs", "rows.rs", "tests.rs"];
    let marks = [
        "candle_nn",
        ".matmul(",
        ".index_select(",
        ".index_add(",
        ".gather(",
        ".scatter_set(",
        ".slice_set(",
        ".affine(",
        ".to_dtype(",
        ".to_vec1",
        ".to_vec2",
        ".broadcast_add(",
        ".broadcast_mul(",
        ".sum_keepdim(",
        ".max_keepdim(",
        ".where_cond(",
        ".arg_sort",
        ".exp()?",
        ".log()?",
        "Tensor::new(",
        "Tensor::cat(",
        "Tensor::zeros(",
        ".copy()?",
        ".contiguous()",
        ".force_contiguous(",
    ];
    let mut seen = 0;
    for file in fs::read_dir(folder).expect("the sources").map(|entry| entry.expect("an entry").path()) {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if !name.ends_with(".rs") || counted.contains(&name.as_str()) {
            continue;
        }
        seen += 1;
        let text = fs::read_to_string(&file).expect("readable");
        // Loading places weights on the device before there are steps.
        let code = text.split("/// Takes tensors by Hugging Face's names").next().unwrap_or_default();
        let code = code.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
        let passing: Vec<_> = marks.iter().filter(|mark| code.contains(**mark)).collect();
        assert!(passing.is_empty(), "{name} has {passing:?}, which are not counted");
    }
    assert!(seen > 10, "only {seen} files");
}

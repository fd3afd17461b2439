//! What the decoder, its packer and its base rows promise beside parity.

use std::sync::Arc;

use tunegate::{
    config::Dtype,
    model::{
        AdapterRows, Batch, BatchError, CpuDecoder, CpuOptions, LoadOptions, Loaded, Matrix, ModelSource, PackError,
        Projection, RowAnswer, RowAsk, SampleAsk, SeenToken, SequenceRows, Site, SiteDelta, StepError, StepOutput,
        TokenSketch, Want, load, lora::Values,
    },
    terms::{AdapterVersion, Digest},
};

use super::{desk::EXACT, golden};
use crate::support::device_choice;

fn open(cpu: CpuOptions, model: &str) -> Loaded {
    let source = ModelSource::detect(&golden::path(model)).unwrap();
    let options = LoadOptions {
        device: device_choice(),
        dtype: Some(Dtype::Float32),
        kv_bytes: 1 << 20,
        block_tokens: 4,
        max_model_len: Some(64),
        cpu,
    };
    load(&source, &options).unwrap()
}

fn batch(tokens: &[u32], blocks: &[u32], first_position: u32) -> Batch {
    let rows = tokens.len() as u32;
    Batch {
        tokens: tokens.to_vec(),
        positions: (first_position..first_position + rows).collect(),
        sequences: vec![SequenceRows { first_row: 0, rows, blocks: blocks.to_vec() }],
        asks: vec![RowAsk { row: rows - 1, want: Want::Logits }],
        ..Default::default()
    }
}

fn logits(loaded: &mut Loaded, batch: &Batch) -> Vec<f32> {
    let mut output = StepOutput::default();
    loaded.decoder.forward(batch, &mut output).unwrap();
    match output.answers.remove(0) {
        RowAnswer::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

fn query_site() -> Site {
    Site::Layer { layer: 0, projection: Projection::Query }
}

fn low_rank(a: Matrix, b: Matrix) -> SiteDelta {
    SiteDelta::LowRank { a, b, scale: 1.0, lora_bias: None, base_bias: None, magnitude: None }
}

fn filled(rows: usize, cols: usize, value: f32) -> Matrix {
    Matrix { rows, cols, values: Values::F32(vec![value; rows * cols]) }
}

fn version() -> AdapterVersion {
    AdapterVersion(Digest::of(b"test"))
}

#[test]
fn copied_blocks_hold_what_the_originals_hold() {
    for cpu in EXACT {
        let mut loaded = open(cpu, "models/llama");
        logits(&mut loaded, &batch(&[5, 6, 7, 8, 9, 10], &[2, 3], 0));
        let expected = logits(&mut loaded, &batch(&[11], &[2, 3], 6));
        // A copy runs before the step's rows, in order: 3 goes to 9 by way of 5.
        let mut copied = batch(&[11], &[2, 9], 6);
        copied.copies = vec![(3, 5), (5, 9), (9, 9)];
        assert_eq!(logits(&mut loaded, &copied), expected);
    }
}

#[test]
fn one_sequence_that_is_not_finite_does_not_reach_its_neighbours() {
    for cpu in EXACT {
        let mut loaded = open(cpu, "models/llama");
        let alone = logits(&mut loaded, &batch(&[5, 6, 7], &[0], 0));
        let poison = loaded
            .packer
            .pack(version(), vec![(query_site(), low_rank(filled(1, 64, f32::MAX), filled(64, 1, f32::MAX)))]);
        let mut both = batch(&[5, 6, 7, 9, 9, 9, 9, 9, 9], &[0], 0);
        both.positions = vec![0, 1, 2, 0, 1, 2, 3, 4, 5];
        both.sequences = vec![
            SequenceRows { first_row: 0, rows: 3, blocks: vec![0] },
            SequenceRows { first_row: 3, rows: 6, blocks: vec![1, 2] },
        ];
        both.adapters = vec![AdapterRows { rows: (3..9).collect(), weights: Arc::new(poison.unwrap()) }];
        both.asks = [2, 8].map(|row| RowAsk { row, want: Want::Logits }).into();
        let mut output = StepOutput::default();
        loaded.decoder.forward(&both, &mut output).unwrap();
        assert_eq!(output.answers[1], RowAnswer::NotFinite);
        let RowAnswer::Logits(beside) = &output.answers[0] else { panic!("{:?}", output.answers[0]) };
        assert!(alone.iter().zip(beside).all(|(alone, beside)| (alone - beside).abs() < 1e-4));
        // One row each in the next step, so that the two attend in one group, padded to the longer.
        both = batch(&[8, 9], &[0], 0);
        both.positions = vec![3, 6];
        both.sequences = vec![
            SequenceRows { first_row: 0, rows: 1, blocks: vec![0] },
            SequenceRows { first_row: 1, rows: 1, blocks: vec![1, 2] },
        ];
        both.asks = [0, 1].map(|row| RowAsk { row, want: Want::Logits }).into();
        loaded.decoder.forward(&both, &mut output).unwrap();
        assert!(matches!(output.answers[0], RowAnswer::Logits(_)), "{:?}", output.answers[0]);
    }
}

#[test]
fn each_ask_gets_its_answer_in_order() {
    for cpu in EXACT {
        let mut loaded = open(cpu, "models/llama");
        let mut asked = batch(&[5, 6, 7], &[0], 0);
        let sample = |temperature, banned: &[u32], seen: &[SeenToken]| {
            let mut ask = SampleAsk {
                temperature,
                top_k: 0,
                top_p: 1.0,
                min_p: 0.0,
                u: 0.0,
                adjustments: Default::default(),
                top: 2,
            };
            ask.adjustments.banned = banned.to_vec();
            ask.adjustments.seen = seen.to_vec();
            ask.adjustments.presence = 100.0;
            Want::Sample(Box::new(ask))
        };
        let mut output = StepOutput::default();
        asked.asks = vec![RowAsk { row: 2, want: Want::Logits }, RowAsk { row: 0, want: Want::Hidden }];
        loaded.decoder.forward(&asked, &mut output).unwrap();
        let (RowAnswer::Logits(logits), RowAnswer::Hidden(hidden)) = (&output.answers[0], &output.answers[1]) else {
            panic!("{:?}", output.answers);
        };
        assert_eq!((logits.len(), hidden.len()), (512, 64));
        let best = (0..512u32).max_by(|&a, &b| logits[a as usize].total_cmp(&logits[b as usize])).unwrap();
        let everything: Vec<u32> = (0..512).collect();
        asked.asks = [
            Want::Score { token: best, top: 3 },
            sample(0.0, &[], &[]),
            sample(0.0, &[best], &[]),
            sample(1.0, &[], &[SeenToken { token: best, in_answer: 1 }]),
            sample(1.0, &everything, &[]),
        ]
        .into_iter()
        .map(|want| RowAsk { row: 2, want })
        .collect();
        loaded.decoder.forward(&asked, &mut output).unwrap();
        let score = |index: usize| match &output.answers[index] {
            RowAnswer::Score(score) => score.clone(),
            other => panic!("answer {index}: {other:?}"),
        };
        assert_eq!((score(0).token, score(0).top.len(), score(0).top[0]), (best, 3, (best, score(0).logprob)));
        assert_eq!((score(1).token, score(1).top.len()), (best, 2));
        assert_eq!(score(2).token, score(0).top[1].0, "the best is banned");
        assert_eq!(score(2).logprob, score(0).top[1].1, "scores are those before adjustments");
        assert_ne!(score(3).token, best, "the best is penalised out of reach");
        assert_eq!(output.answers[4], RowAnswer::NotFinite, "nothing may be drawn");
    }
}

#[test]
fn a_malformed_batch_is_refused_before_any_work() {
    for cpu in EXACT {
        let mut loaded = open(cpu, "models/llama");
        let mut refused = |change: &dyn Fn(&mut Batch), expected: BatchError| {
            let mut spoiled = batch(&[5, 6, 7], &[0], 0);
            change(&mut spoiled);
            match loaded.decoder.forward(&spoiled, &mut StepOutput::default()) {
                Err(StepError::Batch(error)) => assert_eq!(error, expected),
                other => panic!("{other:?}, expected {expected:?}"),
            }
        };
        let blocks = 1 << 20 >> 11;
        refused(&|batch| batch.tokens[1] = 512, BatchError::Token { row: 1, token: 512, vocab: 512 });
        refused(&|batch| batch.positions.truncate(2), BatchError::Lengths { tokens: 3, positions: 2 });
        refused(&|batch| batch.positions[2] = 7, BatchError::Sequence { sequence: 0 });
        refused(&|batch| batch.sequences.clear(), BatchError::Sequence { sequence: 0 });
        refused(&|batch| batch.sequences[0].blocks.clear(), BatchError::Block { sequence: 0 });
        refused(&|batch| batch.sequences[0].blocks[0] = blocks, BatchError::Block { sequence: 0 });
        refused(
            &|batch| batch.copies.push((0, blocks)),
            BatchError::Copy { from: 0, to: blocks, blocks: blocks as usize },
        );
        refused(&|batch| batch.asks[0].row = 3, BatchError::Ask { row: 3 });
    }
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    for cpu in EXACT {
        let other = open(cpu, "models/llama3");
        let site = vec![(query_site(), low_rank(filled(2, 64, 0.1), filled(64, 2, 0.1)))];
        let foreign = Arc::new(other.packer.pack(version(), site).unwrap());
        let mut loaded = open(cpu, "models/llama");
        let mut mixed = batch(&[5, 6], &[0], 0);
        mixed.adapters = vec![AdapterRows { rows: vec![1], weights: foreign }];
        let refused = loaded.decoder.forward(&mixed, &mut StepOutput::default());
        assert!(matches!(refused, Err(StepError::ForeignAdapter)), "{refused:?}");
    }
}

#[test]
fn the_packer_refuses_what_it_cannot_apply() {
    for cpu in EXACT {
        let loaded = open(cpu, "models/llama");
        let refused = |sites: Vec<(Site, SiteDelta)>, reason: &str| {
            let error = loaded.packer.pack(version(), sites).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(reason), "'{error}' does not say '{reason}'");
        };
        let good = || low_rank(filled(2, 64, 0.1), filled(64, 2, 0.1));
        refused(vec![(query_site(), good()), (query_site(), good())], "is given twice");
        let absent = Site::Layer { layer: 2, projection: Projection::Up };
        refused(vec![(absent, good())], "the base has no model.layers.2.mlp.up_proj");
        refused(vec![(query_site(), low_rank(filled(2, 63, 0.1), filled(64, 2, 0.1)))], "A has shape [2, 63]");
        refused(vec![(query_site(), low_rank(filled(2, 64, 0.1), filled(64, 3, 0.1)))], "B has shape [64, 3]");
        refused(vec![(query_site(), low_rank(filled(0, 64, 0.1), filled(64, 0, 0.1)))], "A has shape [0, 64]");
        let short = Matrix { rows: 2, cols: 64, values: Values::F32(vec![0.0; 3]) };
        refused(vec![(query_site(), low_rank(short, filled(64, 2, 0.1)))], "A has shape");
        refused(vec![(Site::Head, low_rank(filled(1, 64, 0.1), filled(511, 1, 0.1)))], "B has shape [511, 1]");
        refused(vec![(Site::Embedding, low_rank(filled(1, 64, 0.1), filled(512, 1, 0.1)))], "a linear map's change");
        refused(vec![(query_site(), SiteDelta::Bias(vec![0.0; 63]))], "the bias has shape [63]");
        refused(vec![(query_site(), good()), (query_site(), SiteDelta::Bias(vec![0.0; 64]))], "is given twice");
        refused(vec![(query_site(), SiteDelta::Full(filled(64, 64, 0.0)))], "a whole matrix is not supported yet");
        refused(vec![(Site::Head, SiteDelta::Full(filled(512, 63, 0.0)))], "the matrix has shape [512, 63]");
        let full = || SiteDelta::Full(filled(512, 64, 0.1));
        refused(vec![(Site::Head, full()), (Site::Head, full())], "is given twice");
        let rows = SiteDelta::TokenRows { tokens: vec![1], rows: filled(1, 64, 0.1) };
        refused(vec![(Site::Embedding, rows)], "trained token rows is not supported yet");
        let dora = |magnitude: usize, value: f32| SiteDelta::LowRank {
            a: filled(1, 64, value),
            b: filled(512, 1, value),
            scale: 1.0,
            lora_bias: None,
            base_bias: None,
            magnitude: Some(vec![1.0; magnitude]),
        };
        refused(vec![(Site::Head, dora(64, 0.1))], "the magnitude has shape [64], expected [512]");
        let zeros = SiteDelta::Full(filled(512, 64, 0.0));
        refused(vec![(Site::Head, zeros), (Site::Head, dora(512, 0.0))], "DoRA would scale weights that are all zero");
        let sites = vec![(query_site(), good())];
        let bytes = loaded.packer.packed_bytes(&sites);
        // Tensors count a place in a stack as well. The fused decoder lays ranks side by side in eights for A, and outputs in
        // panels for B.
        let expected = if cpu.decoder == CpuDecoder::Tensor { 2 * (2 * 2 * 64 * 4) } else { 8 * 64 * 4 + 64 * 2 * 4 };
        assert_eq!(bytes, expected);
        assert_eq!(loaded.packer.pack(version(), sites).map(|adapter| adapter.bytes()), Ok::<_, PackError>(bytes));
    }
}

#[test]
fn rows_of_the_base_are_the_files_rows() {
    for cpu in EXACT {
        // The same weights by two ways: a folder, and a GGUF file whose queries and keys are stored in another order.
        let (folder, file) = (open(cpu, "models/llama"), open(cpu, "gguf/llama-f32.gguf"));
        let sites: Vec<Site> = folder.shape.layer_sites().chain([Site::Embedding, Site::Head]).collect();
        assert_eq!(sites.len(), 2 * 7 + 2);
        for site in sites {
            let (rows, cols) = folder.shape.site_shape(site).unwrap();
            for row in [0, 1, rows / 2, rows - 1] {
                let ours = folder.base.row(site, row).unwrap();
                assert_eq!(ours.len(), cols, "{site}");
                assert_eq!(Some(ours), file.base.row(site, row), "{site} row {row}");
            }
            assert_eq!(folder.base.row(site, rows), None, "{site} has {rows} rows");
            assert_eq!(folder.base.bias(site), None);
        }
        assert_eq!(folder.base.row(Site::Layer { layer: 2, projection: Projection::Up }, 0), None);
        let biased = open(cpu, "models/qwen2");
        assert_eq!(biased.base.bias(query_site()).map(|bias| bias.len()), Some(64));
        assert_eq!(biased.base.bias(Site::Layer { layer: 0, projection: Projection::Output }), None);
        assert_ne!(folder.digest, file.digest, "other bytes are another base");
        assert_eq!(folder.digest, open(cpu, "models/llama").digest);
    }
}

#[test]
fn tokens_are_sketched_by_their_embeddings() {
    for cpu in EXACT {
        let loaded = open(cpu, "models/llama");
        assert_eq!(loaded.sketch.values.len(), 512 * TokenSketch::DIMS);
        let length = |values: &[f32]| values.iter().map(|value| value * value).sum::<f32>().sqrt();
        for token in [3usize, 77, 500] {
            let embedding = loaded.base.row(Site::Embedding, token).unwrap();
            let sketch = loaded.sketch.mean(&[token as u32]);
            let ratio = length(&sketch) / length(&embedding);
            assert!(
                (0.6..1.5).contains(&ratio),
                "token {token}: a random projection keeps lengths, this one by {ratio}"
            );
        }
    }
}

#[test]
fn configuration_files_give_the_shape_and_the_defaults() {
    let cpu = CpuOptions::default();
    let llama3 = open(cpu, "models/llama3");
    assert_eq!(llama3.eos_tokens, [0, 2]);
    assert!(llama3.sampling.temperature.is_some(), "{:?}", llama3.sampling);
    assert!(llama3.shape.tied && !llama3.shape.qkv_bias);
    assert_eq!(llama3.shape.max_positions, 64, "as the options ask");
    let mistral = open(cpu, "models/mistral");
    assert_eq!(mistral.shape.window, [Some(16), Some(16)]);
    let qwen2 = open(cpu, "models/qwen2");
    assert_eq!(qwen2.shape.window, [None, None], "a window that is not in force");
    assert!(qwen2.shape.qkv_bias && !qwen2.shape.output_bias);
    assert!(qwen2.sampling.repetition_penalty.is_some());
    let qwen3 = open(cpu, "models/qwen3");
    assert!(qwen3.shape.qk_norm);
    assert_eq!(qwen3.shape.head_dim, 32);
    let smollm3 = open(cpu, "models/smollm3");
    assert_eq!(smollm3.shape.no_rope, [false, false, false, true]);
}

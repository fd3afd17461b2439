//! Another implementation of the same family agrees: candle's stock llama, unquantized and without adapters.

use std::sync::Arc;

use candle_core::{DType, Device, IndexOp as _, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Llama, LlamaConfig};
use tunegate::model::{AdapterRows, Batch, LoraAdapter, RowAnswer, RowAsk, SequenceRows, StepOutput, Want};

use super::{
    desk::{Desk, EXACT},
    golden,
};

#[test]
fn logits_agree_with_candles_stock_llama() {
    for (model, cpu) in ["llama", "llama3"].into_iter().flat_map(|model| EXACT.map(|cpu| (model, cpu))) {
        let folder = golden::path(&format!("models/{model}"));
        let config: LlamaConfig = serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap();
        let config = config.into_config(false);
        let weights = std::fs::read(folder.join("model.safetensors")).unwrap();
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::F32, &Device::Cpu).unwrap();
        let stock = Llama::load(weights, &config).unwrap();
        let mut cache = Cache::new(false, DType::F32, &config, &Device::Cpu).unwrap();
        let mut desk = Desk::open(&folder, 256, cpu);
        for length in [1, 2, 17, 100] {
            let tokens: Vec<u32> = (0..length).map(|i| (i * 37 + 11) % 500 + 3).collect();
            let input = Tensor::new(tokens.as_slice(), &Device::Cpu).unwrap().unsqueeze(0).unwrap();
            let expected: Vec<f32> = stock.forward(&input, 0, &mut cache).unwrap().i(0).unwrap().to_vec1().unwrap();
            let ours = last_logits(&mut desk, &tokens, None);
            for (token, (expected, ours)) in expected.iter().zip(&ours).enumerate() {
                assert!((expected - ours).abs() < 1e-4, "{model}, {length} tokens, logit {token}: {ours}, {expected}");
            }
        }
    }
}

/// The logits after all of `tokens`, on an adapter or on the base.
pub fn last_logits(desk: &mut Desk, tokens: &[u32], adapter: Option<&Arc<LoraAdapter>>) -> Vec<f32> {
    let rows = tokens.len() as u32;
    let batch = Batch {
        tokens: tokens.to_vec(),
        positions: (0..rows).collect(),
        sequences: vec![SequenceRows { first_row: 0, rows, blocks: (0..rows.div_ceil(4)).collect() }],
        asks: vec![RowAsk { row: rows - 1, want: Want::Logits }],
        adapters: adapter
            .map(|weights| AdapterRows { rows: (0..rows).collect(), weights: Arc::clone(weights) })
            .into_iter()
            .collect(),
        ..Default::default()
    };
    let mut output = StepOutput::default();
    desk.loaded.decoder.forward(&batch, &mut output).unwrap();
    match output.answers.remove(0) {
        RowAnswer::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

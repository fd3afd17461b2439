//! How much adapters' second copies hold.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::{
    model::{
        LoraAdapter, Projection,
        tensor::{
            lora::{LowRank, TensorAdapter},
            stacks::Stacks,
        },
    },
    terms::{AdapterVersion, Digest},
};

const RANK: usize = 2;

/// One with a single site, all of whose numbers are `number`.
fn adapter(number: u8) -> Arc<LoraAdapter> {
    let filled = |shape: &[usize]| Tensor::full(f32::from(number), shape, &Device::Cpu).expect("a tensor");
    let low_rank =
        LowRank { a: filled(&[1, RANK, 3]), b: filled(&[1, 4, RANK]), scale: filled(&[1, 1, 1]), factor: 1.0 };
    let weights = TensorAdapter {
        base: Digest::of(b""),
        layers: vec![[Some(low_rank), None, None, None, None, None, None]],
        turns: Vec::new(),
        embedding: None,
        head: None,
    };
    Arc::new(LoraAdapter::new(AdapterVersion(Digest::of(&[number])), 0, Arc::new(weights)))
}

/// Places `adapters` in a step of their own; gives how many places there are then.
fn step(stacks: &mut Stacks, adapters: &[Arc<LoraAdapter>]) -> usize {
    stacks.start_step();
    let owners: Vec<_> =
        adapters.iter().map(|adapter| (adapter, adapter.packed::<TensorAdapter>().expect("packed here"))).collect();
    let places = stacks.place(RANK, &owners, &Device::Cpu).expect("room");
    let stack = stacks.get(RANK, 0, Projection::Query).expect("a stack");
    let first =
        |place: u32| stack.a.get(place as usize).and_then(|a| a.flatten_all()?.to_vec1::<f32>()).expect("values")[0];
    let expected: Vec<f32> = owners
        .iter()
        .map(|(_, own)| {
            own.layers[0][0].as_ref().and_then(|own| own.a.flatten_all().ok()?.to_vec1().ok()).expect("values")[0]
        })
        .collect();
    assert_eq!(places.into_iter().map(first).collect::<Vec<f32>>(), expected);
    stack.a.dims()[0]
}

#[test]
fn a_stack_holds_as_many_as_a_step_has_had() {
    let mut stacks = Stacks::default();
    let adapters: Vec<_> = (1..8).map(adapter).collect();
    assert_eq!(step(&mut stacks, &adapters[..2]), 2);
    assert_eq!(step(&mut stacks, &adapters[2..5]), 3);
    assert_eq!(step(&mut stacks, &adapters[4..6]), 3, "who was used longest ago makes way");
    assert_eq!(step(&mut stacks, &adapters), 7);
}

#[test]
fn what_gone_adapters_leave_is_let_go_of() {
    let mut stacks = Stacks::default();
    let mut adapters: Vec<_> = (1..9).map(adapter).collect();
    assert_eq!(step(&mut stacks, &adapters), 8);
    adapters.truncate(6);
    assert_eq!(step(&mut stacks, &adapters[..2]), 8, "a quarter may be idle");
    adapters.truncate(5);
    assert_eq!(step(&mut stacks, &adapters[..2]), 2);
    assert_eq!(step(&mut stacks, &adapters), 5);
    adapters.clear();
    stacks.start_step();
    assert!(stacks.get(RANK, 0, Projection::Query).is_none());
}

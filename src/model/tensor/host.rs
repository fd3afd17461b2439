//! Packed adapters in host memory, beside a device's own: from there they return without being read or worked out again.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

use super::lora::{EmbedLowRank, Embedding, Head, LowRank, TensorAdapter, Turn};
use crate::{
    model::{HostCopy, LoraAdapter, PackError},
    terms::AdapterVersion,
};

/// One adapter's tensors in host memory, as the device has them.
pub struct HostTensors {
    pub version: AdapterVersion,
    /// Bytes that it takes here, and on the device.
    pub bytes: u64,
    pub device_bytes: u64,
    pub tensors: TensorAdapter,
    pub device: Device,
}

impl HostCopy for HostTensors {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn device_bytes(&self) -> u64 {
        self.device_bytes
    }

    fn place(&self) -> std::result::Result<LoraAdapter, PackError> {
        let placed = self.tensors.placed(&self.device).map_err(|error| PackError::Device(error.to_string()))?;
        Ok(LoraAdapter::new(self.version, self.device_bytes, Arc::new(placed)))
    }
}

impl TensorAdapter {
    /// The same on a device, in memory of its own: also where the device is the CPU.
    pub fn placed(&self, device: &Device) -> Result<Self> {
        let place = |tensor: &Tensor| match device {
            Device::Cpu => tensor.copy(),
            Device::Cuda(_) | Device::Metal(_) => tensor.to_device(device),
        };
        self.map(&place)
    }

    /// Every tensor through `each`.
    fn map(&self, each: &dyn Fn(&Tensor) -> Result<Tensor>) -> Result<Self> {
        let low = |low: &LowRank| -> Result<LowRank> {
            Ok(LowRank { a: each(&low.a)?, b: each(&low.b)?, scale: each(&low.scale)?, factor: low.factor })
        };
        let turn = |turn: &Turn| -> Result<Turn> { Ok(Turn { more: each(&turn.more)?, shift: each(&turn.shift)? }) };
        let embedding = |embedding: &Embedding| -> Result<Embedding> {
            let low = |low: &EmbedLowRank| -> Result<EmbedLowRank> {
                let gain = low.gain.as_ref().map(each).transpose()?;
                Ok(EmbedLowRank { a: each(&low.a)?, b: each(&low.b)?, scale: low.scale, gain })
            };
            Ok(Embedding {
                whole: embedding.whole.as_ref().map(each).transpose()?,
                low: embedding.low.as_ref().map(low).transpose()?,
            })
        };
        let head = |head: &Head| -> Result<Head> {
            Ok(Head {
                whole: head.whole.as_ref().map(each).transpose()?,
                low: head.low.as_ref().map(low).transpose()?,
                turn: head.turn.as_ref().map(turn).transpose()?,
            })
        };
        Ok(Self {
            base: self.base,
            layers: self.layers.iter().map(|layer| all(layer, &low)).collect::<Result<_>>()?,
            turns: self.turns.iter().map(|layer| all(layer, &turn)).collect::<Result<_>>()?,
            embedding: self.embedding.as_ref().map(embedding).transpose()?,
            head: self.head.as_ref().map(head).transpose()?,
        })
    }
}

/// One layer's projections.
fn all<T, const N: usize>(layer: &[Option<T>; N], each: &dyn Fn(&T) -> Result<T>) -> Result<[Option<T>; N]> {
    let mut mapped: [Option<T>; N] = std::array::from_fn(|_| None);
    for (to, from) in mapped.iter_mut().zip(layer) {
        *to = from.as_ref().map(each).transpose()?;
    }
    Ok(mapped)
}

//! Values that a file and a command line spell alike.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use super::{Device, Dtype};

/// A number of bytes: plain, or with K, M, G (powers of 1000) or KiB, MiB, GiB.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let unit: f64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
            "" | "b" => 1.0,
            "k" | "kb" => 1e3,
            "m" | "mb" => 1e6,
            "g" | "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            other => return Err(format!("'{other}' is no unit of bytes: K, M, G, KiB, MiB or GiB")),
        };
        let number: f64 = text[..digits].parse().map_err(|_| format!("'{text}' is no number of bytes"))?;
        Ok(Self((number * unit) as u64))
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Spelling {
            Number(u64),
            Text(String),
        }
        match Spelling::deserialize(deserializer)? {
            Spelling::Number(bytes) => Ok(Self(bytes)),
            Spelling::Text(text) => text.parse().map_err(de::Error::custom),
        }
    }
}

/// Yes or no, spelled `true`/`false`, `1`/`0`, `yes`/`no`, `on`/`off`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "true" | "1" | "yes" | "on" => Ok(Self(true)),
            "false" | "0" | "no" | "off" => Ok(Self(false)),
            _ => Err(format!("'{text}' is neither true nor false")),
        }
    }
}

impl fmt::Debug for Switch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl<'de> Deserialize<'de> for Switch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        bool::deserialize(deserializer).map(Self)
    }
}

/// `cpu`, `cuda`, `cuda:1`, `metal`…
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DeviceName(pub Device);

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, index) = text.split_once(':').unwrap_or((text, "0"));
        let index: usize = index.parse().map_err(|_| format!("'{index}' is no device number"))?;
        match kind {
            "cpu" => Ok(Self(Device::Cpu)),
            "cuda" => Ok(Self(Device::Cuda(index))),
            "metal" => Ok(Self(Device::Metal(index))),
            _ => Err(format!("'{text}' is no device: cpu, cuda, cuda:N, metal or metal:N")),
        }
    }
}

impl fmt::Debug for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
            Device::Metal(index) => write!(f, "metal:{index}"),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// `auto`, or a floating-point type as vLLM spells it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct DtypeName(pub Option<Dtype>);

impl FromStr for DtypeName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self(None)),
            "float32" | "float" => Ok(Self(Some(Dtype::Float32))),
            "float16" | "half" => Ok(Self(Some(Dtype::Float16))),
            "bfloat16" => Ok(Self(Some(Dtype::Bfloat16))),
            _ => Err(format!("'{text}' is none of auto, float32, float16 (half) and bfloat16")),
        }
    }
}

impl fmt::Debug for DtypeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            None => "auto",
            Some(Dtype::Float32) => "float32",
            Some(Dtype::Float16) => "float16",
            Some(Dtype::Bfloat16) => "bfloat16",
        })
    }
}

impl<'de> Deserialize<'de> for DtypeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_units() {
        let bytes = |text: &str| text.parse::<Bytes>().map(|bytes| bytes.0);
        assert_eq!(bytes("1024"), Ok(1024));
        assert_eq!(bytes("1.5GiB"), Ok(1_610_612_736));
        assert_eq!(bytes("2 M"), Ok(2_000_000));
        assert!(bytes("2 parsecs").is_err());
        assert!(bytes("GiB").is_err());
    }
}

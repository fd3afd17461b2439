//! Values that a file and a command line spell alike.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Deserializer, de};

use super::{Device, Dtype};

/// A number as vLLM's command line spells it: plain, or with k, m, g (powers of 1000) or K, M, G (powers of 1024). For
/// bytes also with KB, MB, GB (of 1000) and KiB, MiB, GiB (of 1024).
fn scaled(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let unit = text[digits..].trim();
    let scale: f64 = match unit {
        "" => 1.0,
        "k" => 1e3,
        "m" => 1e6,
        "g" => 1e9,
        "K" => 1024.0,
        "M" => 1024.0 * 1024.0,
        "G" => 1024.0 * 1024.0 * 1024.0,
        other => match other.to_ascii_lowercase().as_str() {
            "b" => 1.0,
            "kb" => 1e3,
            "mb" => 1e6,
            "gb" => 1e9,
            "kib" => 1024.0,
            "mib" => 1024.0 * 1024.0,
            "gib" => 1024.0 * 1024.0 * 1024.0,
            _ => return Err(format!("'{unit}' is no unit: k, m, g (of 1000), K, M, G, KiB, MiB or GiB (of 1024)")),
        },
    };
    let number: f64 = text[..digits].parse().map_err(|_| format!("'{text}' is no number"))?;
    Ok((number * scale) as u64)
}

/// A number, or a text that [`FromStr`] reads.
fn number_or_text<'de, D, T>(deserializer: D, of_number: fn(i64) -> Result<T, String>) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: FromStr<Err = String>,
{
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "it has to be a number, or a text such as \"8k\"")]
    enum Spelling {
        Number(i64),
        Text(String),
    }
    match Spelling::deserialize(deserializer)? {
        Spelling::Number(number) => of_number(number),
        Spelling::Text(text) => text.parse(),
    }
    .map_err(de::Error::custom)
}

fn positive(number: i64) -> Result<u64, String> {
    u64::try_from(number).map_err(|_| format!("{number} is less than nothing"))
}

/// A number of bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text).map(Self)
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, |number| positive(number).map(Self))
    }
}

/// A number of tokens.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tokens(pub usize);

impl FromStr for Tokens {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        scaled(text).map(|tokens| Self(tokens as usize))
    }
}

impl fmt::Debug for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl<'de> Deserialize<'de> for Tokens {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, |number| positive(number).map(|tokens| Self(tokens as usize)))
    }
}

/// A number of tokens, or `auto` (also -1): as many as the model and the memory for keys and values allow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct ContextLength(pub Option<usize>);

impl FromStr for ContextLength {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if matches!(text.trim(), "auto" | "-1") {
            return Ok(Self(None));
        }
        text.parse().map(|Tokens(tokens)| Self(Some(tokens)))
    }
}

impl fmt::Debug for ContextLength {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(tokens) => write!(f, "{tokens}"),
            None => f.write_str("auto"),
        }
    }
}

impl<'de> Deserialize<'de> for ContextLength {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        number_or_text(deserializer, |number| match number {
            -1 => Ok(Self(None)),
            tokens => positive(tokens).map(|tokens| Self(Some(tokens as usize))),
        })
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
        assert_eq!(bytes("2 MB"), Ok(2_000_000));
        assert_eq!((bytes("2m"), bytes("2M")), (Ok(2_000_000), Ok(2 << 20)), "as vLLM has it");
        assert!(bytes("2 parsecs").is_err());
        assert!(bytes("GiB").is_err());
    }

    #[test]
    fn contexts_are_spelled_as_for_vllm() {
        let length = |text: &str| text.parse::<ContextLength>().map(|length| length.0);
        assert_eq!((length("8192"), length("8k"), length("8K")), (Ok(Some(8192)), Ok(Some(8000)), Ok(Some(8192))));
        assert_eq!((length("auto"), length("-1")), (Ok(None), Ok(None)));
        assert!(length("-2").is_err() && length("long").is_err() && length("").is_err());
    }
}

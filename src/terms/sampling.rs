use serde::{Deserialize, Serialize};

/// How a choice's tokens are drawn, every value settled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 takes the most likely token; otherwise scores are divided by it.
    pub temperature: f32,
    /// Keeps the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: u32,
    /// Drops tokens less likely than this share of the most likely one; 0 keeps all.
    pub min_p: f32,
    /// Divides (or multiplies, below zero) the score of every token already in prompt or answer; 1 is off.
    pub repetition_penalty: f32,
    /// Taken off a token's score for each time it is in the answer.
    pub frequency_penalty: f32,
    /// Taken off a token's score once if it is in the answer.
    pub presence_penalty: f32,
}

impl Default for Sampling {
    /// OpenAI's defaults.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            frequency_penalty: 0.0,
            presence_penalty: 0.0,
        }
    }
}

/// What one source (a request, `adapter.toml`, the model's `generation_config`) says about sampling; silent where `None`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SamplingLayer {
    pub temperature: Option<f32>,
    pub top_p: Option<f32>,
    pub top_k: Option<u32>,
    pub min_p: Option<f32>,
    pub repetition_penalty: Option<f32>,
    pub frequency_penalty: Option<f32>,
    pub presence_penalty: Option<f32>,
}

impl SamplingLayer {
    /// The first layer that speaks decides, field by field; OpenAI's defaults come last.
    pub fn resolve(layers: &[&SamplingLayer]) -> Sampling {
        fn first<T: Copy>(layers: &[&SamplingLayer], get: impl Fn(&SamplingLayer) -> Option<T>, last: T) -> T {
            layers.iter().find_map(|layer| get(layer)).unwrap_or(last)
        }
        let default = Sampling::default();
        Sampling {
            temperature: first(layers, |l| l.temperature, default.temperature),
            top_p: first(layers, |l| l.top_p, default.top_p),
            top_k: first(layers, |l| l.top_k, default.top_k),
            min_p: first(layers, |l| l.min_p, default.min_p),
            repetition_penalty: first(layers, |l| l.repetition_penalty, default.repetition_penalty),
            frequency_penalty: first(layers, |l| l.frequency_penalty, default.frequency_penalty),
            presence_penalty: first(layers, |l| l.presence_penalty, default.presence_penalty),
        }
    }

    /// The first field outside its range, with the range, in OpenAI's (and vLLM's, for the extensions) limits.
    pub fn fault(&self) -> Option<(&'static str, String)> {
        let between = |name: &'static str, value: Option<f32>, low: f32, high: f32| {
            let value = value?;
            (!(low..=high).contains(&value))
                .then(|| (name, format!("{name} must be between {low} and {high}; it is {value}")))
        };
        between("temperature", self.temperature, 0.0, 2.0)
            .or_else(|| match self.top_p {
                Some(p) if !(p > 0.0 && p <= 1.0) => {
                    Some(("top_p", format!("top_p must be above 0 and at most 1; it is {p}")))
                }
                Some(_) | None => None,
            })
            .or_else(|| between("min_p", self.min_p, 0.0, 1.0))
            .or_else(|| match self.repetition_penalty {
                Some(p) if !(p > 0.0 && p <= 10.0) => Some((
                    "repetition_penalty",
                    format!("repetition_penalty must be above 0 and at most 10; it is {p}"),
                )),
                Some(_) | None => None,
            })
            .or_else(|| between("frequency_penalty", self.frequency_penalty, -2.0, 2.0))
            .or_else(|| between("presence_penalty", self.presence_penalty, -2.0, 2.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_layer_that_speaks_decides() {
        let request = SamplingLayer { temperature: Some(0.2), ..Default::default() };
        let adapter = SamplingLayer { temperature: Some(0.7), top_p: Some(0.9), ..Default::default() };
        let sampling = SamplingLayer::resolve(&[&request, &adapter]);
        assert_eq!((sampling.temperature, sampling.top_p, sampling.min_p), (0.2, 0.9, 0.0));
    }

    #[test]
    fn numbers_out_of_range_and_not_numbers_are_named() {
        let nan = SamplingLayer { temperature: Some(f32::NAN), ..Default::default() };
        assert_eq!(nan.fault().map(|f| f.0), Some("temperature"));
        let zero = SamplingLayer { top_p: Some(0.0), ..Default::default() };
        assert_eq!(zero.fault().map(|f| f.0), Some("top_p"));
        let wide = SamplingLayer { presence_penalty: Some(2.1), ..Default::default() };
        assert_eq!(wide.fault().map(|f| f.0), Some("presence_penalty"));
        assert_eq!(SamplingLayer { temperature: Some(2.0), top_p: Some(1.0), ..Default::default() }.fault(), None);
    }
}

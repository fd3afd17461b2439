//! A request with everything settled: prompts as tokens, sampling, stops, limits.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Ask, AskError, Gateway, Prompt, belonging::Belonging};
use crate::{
    adapters::AdapterLease,
    engine::{EngineLimits, SubmitError},
    journal::{Content, Given, Options, Place, PromptContent, Redactor, Timing},
    terms::{Digest, RecordPolicy, Sampling, SamplingLayer, Sketch, TemplateSource},
    text::{ChatOptions, Text, TextError},
};

/// What a reply is made from.
pub(super) struct Question {
    pub ask: Ask,
    pub lease: Option<AdapterLease>,
    /// One for each prompt.
    pub prompts: Vec<PromptTokens>,
    pub sampling: Sampling,
    pub seed: u64,
    pub stop_tokens: Arc<[u32]>,
    pub template: Option<Digest>,
    pub policy: RecordPolicy,
    pub belonging: Belonging,
    /// Of all prompts together; only where content is kept.
    pub sketch: Option<Sketch>,
    /// What came before admission.
    pub timing: Timing,
}

/// A prompt as the model reads it, and how long its answers may be.
pub(super) struct PromptTokens {
    pub tokens: Arc<[u32]>,
    /// 0 only for a prompt that is echoed and scored.
    pub max_tokens: usize,
}

/// Choices of a request, over all prompts.
pub(super) fn choices(ask: &Ask) -> usize {
    ask.prompts.len() * ask.n as usize
}

pub(super) async fn settle(
    gateway: &Gateway,
    ask: Ask,
    lease: Option<AdapterLease>,
    waited: Duration,
) -> Result<Question, AskError> {
    let began = Instant::now();
    let settings = gateway.settings();
    let limits = gateway.engine().limits();
    let card = lease.as_ref().map(|lease| &lease.card);
    let silent = SamplingLayer::default();
    let sampling =
        SamplingLayer::resolve(&[&ask.sampling, card.map_or(&silent, |card| &card.sampling), &settings.base_sampling]);
    for &(token, _) in &ask.logit_bias {
        in_vocabulary("logit_bias", token, limits)?;
    }
    for &token in &ask.stop_token_ids {
        in_vocabulary("stop_token_ids", token, limits)?;
    }
    let template = card.and_then(|card| card.template.clone()).or_else(|| gateway.text().template().cloned());
    let (ask, prompts) = tokenize(gateway, ask, template.clone()).await?;
    let prompts = prompts
        .into_iter()
        .map(|tokens| {
            let max_tokens = answer_limit(tokens.len(), ask.max_tokens, settings.default_max_tokens, limits)?;
            Ok(PromptTokens { tokens: tokens.into(), max_tokens })
        })
        .collect::<Result<Vec<_>, SubmitError>>()?;
    if let Some(max_tokens) = prompts.iter().map(|prompt| prompt.max_tokens).min()
        && ask.min_tokens > max_tokens
    {
        let reason = format!("{} tokens at least are wanted, but the answer may have {max_tokens}", ask.min_tokens);
        return Err(AskError::Invalid { parameter: "min_tokens", reason });
    }
    let mut stop_tokens = ask.stop_token_ids.clone();
    if !ask.ignore_eos {
        stop_tokens.extend(&settings.eos_tokens);
    }
    stop_tokens.sort_unstable();
    stop_tokens.dedup();
    let policy = [Some(settings.record), ask.caller.record, ask.record].into_iter().flatten().min();
    let policy = policy.unwrap_or(settings.record);
    let sketch = (policy == RecordPolicy::Full).then(|| {
        let tokens = prompts.iter().flat_map(|prompt| prompt.tokens.iter());
        Sketch::of(&gateway.0.parts.sketch.mean(tokens))
    });
    let belonging = Belonging::of(gateway, &ask).await;
    let chat = ask.prompts.iter().any(|prompt| matches!(prompt, Prompt::Chat { .. }));
    Ok(Question {
        seed: match ask.seed {
            Some(seed) => seed,
            None => getrandom::u64().map_err(|error| AskError::Invalid {
                parameter: "seed",
                reason: format!("the system gave no random number: {error}"),
            })?,
        },
        template: template.filter(|_| chat).map(|template| template.digest),
        policy,
        belonging,
        sketch,
        timing: Timing {
            adapter_us: waited.as_micros() as u64,
            read_us: began.elapsed().as_micros() as u64,
            ..Timing::default()
        },
        stop_tokens: stop_tokens.into(),
        lease,
        prompts,
        sampling,
        ask,
    })
}

fn in_vocabulary(parameter: &'static str, token: u32, limits: EngineLimits) -> Result<(), AskError> {
    if (token as usize) < limits.vocab {
        return Ok(());
    }
    Err(AskError::Invalid { parameter, reason: format!("token {token} is not in the vocabulary of {}", limits.vocab) })
}

/// How many tokens an answer may have; refused if prompt and answer do not fit into the context.
fn answer_limit(
    prompt: usize,
    wanted: Option<usize>,
    default: usize,
    limits: EngineLimits,
) -> Result<usize, SubmitError> {
    let limit = limits.max_model_len;
    let room = limit.saturating_sub(prompt);
    match wanted {
        Some(wanted) if wanted > room => Err(SubmitError::TooLong { prompt, wanted, limit }),
        Some(wanted) => Ok(wanted),
        None if room == 0 => Err(SubmitError::TooLong { prompt, wanted: 1, limit }),
        None => Ok(default.min(room)),
    }
}

/// Renders and tokenizes off the runtime's threads, a few prompts at a time.
async fn tokenize(
    gateway: &Gateway,
    ask: Ask,
    template: Option<TemplateSource>,
) -> Result<(Ask, Vec<Vec<u32>>), AskError> {
    let permit = gateway.0.tokenizing.clone().acquire_owned().await.map_err(|_| AskError::Draining)?;
    let text = Arc::clone(gateway.text());
    let work = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        let tokens =
            ask.prompts.iter().map(|prompt| read(&text, prompt, template.as_ref())).collect::<Result<Vec<_>, _>>()?;
        Ok::<_, TextError>((ask, tokens))
    });
    match work.await {
        Ok(done) => Ok(done?),
        Err(panicked) => Err(AskError::Text(TextError::Tokenizer(panicked.to_string()))),
    }
}

fn read(text: &Text, prompt: &Prompt, template: Option<&TemplateSource>) -> Result<Vec<u32>, TextError> {
    match prompt {
        Prompt::Chat { messages, add_generation_prompt, continue_final_message } => {
            let options = ChatOptions {
                add_generation_prompt: *add_generation_prompt,
                continue_final_message: *continue_final_message,
            };
            Ok(text.chat(template.ok_or(TextError::NoTemplate)?, messages, options)?.tokens)
        }
        Prompt::Text(prompt) => text.encode(prompt, true),
        Prompt::Tokens(tokens) => Ok(tokens.clone()),
    }
}

impl Question {
    /// The prompts as they are recorded. Where texts are redacted, ids of tokens are read as text: they say the same.
    pub fn content(&self, redactor: &Redactor, text: &Text) -> Content {
        let given = self.ask.prompts.iter().map(|prompt| match prompt {
            Prompt::Chat { messages, .. } => Given::Messages(messages.clone()),
            Prompt::Text(text) => Given::Text(text.clone()),
            Prompt::Tokens(tokens) if redactor.version().is_some() => match text.decode(tokens, false) {
                Ok(said) if !redactor.finds(Place::Prompt, &said) => Given::Tokens,
                Ok(said) => Given::Text(said),
                Err(_) => Given::Tokens,
            },
            Prompt::Tokens(_) => Given::Tokens,
        });
        let prompts = given.zip(&self.prompts);
        Content {
            prompts: prompts.map(|(given, read)| PromptContent { given, tokens: read.tokens.to_vec() }).collect(),
        }
    }

    /// What a replay needs beyond the other columns of the record.
    pub fn options(&self) -> Options {
        let ask = &self.ask;
        let chat = ask.prompts.iter().find_map(|prompt| match prompt {
            Prompt::Chat { add_generation_prompt, continue_final_message, .. } => {
                Some((*add_generation_prompt, *continue_final_message))
            }
            Prompt::Text(_) | Prompt::Tokens(_) => None,
        });
        let (add_generation_prompt, continue_final_message) = chat.unwrap_or((false, false));
        Options {
            n: ask.n,
            max_tokens: self.prompts.iter().map(|prompt| prompt.max_tokens).collect(),
            min_tokens: ask.min_tokens,
            stop: ask.stop.clone(),
            include_stop: ask.include_stop,
            stop_token_ids: ask.stop_token_ids.clone(),
            ignore_eos: ask.ignore_eos,
            skip_special_tokens: ask.skip_special_tokens,
            logit_bias: ask.logit_bias.clone(),
            top_logprobs: ask.top_logprobs,
            echo: ask.echo,
            add_generation_prompt,
            continue_final_message,
        }
    }
}

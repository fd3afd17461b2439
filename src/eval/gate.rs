//! Two versions of an adapter asked the same suite by the gateway itself, before the second takes the place of the first.

use std::sync::Arc;

use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};

use super::{
    Item, Report, Suite,
    report::{Answer, Asked},
    stats::Verdict,
};
use crate::{
    adapters::AdapterLease,
    gateway::{Ask, Caller, Gateway, Prompt, ReplyEvent},
    journal::CompletionKind,
    terms::{Origin, RecordPolicy, SamplingLayer},
};

/// Questions under way at the same time.
const AT_ONCE: usize = 4;

/// Asks every item of both versions and compares them. Of the answers only the facts are recorded.
///
/// # Errors
/// A sentence, if an item cannot be asked or a scoring program failed. An item that got no answer stands in the report.
pub async fn compare(
    gateway: &Gateway,
    suite: &Arc<Suite>,
    current: &AdapterLease,
    candidate: &AdapterLease,
) -> Result<Report, String> {
    let first = ask_all(gateway, suite, current).await?;
    let second = ask_all(gateway, suite, candidate).await?;
    Ok(Report::of(suite, vec![first, second]))
}

/// Why the second contender of a report may not take the place of the first; `None`: it may. It may not where it is
/// worse, by the figures of the primary score, or left a question unanswered. Where they cannot tell, it may.
pub fn objection(report: &Report) -> Option<String> {
    if let Some(silent) = report.contenders.iter().find(|contender| contender.failed > 0) {
        let error = silent.answers.iter().find_map(|answer| answer.error.clone()).unwrap_or_default();
        return Some(format!("{} of {} questions got no answer: {error}", silent.failed, report.items));
    }
    let pair = report.comparisons.first()?;
    (pair.comparison.verdict == Verdict::FirstIsBetter).then(|| figures(report))
}

/// The comparison in a sentence.
pub fn figures(report: &Report) -> String {
    let Some(pair) = report.comparisons.first() else { return format!("nothing of '{}' was compared", report.suite) };
    let comparison = &pair.comparison;
    let told = match comparison.verdict {
        Verdict::FirstIsBetter => "is worse than",
        Verdict::SecondIsBetter => "is better than",
        Verdict::CannotTell => "cannot be told from",
    };
    let p = comparison.p.map_or_else(|| "bootstrap 95 %".to_owned(), |p| format!("McNemar p = {p:.2e}"));
    format!(
        "{} {told} {} on '{}': {:+.3} [{:+.3}, {:+.3}] in '{}', {p}, {} items",
        pair.second,
        pair.first,
        report.suite,
        comparison.difference,
        comparison.low,
        comparison.high,
        report.primary,
        comparison.items,
    )
}

async fn ask_all(gateway: &Gateway, suite: &Arc<Suite>, version: &AdapterLease) -> Result<Asked, String> {
    let asked = stream::iter(0..suite.items.len())
        .map(|at| one(gateway.clone(), Arc::clone(suite), at, version.clone()))
        .buffered(AT_ONCE);
    let answers: Vec<Result<Result<Answer, String>, String>> = asked.collect().await;
    let short = version.version.short();
    Ok(Asked {
        label: format!("{}@{short}", version.name),
        version: Some(short),
        answers: answers.into_iter().collect::<Result<_, _>>()?,
    })
}

/// The outer error ends the comparison, the inner one is an item without an answer.
async fn one(
    gateway: Gateway,
    suite: Arc<Suite>,
    at: usize,
    version: AdapterLease,
) -> Result<Result<Answer, String>, String> {
    let item = &suite.items[at];
    let ask = question(item).map_err(|reason| format!("item '{}': {reason}", item.id))?;
    let answer = match answer(&gateway, ask, version).await {
        Ok(answer) => answer,
        Err(error) => return Ok(Err(error)),
    };
    let scored = tokio::task::spawn_blocking(move || scored(answer, &suite.items[at], &suite));
    scored.await.map_err(|error| error.to_string())?.map(Ok)
}

async fn answer(gateway: &Gateway, ask: Ask, version: AdapterLease) -> Result<Answer, String> {
    let mut reply = gateway.ask_version(ask, version).await.map_err(|error| error.to_string())?;
    let mut answer = Answer { text: String::new(), prompt_tokens: 0, completion_tokens: 0, scores: Vec::new() };
    while let Some(event) = reply.next().await.map_err(|error| error.to_string())? {
        match event {
            ReplyEvent::Piece { text, .. } => answer.text.push_str(&text),
            ReplyEvent::Done { usage } => {
                answer.prompt_tokens = usage.prompt_tokens as u64;
                answer.completion_tokens = usage.completion_tokens as u64;
            }
            ReplyEvent::Echo { .. } | ReplyEvent::Finished { .. } => {}
        }
    }
    Ok(answer)
}

/// An answer with its scores, in the order of the item's scorers.
///
/// # Errors
/// A scoring program that failed.
pub fn scored(mut answer: Answer, item: &Item, suite: &Suite) -> Result<Answer, String> {
    for scorer in &item.scorers {
        let scores = scorer
            .score(&answer.text, &item.source, &suite.folder, &answer.scores)
            .map_err(|reason| format!("item '{}': {reason}", item.id))?;
        answer.scores.extend(scores);
    }
    Ok(answer)
}

fn question(item: &Item) -> Result<Ask, String> {
    let run = getrandom::u64().map_err(|error| format!("the system gave no random number: {error}"))?;
    let sampling = &item.sampling;
    let layer = SamplingLayer {
        temperature: number(sampling, "temperature")?,
        top_p: number(sampling, "top_p")?,
        ..SamplingLayer::default()
    };
    if let Some((_, reason)) = layer.fault() {
        return Err(reason);
    }
    let stop = match sampling.get("stop") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one.clone()],
        Some(several) => serde_json::from_value(several.clone()).map_err(|error| format!("stop: {error}"))?,
    };
    let count = |key: &str| match sampling.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_u64().map(Some).ok_or_else(|| format!("{key} is no count")),
    };
    Ok(Ask {
        id: format!("suite-{run:016x}"),
        request_id: format!("suite-{run:016x}"),
        kind: CompletionKind::Chat,
        model: String::new(),
        prompts: vec![Prompt::Chat {
            messages: item.messages.clone(),
            add_generation_prompt: true,
            continue_final_message: false,
        }],
        sampling: layer,
        n: 1,
        max_tokens: count("max_tokens")?.map(|tokens| usize::try_from(tokens).unwrap_or(usize::MAX)),
        min_tokens: 0,
        stop,
        include_stop: false,
        stop_token_ids: Vec::new(),
        ignore_eos: false,
        skip_special_tokens: true,
        logit_bias: Vec::new(),
        top_logprobs: None,
        echo: false,
        // The same draw for both versions.
        seed: Some(count("seed")?.unwrap_or(0)),
        caller: Caller::default(),
        record: Some(RecordPolicy::None),
        adapter_wait: None,
        store: false,
        user: None,
        safety_identifier: None,
        conversation: None,
        metadata: Map::new(),
        origin: Origin::Evaluated,
    })
}

fn number(sampling: &Map<String, Value>, key: &str) -> Result<Option<f32>, String> {
    match sampling.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(|number| Some(number as f32)).ok_or_else(|| format!("{key} is no number")),
    }
}

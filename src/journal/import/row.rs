//! One row of another program's log as an answer of ours.

use std::sync::Arc;

use serde_json::{Map, Value};

use super::{Mapping, time};
use crate::{
    journal::Asked,
    store::{ChoiceRecord, Completion, CompletionKind, Content, Given, Options, PromptContent, Timing},
    terms::{Digest, Ending, FinishReason, Hasher, Message, Moment, Origin, RecordPolicy, Role, Sampling, Usage},
};

/// An answer, and what says where it belongs.
#[derive(Debug)]
pub struct Row {
    pub completion: Completion,
    pub asked: Asked,
}

/// What names a conversation in metadata.
const CONVERSATION: [&str; 3] = ["conversation_id", "thread_id", "session_id"];

/// # Errors
/// Why it is not understood, in words.
pub fn read(source: &str, row: &Value, mapping: &Mapping) -> Result<Row, String> {
    let Value::Object(_) = row else { return Err("a row has to be an object".to_owned()) };
    let log = Log::of(row, mapping);
    let (given, answers) = log.question_and_answers()?;
    let metadata = log.metadata()?;
    let id = log.id()?;
    let hash = Hasher::new().part("source", source.as_bytes());
    let hash = match &id {
        Some(id) => hash.part("id", id.as_bytes()),
        None => hash.part("row", row.to_string().as_bytes()),
    };
    let short = hash.finish().to_string();
    let id_here = format!("import-{}", &short[..32]);
    let user = log.text(&mapping.user, &["request.user", "user"])?;
    let conversation = match log.text(&mapping.conversation, &[])? {
        Some(conversation) => Some(conversation),
        None => CONVERSATION.iter().find_map(|name| metadata.get(*name)?.as_str()).map(str::to_owned),
    };
    let asked = Asked {
        id: id_here.clone(),
        conversation,
        user: user.clone(),
        threads: Vec::new(),
        first: first_words(&given),
    };
    let completion = Completion {
        id: id_here,
        created_ms: log.created()?.unwrap_or_else(Moment::unix_ms),
        request_id: id.unwrap_or_default(),
        key: None,
        kind: if matches!(given, Given::Text(_)) { CompletionKind::Completions } else { CompletionKind::Chat },
        model: log
            .text(&mapping.model, &["response.model", "request.model", "model"])?
            .unwrap_or_else(|| "imported".to_owned()),
        base: Digest::from_bytes([0; 32]),
        adapter: None,
        template: None,
        tokenizer: Digest::from_bytes([0; 32]),
        build: None,
        origin: Origin::Imported,
        system: None,
        sampling: log.sampling(),
        seed: 0,
        options: Options { n: answers.len().max(1) as u32, ..Options::default() },
        usage: Usage {
            prompt_tokens: log
                .count(&mapping.prompt_tokens, &["response.usage.prompt_tokens", "usage.prompt_tokens"])?,
            completion_tokens: log
                .count(&mapping.output_tokens, &["response.usage.completion_tokens", "usage.completion_tokens"])?,
            cached_tokens: 0,
        },
        timing: Timing { total_us: log.latency_us()?, ..Timing::default() },
        policy: RecordPolicy::Full,
        redaction: None,
        stored: false,
        user,
        safety_identifier: log.text(&None, &["request.safety_identifier", "safety_identifier"])?,
        placement: None,
        sketch: None,
        metadata,
        content: Some(Arc::new(Content { prompts: vec![PromptContent { given, tokens: Vec::new() }] })),
        choices: answers,
        erased_ms: None,
        expired_ms: None,
    };
    Ok(Row { completion, asked })
}

/// A row with its parts where OpenAI has them: `request` and `response`, the latter perhaps in `body` as batches have it.
struct Log<'a> {
    row: &'a Value,
    request: &'a Value,
    response: &'a Value,
    mapping: &'a Mapping,
}

impl<'a> Log<'a> {
    fn of(row: &'a Value, mapping: &'a Mapping) -> Self {
        let body = |value: &'a Value| value.get("body").filter(|body| body.is_object()).unwrap_or(value);
        Self { row, request: body(&row["request"]), response: body(&row["response"]), mapping }
    }

    /// What stands at a mapped path, which has to be there, or at the first of OpenAI's that is.
    fn at(&self, mapped: &Option<String>, usual: &[&str]) -> Result<Option<&'a Value>, String> {
        if let Some(path) = mapped {
            return Ok(walk(self.row, path).filter(|value| !value.is_null()));
        }
        let found = usual.iter().find_map(|path| {
            let value = match path.split_once('.') {
                Some(("request", rest)) => walk(self.request, rest),
                Some(("response", rest)) => walk(self.response, rest),
                _ => walk(self.row, path),
            };
            value.filter(|value| !value.is_null())
        });
        Ok(found)
    }

    fn text(&self, mapped: &Option<String>, usual: &[&str]) -> Result<Option<String>, String> {
        match self.at(mapped, usual)? {
            None => Ok(None),
            Some(Value::String(text)) if text.is_empty() => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(other) => Err(format!("{} should be a text; it is {other:.40}", named(mapped, usual))),
        }
    }

    fn count(&self, mapped: &Option<String>, usual: &[&str]) -> Result<usize, String> {
        match self.at(mapped, usual)? {
            None => Ok(0),
            Some(value) => value
                .as_u64()
                .map(|count| count as usize)
                .ok_or_else(|| format!("{} should be a count; it is {value:.40}", named(mapped, usual))),
        }
    }

    fn id(&self) -> Result<Option<String>, String> {
        self.text(&self.mapping.id, &["response.id", "id", "custom_id"])
    }

    fn created(&self) -> Result<Option<i64>, String> {
        let usual = ["response.created", "created", "created_at", "timestamp"];
        match self.at(&self.mapping.created, &usual)? {
            None => Ok(None),
            Some(value) => match time::read(value) {
                Some(ms) => Ok(Some(ms)),
                None => Err(format!("{} is no time: {value:.40}", named(&self.mapping.created, &usual))),
            },
        }
    }

    fn latency_us(&self) -> Result<u64, String> {
        match self.at(&self.mapping.latency_ms, &["latency_ms"])? {
            None => Ok(0),
            Some(value) => match value.as_f64() {
                Some(ms) if ms >= 0.0 => Ok((ms * 1000.0) as u64),
                _ => Err(format!("the latency should be milliseconds; it is {value:.40}")),
            },
        }
    }

    fn metadata(&self) -> Result<Map<String, Value>, String> {
        match self.at(&self.mapping.metadata, &["request.metadata", "metadata"])? {
            None => Ok(Map::new()),
            Some(Value::Object(fields)) => Ok(fields.clone()),
            Some(other) => Err(format!("the metadata should be an object; it is {other:.40}")),
        }
    }

    fn sampling(&self) -> Sampling {
        let number = |name: &str| self.request.get(name).and_then(Value::as_f64).map(|number| number as f32);
        let mut sampling = Sampling::default();
        for (field, name) in [(&mut sampling.temperature, "temperature"), (&mut sampling.top_p, "top_p")] {
            if let Some(number) = number(name) {
                *field = number;
            }
        }
        sampling
    }

    fn question_and_answers(&self) -> Result<(Given, Vec<ChoiceRecord>), String> {
        let mapping = self.mapping;
        let mut messages = match self.at(&mapping.messages, &["request.messages", "messages"])? {
            Some(Value::Array(messages)) => Some(messages.clone()),
            Some(other) => return Err(format!("the messages should be a list; they are {other:.40}")),
            None => None,
        };
        let answers = if let Some(answer) = self.at(&mapping.answer, &[])? {
            vec![self.answer(0, answer, None)?]
        } else if let Some(Value::Array(choices)) = self.at(&None, &["response.choices", "choices"])? {
            let choices = choices.iter().enumerate();
            choices.map(|(index, choice)| self.choice(index as u32, choice)).collect::<Result<Vec<_>, _>>()?
        } else if let Some(Value::String(_)) = self.at(&None, &["completion"])? {
            vec![self.answer(0, &self.row["completion"], None)?]
        } else if let Some(last) =
            messages.as_mut().and_then(|messages| messages.pop_if(|last| last["role"] == "assistant"))
        {
            vec![self.answer(0, &last, None)?]
        } else {
            let places = "response.choices, completion, or an assistant's message at the end of messages";
            return Err(format!("there is no answer in it: {places}, or a place that a mapping names"));
        };
        if answers.is_empty() {
            return Err("there are no choices in it".to_owned());
        }
        let given = match messages {
            Some(messages) if !messages.is_empty() => conversation(messages),
            _ => match self.text(&mapping.prompt, &["request.prompt", "prompt", "request.input", "input"])? {
                Some(prompt) => match self.text(&mapping.system, &[])? {
                    Some(system) => Given::Messages(vec![said(Role::System, system), said(Role::User, prompt)]),
                    None => Given::Text(prompt),
                },
                None => {
                    return Err(
                        "there is no question in it: messages or prompt, or a place that a mapping names".to_owned()
                    );
                }
            },
        };
        Ok((given, answers))
    }

    /// One of `choices`.
    fn choice(&self, index: u32, choice: &Value) -> Result<ChoiceRecord, String> {
        let answer = choice.get("message").or_else(|| choice.get("text")).unwrap_or(&Value::Null);
        self.answer(index, answer, choice.get("finish_reason"))
    }

    /// A text, or a message of an assistant.
    fn answer(&self, index: u32, answer: &Value, finish: Option<&Value>) -> Result<ChoiceRecord, String> {
        let (text, tool_calls) = match answer {
            Value::String(text) => (Some(text.clone()), None),
            Value::Object(message) => {
                let text = match message.get("content") {
                    Some(Value::String(text)) => Some(text.clone()),
                    Some(Value::Array(parts)) => Some(parts.iter().filter_map(|part| part["text"].as_str()).collect()),
                    _ => None,
                };
                let calls = message.get("tool_calls").filter(|calls| calls.as_array().is_some_and(|c| !c.is_empty()));
                (text, calls.cloned())
            }
            other => return Err(format!("the answer should be a text or a message; it is {other:.40}")),
        };
        if text.is_none() && tool_calls.is_none() {
            return Err("the answer has neither text nor calls".to_owned());
        }
        let finish = match finish.filter(|finish| !finish.is_null()) {
            Some(finish) => Some(finish),
            None => self.at(&self.mapping.ending, &[])?,
        };
        let (ending, fault) = ending(finish)?;
        Ok(ChoiceRecord { index, ending, tokens: 0, fault, text, scores: Vec::new(), tool_calls, thread: None })
    }
}

/// How it ended; what says nothing has stopped by itself.
fn ending(finish: Option<&Value>) -> Result<(Ending, Option<String>), String> {
    let stopped = Ending::Finished(FinishReason::Stop);
    let Some(finish) = finish else { return Ok((stopped, None)) };
    match finish.as_str() {
        Some("stop" | "tool_calls" | "function_call" | "end_turn" | "eos_token") => Ok((stopped, None)),
        Some("length" | "max_tokens") => Ok((Ending::Finished(FinishReason::Length), None)),
        Some("content_filter") => Ok((Ending::CutOff, Some("content_filter".to_owned()))),
        Some("error" | "failed") => Ok((Ending::Failed, None)),
        _ => Err(format!("{finish:.40} is no known way to end")),
    }
}

fn said(role: Role, content: String) -> Message {
    Message { role, content, name: None }
}

/// Plain messages as ours; if one of them says more, all as they are.
fn conversation(messages: Vec<Value>) -> Given {
    let plain = |message: &Value| -> Option<Message> {
        let fields = message.as_object()?;
        let known = ["role", "content", "name"];
        if fields.iter().any(|(name, value)| !known.contains(&name.as_str()) && !value.is_null()) {
            return None;
        }
        serde_json::from_value(message.clone()).ok()
    };
    match messages.iter().map(plain).collect::<Option<Vec<_>>>() {
        Some(messages) => Given::Messages(messages),
        None => Given::Turns(messages),
    }
}

fn first_words(given: &Given) -> String {
    match given {
        Given::Messages(messages) => {
            let first = messages.iter().find(|message| message.role == Role::User).or(messages.first());
            first.map(|message| message.content.clone()).unwrap_or_default()
        }
        Given::Turns(turns) => {
            let first = turns.iter().find(|turn| turn["role"] == "user").or(turns.first());
            first
                .map(|turn| turn["content"].as_str().map_or_else(|| turn.to_string(), str::to_owned))
                .unwrap_or_default()
        }
        Given::Text(text) => text.clone(),
        Given::Tokens => String::new(),
    }
}

/// What stands at a path of names, or numbers in lists, with dots between them.
fn walk<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    // A name may itself have dots.
    if let Some(found) = value.get(path) {
        return Some(found);
    }
    path.split('.').try_fold(value, |value, name| match value {
        Value::Array(items) => items.get(name.parse::<usize>().ok()?),
        other => other.get(name),
    })
}

fn named(mapped: &Option<String>, usual: &[&str]) -> String {
    mapped.clone().unwrap_or_else(|| usual.join(" or "))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn plain(row: Value) -> Result<Row, String> {
        read("log", &row, &Mapping::default())
    }

    fn answer(row: &Row) -> Option<&str> {
        row.completion.choices[0].text.as_deref()
    }

    fn given(row: &Row) -> &Given {
        &row.completion.content.as_ref().unwrap().prompts[0].given
    }

    #[test]
    fn a_request_with_its_response_is_read_whole() {
        let row = plain(json!({
            "request": {
                "model": "gpt-x", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "rain?"}],
                "temperature": 0.2, "user": "ann", "metadata": {"thread_id": "t-1", "team": "blue"},
            },
            "response": {
                "id": "chatcmpl-9", "created": 1_700_000_000, "model": "gpt-x-2024",
                "choices": [
                    {"index": 0, "message": {"role": "assistant", "content": "Yes."}, "finish_reason": "stop"},
                    {"index": 1, "message": {"role": "assistant", "content": "Yes, it"}, "finish_reason": "length"},
                ],
                "usage": {"prompt_tokens": 12, "completion_tokens": 5},
            },
        }))
        .unwrap();
        let c = &row.completion;
        assert_eq!((c.origin, c.kind, c.model.as_str()), (Origin::Imported, CompletionKind::Chat, "gpt-x-2024"));
        assert_eq!(
            (c.created_ms, c.request_id.as_str(), c.user.as_deref()),
            (1_700_000_000_000, "chatcmpl-9", Some("ann"))
        );
        assert_eq!((c.usage.prompt_tokens, c.usage.completion_tokens, c.options.n), (12, 5, 2));
        assert_eq!((c.sampling.temperature, c.adapter.is_none(), c.base), (0.2, true, Digest::from_bytes([0; 32])));
        assert_eq!((answer(&row), c.choices[1].ending), (Some("Yes."), Ending::Finished(FinishReason::Length)));
        assert!(matches!(given(&row), Given::Messages(messages) if messages.len() == 2));
        assert_eq!((row.asked.conversation.as_deref(), row.asked.first.as_str()), (Some("t-1"), "rain?"));
    }

    #[test]
    fn every_shape_of_openai_is_known() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let tuned = plain(json!({"messages": [turn("user", "a"), turn("assistant", "b")]})).unwrap();
        assert_eq!(answer(&tuned), Some("b"));
        assert!(matches!(given(&tuned), Given::Messages(messages) if messages.len() == 1));
        let old = plain(json!({"prompt": "a", "completion": "b"})).unwrap();
        assert_eq!((answer(&old), given(&old)), (Some("b"), &Given::Text("a".to_owned())));
        let batch = json!({
            "custom_id": "r-1", "request": {"body": {"messages": [turn("user", "a")]}},
            "response": {"status_code": 200, "body": {"choices": [{"message": turn("assistant", "b"), "finish_reason": "stop"}]}},
        });
        assert_eq!(answer(&plain(batch).unwrap()), Some("b"));
        let text =
            json!({"request": {"prompt": "a"}, "response": {"choices": [{"text": "b", "finish_reason": "length"}]}});
        assert_eq!(answer(&plain(text).unwrap()), Some("b"));
        let calls = json!([{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]);
        let called = plain(json!({"messages": [
            turn("user", "a"),
            {"role": "assistant", "content": null, "tool_calls": calls}, {"role": "tool", "tool_call_id": "c", "content": "1"},
            {"role": "assistant", "content": null, "tool_calls": calls},
        ]}))
        .unwrap();
        assert!(matches!(given(&called), Given::Turns(turns) if turns.len() == 3));
        assert_eq!((answer(&called), called.completion.choices[0].tool_calls.as_ref()), (None, Some(&calls)));
    }

    #[test]
    fn any_other_shape_is_read_by_a_mapping() {
        let mapping = Mapping {
            id: Some("trace.id".into()),
            created: Some("ts".into()),
            prompt: Some("in.question".into()),
            system: Some("in.rules".into()),
            answer: Some("out.0.said".into()),
            conversation: Some("session".into()),
            latency_ms: Some("took".into()),
            ending: Some("why".into()),
            output_tokens: Some("n.out".into()),
            metadata: Some("tags".into()),
            ..Mapping::default()
        };
        let row = json!({
            "trace": {"id": 77}, "ts": "2026-09-21T14:13:20Z", "in": {"question": "rain?", "rules": "Be brief."},
            "out": [{"said": "Yes."}], "session": "s-1", "took": 12.5, "why": "max_tokens", "n.out": 3, "tags": {"a": "b"},
        });
        let read_by = |row: &Value| read("log", row, &mapping);
        let mapped = read_by(&row).unwrap();
        let c = &mapped.completion;
        assert_eq!((c.request_id.as_str(), c.created_ms, c.timing.total_us), ("77", 1_790_000_000_000, 12_500));
        assert_eq!((answer(&mapped), mapped.asked.conversation.as_deref()), (Some("Yes."), Some("s-1")));
        assert_eq!((c.choices[0].ending, c.usage.completion_tokens), (Ending::Finished(FinishReason::Length), 3));
        assert!(matches!(given(&mapped), Given::Messages(messages) if messages[0].role == Role::System));
        let mut bad = row.clone();
        bad["ts"] = json!("yesterday");
        assert_eq!(read_by(&bad).unwrap_err(), "ts is no time: \"yesterday\"");
        bad = row.clone();
        bad["why"] = json!("bored");
        assert_eq!(read_by(&bad).unwrap_err(), "\"bored\" is no known way to end");
        bad["out"] = json!([]);
        assert!(read_by(&bad).unwrap_err().starts_with("there is no answer in it"));
    }

    #[test]
    fn the_same_row_has_the_same_id_and_another_source_another() {
        let row = json!({"prompt": "a", "completion": "b"});
        let id = |source: &str, row: &Value| read(source, row, &Mapping::default()).unwrap().completion.id;
        assert_eq!(id("log", &row), id("log", &row));
        assert_ne!(id("log", &row), id("other", &row));
        assert_ne!(id("log", &row), id("log", &json!({"prompt": "a", "completion": "c"})));
        let named = |completion: &str| id("log", &json!({"id": "x", "prompt": "a", "completion": completion}));
        assert_eq!(named("b"), named("c"), "its own id is what counts");
    }

    #[test]
    fn what_is_no_answer_is_refused_with_a_reason() {
        for (row, part) in [
            (json!("text"), "has to be an object"),
            (json!({}), "no answer"),
            (json!({"messages": [{"role": "user", "content": "a"}]}), "no answer"),
            (json!({"completion": "b"}), "no question"),
            (json!({"messages": "a", "completion": "b"}), "should be a list"),
            (json!({"prompt": "a", "response": {"choices": []}}), "no choices"),
            (
                json!({"prompt": "a", "response": {"choices": [{"message": {"role": "assistant", "content": null}}]}}),
                "neither text",
            ),
            (json!({"prompt": "a", "completion": "b", "created": "soon"}), "no time"),
            (json!({"prompt": "a", "completion": "b", "usage": {"prompt_tokens": "many"}}), "should be a count"),
        ] {
            let refused = plain(row).unwrap_err();
            assert!(refused.contains(part), "{refused}");
        }
    }
}

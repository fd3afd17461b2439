//! Bad requests of every kind: each gets its status, code and parameter, and the server goes on answering.

use serde_json::{Value, json};

use crate::support::{
    BASE,
    server::{CHAT, COMPLETIONS, TestServer, chat_body, text_body},
    wire::Request,
};

/// What is asked, and the status, code and parameter that it gets.
type Case = (&'static str, Request, u16, &'static str, Option<&'static str>);

fn chat(more: Value) -> Request {
    Request::post(CHAT, &chat_body("rslora", "rain", more))
}

fn complete(prompt: Value, more: Value) -> Request {
    Request::post(COMPLETIONS, &text_body("rslora", prompt, more))
}

fn messages(messages: Value) -> Request {
    chat(json!({"messages": messages}))
}

fn raw(body: &str) -> Request {
    Request::raw(CHAT, body.as_bytes())
}

/// A chat whose field is exactly this text, JSON or not.
fn field(text: &str) -> Request {
    raw(&format!(r#"{{"model":"rslora","messages":[{{"role":"user","content":"rain"}}],{text}}}"#))
}

/// A chat without one of its fields.
fn without(name: &str) -> Request {
    let mut body = chat_body("rslora", "rain", json!({}));
    body.as_object_mut().unwrap().remove(name);
    Request::post(CHAT, &body)
}

const MISSING: &str = "missing_required_parameter";
const UNSUPPORTED: &str = "unsupported_parameter";
const TYPE: &str = "invalid_type";
const VALUE: &str = "invalid_value";

fn bodies() -> Vec<Case> {
    let deep = format!(r#""metadata":{}{}"#, r#"{"a":"#.repeat(300), "}".repeat(300));
    vec![
        ("no body", raw(""), 400, "invalid_json", None),
        ("half a body", raw(r#"{"model":"#), 400, "invalid_json", None),
        ("two bodies", raw("{}{}"), 400, "invalid_json", None),
        ("a list", raw("[]"), 400, TYPE, None),
        ("a word", raw("\"hello\""), 400, TYPE, None),
        ("no UTF-8", Request::raw(CHAT, b"{\"model\":\"\xff\"}"), 400, "invalid_json", None),
        ("half a surrogate", field(r#""user":"\ud800""#), 400, "invalid_json", None),
        ("a byte order mark", Request::raw(CHAT, b"\xef\xbb\xbf{}"), 400, "invalid_json", None),
        ("NaN", field("\"temperature\":NaN"), 400, "invalid_json", None),
        ("Infinity", field("\"temperature\":Infinity"), 400, "invalid_json", None),
        ("beyond any number", field("\"temperature\":1e999"), 400, "invalid_json", None),
        ("too deep", field(&deep), 400, "invalid_json", None),
        ("a field twice", field(r#""seed":1,"seed":2"#), 400, "duplicate_key", Some("seed")),
        ("a bias twice", field(r#""logit_bias":{"5":1,"5":2}"#), 400, "duplicate_key", Some("5")),
        (
            "an unlabelled body",
            Request::new("POST", CHAT).body(b"{}"),
            415,
            "unsupported_media_type",
            Some("content-type"),
        ),
        (
            "a form",
            Request::new("POST", CHAT).header("content-type", "text/plain").body(b"{}"),
            415,
            "unsupported_media_type",
            Some("content-type"),
        ),
        (
            "a compressed body",
            chat(json!({})).header("content-encoding", "gzip"),
            415,
            "unsupported_media_type",
            Some("content-encoding"),
        ),
    ]
}

fn questions() -> Vec<Case> {
    let user = |content: Value| messages(json!([{"role": "user", "content": content}]));
    let part = |part: Value| user(json!([{"type": "text", "text": "see"}, part]));
    let role = |role: Value| messages(json!([{"role": role, "content": "x"}]));
    vec![
        ("no model", without("model"), 400, MISSING, Some("model")),
        ("a null model", chat(json!({"model": null})), 400, MISSING, Some("model")),
        ("an empty model", chat(json!({"model": ""})), 400, VALUE, Some("model")),
        ("a number as model", chat(json!({"model": 7})), 400, TYPE, Some("model")),
        ("an endless model", chat(json!({"model": "m".repeat(600)})), 400, "string_above_max_length", Some("model")),
        ("an unknown model", chat(json!({"model": "rslara"})), 404, "model_not_found", Some("model")),
        ("a path as model", chat(json!({"model": "../../etc/passwd"})), 404, "model_not_found", Some("model")),
        ("an unknown version", chat(json!({"model": "rslora@000000000000"})), 404, "model_not_found", Some("model")),
        ("no messages", without("messages"), 400, MISSING, Some("messages")),
        ("an empty conversation", messages(json!([])), 400, VALUE, Some("messages")),
        ("a text as messages", messages(json!("hello")), 400, TYPE, Some("messages")),
        ("a text as message", messages(json!(["hello"])), 400, TYPE, Some("messages[0]")),
        ("no role", messages(json!([{"content": "x"}])), 400, MISSING, Some("messages[0].role")),
        ("an unknown role", role(json!("robot")), 400, VALUE, Some("messages[0].role")),
        ("a number as role", role(json!(1)), 400, TYPE, Some("messages[0].role")),
        ("the role function", role(json!("function")), 400, UNSUPPORTED, Some("messages[0].role")),
        ("a role that the template refuses", role(json!("tool")), 400, "template_refused", Some("messages")),
        ("no content", messages(json!([{"role": "user"}])), 400, MISSING, Some("messages[0].content")),
        ("null content", user(json!(null)), 400, MISSING, Some("messages[0].content")),
        ("a number as content", user(json!(7)), 400, TYPE, Some("messages[0].content")),
        ("no parts", user(json!([])), 400, VALUE, Some("messages[0].content")),
        ("an untyped part", part(json!({"text": "x"})), 400, MISSING, Some("messages[0].content[1].type")),
        (
            "an image",
            part(json!({"type": "image_url", "image_url": {"url": "http://x/y.png"}})),
            400,
            UNSUPPORTED,
            Some("messages[0].content[1].type"),
        ),
        (
            "a sound",
            part(json!({"type": "input_audio", "input_audio": {}})),
            400,
            UNSUPPORTED,
            Some("messages[0].content[1].type"),
        ),
        ("a part of no known type", part(json!({"type": "smell"})), 400, VALUE, Some("messages[0].content[1].type")),
        ("a text part without text", part(json!({"type": "text"})), 400, MISSING, Some("messages[0].content[1].text")),
        (
            "a call",
            messages(json!([{"role": "assistant", "content": "x", "tool_calls": [{"id": "1"}]}])),
            400,
            UNSUPPORTED,
            Some("messages[0].tool_calls"),
        ),
        (
            "a number as name",
            messages(json!([{"role": "user", "content": "x", "name": 5}])),
            400,
            TYPE,
            Some("messages[0].name"),
        ),
        (
            "a prompt beyond the context",
            user(json!("rain ".repeat(2000))),
            400,
            "context_length_exceeded",
            Some("messages"),
        ),
        (
            "an answer beyond the context",
            chat(json!({"max_tokens": 100_000})),
            400,
            "context_length_exceeded",
            Some("messages"),
        ),
    ]
}

fn parameters() -> Vec<Case> {
    vec![
        ("a hot temperature", chat(json!({"temperature": 2.1})), 400, VALUE, Some("temperature")),
        ("a cold temperature", chat(json!({"temperature": -0.1})), 400, VALUE, Some("temperature")),
        ("a huge temperature", chat(json!({"temperature": 1e300})), 400, VALUE, Some("temperature")),
        ("a word as temperature", chat(json!({"temperature": "hot"})), 400, TYPE, Some("temperature")),
        ("a temperature of true", chat(json!({"temperature": true})), 400, TYPE, Some("temperature")),
        ("top_p 0", chat(json!({"top_p": 0})), 400, VALUE, Some("top_p")),
        ("top_p above 1", chat(json!({"top_p": 1.01})), 400, VALUE, Some("top_p")),
        ("top_k below -1", chat(json!({"top_k": -2})), 400, VALUE, Some("top_k")),
        ("half a top_k", chat(json!({"top_k": 1.5})), 400, TYPE, Some("top_k")),
        ("min_p above 1", chat(json!({"min_p": 1.5})), 400, VALUE, Some("min_p")),
        (
            "a negative repetition penalty",
            chat(json!({"repetition_penalty": -1})),
            400,
            VALUE,
            Some("repetition_penalty"),
        ),
        ("a large frequency penalty", chat(json!({"frequency_penalty": 3})), 400, VALUE, Some("frequency_penalty")),
        ("a large presence penalty", chat(json!({"presence_penalty": -3})), 400, VALUE, Some("presence_penalty")),
        ("no choices", chat(json!({"n": 0})), 400, VALUE, Some("n")),
        ("a million choices", chat(json!({"n": 1_000_000})), 400, VALUE, Some("n")),
        ("choices beyond any integer", field("\"n\":18446744073709551616"), 400, VALUE, Some("n")),
        ("half a choice", chat(json!({"n": 1.5})), 400, TYPE, Some("n")),
        ("no answer", chat(json!({"max_tokens": 0})), 400, VALUE, Some("max_tokens")),
        ("less than no answer", chat(json!({"max_completion_tokens": -1})), 400, VALUE, Some("max_completion_tokens")),
        ("a word as limit", chat(json!({"max_tokens": "10"})), 400, TYPE, Some("max_tokens")),
        ("more at least than at most", chat(json!({"min_tokens": 9})), 400, VALUE, Some("min_tokens")),
        ("a number as stop", chat(json!({"stop": 5})), 400, TYPE, Some("stop")),
        ("an empty stop", chat(json!({"stop": ""})), 400, VALUE, Some("stop")),
        ("a stop of numbers", chat(json!({"stop": ["a", 5]})), 400, TYPE, Some("stop")),
        ("many stops", chat(json!({"stop": vec!["x"; 17]})), 400, VALUE, Some("stop")),
        ("a long stop", chat(json!({"stop": "x".repeat(2000)})), 400, "string_above_max_length", Some("stop")),
        ("a stop token that is none", chat(json!({"stop_token_ids": [-1]})), 400, VALUE, Some("stop_token_ids")),
        (
            "a stop token beyond the vocabulary",
            chat(json!({"stop_token_ids": [512]})),
            400,
            VALUE,
            Some("stop_token_ids"),
        ),
        ("a word as seed", chat(json!({"seed": "x"})), 400, TYPE, Some("seed")),
        ("a seed beyond 64 bits", field("\"seed\":99999999999999999999"), 400, VALUE, Some("seed")),
        ("a list of biases", chat(json!({"logit_bias": [1]})), 400, TYPE, Some("logit_bias")),
        ("a bias for a word", chat(json!({"logit_bias": {"rain": 1}})), 400, VALUE, Some("logit_bias")),
        ("a bias with a leading zero", chat(json!({"logit_bias": {"07": 1}})), 400, VALUE, Some("logit_bias")),
        ("a large bias", chat(json!({"logit_bias": {"7": 101}})), 400, VALUE, Some("logit_bias.7")),
        ("a word as bias", chat(json!({"logit_bias": {"7": "much"}})), 400, TYPE, Some("logit_bias.7")),
        ("a bias beyond the vocabulary", chat(json!({"logit_bias": {"70000": 1}})), 400, VALUE, Some("logit_bias")),
        ("a number as logprobs", chat(json!({"logprobs": 3})), 400, TYPE, Some("logprobs")),
        ("top_logprobs alone", chat(json!({"top_logprobs": 3})), 400, VALUE, Some("top_logprobs")),
        ("many top_logprobs", chat(json!({"logprobs": true, "top_logprobs": 21})), 400, VALUE, Some("top_logprobs")),
        ("a word as stream", chat(json!({"stream": "yes"})), 400, TYPE, Some("stream")),
        ("a word as stream options", chat(json!({"stream_options": "usage"})), 400, TYPE, Some("stream_options")),
        (
            "a word as include_usage",
            chat(json!({"stream_options": {"include_usage": "yes"}})),
            400,
            TYPE,
            Some("stream_options.include_usage"),
        ),
        ("a number as user", chat(json!({"user": 5})), 400, TYPE, Some("user")),
        ("metadata in a list", chat(json!({"metadata": []})), 400, TYPE, Some("metadata")),
        ("metadata of numbers", chat(json!({"metadata": {"a": 1}})), 400, TYPE, Some("metadata.a")),
        ("a long metadata key", chat(json!({"metadata": {"k".repeat(65): "v"}})), 400, VALUE, Some("metadata")),
        ("a long metadata value", chat(json!({"metadata": {"k": "v".repeat(513)}})), 400, VALUE, Some("metadata")),
        (
            "much metadata",
            chat(
                json!({"metadata": (0..17).map(|n| (n.to_string(), "v")).collect::<std::collections::HashMap<_, _>>()}),
            ),
            400,
            VALUE,
            Some("metadata"),
        ),
        ("a word as store", chat(json!({"store": "yes"})), 400, TYPE, Some("store")),
        ("a made-up tier", chat(json!({"service_tier": "gold"})), 400, VALUE, Some("service_tier")),
        (
            "both ends of a conversation",
            chat(json!({"continue_final_message": true, "add_generation_prompt": true})),
            400,
            VALUE,
            Some("continue_final_message"),
        ),
        (
            "a made-up recording policy",
            chat(json!({})).header("x-tunegate-record", "some"),
            400,
            VALUE,
            Some("x-tunegate-record"),
        ),
    ]
}

fn unsupported() -> Vec<Case> {
    let tool = json!([{"type": "function", "function": {"name": "f"}}]);
    vec![
        ("tools", chat(json!({"tools": tool})), 400, UNSUPPORTED, Some("tools")),
        ("a tool choice", chat(json!({"tool_choice": "required"})), 400, UNSUPPORTED, Some("tool_choice")),
        ("functions", chat(json!({"functions": [{"name": "f"}]})), 400, UNSUPPORTED, Some("functions")),
        (
            "JSON mode",
            chat(json!({"response_format": {"type": "json_object"}})),
            400,
            UNSUPPORTED,
            Some("response_format"),
        ),
        ("audio", chat(json!({"audio": {"voice": "x"}})), 400, UNSUPPORTED, Some("audio")),
        ("a spoken answer", chat(json!({"modalities": ["text", "audio"]})), 400, UNSUPPORTED, Some("modalities")),
        ("a web search", chat(json!({"web_search_options": {}})), 400, UNSUPPORTED, Some("web_search_options")),
        ("a guided answer", chat(json!({"guided_json": {"type": "object"}})), 400, UNSUPPORTED, Some("guided_json")),
        (
            "structured outputs",
            chat(json!({"structured_outputs": {"regex": "a"}})),
            400,
            UNSUPPORTED,
            Some("structured_outputs"),
        ),
        ("a template", chat(json!({"chat_template": "{{ 1 }}"})), 400, UNSUPPORTED, Some("chat_template")),
        ("a beam search", chat(json!({"use_beam_search": true})), 400, UNSUPPORTED, Some("use_beam_search")),
        ("prompt log-probabilities", chat(json!({"prompt_logprobs": 1})), 400, UNSUPPORTED, Some("prompt_logprobs")),
        ("the best of many", complete(json!("rain"), json!({"best_of": 4})), 400, UNSUPPORTED, Some("best_of")),
        ("a suffix", complete(json!("rain"), json!({"suffix": "!"})), 400, UNSUPPORTED, Some("suffix")),
    ]
}

fn prompts() -> Vec<Case> {
    let prompt = |prompt: Value| complete(prompt, json!({}));
    vec![
        ("no prompt", prompt(json!(null)), 400, MISSING, Some("prompt")),
        ("an empty prompt", prompt(json!("")), 400, VALUE, Some("prompt")),
        ("no prompts", prompt(json!([])), 400, VALUE, Some("prompt")),
        ("an empty list of tokens", prompt(json!([[]])), 400, VALUE, Some("prompt")),
        ("a prompt of booleans", prompt(json!([true])), 400, TYPE, Some("prompt[0]")),
        ("tokens and text", prompt(json!([1, "a"])), 400, TYPE, Some("prompt")),
        ("a negative token", prompt(json!([-1])), 400, VALUE, Some("prompt")),
        ("a token beyond the vocabulary", prompt(json!([512])), 400, VALUE, Some("prompt")),
        ("many prompts", prompt(json!(vec!["a"; 17])), 400, VALUE, Some("prompt")),
        ("many choices of prompts", complete(json!(["a", "b"]), json!({"n": 9})), 400, VALUE, Some("n")),
        ("true as logprobs", complete(json!("a"), json!({"logprobs": true})), 400, TYPE, Some("logprobs")),
        ("many logprobs", complete(json!("a"), json!({"logprobs": 21})), 400, VALUE, Some("logprobs")),
        ("no tokens and no echo", complete(json!("a"), json!({"max_tokens": 0})), 400, VALUE, Some("max_tokens")),
        ("a prompt beyond the context", prompt(json!(vec![5; 600])), 400, "context_length_exceeded", Some("prompt")),
    ]
}

fn other_routes() -> Vec<Case> {
    let tokenize = |body: Value| Request::post("/tokenize", &body);
    let detokenize = |body: Value| Request::post("/detokenize", &body);
    let not_found = "route_not_found";
    vec![
        ("tokens of nothing", tokenize(json!({})), 400, MISSING, Some("messages")),
        ("tokens of a number", tokenize(json!({"prompt": 5})), 400, TYPE, Some("prompt")),
        (
            "tokens for nobody",
            tokenize(json!({"model": "nobody", "prompt": "x"})),
            404,
            "model_not_found",
            Some("model"),
        ),
        ("text of nothing", detokenize(json!({})), 400, MISSING, Some("tokens")),
        ("text of words", detokenize(json!({"tokens": ["a"]})), 400, TYPE, Some("tokens")),
        ("text of no token", detokenize(json!({"tokens": [99999]})), 400, VALUE, Some("tokens")),
        ("a model that is not there", Request::get("/v1/models/nobody"), 404, "model_not_found", Some("model")),
        ("a model of no text", Request::get("/v1/models/%FF"), 400, VALUE, Some("model")),
        ("embeddings", Request::post("/v1/embeddings", &json!({})), 404, not_found, None),
        ("responses", Request::post("/v1/responses", &json!({})), 404, not_found, None),
        ("an image", Request::post("/v1/images/generations", &json!({})), 404, not_found, None),
        ("a file", Request::get("/v1/files"), 404, not_found, None),
        ("no route at all", Request::get("/etc/passwd"), 404, not_found, None),
        ("a climbing path", Request::get("/v1/models/../../etc/passwd"), 404, "model_not_found", Some("model")),
        ("a question by GET", Request::get(COMPLETIONS), 405, "method_not_allowed", None),
        ("a probe by POST", Request::post("/health", &json!({})), 405, "method_not_allowed", None),
        ("a preflight", Request::new("OPTIONS", CHAT), 405, "method_not_allowed", None),
        (
            "an unknown stored completion",
            Request::get("/v1/chat/completions/chatcmpl-x"),
            404,
            "completion_not_found",
            Some("id"),
        ),
        ("a list after nothing", Request::get("/v1/chat/completions?after=chatcmpl-x"), 400, VALUE, Some("after")),
        ("a list of none", Request::get("/v1/chat/completions?limit=0"), 400, VALUE, Some("limit")),
        (
            "a replay of nothing",
            Request::new("POST", "/admin/replay/chatcmpl-x").body(b""),
            404,
            "completion_not_found",
            Some("id"),
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_bad_request_is_told_what_is_wrong_and_the_server_goes_on() {
    let server = TestServer::start().await;
    let good = server.chat(BASE, "rain", json!({})).await.content();
    let cases = [bodies(), questions(), parameters(), unsupported(), prompts(), other_routes()].concat();
    assert!(cases.len() >= 60, "{} cases", cases.len());
    let mut wrong = Vec::new();
    for (name, request, status, code, param) in cases {
        let answer = server.send(request).await;
        let got = answer.error();
        if got != (status, code.to_owned(), param.map(str::to_owned)) {
            wrong.push(format!("{name}: {got:?}, not {:?}: {}", (status, code, param), answer.text()));
        }
        for secret in [env!("CARGO_MANIFEST_DIR"), "src/", ".rs"] {
            assert!(!answer.text().contains(secret), "{name} tells of the server's insides: {}", answer.text());
        }
        assert!(answer.header("x-request-id").is_some(), "{name} has no request id");
        assert_eq!(server.chat(BASE, "rain", json!({})).await.content(), good, "after {name}");
    }
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_refused_before_it_begins() {
    let server = TestServer::start().await;
    for more in [json!({"temperature": 9}), json!({"model": "nobody"}), json!({"max_tokens": 100_000})] {
        let mut body = chat_body("rslora", "rain", more);
        body["stream"] = json!(true);
        let answer = server.post(CHAT, &body).await;
        assert!(matches!(answer.status, 400 | 404), "{}", answer.text());
        assert_eq!(answer.header("content-type"), Some("application/json"));
        answer.error();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_found_names_what_is() {
    let server = TestServer::start().await;
    let message = |answer: crate::support::wire::Answer| answer.json()["error"]["message"].as_str().unwrap().to_owned();
    let near = message(server.chat("rslara", "rain", json!({})).await);
    assert!(near.contains("'rslora'"), "{near}");
    let embeddings = message(server.post("/v1/embeddings", &json!({})).await);
    assert!(embeddings.contains("OpenAI") && embeddings.contains("POST /v1/chat/completions"), "{embeddings}");
    let wrong_method = server.get(COMPLETIONS).await;
    assert_eq!(wrong_method.header("allow"), Some("POST"));
    assert!(message(wrong_method).ends_with("it has POST"));
    for (path, there) in [
        ("/chat/completions", "/v1/chat/completions (the base URL"),
        ("/v1/v1/completions", "/v1/completions (the base URL"),
        ("/v1/completions/", "/v1/completions;"),
        ("/health/", "/health;"),
    ] {
        let lost = message(server.post(path, &json!({})).await);
        assert!(lost.contains(&format!("but there is {there}")), "{path}: {lost}");
    }
    assert!(!message(server.get("/etc/passwd").await).contains("but there is"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_fields_are_ignored_by_name_or_refused_where_strict() {
    let server = TestServer::start().await;
    let more = json!({"new_in_2031": 1, "verbosity": "low", "prompt_cache_key": "k"});
    let answer = server.chat(BASE, "rain", more.clone()).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("x-tunegate-ignored"), Some("new_in_2031, verbosity"));
    assert_eq!(server.chat(BASE, "rain", json!({})).await.header("x-tunegate-ignored"), None);
    let strict = TestServer::with(|config, _| config.limits.strict_fields = true).await;
    let refused = strict.chat(BASE, "rain", more).await.error();
    assert_eq!(refused, (400, "unknown_parameter".into(), Some("new_in_2031".into())));
    assert_eq!(strict.chat(BASE, "rain", json!({"verbosity": "low"})).await.status, 200);
}

//! What parameters do to an answer.

use serde_json::{Value, json};

use crate::support::{
    BASE,
    server::{CHAT, COMPLETIONS, TestServer, chat_body, text_body},
    wire::Request,
};

/// The token ids of a text, by the server itself.
async fn tokens(server: &TestServer, text: &str) -> Vec<u64> {
    let answer = server.post("/tokenize", &json!({"prompt": text, "add_special_tokens": false})).await;
    answer.json()["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap()).collect()
}

fn choices(body: &Value) -> &Vec<Value> {
    body["choices"].as_array().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_seed_names_an_answer_and_choices_differ() {
    let server = TestServer::start().await;
    let ask =
        |seed: i64| server.chat("rslora", "rain", json!({"temperature": 1.5, "seed": seed, "n": 3, "max_tokens": 24}));
    let texts = |answer: crate::support::wire::Answer| -> Vec<String> {
        let body = answer.json();
        choices(&body).iter().map(|choice| choice["message"]["content"].as_str().unwrap().to_owned()).collect()
    };
    let (one, again, other) = (texts(ask(5).await), texts(ask(5).await), texts(ask(6).await));
    assert_eq!(one, again);
    assert_ne!(one, other);
    assert!(one[0] != one[1] && one[1] != one[2], "{one:?}");
    let usage = ask(5).await.json()["usage"]["completion_tokens"].clone();
    assert_eq!(usage, 3 * 24, "every choice counts");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_ends_at_a_stop_string_which_is_shown_only_on_request() {
    let server = TestServer::start().await;
    let whole = server.complete(BASE, json!("one, two,"), json!({"max_tokens": 32})).await.content();
    let characters: Vec<(usize, char)> = whole.char_indices().collect();
    let stop: String = characters[4..7].iter().map(|&(_, c)| c).collect();
    let before = &whole[..whole.find(&stop).unwrap()];
    for stop in [json!(stop), json!(["never this", stop])] {
        let more = json!({"max_tokens": 32, "stop": stop});
        let answer = server.complete(BASE, json!("one, two,"), more).await;
        assert_eq!(answer.content(), before);
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "stop");
    }
    let more = json!({"max_tokens": 32, "stop": stop, "include_stop_str_in_output": true});
    assert_eq!(server.complete(BASE, json!("one, two,"), more).await.content(), format!("{before}{stop}"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bias_a_stop_token_and_a_least_length_do_what_they_say() {
    let server = TestServer::start().await;
    let forced = tokens(&server, "a").await[0];
    let bias = json!({"logit_bias": {forced.to_string(): 100}, "max_tokens": 4});
    assert_eq!(server.complete(BASE, json!("rain"), bias.clone()).await.content(), "aaaa");
    let mut stopped = bias.clone();
    stopped["stop_token_ids"] = json!([forced]);
    let answer = server.complete(BASE, json!("rain"), stopped.clone()).await;
    assert_eq!((answer.content().as_str(), answer.json()["choices"][0]["finish_reason"].as_str()), ("", Some("stop")));
    // Stop tokens may not come before the least length.
    stopped["min_tokens"] = json!(3);
    let body = server.complete(BASE, json!("rain"), stopped).await.json();
    assert!(body["usage"]["completion_tokens"].as_u64().unwrap() >= 3, "{body}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_end_of_turn_ends_the_answer_unless_it_is_ignored() {
    let server = TestServer::start().await;
    let end = 2;
    let more = |ignore: bool| json!({"logit_bias": {end.to_string(): 100}, "ignore_eos": ignore, "max_tokens": 5});
    let body = server.complete(BASE, json!("rain"), more(false)).await.json();
    assert_eq!(
        (&body["choices"][0]["finish_reason"], &body["usage"]["completion_tokens"]),
        (&json!("stop"), &json!(1))
    );
    let body = server.complete(BASE, json!("rain"), more(true)).await.json();
    assert_eq!(
        (&body["choices"][0]["finish_reason"], &body["usage"]["completion_tokens"]),
        (&json!("length"), &json!(5))
    );
    assert_eq!(body["choices"][0]["text"], "", "special tokens are no text");
    let mut shown = more(true);
    shown["skip_special_tokens"] = json!(false);
    let body = server.complete(BASE, json!("rain"), shown).await.json();
    assert_eq!(body["choices"][0]["text"], "<|im_end|>".repeat(5));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn penalties_and_narrow_sampling_change_what_is_drawn() {
    let server = TestServer::start().await;
    let sample = |more: Value| {
        let mut all = json!({"temperature": 1.0, "seed": 3, "max_tokens": 32});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let server = &server;
        async move { server.complete("all7", json!("one, two,"), all).await.content() }
    };
    let free = sample(json!({})).await;
    let greedy = server.complete("all7", json!("one, two,"), json!({"max_tokens": 32})).await.content();
    for narrow in [json!({"top_k": 1}), json!({"top_p": 1e-6}), json!({"min_p": 1.0}), json!({"temperature": 0})] {
        assert_eq!(sample(narrow.clone()).await, greedy, "{narrow}");
    }
    assert_ne!(free, greedy);
    for penalty in [json!({"frequency_penalty": 2}), json!({"presence_penalty": 2}), json!({"repetition_penalty": 3})] {
        let mut more = penalty.clone();
        more["temperature"] = json!(0);
        assert_ne!(sample(more).await, greedy, "{penalty}");
    }
    assert_eq!(sample(json!({"top_k": -1})).await, free, "-1 keeps all tokens");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_log_probabilities_come_with_bytes_and_alternatives() {
    let server = TestServer::start().await;
    let more = json!({"logprobs": true, "top_logprobs": 3});
    let answer = server.chat("rslora", "rain", more.clone()).await;
    let text = answer.content();
    let body = answer.json();
    let tokens = body["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 8);
    let mut bytes = Vec::new();
    for token in tokens {
        bytes.extend(token["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8));
        let top = token["top_logprobs"].as_array().unwrap();
        let logprobs: Vec<f64> = top.iter().map(|other| other["logprob"].as_f64().unwrap()).collect();
        assert!(logprobs.len() == 3 && logprobs.is_sorted_by(|a, b| a >= b), "{logprobs:?}");
        // Greedy: the token is its own best alternative.
        assert_eq!((&token["token"], &token["logprob"]), (&top[0]["token"], &top[0]["logprob"]));
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
    }
    assert_eq!(String::from_utf8_lossy(&bytes), text);
    let mut streamed = chat_body("rslora", "rain", more);
    streamed["stream"] = json!(true);
    let events = server.stream(CHAT, &streamed).await.all().await;
    let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
    let content: Vec<Value> =
        chunks.filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array().cloned()).flatten().collect();
    assert_eq!(&content, tokens, "a stream has the same");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_show_log_probabilities_in_lists_with_offsets() {
    let server = TestServer::start().await;
    let answer = server.complete("rslora", json!("rain, rain"), json!({"logprobs": 2, "echo": true})).await;
    let body = answer.json();
    let choice = &body["choices"][0];
    let text = choice["text"].as_str().unwrap();
    assert!(text.starts_with("rain, rain"), "{text}");
    let list = |name: &str| choice["logprobs"][name].as_array().unwrap().clone();
    let (tokens, logprobs, tops, offsets) =
        (list("tokens"), list("token_logprobs"), list("top_logprobs"), list("text_offset"));
    let prompt = body["usage"]["prompt_tokens"].as_u64().unwrap() as usize;
    for length in [tokens.len(), logprobs.len(), tops.len(), offsets.len()] {
        assert_eq!(length, prompt + 8);
    }
    assert!(logprobs[0].is_null() && tops[0].is_null(), "nothing stands before the first token");
    assert!(logprobs[1..].iter().all(|logprob| logprob.as_f64().is_some_and(|value| value <= 0.0)));
    assert!(tops[1..].iter().all(|top| (1..=2).contains(&top.as_object().unwrap().len())));
    let characters: Vec<char> = text.chars().collect();
    for (token, offset) in tokens.iter().zip(&offsets) {
        let (token, offset) = (token.as_str().unwrap(), offset.as_u64().unwrap() as usize);
        if !token.contains('\u{fffd}') {
            let here: String = characters[offset..].iter().take(token.chars().count()).collect();
            assert_eq!(here, token, "at {offset} of {text:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_echo_of_no_tokens_scores_the_prompt_alone() {
    let server = TestServer::start().await;
    let more = json!({"echo": true, "max_tokens": 0, "logprobs": 0});
    let body = server.complete(BASE, json!("rain, rain"), more).await.json();
    let choice = &body["choices"][0];
    assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!("rain, rain"), &json!("length")));
    assert_eq!(body["usage"]["completion_tokens"], 0);
    let count = choice["logprobs"]["tokens"].as_array().unwrap().len();
    assert_eq!(body["usage"]["prompt_tokens"], count);
    let plain = server.complete(BASE, json!("rain, rain"), json!({"echo": true})).await.json();
    let bare = server.complete(BASE, json!("rain, rain"), json!({})).await.content();
    assert_eq!(plain["choices"][0]["text"], format!("rain, rain{bare}"));
    assert!(plain["choices"][0]["logprobs"].is_null());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_prompt_is_the_same_in_all_its_forms() {
    let server = TestServer::start().await;
    let ids = server.post("/tokenize", &json!({"prompt": "rain"})).await.json()["tokens"].clone();
    let text = server.complete("rslora", json!("rain"), json!({})).await.content();
    assert_eq!(server.complete("rslora", ids.clone(), json!({})).await.content(), text);
    let other = server.complete("rslora", json!("snow"), json!({})).await.content();
    let body = server.complete("rslora", json!(["rain", "snow"]), json!({"n": 2})).await.json();
    let texts: Vec<&str> = choices(&body).iter().map(|choice| choice["text"].as_str().unwrap()).collect();
    assert_eq!(texts, [&text, &text, &other, &other], "choices are in order of their prompts");
    assert_eq!(choices(&body).iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    let body = server.complete("rslora", json!([ids, ids]), json!({})).await.json();
    assert!(choices(&body).iter().all(|choice| choice["text"] == text.as_str()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_stream_what_they_would_say_whole() {
    let server = TestServer::start().await;
    let whole = server.complete("rslora", json!(["rain", "snow"]), json!({})).await.json();
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let events = server.stream(COMPLETIONS, &text_body("rslora", json!(["rain", "snow"]), more)).await.all().await;
    let (done, events) = events.split_last().unwrap();
    assert_eq!(done, "[DONE]");
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    assert!(chunks.iter().all(|chunk| chunk["object"] == "text_completion"));
    for index in 0..2 {
        let own = || chunks.iter().flat_map(choices).filter(|choice| choice["index"] == index);
        let text: String = own().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, whole["choices"][index]["text"].as_str().unwrap());
        let finishes: Vec<&Value> = own().map(|choice| &choice["finish_reason"]).filter(|f| !f.is_null()).collect();
        assert_eq!(finishes, ["length"]);
    }
    assert_eq!(chunks.last().unwrap()["usage"], whole["usage"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_conversation_can_be_left_open_or_its_last_message_continued() {
    let server = TestServer::start().await;
    let count = |more: Value| {
        let mut body =
            json!({"messages": [{"role": "user", "content": "rain"}, {"role": "assistant", "content": "It is"}]});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let server = &server;
        async move { server.post("/tokenize", &body).await.json()["count"].as_u64().unwrap() }
    };
    let (opened, closed) = (count(json!({})).await, count(json!({"add_generation_prompt": false})).await);
    let continued = count(json!({"continue_final_message": true})).await;
    assert!(continued < closed && closed < opened, "{continued} {closed} {opened}");
    let parts = json!([{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]);
    let ask = |content: Value| server.chat(BASE, "", json!({"messages": [{"role": "user", "content": content}]}));
    assert_eq!(ask(parts).await.content(), ask(json!("one\ntwo")).await.content());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_can_hide_the_lengths_of_its_tokens() {
    let server = TestServer::start().await;
    let more = json!({"stream": true, "stream_options": {"include_obfuscation": true}, "service_tier": "auto"});
    let events = server.stream(CHAT, &chat_body(BASE, "rain", more)).await.all().await;
    let chunks: Vec<Value> = events.iter().filter_map(|event| serde_json::from_str(event).ok()).collect();
    let paddings: Vec<usize> = chunks.iter().map(|chunk| chunk["obfuscation"].as_str().unwrap().len()).collect();
    assert!(paddings.iter().any(|&length| length != paddings[0]), "{paddings:?}");
    assert!(chunks.iter().all(|chunk| chunk["service_tier"] == "default"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_and_a_base_can_be_named_with_the_adapter() {
    let server = TestServer::start().await;
    let entry = server.gateway.adapters().list().into_iter().find(|entry| entry.name.as_str() == "rslora").unwrap();
    let plain = server.chat("rslora", "rain", json!({})).await;
    for name in [format!("rslora@{}", entry.version.short()), format!("{BASE}:rslora")] {
        let answer = server.chat(&name, "rain", json!({})).await;
        assert_eq!(answer.content(), plain.content());
        assert_eq!(answer.json()["model"], "rslora", "the answer echoes the adapter's name");
        assert_eq!(answer.header("x-tunegate-version"), plain.header("x-tunegate-version"));
    }
    assert!(plain.header("x-tunegate-version").unwrap().contains(&entry.version.short()));
    assert_ne!(
        server.chat(BASE, "rain", json!({})).await.json()["system_fingerprint"],
        plain.json()["system_fingerprint"]
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_clients_request_id_comes_back() {
    let server = TestServer::start().await;
    let ask = |id: &str| Request::post(CHAT, &chat_body(BASE, "rain", json!({}))).header("x-request-id", id);
    let answer = server.send(ask("trace/1")).await;
    assert_eq!(answer.header("x-request-id"), Some("trace/1"));
    let id = answer.json()["id"].as_str().unwrap().to_owned();
    let row = server.gateway.journal().get(&id).await.unwrap().unwrap();
    assert_eq!(row.request_id, "trace/1");
    assert!(server.send(ask("not a sane one")).await.header("x-request-id").unwrap().starts_with("req-"));
}

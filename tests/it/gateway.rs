//! The gateway over the tiny real model: routes, neighbours, stops, endings on record.

use std::collections::HashSet;

use tunegate::{
    adapters::AdapterError,
    gateway::{AskError, Caller, Prompt, ReplyError, ReplyEvent},
    journal::Given,
    terms::{Ending, FinishReason, Message, RecordPolicy, Role},
};

use crate::support::{Answer, BASE, TestGateway, golden, question};

fn text(words: &str) -> Prompt {
    Prompt::Text(words.to_owned())
}

#[tokio::test]
async fn base_and_adapters_give_pairwise_different_answers() {
    let gateway = TestGateway::new();
    let mut seen = HashSet::new();
    for model in [BASE, "plain-qv", "all7", "rslora", "patterns", "o-down"] {
        let answer = gateway.ask(question(model, text("the quick brown fox"), 24)).await;
        assert_eq!(answer.model, model);
        assert!(seen.insert(answer.choices[0].tokens()), "{model} answers as another does");
    }
}

#[tokio::test]
async fn an_answer_does_not_depend_on_its_neighbours() {
    let gateway = TestGateway::new();
    let models = [BASE, "plain-qv", "all7", "rslora", "patterns", "o-down", "bf16", "f16", "layers-int"];
    let ask = |index: usize| {
        let words = "one two three four five six seven eight nine ten ".repeat(1 + index % 4);
        question(models[index % models.len()], text(&format!("{index} {words}")), 12 + index)
    };
    let mut alone = Vec::new();
    for index in 0..16 {
        alone.push(gateway.ask(ask(index)).await.choices);
    }
    let together = futures_util::future::join_all((0..16).map(|index| gateway.ask(ask(index)))).await;
    for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
        assert_eq!(alone[0].tokens(), together.choices[0].tokens(), "request {index}");
    }
}

#[tokio::test]
async fn a_name_is_found_exactly_or_with_base_or_version_and_otherwise_the_nearest_is_named() {
    let gateway = TestGateway::new();
    let entry = gateway.gateway.adapters().list().into_iter().find(|entry| entry.name.as_str() == "rslora");
    let version = entry.expect("served").version.to_string();
    let plain = gateway.ask(question("rslora", text("hi"), 8)).await;
    for model in ["tiny:rslora".to_owned(), format!("rslora@{}", &version[..8]), format!("tiny:rslora@{version}")] {
        let answer = gateway.ask(question(&model, text("hi"), 8)).await;
        assert_eq!((answer.model.as_str(), &answer.choices), ("rslora", &plain.choices), "{model}");
    }
    for (model, nearest) in
        [("rsloar", "rslora"), ("tinny", BASE), ("tiny:rsloar", "rslora"), ("rsloar@0123456789ab", "rslora")]
    {
        let Err(error) = gateway.gateway.ask(question(model, text("hi"), 8)).await else { panic!("{model} answers") };
        match error {
            AskError::UnknownModel { nearest: found, .. } => assert_eq!(found.as_deref(), Some(nearest), "{model}"),
            other => panic!("{model}: {other}"),
        }
    }
    let mut ask = question("rslora", text("hi"), 8);
    ask.caller = Caller { models: Some(vec!["plain-qv".to_owned()]), ..Caller::default() };
    assert!(matches!(gateway.gateway.ask(ask).await, Err(AskError::ModelNotAllowed { .. })));
}

#[tokio::test]
async fn a_refused_adapter_says_why_also_behind_the_bases_name_and_no_adapter_takes_a_name_of_the_base() {
    let gateway = TestGateway::with(|config| {
        config.server.served_names = vec![BASE.to_owned(), "also".to_owned()];
        config.adapters.modules =
            vec![("bad".to_owned(), golden("later/llama/alora")), ("also".to_owned(), golden("adapters/llama/rslora"))];
    });
    for model in ["bad", "tiny:bad", "also:bad"] {
        let Err(error) = gateway.gateway.ask(question(model, text("hi"), 8)).await else { panic!("{model} answers") };
        assert!(matches!(error, AskError::Adapter(AdapterError::Refused { .. })), "{model}: {error}");
    }
    let mut foreign = question("bad", text("hi"), 8);
    foreign.caller = Caller { models: Some(vec![BASE.to_owned()]), ..Caller::default() };
    assert!(matches!(gateway.gateway.ask(foreign).await, Err(AskError::ModelNotAllowed { .. })));
    assert_eq!(gateway.ask(question("also", text("hi"), 8)).await.model, BASE, "the base's second name");
    let told = gateway.refused().iter().find(|(name, _)| name == "also").map(|(_, reasons)| reasons[0].to_string());
    assert_eq!(told.as_deref(), Some("also: is the base's name"));
}

#[tokio::test]
async fn a_stop_string_ends_the_answer_before_it_and_only_shown_tokens_are_scored() {
    let gateway = TestGateway::new();
    let free = gateway.ask(question(BASE, text("once upon"), 24)).await.choices.remove(0);
    let chars: Vec<char> = free.text.chars().collect();
    let stop: String = chars[chars.len() / 2..chars.len() / 2 + 3].iter().collect();
    let expected = &free.text[..free.text.find(&stop).expect("the stop is in the text")];
    let mut ask = question(BASE, text("once upon"), 24);
    ask.stop = vec![stop.clone()];
    let stopped = gateway.ask(ask.clone()).await.choices.remove(0);
    assert_eq!((stopped.text.as_str(), stopped.finish), (expected, Some(FinishReason::Stop)));
    assert!(stopped.scores.len() < free.scores.len());
    assert!(free.tokens().starts_with(&stopped.tokens()));
    ask.include_stop = true;
    ask.id.push('b');
    assert_eq!(gateway.ask(ask).await.choices[0].text, format!("{expected}{stop}"));
}

#[tokio::test]
async fn what_request_and_adapter_leave_open_comes_from_the_model_or_from_openai() {
    for (own, temperature, top_k) in [(true, 0.7, 20), (false, 1.0, 0)] {
        let gateway = TestGateway::with(|config| {
            config.model.path = golden("models/qwen2");
            config.model.own_sampling = own;
            config.adapters.dirs.clear();
        });
        let mut ask = question(BASE, text("tell me"), 4);
        ask.sampling = Default::default();
        let id = ask.id.clone();
        gateway.ask(ask).await;
        let row = gateway.gateway.journal().get(&id).await.expect("readable").expect("recorded");
        assert_eq!((row.sampling.temperature, row.sampling.top_k), (temperature, top_k), "{own}");
    }
}

#[tokio::test]
async fn every_finished_choice_is_on_record_with_what_a_replay_needs() {
    let gateway = TestGateway::new();
    let mut ask = question("all7", text("tell me"), 6);
    ask.n = 3;
    ask.sampling.temperature = Some(1.0);
    ask.metadata.insert("team".into(), "blue".into());
    let id = ask.id.clone();
    let answer = gateway.ask(ask).await;
    assert_eq!(answer.choices.len(), 3);
    assert_eq!(answer.usage.completion_tokens, 18);
    let row = gateway.gateway.journal().get(&id).await.expect("readable").expect("recorded");
    assert_eq!(row.choices.len(), 3);
    for (choice, shown) in row.choices.iter().zip(&answer.choices) {
        assert_eq!(choice.ending, Ending::Finished(FinishReason::Length));
        assert_eq!(choice.text.as_deref(), Some(shown.text.as_str()));
        let recorded: Vec<u32> = choice.scores.iter().map(|score| score.token).collect();
        assert_eq!(recorded, shown.tokens());
    }
    assert_eq!(row.adapter.as_ref().map(|(name, _)| name.as_str()), Some("all7"));
    let content = row.content.expect("content under policy full");
    assert_eq!(content.prompts[0].given, Given::Text("tell me".to_owned()));
    assert_eq!(row.metadata["team"], "blue");
    assert_eq!(row.seed, 7);
}

#[tokio::test]
async fn a_client_that_leaves_is_on_record_and_frees_the_engine() {
    let gateway = TestGateway::new();
    let ask = question(BASE, text("long story"), 400);
    let id = ask.id.clone();
    let mut reply = gateway.gateway.ask(ask).await.expect("admitted");
    while !matches!(reply.next().await.expect("running"), Some(ReplyEvent::Piece { .. })) {}
    drop(reply);
    gateway.gateway.idle().await;
    gateway.gateway.journal().idle().await;
    let row = gateway.gateway.journal().get(&id).await.expect("readable").expect("recorded");
    assert_eq!(row.choices[0].ending, Ending::ClientLeft);
    assert!(row.choices[0].tokens >= 1 && row.choices[0].tokens < 400);
    // The next answer has the engine to itself: nothing of the left one runs any more.
    gateway.ask(question(BASE, text("next"), 4)).await;
    let load = gateway.gateway.engine().load();
    assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
}

#[tokio::test]
async fn draining_refuses_the_new_and_a_cut_off_ends_the_running_on_record() {
    let gateway = TestGateway::new();
    let ask = question("plain-qv", text("long story"), 400);
    let id = ask.id.clone();
    let mut reply = gateway.gateway.ask(ask).await.expect("admitted");
    reply.next().await.expect("running");
    gateway.gateway.drain();
    assert!(matches!(gateway.gateway.ask(question(BASE, text("hi"), 1)).await, Err(AskError::Draining)));
    gateway.gateway.cut_off();
    let ended = loop {
        match reply.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("finished"),
            Err(error) => break error,
        }
    };
    assert!(matches!(ended, ReplyError::CutOff));
    drop(reply);
    gateway.gateway.journal().idle().await;
    let row = gateway.gateway.journal().get(&id).await.expect("readable").expect("recorded");
    assert_eq!(row.choices[0].ending, Ending::CutOff);
}

#[tokio::test]
async fn the_strictest_policy_holds_and_a_fact_stays() {
    let gateway = TestGateway::new();
    for (server_less, expect_content, expect_user) in
        [(None, true, true), (Some(RecordPolicy::Metadata), false, true), (Some(RecordPolicy::None), false, false)]
    {
        let mut ask = question(BASE, text("secret"), 3);
        ask.record = server_less;
        ask.user = Some("u-1".to_owned());
        let id = ask.id.clone();
        gateway.ask(ask).await;
        let row = gateway.gateway.journal().get(&id).await.expect("readable").expect("the fact is there");
        assert_eq!(row.content.is_some(), expect_content);
        assert_eq!(row.choices[0].text.is_some(), expect_content);
        assert_eq!(!row.choices[0].scores.is_empty(), expect_content);
        assert_eq!(row.user.is_some(), expect_user);
        assert_eq!(row.choices[0].tokens, 3);
    }
}

#[tokio::test]
async fn a_seed_names_one_answer_and_choices_differ() {
    let gateway = TestGateway::new();
    let mut ask = question(BASE, text("roll the dice"), 16);
    ask.sampling.temperature = Some(1.5);
    ask.n = 2;
    let first = gateway.ask(ask.clone()).await;
    ask.id.push('b');
    let again = gateway.ask(ask.clone()).await;
    // The last digits of a score may differ with the rows that share a step; what is drawn does not.
    let drawn = |answer: &Answer| answer.choices.iter().map(|choice| choice.tokens()).collect::<Vec<_>>();
    assert_eq!(drawn(&first), drawn(&again));
    assert_ne!(first.choices[0].tokens(), first.choices[1].tokens());
    ask.id.push('c');
    ask.seed = Some(8);
    assert_ne!(drawn(&gateway.ask(ask).await), drawn(&first));
}

#[tokio::test]
async fn an_echoed_prompt_comes_first_with_its_own_scores_and_needs_no_answer() {
    let gateway = TestGateway::new();
    let mut ask = question(BASE, text("the quick brown fox"), 0);
    ask.max_tokens = Some(0);
    ask.echo = true;
    let mut reply = gateway.gateway.ask(ask).await.expect("admitted");
    let Some(ReplyEvent::Echo { text, tokens, scores, .. }) = reply.next().await.expect("an echo") else {
        panic!("no echo")
    };
    assert_eq!(text, "the quick brown fox");
    assert_eq!(scores.iter().map(|score| score.token).collect::<Vec<_>>(), tokens[1..]);
    let rest = Answer::collect(reply).await.expect("finished");
    assert_eq!((rest.choices[0].finish, rest.usage.completion_tokens), (Some(FinishReason::Length), 0));
}

#[tokio::test]
async fn prompts_that_do_not_fit_are_refused_before_anything_runs() {
    let gateway = TestGateway::new();
    let long = Prompt::Tokens(vec![5; 512]);
    for (ask, what) in [
        (question(BASE, long, 1), "context"),
        (question(BASE, text("hi"), 600), "context"),
        (question(BASE, Prompt::Tokens(vec![]), 4), "empty"),
        (question(BASE, Prompt::Tokens(vec![9999]), 4), "vocabulary"),
    ] {
        let Err(error) = gateway.gateway.ask(ask).await else { panic!("admitted: {what}") };
        assert!(error.to_string().contains(what), "{error}");
    }
    let load = gateway.gateway.engine().load();
    assert_eq!((load.running, load.waiting), (0, 0));
}

#[tokio::test]
async fn a_conversation_is_rendered_by_the_template_and_recorded_as_it_came() {
    let gateway = TestGateway::new();
    let messages = vec![Message { role: Role::User, content: "hello <|im_end|> there".to_owned(), name: None }];
    let prompt =
        Prompt::Chat { messages: messages.clone(), add_generation_prompt: true, continue_final_message: false };
    let ask = question("rslora", prompt, 4);
    let id = ask.id.clone();
    gateway.ask(ask).await;
    let row = gateway.gateway.journal().get(&id).await.expect("readable").expect("recorded");
    let content = row.content.expect("content");
    assert_eq!(content.prompts[0].given, Given::Messages(messages));
    assert!(row.template.is_some());
    let end = gateway.gateway.text().encode("<|im_end|>", false).expect("encodes");
    assert!(end.len() > 1, "a special token in words stays words");
}

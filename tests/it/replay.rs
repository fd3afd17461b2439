//! A recorded request runs again on its recorded versions, and every difference is found.

mod command;

use axum::{Router, body::Body};
use http::{Request, StatusCode};
use http_body_util::BodyExt;
use tower::ServiceExt;
use tunegate::{
    config::Config,
    gateway::{Ask, Gateway, Prompt, Replay, ReplayError},
    http::auth::Keys,
    journal::{Completion, CompletionKind, Cursor},
    terms::{Ending, FinishReason, Message, RecordPolicy, Role, SamplingLayer},
};

use crate::support::{self, BASE, TestGateway, golden, question};

/// Two prompts with two choices each, drawn with everything that changes the drawing.
fn elaborate(model: &str) -> Ask {
    Ask {
        prompts: vec![Prompt::Text("once upon a time".to_owned()), Prompt::Tokens(vec![5, 9, 14, 23, 8])],
        sampling: SamplingLayer {
            temperature: Some(1.3),
            top_p: Some(0.95),
            top_k: Some(40),
            min_p: Some(0.001),
            repetition_penalty: Some(1.1),
            frequency_penalty: Some(0.3),
            presence_penalty: Some(0.2),
        },
        n: 2,
        stop: vec!["qu".to_owned()],
        logit_bias: vec![(17, 2.0), (30, -100.0)],
        top_logprobs: Some(3),
        seed: None,
        ..question(model, Prompt::Text(String::new()), 24)
    }
}

fn chat(model: &str) -> Ask {
    let messages = vec![Message { role: Role::User, content: "the press leaks".to_owned(), name: None }];
    let prompt = Prompt::Chat { messages, add_generation_prompt: true, continue_final_message: false };
    Ask { kind: CompletionKind::Chat, ..question(model, prompt, 16) }
}

/// Asks and returns the completion as it stands on record.
async fn recorded(test: &TestGateway, ask: Ask) -> Completion {
    let id = ask.id.clone();
    test.ask(ask).await;
    test.gateway.journal().get(&id).await.expect("readable").expect("on record")
}

/// Puts an altered copy of a completion on record, and returns its id.
async fn altered(gateway: &Gateway, completion: &Completion, change: impl FnOnce(&mut Completion)) -> String {
    let mut copy = Completion { id: format!("{}-altered", completion.id), ..completion.clone() };
    change(&mut copy);
    let id = copy.id.clone();
    gateway.journal().reserve(copy.choices.len()).expect("room").record(copy).await.expect("durable");
    id
}

#[tokio::test]
async fn a_request_runs_again_to_the_same_tokens_texts_and_endings() {
    let test = TestGateway::new();
    for ask in [elaborate(BASE), elaborate("rslora"), elaborate("patterns"), chat(BASE), chat("all7")] {
        let (model, choices) = (ask.model.clone(), ask.n as usize * ask.prompts.len());
        let completion = recorded(&test, ask).await;
        let replay = test.gateway.replay(&completion.id).await.expect("replayed");
        assert!(replay.is_identical(), "{replay:?}");
        assert_eq!((replay.model, replay.seed, replay.choices.len()), (model, completion.seed, choices));
        for choice in &replay.choices {
            assert!(!choice.recorded.tokens.is_empty() && choice.recorded == choice.replayed);
            assert!(choice.max_logprob_gap < 1e-4, "{}", choice.max_logprob_gap);
        }
    }
}

#[tokio::test]
async fn a_replay_leaves_its_own_fact_without_content() {
    let test = TestGateway::new();
    let completion = recorded(&test, chat("rslora")).await;
    test.gateway.replay(&completion.id).await.expect("replayed");
    let rows = test.gateway.journal().follow(Cursor::default(), 10).await.expect("readable");
    assert_eq!(rows.len(), 2);
    let own = &rows[1].completion;
    assert_eq!(own.request_id, format!("replay-of-{}", completion.id));
    assert_eq!((own.policy, own.stored, &own.content), (RecordPolicy::None, false, &None));
    assert_eq!((own.adapter.clone(), own.usage), (completion.adapter, completion.usage));
}

#[tokio::test]
async fn a_replay_runs_the_version_that_answered_whatever_the_name_means_today() {
    let folder = tempfile::tempdir().expect("a folder");
    let then = TestGateway::with(|config| {
        serve_as_poet(config, "adapters/llama/all7");
        config.record.data_dir = folder.path().to_owned();
    });
    let completion = recorded(&then, question("poet", Prompt::Text("of rain".to_owned()), 16)).await;
    drop(then);

    let now = TestGateway::with(|config| {
        serve_as_poet(config, "adapters/llama/rslora");
        config.record.data_dir = folder.path().to_owned();
    });
    let today = now.ask(question("poet", Prompt::Text("of rain".to_owned()), 16)).await;
    let replay = now.gateway.replay(&completion.id).await.expect("replayed");
    assert!(replay.is_identical(), "{replay:?}");
    assert_ne!(today.choices[0].tokens(), replay.choices[0].recorded.tokens, "the name has other weights now");
}

fn serve_as_poet(config: &mut Config, folder: &str) {
    config.adapters.dirs.clear();
    config.adapters.modules = vec![("poet".to_owned(), golden(folder))];
}

#[tokio::test]
async fn the_first_token_that_differs_is_named() {
    let test = TestGateway::new();
    let completion = recorded(&test, question("rslora", Prompt::Text("hello".to_owned()), 12)).await;
    let other = altered(&test.gateway, &completion, |copy| {
        copy.choices[0].scores[5].token += 1;
        copy.choices[0].scores[3].logprob -= 0.25;
        copy.choices[0].scores[7].logprob -= 9.0;
    })
    .await;
    let replay = test.gateway.replay(&other).await.expect("replayed");
    let choice = &replay.choices[0];
    assert!(!replay.is_identical());
    assert_eq!(choice.parts_at, Some(5));
    assert!((choice.max_logprob_gap - 0.25).abs() < 1e-3, "only before they part: {}", choice.max_logprob_gap);

    let longer = altered(&test.gateway, &completion, |copy| {
        copy.id.push_str("-longer");
        let last = copy.choices[0].scores[11].clone();
        copy.choices[0].scores.push(last);
    })
    .await;
    assert_eq!(test.gateway.replay(&longer).await.expect("replayed").choices[0].parts_at, Some(12));

    let other_seed = altered(&test.gateway, &recorded(&test, elaborate(BASE)).await, |copy| copy.seed += 1).await;
    assert!(!test.gateway.replay(&other_seed).await.expect("replayed").is_identical(), "the seed is not ignored");
}

#[tokio::test]
async fn a_text_or_an_ending_alone_makes_a_difference() {
    let test = TestGateway::new();
    let completion = recorded(&test, question(BASE, Prompt::Text("hello".to_owned()), 6)).await;
    let text = altered(&test.gateway, &completion, |copy| copy.choices[0].text = Some("else".to_owned())).await;
    let ending = altered(&test.gateway, &completion, |copy| {
        copy.id.push_str("-ending");
        copy.choices[0].ending = Ending::Finished(FinishReason::Stop);
    })
    .await;
    for id in [text, ending] {
        let replay = test.gateway.replay(&id).await.expect("replayed");
        assert_eq!((replay.is_identical(), replay.choices[0].parts_at), (false, None));
    }
}

#[tokio::test]
async fn an_answer_that_was_broken_off_is_compared_as_far_as_it_came() {
    let test = TestGateway::new();
    let completion = recorded(&test, question(BASE, Prompt::Text("hello".to_owned()), 12)).await;
    let cut = |at: usize| {
        move |copy: &mut Completion| {
            copy.id.push_str(&format!("-{at}"));
            let choice = &mut copy.choices[0];
            choice.ending = Ending::ClientLeft;
            choice.scores.truncate(at);
            let text = choice.text.take().unwrap_or_default();
            choice.text = Some(text.chars().take(2).collect());
        }
    };
    for at in [0, 4] {
        let id = altered(&test.gateway, &completion, cut(at)).await;
        let replay = test.gateway.replay(&id).await.expect("replayed");
        assert!(replay.is_identical(), "{replay:?}");
        assert_eq!(replay.choices[0].replayed.tokens.len(), 12);
    }
    let id = altered(&test.gateway, &completion, |copy| {
        cut(6)(copy);
        copy.choices[0].scores[5].token += 1;
    })
    .await;
    assert_eq!(test.gateway.replay(&id).await.expect("replayed").choices[0].parts_at, Some(5));
}

#[tokio::test]
async fn what_cannot_be_run_again_as_it_was_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let test = TestGateway::with(|config| config.record.data_dir = folder.path().to_owned());
    let refusal = async |id: &str| test.gateway.replay(id).await.expect_err("refused");
    assert!(matches!(refusal("cmpl-nobody").await, ReplayError::Unknown { .. }));

    let plain = question(BASE, Prompt::Text("hello".to_owned()), 4);
    let bare = Ask { id: "cmpl-bare".to_owned(), record: Some(RecordPolicy::Metadata), ..plain.clone() };
    let bare = recorded(&test, bare).await;
    assert!(matches!(refusal(&bare.id).await, ReplayError::NotKept { policy: RecordPolicy::Metadata, .. }));

    let erased = recorded(&test, Ask { id: "cmpl-erased".to_owned(), store: true, ..plain.clone() }).await;
    assert!(test.gateway.journal().delete(&erased.id).await.expect("written"));
    assert!(matches!(refusal(&erased.id).await, ReplayError::Erased { .. }));

    let kept = recorded(&test, plain).await;
    let other_base = TestGateway::with(|config| {
        config.model.path = golden("models/qwen2");
        config.adapters.dirs.clear();
        config.record.data_dir = folder.path().to_owned();
    });
    let refused = other_base.gateway.replay(&kept.id).await.expect_err("refused");
    assert!(matches!(refused, ReplayError::OtherBase { .. }), "{refused}");
    let message = refused.to_string();
    assert!(message.contains(&kept.base.short()), "{message}");
}

/// The API over a gateway, its keys changed by `change`.
fn api(test: &TestGateway, change: impl FnOnce(&mut Config)) -> Router {
    let mut config = support::config("unused".into());
    change(&mut config);
    let keys = Keys::load(&config.server).expect("good keys").into();
    tunegate::http::router(tunegate::http::AppState::new(
        test.gateway.clone(),
        test.flags.clone(),
        test.gateway.metrics().clone(),
        &config,
        keys,
    ))
}

async fn post(api: &Router, id: &str, key: Option<&str>) -> (StatusCode, Vec<u8>) {
    let mut request = Request::post(format!("/admin/replay/{id}")).header("host", "localhost");
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = api.clone().oneshot(request.body(Body::empty()).expect("a request")).await.expect("an answer");
    let status = response.status();
    (status, response.into_body().collect().await.expect("a body").to_bytes().to_vec())
}

#[tokio::test]
async fn an_operator_replays_over_http_and_nobody_else_does() {
    let test = TestGateway::new();
    let completion = recorded(&test, elaborate("rslora")).await;
    let local = api(&test, |_| {});
    let (status, body) = post(&local, &completion.id, None).await;
    assert_eq!(status, StatusCode::OK);
    let replay: Replay = serde_json::from_slice(&body).expect("a replay");
    assert!(replay.is_identical() && replay.choices.len() == 4, "{replay:?}");
    assert_eq!(post(&local, "cmpl-nobody", None).await.0, StatusCode::NOT_FOUND);

    let erased = recorded(&test, Ask { store: true, ..question(BASE, Prompt::Text("hi".to_owned()), 2) }).await;
    assert!(test.gateway.journal().delete(&erased.id).await.expect("written"));
    assert_eq!(post(&local, &erased.id, None).await.0, StatusCode::CONFLICT);

    let public = api(&test, |config| config.server.listen = ([0, 0, 0, 0], 8000).into());
    assert_eq!(post(&public, &completion.id, None).await.0, StatusCode::FORBIDDEN);

    let hash = tunegate::terms::Digest::of(b"shop-secret");
    let folder = tempfile::tempdir().expect("a folder");
    let keys_file = folder.path().join("keys.toml");
    std::fs::write(&keys_file, format!("[[key]]\nname = \"shop\"\nhash = \"{hash}\"\n")).expect("written");
    let keyed = api(&test, |config| {
        config.server.api_keys = vec!["admin-secret".to_owned()];
        config.server.keys_file = Some(keys_file);
    });
    assert_eq!(post(&keyed, &completion.id, None).await.0, StatusCode::UNAUTHORIZED);
    assert_eq!(post(&keyed, &completion.id, Some("shop-secret")).await.0, StatusCode::FORBIDDEN);
    assert_eq!(post(&keyed, &completion.id, Some("admin-secret")).await.0, StatusCode::OK);
}

//! Two versions side by side: worse is called worse, the same is not told apart, and too little is called too little.

use serde_json::{Value, json};
use tunegate::{
    config::FlagRules,
    feedback::report::{Asked, Report, ReportError, Verdict},
    journal::{Completion, Feedback, Judgement, Source, Standing, Target},
    terms::{AdapterVersion, Digest},
};

use super::{Desk, TRUNCATED, cut, fact, version};
use crate::support::{
    golden,
    server::{CHAT, TestServer, chat_body},
    wire::Request,
};

/// Numbers that look like chance and are the same each time.
struct Chance(u64);

impl Chance {
    fn below(&mut self, share: f64) -> bool {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64) < share * (1u64 << 53) as f64
    }
}

/// Answers of a version, of which a share is cut off and a share of those that are judged is liked.
async fn answers(desk: &Desk, word: &str, count: usize, cut_share: f64, liked: f64) {
    let mut chance = Chance(word.bytes().map(u64::from).sum::<u64>() * 7919);
    let (mut facts, mut said) = (Vec::new(), Vec::new());
    for at in 0..count {
        let id = format!("{word}-{at}");
        let mut one: Completion = if chance.below(cut_share) { cut(&id) } else { fact(&id, "It rained all day long.") };
        one.adapter = one.adapter.map(|(name, _)| (name, version(word)));
        one.created_ms += at as i64 * 1000;
        facts.push(one);
        if at % 2 == 0 {
            said.push(thumbs(&id, chance.below(liked)));
        }
    }
    for chunk in facts.chunks(500) {
        desk.record(chunk.to_vec()).await;
    }
    desk.journal.give(said, None).await.unwrap();
}

fn thumbs(completion: &str, up: bool) -> Feedback {
    Feedback {
        id: format!("fb-{completion}"),
        client_id: None,
        at_ms: 0,
        target: Target::Answer { completion: completion.to_owned(), choice: None },
        name: "thumbs".to_owned(),
        value: Some(Judgement::Boolean(up)),
        comment: None,
        correction: None,
        source: Source::EndUser,
        author: None,
        key: None,
        any_key: true,
        tags: Default::default(),
        digest: Some(Digest::of(completion.as_bytes())),
        arrived: Standing::Aside,
        retracted_ms: None,
        erased_ms: None,
    }
}

fn asked(current: &str) -> Asked {
    Asked {
        adapter: Some("poet".to_owned()),
        label: "poet".to_owned(),
        current: Some(version(current)),
        ..Asked::default()
    }
}

fn metric<'a>(report: &'a Report, name: &str) -> &'a tunegate::feedback::report::Metric {
    report.metrics.iter().find(|metric| metric.name == name).unwrap_or_else(|| panic!("no {name} in {report:#?}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worse_version_is_called_worse_and_the_same_one_is_not_told_apart() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::with(folder.path(), TRUNCATED);
    let _following = desk.flags.follow();
    desk.looked().await;
    answers(&desk, "good", 600, 0.05, 0.9).await;
    answers(&desk, "same", 600, 0.05, 0.9).await;
    answers(&desk, "bad", 600, 0.25, 0.6).await;
    desk.looked().await;
    let named = |one: &str, other: &str| {
        let short = |word: &str| version(word).short();
        Asked { versions: Some([short(one), short(other)]), ..asked(other) }
    };
    let worse = desk.flags.report(named("good", "bad")).await.unwrap();
    assert_eq!(worse.verdict, Verdict::Worse, "{worse:#?}");
    for name in ["flags/cut", "endings/length", "feedback/thumbs"] {
        let metric = metric(&worse, name);
        assert_eq!(metric.verdict, Verdict::Worse, "{metric:?}");
        let [low, high] = metric.interval.unwrap();
        assert!(low < metric.difference.unwrap() && metric.difference.unwrap() < high, "{metric:?}");
    }
    assert_eq!((metric(&worse, "feedback/thumbs").first.of, metric(&worse, "flags/cut").first.of), (300, 600));
    assert_eq!(metric(&worse, "answer_tokens").second.course.len(), 24);
    let better = desk.flags.report(named("bad", "good")).await.unwrap();
    assert_eq!(better.verdict, Verdict::Better);
    let same = desk.flags.report(named("good", "same")).await.unwrap();
    assert_eq!(same.verdict, Verdict::CannotTell, "{same:#?}");
    let itself = desk.flags.report(named("bad", "bad")).await.unwrap();
    assert_eq!(itself.verdict, Verdict::CannotTell, "{itself:#?}");
    assert_eq!(itself.first.answers + itself.second.answers, 600);
    assert_eq!(itself.first.part, Some("first half"));
    // Without names: the one in force, and the one that answered last beside it.
    let plain = desk.flags.report(asked("good")).await.unwrap();
    assert_eq!((plain.first.version, plain.second.version), (Some(version("bad")), Some(version("good"))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_few_answers_are_called_too_few_and_a_window_counts_what_is_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path(), FlagRules::None);
    answers(&desk, "good", 400, 0.0, 1.0).await;
    answers(&desk, "bad", 199, 1.0, 0.0).await;
    let report = desk.flags.report(asked("bad")).await.unwrap();
    assert_eq!((report.verdict, report.first.answers, report.second.answers), (Verdict::NotEnough, 400, 199));
    assert!(report.summary.starts_with("not enough: 200 answers of each are needed"), "{}", report.summary);
    assert!(report.metrics.iter().all(|metric| metric.verdict == Verdict::NotEnough));
    let last = desk.flags.report(Asked { last: Some(150), ..asked("bad") }).await.unwrap();
    assert_eq!((last.first.answers, last.second.answers), (150, 150));
    assert_eq!(metric(&last, "feedback/thumbs").first.of, 75, "feedback on answers before the window is not counted");
    let since = fact("x", "x").created_ms + 100_000;
    let since = desk.flags.report(Asked { since_ms: Some(since), ..asked("bad") }).await.unwrap();
    assert_eq!((since.first.answers, since.second.answers), (300, 99));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_compared_is_refused_with_what_there_is() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path(), FlagRules::None);
    let refused = async |asked: Asked| desk.flags.report(asked).await.unwrap_err();
    assert!(matches!(refused(asked("one")).await, ReportError::Nothing { .. }));
    answers(&desk, "one", 10, 0.0, 1.0).await;
    assert!(matches!(refused(asked("one")).await, ReportError::One { .. }));
    answers(&desk, "two", 10, 0.0, 1.0).await;
    let unknown =
        refused(Asked { versions: Some(["000000".to_owned(), version("one").short()]), ..asked("one") }).await;
    assert!(matches!(unknown, ReportError::Unknown { .. }) && unknown.to_string().contains(&version("two").short()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn retracted_feedback_and_judgements_that_were_replaced_do_not_count() {
    let folder = tempfile::tempdir().unwrap();
    let desk = Desk::at(folder.path(), FlagRules::None);
    answers(&desk, "one", 20, 0.0, 1.0).await;
    answers(&desk, "two", 20, 0.0, 1.0).await;
    let later = Feedback { id: "fb-later".to_owned(), ..thumbs("two-0", false) };
    let correction = Feedback {
        id: "fb-correction".to_owned(),
        name: "correction".to_owned(),
        value: None,
        correction: Some("better".to_owned()),
        ..thumbs("two-4", false)
    };
    let by_code = Feedback { id: "fb-code".to_owned(), source: Source::Code, ..correction.clone() };
    let by_code = Feedback { target: thumbs("two-6", true).target, ..by_code };
    desk.journal.give(vec![later, correction, by_code], None).await.unwrap();
    assert!(desk.journal.retract("fb-two-2").await.unwrap());
    let report = desk.flags.report(asked("two")).await.unwrap();
    let thumbs = metric(&report, "feedback/thumbs");
    let liked = thumbs.second.value.unwrap();
    assert_eq!(thumbs.second.of, 9, "one was retracted");
    assert!((liked - 8.0 / 9.0).abs() < 1e-12, "one was changed: {liked}");
    let corrected = metric(&report, "corrections").second.value.unwrap();
    assert!((corrected - 1.0 / 20.0).abs() < 1e-12, "code corrects nothing: {corrected}");
}

/// A server whose name `poet` may get another version.
async fn server() -> TestServer {
    TestServer::with(|config, folder| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![golden("adapters/llama")];
        let rules = folder.join("rules.toml");
        std::fs::write(&rules, TRUNCATED).unwrap();
        config.flag_rules = FlagRules::File(rules);
    })
    .await
}

async fn load(server: &TestServer, adapter: &str) -> AdapterVersion {
    let path = golden("adapters/llama").join(adapter);
    let body = json!({"lora_name": "poet", "lora_path": path.to_str().unwrap(), "load_inplace": true});
    let loaded = server.send(Request::post("/v1/load_lora_adapter", &body).header("accept", "application/json")).await;
    assert_eq!(loaded.status, 200, "{}", loaded.text());
    AdapterVersion(Digest::parse(loaded.json()["version"].as_str().unwrap()).unwrap())
}

/// Traffic with a judgement of each answer by code; a share of them is right.
async fn traffic(server: &TestServer, count: usize, right: f64) {
    let mut chance = Chance(count as u64 + 5);
    let mut said = Vec::new();
    for at in 0..count {
        let body = chat_body("poet", &format!("rain {at}"), json!({"max_tokens": 2}));
        let answer = server.post(CHAT, &body).await.json();
        said.push(json!({
            "completion_id": answer["id"], "metric_name": "right", "value": chance.below(right), "source": "code",
        }));
    }
    let given = server.post("/v1/feedback", &json!(said)).await;
    assert_eq!(given.status, 200, "{}", given.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_report_on_traffic_of_two_versions_is_json_and_a_page() {
    let server = server().await;
    let one = load(&server, "rslora").await;
    traffic(&server, 210, 0.9).await;
    let two = load(&server, "all7").await;
    traffic(&server, 211, 0.6).await;
    super::looked(&server.flags, server.gateway.journal()).await;
    let path = "/v1/adapters/poet/report";
    let report = server.get(&format!("{path}?higher=right")).await.json();
    assert_eq!(report["verdict"], "worse", "{report:#}");
    assert_eq!((&report["first"]["version"], &report["second"]["version"]), (&json!(one), &json!(two)));
    assert!(report["summary"].as_str().unwrap().contains("worse than"), "{report:#}");
    let right = report["metrics"].as_array().unwrap().iter().find(|metric| metric["name"] == "feedback/right").unwrap();
    assert!(right["interval"][1].as_f64().unwrap() < 0.0 && right["first"]["of"] == 210, "{right:#}");
    let unsaid = server.get(path).await.json();
    assert_eq!(unsaid["verdict"], "cannot_tell", "nobody said that right is good: {unsaid:#}");
    let page = server.get(&format!("{path}?higher=right&format=html")).await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let text = page.text();
    assert!(text.starts_with("<!doctype html>") && text.contains("<svg") && text.contains("worse"), "{text}");
    assert!(!text.contains("<script") && !text.contains("http://") && !text.contains("https://"), "{text}");
    let versions = format!("versions={},{}", two.short(), two.short());
    let itself = server.get(&format!("{path}?{versions}")).await.json();
    assert_eq!(itself["verdict"], "not_enough", "halves of 211 are fewer than 200");

    let error = async |query: &str| server.get(&format!("{path}?{query}")).await.error();
    for (query, status, code, param) in [
        ("versions=abc", 400, "invalid_value", "versions"),
        ("versions=000000,111111", 404, "version_not_found", "versions"),
        ("last=0", 400, "invalid_value", "last"),
        ("format=pdf", 400, "invalid_value", "format"),
        ("higher=x&lower=x", 400, "invalid_value", "lower"),
        ("odd=1", 400, "unknown_parameter", "odd"),
    ] {
        assert_eq!(error(query).await, (status, code.to_owned(), Some(param.to_owned())), "{query}");
    }
    let nobody = server.get("/v1/adapters/nobody/report").await.error();
    assert_eq!(nobody, (404, "nothing_to_report".to_owned(), Some("id".to_owned())));
    let alone = server.get("/v1/adapters/tiny/report").await.error();
    assert_eq!(alone.0, 404, "the base has given no answer");
    let plain: Value = server.get("/v1/adapters/poet").await.json();
    assert_eq!(plain["id"], "poet", "the adapter itself is where it was");
}

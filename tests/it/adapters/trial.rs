//! Candidates that are run before a name points at them, and what becomes of those that fail.

use std::{path::Path, sync::Arc};

use serde_json::json;
use tunegate::{
    adapters::{AdapterError, ManagedBy, Refusal, RefusalCode},
    app::{self, Built},
    config::Config,
    gateway::publish::{Candidate, Expected, Load, Origin, PublishError, Published, Publisher},
    metrics::Metrics,
    terms::{AdapterName, AdapterVersion, Digest},
};

use super::draft::{Draft, Q0, TensorDraft};
use crate::support::{config, golden};

/// A server's place with a trial, that may be started again.
struct Desk {
    place: tempfile::TempDir,
    config: Config,
}

/// A started server; it ends with this.
struct Running {
    built: Option<Built>,
    metrics: Arc<Metrics>,
}

impl Desk {
    fn new() -> Self {
        let place = tempfile::tempdir().unwrap();
        let mut config = config(place.path().join("data"));
        config.adapters.dirs = Vec::new();
        config.adapters.trial = true;
        Self { place, config }
    }

    fn start(&self) -> Running {
        let metrics = Arc::new(Metrics::new());
        Running { built: Some(app::build(&self.config, &metrics).unwrap()), metrics }
    }

    fn written(&self, name: &str, change: impl FnOnce(&mut Draft)) -> Candidate {
        let mut draft = Draft::plain();
        change(&mut draft);
        let path = self.place.path().join("inbox").join(name);
        let _ = std::fs::remove_dir_all(&path);
        draft.write(&path);
        Candidate::Folder { root: path.clone(), path }
    }

    fn zeros(&self) -> Candidate {
        self.written("zeros", zero)
    }
}

impl Running {
    fn publisher(&self) -> &Publisher {
        self.built.as_ref().unwrap().gateway.publisher()
    }

    fn refused(&self) -> &[(String, Vec<Refusal>)] {
        &self.built.as_ref().unwrap().refused
    }

    fn trials(&self, outcome: &str) -> u64 {
        self.metrics.adapter_trials.with_label_values(&[outcome]).get()
    }

    fn has(&self, name: &str) -> Option<AdapterVersion> {
        self.publisher().adapters().find(name).ok().map(|(_, version)| version)
    }

    async fn load(&self, name: &str, candidate: Candidate, by: ManagedBy) -> Result<Published, PublishError> {
        let load = Load {
            name: AdapterName::parse(name).unwrap(),
            candidate,
            replace: true,
            expected: Expected::Anything,
            pinned: None,
            warm: true,
            origin: Origin { managed_by: by, who: "tester".to_owned(), why: None, source: None },
        };
        self.publisher().load(load).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(built) = self.built.take() {
            built.stop();
        }
    }
}

/// As PEFT leaves an adapter that was never trained.
fn zero(draft: &mut Draft) {
    for (_, tensor) in draft.tensors.iter_mut().filter(|(name, _)| name.contains("lora_B")) {
        *tensor = TensorDraft::f32(&tensor.shape.clone(), 0.0);
    }
}

/// Code, subject and reason of the only refusal.
fn refusal(error: &PublishError) -> (RefusalCode, String, String) {
    let PublishError::Adapter(AdapterError::Refused { refusals, .. }) = error else { panic!("{error}") };
    assert_eq!(refusals.len(), 1, "{refusals:?}");
    let Refusal { code, subject, reason } = refusals[0].clone();
    (code, subject, reason)
}

#[tokio::test]
async fn a_version_is_tried_once_on_a_base_and_the_verdict_outlives_a_restart() {
    let desk = Desk::new();
    let healthy = || desk.written("healthy", |_| {});
    {
        let server = desk.start();
        let version = server.load("poet", healthy(), ManagedBy::Api).await.unwrap().version();
        let verdict = server.publisher().adapters().latest_verdict(version).unwrap();
        assert_eq!(verdict.failed, None, "{}", verdict.figures);
        assert!(verdict.figures.contains("mean_gap"), "{}", verdict.figures);
        let unload = tunegate::gateway::publish::Unload {
            name: AdapterName::parse("poet").unwrap(),
            expected: Expected::Anything,
            origin: Origin { managed_by: ManagedBy::Api, who: "tester".to_owned(), why: None, source: None },
        };
        server.publisher().unload(unload).await.unwrap();
        server.load("poet", healthy(), ManagedBy::Api).await.unwrap();
        server.load("other", healthy(), ManagedBy::Api).await.unwrap();
        assert_eq!(server.trials("passed"), 1);
    }
    let server = desk.start();
    assert!(server.has("poet").is_some());
    server.load("third", healthy(), ManagedBy::Api).await.unwrap();
    assert_eq!(server.trials("passed"), 0);
}

#[tokio::test]
async fn what_changes_nothing_or_is_not_finite_gets_no_name_and_says_which_test_failed() {
    let desk = Desk::new();
    let server = desk.start();
    let good = server.load("poet", desk.written("good", |_| {}), ManagedBy::Api).await.unwrap().version();
    let endless = desk.written("endless", |draft| {
        let tensor = draft.tensor(&format!("{Q0}.lora_B.weight"));
        for index in 0..tensor.shape.iter().product() {
            tensor.set(index, 3e38);
        }
    });
    for (candidate, test) in [(desk.zeros(), "no_op"), (endless, "finite")] {
        for name in ["poet", "new"] {
            let error = server.load(name, candidate.clone(), ManagedBy::Api).await.unwrap_err();
            let (code, subject, reason) = refusal(&error);
            assert_eq!((code, subject.as_str()), (RefusalCode::Trial, test), "{reason}");
            assert!(reason.contains("--adapter-trial=false"), "{reason}");
        }
    }
    assert_eq!((server.has("poet"), server.has("new")), (Some(good), None));
    assert_eq!((server.trials("no_op"), server.trials("finite")), (2, 2), "who asks by hand has it run again");
}

#[tokio::test]
async fn a_golden_answer_is_held_to_the_log_probability_of_its_card() {
    let desk = Desk::new();
    let server = desk.start();
    let carded = |logprob: f64| {
        desk.written("carded", |draft| {
            let card = format!("[[golden]]\nprompt = 'the quick brown'\nanswer = 'fox jumps'\nlogprob = {logprob:?}\n");
            draft.put("adapter.toml", card);
        })
    };
    let error = server.load("poet", carded(0.0), ManagedBy::Api).await.unwrap_err();
    let (_, test, reason) = refusal(&error);
    assert!(test == "golden" && reason.contains("golden answer 1") && reason.contains("0.000"), "{test}: {reason}");
    let passed = server.load("poet", carded(-50.0), ManagedBy::Api).await.unwrap();
    let figures = server.publisher().adapters().latest_verdict(passed.version()).unwrap().figures;
    let figures: serde_json::Value = serde_json::from_str(&figures).unwrap();
    assert_eq!(figures["golden"][0]["recorded"], -50.0);
    assert!(figures["golden"][0]["candidate"].as_f64().unwrap() < 0.0, "{figures}");

    let long = desk.written("long", |draft| {
        draft.put("adapter.toml", format!("[[golden]]\nprompt = '{}'\nanswer = 'x'\n", "word ".repeat(2000)));
    });
    let (_, test, reason) = refusal(&server.load("poet", long, ManagedBy::Api).await.unwrap_err());
    assert!(test == "golden" && reason.contains("the context is 512"), "{test}: {reason}");
}

#[tokio::test]
async fn a_card_with_answers_that_cannot_be_judged_is_refused_before_anything_runs() {
    let desk = Desk::new();
    let server = desk.start();
    for card in [
        "[[golden]]\nprompt = ''\nanswer = 'x'\n".to_owned(),
        "[[golden]]\nprompt = 'x'\nanswer = 'x'\nlogprob = 0.5\n".to_owned(),
        "[[golden]]\nprompt = 'x'\nanswer = 'x'\n".repeat(65),
    ] {
        let candidate = desk.written("card", |draft| draft.put("adapter.toml", card.clone()));
        let (code, subject, _) = refusal(&server.load("poet", candidate, ManagedBy::Api).await.unwrap_err());
        assert_eq!((code, subject.as_str()), (RefusalCode::MalformedConfig, "golden"), "{card}");
    }
}

#[tokio::test]
async fn a_failure_is_quarantined_for_all_but_those_who_ask_by_hand_until_the_source_changes() {
    let desk = Desk::new();
    let server = desk.start();
    let adapters = server.publisher().adapters();
    let failed = server.load("poet", desk.zeros(), ManagedBy::File).await.unwrap_err();
    assert_eq!(refusal(&failed).1, "no_op");
    assert_eq!(server.metrics.adapters_quarantined.get(), 1);
    for by in [ManagedBy::File, ManagedBy::Folder, ManagedBy::FirstUse] {
        let again = server.load("poet", desk.zeros(), by).await.unwrap_err();
        let PublishError::Quarantined { reason, retry_after_ms, .. } = again else { panic!("{again}") };
        assert!(reason.contains("no_op") && (1..=5000).contains(&retry_after_ms), "{reason} {retry_after_ms}");
    }
    assert_eq!(server.trials("no_op"), 1);
    server.load("poet", desk.zeros(), ManagedBy::Api).await.unwrap_err();
    assert_eq!(server.trials("no_op"), 2);
    let (name, confined) = adapters.confined().remove(0);
    assert_eq!((name.as_str(), confined.failures), ("poet", 2));

    // Nobody else is held up, and another source is tried at once.
    server.load("lawyer", desk.written("good", |_| {}), ManagedBy::File).await.unwrap();
    server.load("poet", desk.written("mended", |_| {}), ManagedBy::File).await.unwrap();
    assert_eq!((server.metrics.adapters_quarantined.get(), adapters.confined().len()), (0, 0));
}

#[tokio::test]
async fn without_the_trial_everything_that_fits_is_served() {
    let mut desk = Desk::new();
    desk.config.adapters.trial = false;
    let server = desk.start();
    server.load("poet", desk.zeros(), ManagedBy::Api).await.unwrap();
    assert_eq!(server.trials("no_op") + server.trials("passed"), 0);
}

#[tokio::test]
async fn names_of_folders_are_tried_at_their_first_load_and_bad_ones_stop_nobody() {
    let mut desk = Desk::new();
    let folder = desk.place.path().join("adapters");
    desk.config.adapters.dirs = vec![golden("adapters/llama"), folder.clone()];
    let mut draft = Draft::plain();
    zero(&mut draft);
    draft.write(&folder.join("untrained"));
    let healthy = 18;
    {
        let server = desk.start();
        let adapters = server.publisher().adapters();
        for entry in adapters.list() {
            println!("{}: {}", entry.name, adapters.latest_verdict(entry.version).unwrap().figures);
        }
        let refused: Vec<&str> = server.refused().iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!((refused, adapters.list().len()), (vec!["untrained"], healthy));
        let (name, refusals) = &server.refused()[0];
        assert_eq!((refusals[0].code, refusals[0].subject.as_str()), (RefusalCode::Trial, "no_op"), "{name}");
        assert!(matches!(adapters.find("untrained"), Err(AdapterError::Refused { .. })));
        assert_eq!(server.trials("passed"), healthy as u64);
    }
    let server = desk.start();
    assert_eq!((server.trials("passed"), server.trials("no_op")), (0, 0), "verdicts are kept, the bad one's too");
    assert_eq!(server.refused().len(), 1);
}

#[tokio::test]
async fn a_card_may_name_the_base_by_its_digest_and_another_base_refuses_it() {
    let desk = Desk::new();
    let server = desk.start();
    let base = server.publisher().adapters().base();
    let named = |digest: &str| {
        let card = format!("base_digest = '{digest}'");
        desk.written("named", |draft| draft.put("adapter.toml", card))
    };
    let (code, subject, reason) =
        refusal(&server.load("poet", named(&Digest::of(b"another").short()), ManagedBy::Api).await.unwrap_err());
    assert_eq!((code, subject.as_str()), (RefusalCode::Base, "base_digest"));
    assert!(reason.contains(&base.to_string()), "{reason}");
    for fits in [base.short(), base.to_string()] {
        server.load("poet", named(&fits), ManagedBy::Api).await.unwrap();
    }
    let card = server.publisher().adapters().named("poet").unwrap().serving.unwrap().card;
    assert!(card.notes.iter().any(|note| note.contains("golden-llama") && note.contains("tiny")), "{:?}", card.notes);
}

#[tokio::test]
async fn a_copy_that_cannot_be_read_is_not_tried_by_every_request_and_a_load_of_the_same_bytes_mends_it() {
    let mut desk = Desk::new();
    desk.config.adapters.trial = false;
    let server = desk.start();
    let candidate = desk.written("good", |_| {});
    // Named without being brought into memory.
    let load = Load {
        name: AdapterName::parse("poet").unwrap(),
        candidate: candidate.clone(),
        replace: false,
        expected: Expected::Nothing,
        pinned: None,
        warm: false,
        origin: Origin { managed_by: ManagedBy::Api, who: "tester".to_owned(), why: None, source: None },
    };
    let version = server.publisher().load(load).await.unwrap().version();
    let vault: &Path = &desk.config.record.data_dir.join("vault").join(version.to_string());
    std::fs::write(vault.join("adapter_model.safetensors"), b"torn").unwrap();
    let adapters = server.publisher().adapters();
    let poet = AdapterName::parse("poet").unwrap();
    for _ in 0..3 {
        let error = adapters.lease(&poet, version).await.unwrap_err();
        assert!(matches!(error, AdapterError::Unreadable { .. }), "{error}");
    }
    assert_eq!(server.metrics.adapter_loads.with_label_values(&["failed"]).get(), 1);
    assert_eq!(server.metrics.adapters_quarantined.get(), 1);
    assert!(adapters.confined_as("poet", Some(version)).unwrap().fault.reason.contains("could not be read"));
    let again = server.load("poet", candidate, ManagedBy::Api).await.unwrap();
    assert!(again.step.is_none());
    assert_eq!(adapters.lease(&poet, version).await.unwrap().version, version);
    assert_eq!(server.metrics.adapters_quarantined.get(), 0);
}

#[tokio::test]
async fn a_check_gives_every_shape_and_loads_nothing() {
    let desk = Desk::new();
    let server = desk.start();
    let plan = server.publisher().check("x".to_owned(), desk.zeros()).await.unwrap();
    let site = json!(plan.sites[0]);
    assert_eq!(site["shape"], json!({"A": [8, 64], "B": [64, 8]}));
    assert_eq!(server.trials("no_op"), 0, "what it does is not a check's matter");
    assert_eq!(server.publisher().adapters().resident().bytes, 0);
}

//! A data directory whose names were loaded on one base, and a server that starts on another of the same shape.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};
use tunegate::{
    adapters::{AdapterError, ManagedBy, RefusalCode},
    app::{self, Built},
    config::Config,
    gateway::{
        Caller, Route,
        publish::{Candidate, Expected, Load, Origin, Publisher},
    },
    metrics::Metrics,
    terms::{AdapterName, AdapterVersion},
};

use super::draft::{Draft, golden};
use crate::support::config;

/// Two bases of the same shape and one data directory.
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
    fn new(trial: bool) -> Self {
        let place = tempfile::tempdir().unwrap();
        deaf(&place.path().join("deaf"));
        let mut config = config(place.path().join("data"));
        config.adapters.dirs = Vec::new();
        config.adapters.trial = trial;
        Self { place, config }
    }

    fn start(&self) -> Running {
        self.start_on(&golden("models/llama"))
    }

    /// On the base that attention does nothing to.
    fn start_deaf(&self) -> Running {
        self.start_on(&self.place.path().join("deaf"))
    }

    fn start_on(&self, base: &Path) -> Running {
        let mut config = self.config.clone();
        config.model.path = base.to_owned();
        let metrics = Arc::new(Metrics::new());
        Running { built: Some(app::build(&config, &metrics).unwrap()), metrics }
    }

    /// An adapter of queries and values, whose version depends on `alpha`.
    fn attentive(&self, alpha: f64) -> Candidate {
        let mut draft = Draft::plain();
        draft.set("lora_alpha", json!(alpha));
        let path = self.place.path().join(format!("attentive-{alpha}"));
        draft.write(&path);
        Candidate::Folder { root: path.clone(), path }
    }
}

/// A copy of the tiny base where nothing that attention finds reaches the answer: an adapter of queries and values changes
/// nothing there.
fn deaf(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    for entry in fs::read_dir(golden("models/llama")).unwrap().map(Result::unwrap) {
        fs::copy(entry.path(), folder.join(entry.file_name())).unwrap();
    }
    let path = folder.join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let header_bytes = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: Value = serde_json::from_slice(&bytes[8..8 + header_bytes]).unwrap();
    for (_, tensor) in header.as_object().unwrap().iter().filter(|(name, _)| name.contains("o_proj.weight")) {
        let [from, to] = [0, 1].map(|end| 8 + header_bytes + tensor["data_offsets"][end].as_u64().unwrap() as usize);
        bytes[from..to].fill(0);
    }
    fs::write(path, bytes).unwrap();
}

impl Running {
    fn built(&self) -> &Built {
        self.built.as_ref().unwrap()
    }

    fn publisher(&self) -> &Publisher {
        self.built().gateway.publisher()
    }

    async fn load(&self, name: &str, candidate: Candidate) -> AdapterVersion {
        let load = Load {
            name: AdapterName::parse(name).unwrap(),
            candidate,
            replace: true,
            expected: Expected::Anything,
            pinned: None,
            warm: true,
            origin: Origin { managed_by: ManagedBy::Api, who: "tester".to_owned(), why: None, source: None },
        };
        self.publisher().load(load).await.unwrap().version()
    }

    /// The version that a model's name leads to, or code and reason of the refusal.
    fn route(&self, model: &str) -> Result<AdapterVersion, (RefusalCode, String)> {
        match self.built().gateway.route(model, &Caller::default()) {
            Ok(Route::Adapter { version, .. }) => Ok(version),
            Ok(Route::Base) => panic!("{model} is the base"),
            Err(tunegate::gateway::AskError::Adapter(AdapterError::Refused { refusals, .. })) => {
                Err((refusals[0].code, refusals[0].to_string()))
            }
            Err(error) => panic!("{model}: {error}"),
        }
    }

    fn refused(&self) -> Vec<&str> {
        self.built().refused.iter().map(|(name, _)| name.as_str()).collect()
    }

    fn trials(&self) -> u64 {
        ["passed", "no_op"].iter().map(|outcome| self.metrics.adapter_trials.with_label_values(&[*outcome]).get()).sum()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(built) = self.built.take() {
            built.stop();
        }
    }
}

#[tokio::test]
async fn names_are_tried_on_a_new_base_before_they_serve_and_those_that_fail_say_why() {
    let desk = Desk::new(true);
    let down = golden("adapters/llama/o-down");
    let down = || Candidate::Folder { root: down.clone(), path: down.clone() };
    let (first, second, other) = {
        let server = desk.start();
        let first = server.load("attentive", desk.attentive(16.0)).await;
        let second = server.load("attentive", desk.attentive(8.0)).await;
        (first, second, server.load("down", down()).await)
    };
    {
        let server = desk.start_deaf();
        assert_eq!(server.trials(), 2, "each name's own version, once");
        assert_eq!(server.route("down"), Ok(other));
        let (code, reason) = server.route("attentive").unwrap_err();
        assert!(code == RefusalCode::Trial && reason.contains("changes nothing"), "{reason}");
        assert_eq!(server.refused(), ["attentive"]);
        let digits = |version: AdapterVersion| server.route(&format!("attentive@{}", version.short()));
        assert!(digits(second).unwrap_err().1.contains("changes nothing"));
        assert!(digits(first).unwrap_err().1.contains("has not been run on this base"), "nor by its digits");
    }
    {
        let server = desk.start_deaf();
        assert_eq!((server.trials(), server.refused()), (0, vec!["attentive"]), "the verdict is kept");
        assert!(server.route("attentive").is_err());
        assert_eq!(server.route("down"), Ok(other));
    }
    let server = desk.start();
    assert_eq!((server.trials(), server.refused()), (0, Vec::new()), "what was found on the first base still stands");
    assert_eq!(server.route("attentive"), Ok(second));
    assert_eq!(server.route(&format!("attentive@{}", first.short())), Ok(first));
}

#[tokio::test]
async fn without_the_trial_a_name_of_another_base_waits_for_somebody_to_load_it_again() {
    let mut desk = Desk::new(false);
    let version = desk.start().load("attentive", desk.attentive(16.0)).await;
    {
        let server = desk.start_deaf();
        let (code, reason) = server.route("attentive").unwrap_err();
        assert!(code == RefusalCode::Base && reason.contains("was loaded on the base"), "{reason}");
        assert!(server.route(&format!("attentive@{}", version.short())).is_err());
        assert_eq!(server.load("attentive", desk.attentive(16.0)).await, version);
        assert_eq!(server.route("attentive"), Ok(version), "somebody has said so");
        let named = server.publisher().adapters().named("attentive").unwrap();
        let bases: Vec<_> = named.steps.iter().map(|step| step.base).collect();
        assert!(bases.len() == 2 && bases[0] != bases[1], "{bases:?}");
        assert_eq!(named.steps[1].base, Some(server.publisher().adapters().base()));
    }
    assert_eq!(desk.start_deaf().route("attentive"), Ok(version));
    assert!(desk.start().route("attentive").is_err(), "and the first base is now the other one");

    // A folder names what shall be served on whatever base there is.
    let folder = desk.place.path().join("adapters");
    Draft::plain().write(&folder.join("watched"));
    desk.config.adapters.dirs = vec![folder];
    for server in [desk.start(), desk.start_deaf(), desk.start()] {
        assert!(server.route("watched").is_ok());
        assert_eq!(server.trials(), 0);
    }
}

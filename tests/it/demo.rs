//! The demo adapters and the suites that judge them, as they are committed.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use tunegate::{
    adapters::{AdapterLimits, check::check_folder},
    config::AdapterConfig,
    eval::{Contender, Suite},
    model::{ModelSource, shape_of},
};

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Which `make test` fetches.
fn demo_model() -> PathBuf {
    let path = std::env::var_os("TUNEGATE_TEST_MODEL").map(PathBuf::from).filter(|path| path.is_file());
    path.expect("the demo model: run `make test`, which fetches it, or let TUNEGATE_TEST_MODEL name its GGUF")
}

#[test]
fn the_demo_adapters_and_their_earlier_versions_fit_the_demo_model_and_differ() {
    let shape = shape_of(&ModelSource::detect(&demo_model()).expect("a model")).expect("its shape");
    let limits = AdapterLimits::from(&AdapterConfig::default());
    let mut versions = Vec::new();
    for (folder, has_card) in [
        ("adapters/ticket-triage", true),
        ("adapters/house-style", true),
        ("recipes/ticket-triage/versions/v1", false),
        ("recipes/ticket-triage/versions/v2", false),
    ] {
        let plan =
            check_folder(&here(folder), &shape, limits).unwrap_or_else(|refused| panic!("{folder}: {refused:?}"));
        assert!(plan.sites.iter().all(|site| site.rank <= 8), "{folder}");
        assert_eq!(here(folder).join("README.md").is_file(), has_card, "{folder}");
        versions.push(plan.version);
    }
    versions.sort_unstable();
    versions.dedup();
    assert_eq!(versions.len(), 4);
}

#[test]
fn every_committed_suite_can_be_asked_of_every_contender_that_its_prompts_name() {
    for (file, items, presets) in [
        ("recipes/ticket-triage/heldout.jsonl", 120, ["", "+best", "+few-shot"].as_slice()),
        ("recipes/ticket-triage/handwritten.jsonl", 60, &["", "+best", "+few-shot"]),
        ("recipes/house-style/heldout.jsonl", 80, &["", "+best", "+few-shot"]),
        ("recipes/general/suite.jsonl", 62, &[""]),
    ] {
        let suite = Suite::read(&here(file)).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(suite.items.len(), items, "{file}");
        for preset in presets {
            let contender = Contender::read(&format!("base{preset}"), suite.prompts.as_deref()).expect("a contender");
            for item in &suite.items {
                let messages = contender.messages(item).unwrap_or_else(|error| panic!("{file}, {}: {error}", item.id));
                let said = messages.last().expect("a message");
                assert!(said.content.contains(&item.messages[0].content), "{file}, {}", item.id);
            }
        }
    }
}

#[test]
fn the_demo_replaces_a_version_under_traffic_rolls_back_and_survives_a_kill() {
    let python = std::env::var("TUNEGATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let output = Command::new(python)
        .arg(here("scripts/demo"))
        .args([demo_model(), PathBuf::from(env!("CARGO_BIN_EXE_tunegate"))])
        .arg("swap")
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let after = |step: &str| -> Vec<&str> {
        let line = text.lines().find(|line| line.trim_start().starts_with(step));
        let line = line.unwrap_or_else(|| panic!("{step} is not in {text}"));
        line[34..].split("  ").map(str::trim).collect()
    };
    let (one, two) = (after("load v1"), after("replace by v2"));
    assert!(one[0].len() == 12 && one[0] != two[0] && one[1] != two[1], "{text}");
    assert_eq!(after("roll back, one call"), one, "{text}");
    assert_eq!(after("kill -9, and started again"), one, "{text}");
    let answers = text.lines().find(|line| line.contains(" answers meanwhile, 0 failed")).expect("none failed");
    assert!(answers.contains(one[0]) && answers.contains(two[0]), "{text}");
}

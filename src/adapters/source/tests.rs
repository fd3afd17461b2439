use std::fs;

use super::*;
use crate::config::{DEFAULT_REGION, FetchConfig, HubConfig, parse_source};

/// Sources `models` (a folder), `bucket`, `web`, `hub` (an owner) and `one` (a repository) beside one adapter folder.
fn sources(folder: &Path) -> Sources {
    let (root, models) = (folder.join("adapters"), folder.join("models"));
    for path in [root.join("team/sql"), models.join("triage")] {
        fs::create_dir_all(path).unwrap();
    }
    let given = [
        format!("models={}", models.display()),
        "bucket=s3://adapters/prod?endpoint=http://127.0.0.1:9".to_owned(),
        "web=https://files.example/adapters".to_owned(),
        "hub=hf://org".to_owned(),
        "one=hf://team/all".to_owned(),
    ];
    let config = AdapterConfig {
        roots: vec![root],
        sources: given.iter().map(|text| parse_source(text, DEFAULT_REGION).unwrap()).collect(),
        hub: HubConfig { endpoint: "http://127.0.0.1:9".to_owned(), token: None },
        fetch: FetchConfig::default(),
        ..AdapterConfig::default()
    };
    Sources::open(&config, folder.join("fetched")).unwrap()
}

#[test]
fn a_text_names_a_folder_or_an_object_of_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path());
    let place = |text: &str| sources.place(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    let root = folder.path().join("adapters");
    let canonical = root.canonicalize().unwrap();
    let sql = Place::Folder { root: canonical.clone(), path: canonical.join("team/sql") };
    assert_eq!(place("team/sql"), sql);
    assert_eq!(place(&root.join("team/sql").display().to_string()), sql);
    assert_eq!(place(&root.canonicalize().unwrap().join("team/sql").display().to_string()), sql);
    assert!(matches!(place("models:triage"), Place::Folder { path, .. } if path.ends_with("models/triage")));
    for (text, shown) in [
        ("bucket:triage/v2", "bucket:triage/v2"),
        ("s3://adapters/prod/triage/v2", "bucket:triage/v2"),
        ("web:triage", "web:triage"),
        ("https://files.example/adapters/triage/", "web:triage"),
        ("hub:triage@v1", "hub:triage@v1"),
        ("hf://org/triage@refs/pr/3", "hub:triage@refs/pr/3"),
        ("org/triage", "hub:triage"),
        ("team/all/sql@v2", "one:sql@v2"),
        ("team/all@v2", "one:.@v2"),
    ] {
        assert_eq!(place(text).to_string(), shown, "{text}");
    }
}

#[test]
fn tricks_with_paths_links_and_urls_name_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path());
    let root = folder.path().join("adapters");
    let above = root.join("../models/triage").display().to_string();
    let beside = format!("{}-2/x", root.display());
    for text in [
        "",
        "..",
        "../models/triage",
        "team/../../models/triage",
        "/etc/passwd",
        "//etc/passwd",
        &above,
        &beside,
        "no/such/folder",
        "models:../adapters/team/sql",
        "models:/etc",
        "models:",
        "models:triage@v1",
        "nowhere:triage",
        "bucket:a/../b",
        "bucket:a//b",
        "bucket:a%2f..%2fb",
        "bucket:a?versionId=1",
        "s3://adapters/production/x",
        "s3://other/prod/x",
        "https://files.example/adapters.evil/x",
        "https://files.example@evil.example/adapters/x",
        "https://files.example/adapters/../x",
        "https://evil.example/adapters/x",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "gopher://127.0.0.1:6379/x",
        "hf://other/x",
        "hub:a b",
        "hub:a@..",
        "hub:a@v1/../x",
        "hub:a\n",
    ] {
        let error = sources.place(text).expect_err(text);
        assert!(matches!(error, SourceError::Unnamed(_) | SourceError::Path(_)), "{text:?}: {error:?}");
    }
}

#[tokio::test]
async fn a_link_out_of_the_folder_is_not_followed() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path());
    let outside = folder.path().join("outside");
    fs::create_dir(&outside).unwrap();
    for (name, bytes) in [("adapter_config.json", &b"{}"[..]), ("adapter_model.safetensors", &[255; 16])] {
        fs::write(outside.join(name), bytes).unwrap();
    }
    let root = folder.path().join("adapters");
    std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
    assert!(matches!(sources.place("link"), Err(SourceError::Path(_))));
    for name in ["adapter_config.json", "adapter_model.safetensors"] {
        std::os::unix::fs::symlink(outside.join(name), root.join("team/sql").join(name)).unwrap();
    }
    let place = sources.place("team/sql").unwrap();
    assert!(matches!(sources.open_place(&place).await, Err(SourceError::Refused(_))));
}

#[tokio::test]
async fn a_name_is_found_in_folders_first_and_a_source_that_is_down_is_told_of() {
    let folder = tempfile::tempdir().unwrap();
    let sources = sources(folder.path());
    let name = AdapterName::parse("triage").unwrap();
    let error = sources.find(&name).await.expect_err("nothing is there yet, and nobody listens at the hub");
    assert!(matches!(error, SourceError::Unavailable(_) | SourceError::Denied(_)), "{error:?}");
    let config = folder.path().join("models/triage/adapter_config.json");
    fs::write(config, "{}").unwrap();
    // The bucket is asked before the folder of that name, and is down: what has the name still serves.
    assert!(matches!(sources.find(&name).await, Ok(Place::Folder { path, .. }) if path.ends_with("models/triage")));
}

use super::{adapters::lora_module, *};
use crate::config::{ContainerRole, Durability, OnFault, S3Credentials, Secret, SourcePlace, WebIdentity};

fn flags(line: &[&str]) -> Layer {
    let command = Layer::augment_args(clap::Command::new("tunegate").no_binary_name(true));
    Layer::from_arg_matches(&command.try_get_matches_from(line).expect("flags")).expect("a layer")
}

fn environment(pairs: &[(&str, &str)]) -> impl Iterator<Item = (String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect::<Vec<_>>().into_iter()
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), text).expect("written");
    file
}

#[test]
fn flags_hold_over_the_environment_and_that_over_the_file() {
    let file = file("port = 1\nmax-num-seqs = 2\nmax-loras = 3\nserved-model-name = [\"a\", \"b\"]\n");
    let settings = Settings::gather(
        Some(file.path()),
        environment(&[("TUNEGATE_PORT", "10"), ("TUNEGATE_MAX_NUM_SEQS", "20"), ("TUNEGATE_API_KEY", "k1, k2")]),
        flags(&["--port", "100"]),
    );
    let config = settings.settle("m".into()).expect("settled");
    assert_eq!(config.server.listen.port(), 100);
    assert_eq!((config.engine.max_num_seqs, config.engine.max_loras), (20, 3));
    assert_eq!(config.server.served_names, ["a", "b"]);
    assert_eq!(config.server.api_keys, ["k1", "k2"]);
    assert_eq!(settings.place("port"), "--port");
    assert_eq!(settings.place("max_num_seqs"), "TUNEGATE_MAX_NUM_SEQS");
    assert!(settings.shown().iter().all(|(_, value, _)| !value.contains("k1")), "keys are not shown");
}

#[test]
fn what_kubernetes_injects_for_a_service_is_ignored() {
    let settings = Settings::gather(
        None,
        environment(&[
            ("TUNEGATE_PORT", "tcp://10.0.0.1:8000"),
            ("TUNEGATE_SERVICE_HOST", "10.0.0.1"),
            ("TUNEGATE_SERVICE_PORT", "8000"),
            ("TUNEGATE_PORT_8000_TCP", "tcp://10.0.0.1:8000"),
            ("TUNEGATE_PORT_8000_TCP_ADDR", "10.0.0.1"),
            ("TUNEGATE_PROT", "1"),
        ]),
        Layer::default(),
    );
    assert_eq!(settings.settle("m".into()).expect("settled").server.listen.port(), 8000);
    assert_eq!(settings.warnings, ["TUNEGATE_PROT is no setting and is ignored"]);
}

#[test]
fn every_fault_is_found_at_once_with_its_place() {
    let file = file("prot = 1\nmax-num-seqs = \"many\"\nmax-loras = 0\n");
    let settings = Settings::gather(
        Some(file.path()),
        environment(&[("TUNEGATE_DEVICE", "toaster")]),
        flags(&["--lora-modules", "x", "--adapter-dir", "/nowhere", "--chat-template", "/nothing"]),
    );
    let faults = settings.settle("m".into()).expect_err("faults");
    let all: Vec<String> = faults.iter().map(ToString::to_string).collect();
    for part in [
        "prot: there is no such setting",
        "max-num-seqs: ",
        "max-loras: it has to be at least 1",
        "TUNEGATE_DEVICE",
        "--lora-modules: x",
        "--adapter-dir",
        "--chat-template",
    ] {
        assert!(all.iter().any(|fault| fault.contains(part)), "{part} is not among {all:#?}");
    }
}

#[test]
fn the_help_tells_the_defaults_that_hold() {
    let settled = |line: &[&str]| {
        let config = Settings::gather(None, environment(&[]), flags(line)).settle("m".into()).expect("settled");
        format!("{config:?}")
    };
    let command = Layer::augment_args(clap::Command::new("tunegate"));
    let mut told = 0;
    for argument in command.get_arguments() {
        let help = argument.get_help().expect("every setting has its help").to_string();
        let Some((_, default)) = help.split_once("(default: ") else { continue };
        let flag = format!("--{}={}", argument.get_long().expect("a flag"), default.trim_end_matches(')'));
        assert_eq!(settled(&[&flag]), settled(&[]), "{flag}");
        told += 1;
    }
    assert!(told >= 30, "{told}");
}

#[test]
fn copies_in_host_memory_are_for_a_device_with_a_memory_of_its_own() {
    let settled = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line)).settle("m".into());
    let host = |line: &[&str]| settled(line).expect("settled").adapters.max_host_bytes;
    assert_eq!((host(&[]), host(&["--device", "cuda"])), (0, 4 << 30));
    assert_eq!(host(&["--device", "cuda", "--adapter-host-bytes", "0"]), 0);
    assert_eq!(host(&["--adapter-host-bytes", "1GiB"]), 1 << 30, "whoever tries the tier out on a CPU");
    assert_eq!(host(&["--device", "metal", "--adapter-host-bytes", "1GiB", "--max-cpu-loras", "3"]), 1 << 30);
    let line = ["--device", "cuda", "--adapter-host-bytes", "0", "--max-cpu-loras", "3"];
    let faults = settled(&line).expect_err("a fault");
    assert_eq!(faults[0].place, "--adapter-host-bytes");
}

#[test]
fn what_computes_on_a_cpu_is_settled() {
    let settled = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line)).settle("m".into());
    let default = settled(&[]).expect("settled").model.cpu;
    assert_eq!(default, CpuConfig { exact: false, threads: None, pin: false, tensors: false, instructions: None });
    let line = ["--exact", "--cpu-threads", "3", "--cpu-pin", "--cpu-decoder", "tensor", "--cpu-instructions", "avx2"];
    let instructions = Some(Instructions::Avx2);
    let said = settled(&line).expect("settled").model.cpu;
    assert_eq!(said, CpuConfig { exact: true, threads: Some(3), pin: true, tensors: true, instructions });
    assert!(settled(&["--cpu-threads", "0"]).is_err());
    assert_eq!(settled(&["--cpu-instructions", "auto"]).expect("settled").model.cpu.instructions, None);
    for (line, expected) in [
        ("cpu-decoder = \"abacus\"\n", "fused or tensor"),
        ("cpu-instructions = \"avx3\"\n", "auto, plain, avx2, avx512 or amx; it is 'avx3'"),
    ] {
        let file = file(line);
        let faults = Settings::gather(Some(file.path()), environment(&[]), Layer::default()).settle("m".into());
        assert!(faults.expect_err("a fault")[0].reason.contains(expected), "{line}");
    }
    let variable = environment(&[("TUNEGATE_CPU_INSTRUCTIONS", "sse9")]);
    let faults = Settings::gather(None, variable, Layer::default()).settle("m".into()).expect_err("a fault");
    assert_eq!(faults[0].place, "TUNEGATE_CPU_INSTRUCTIONS");
}

#[test]
fn words_are_checked_in_a_file_as_on_the_command_line() {
    let file = file("log-format = \"xml\"\ngeneration-config = \"mine\"\n");
    let faults = Settings::gather(Some(file.path()), environment(&[]), Layer::default()).settle("m".into());
    let all: Vec<String> = faults.expect_err("faults").iter().map(ToString::to_string).collect();
    assert!(all.iter().any(|fault| fault.contains("json or text")), "{all:?}");
    assert!(all.iter().any(|fault| fault.contains("auto or vllm")), "{all:?}");
    assert_eq!(all.len(), 2, "{all:?}");
}

#[test]
fn load_requests_may_name_what_is_below_the_adapter_folders_unless_roots_are_given() {
    let (dir, root) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let words = |path: &std::path::Path| path.to_str().expect("UTF-8").to_owned();
    let (dir, root) = (words(dir.path()), words(root.path()));
    let settled = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line)).settle("m".into());
    let adapters = settled(&["--adapter-dir", &dir]).expect("settled").adapters;
    assert_eq!((adapters.roots, adapters.keep_steps, adapters.max_vault_bytes), (vec![dir.clone().into()], 5, None));
    let line =
        ["--adapter-dir", &dir, "--adapter-root", &root, "--adapter-keep-steps", "2", "--adapter-vault-bytes", "1GiB"];
    let adapters = settled(&line).expect("settled").adapters;
    assert_eq!((adapters.roots, adapters.keep_steps), (vec![root.clone().into()], 2));
    assert_eq!(adapters.max_vault_bytes, Some(1 << 30));
    let both = format!("{dir}, {root}");
    let variables = [("TUNEGATE_ADAPTER_ROOT", both.as_str())];
    let settings = Settings::gather(None, environment(&variables), Layer::default());
    let adapters = settings.settle("m".into()).expect("settled").adapters;
    assert_eq!(adapters.roots.len(), 2);
    for (line, place) in [
        (vec!["--adapter-root", "/nowhere"], "--adapter-root"),
        (vec!["--adapter-keep-steps", "0"], "--adapter-keep-steps"),
        (vec!["--enable-lora=false", "--adapter-root", root.as_str()], "--enable-lora"),
    ] {
        assert_eq!(settled(&line).expect_err("a fault")[0].place, place);
    }
}

#[test]
fn adapters_are_tried_unless_that_is_switched_off_and_suites_lie_in_folders_that_exist() {
    let settled = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line)).settle("m".into());
    let adapters = settled(&[]).expect("settled").adapters;
    assert!(adapters.trial && adapters.suites.is_empty());
    let folder = tempfile::tempdir().expect("a folder");
    let suites = folder.path().to_str().expect("UTF-8");
    let adapters = settled(&["--adapter-trial=false", "--suite-dir", suites]).expect("settled").adapters;
    assert_eq!((adapters.trial, adapters.suites), (false, vec![folder.path().to_owned()]));
    assert_eq!(settled(&["--suite-dir", "/nowhere"]).expect_err("a fault")[0].place, "--suite-dir");
}

#[test]
fn who_may_administer_is_settled_and_contradictions_are_named() {
    let gathered = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line));
    let admin = |line: &[&str]| gathered(line).settle("m".into()).map(|config| config.server.admin);
    let none = admin(&[]).expect("settled");
    assert_eq!((none.key, none.port, none.unauthenticated), (None, None, false));
    let some = admin(&["--admin-key", "root", "--admin-port", "9000"]).expect("settled");
    assert_eq!((some.key.as_deref(), some.port), (Some("root"), Some(9000)));
    assert!(admin(&["--admin-unauthenticated"]).expect("settled").unauthenticated);
    for (line, place) in [
        (vec!["--admin-key", " "], "--admin-key"),
        (vec!["--admin-unauthenticated", "--admin-key", "root"], "--admin-unauthenticated"),
        (vec!["--port", "9000", "--admin-port", "9000"], "--admin-port"),
    ] {
        assert_eq!(admin(&line).expect_err("a fault")[0].place, place);
    }
    let shown = gathered(&["--admin-key", "secret"]).shown();
    assert!(shown.iter().all(|(_, value, _)| !value.contains("secret")), "{shown:?}");
}

#[test]
fn adapters_are_named_in_three_spellings() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().display();
    for given in [
        format!("sql={path}"),
        format!(r#"{{"name": "sql", "path": "{path}", "base_model_name": "b"}}"#),
        format!(r#"'{{"name":"sql","path":"{path}"}}'"#),
    ] {
        assert_eq!(lora_module(&given), Ok(("sql".to_owned(), folder.path().to_owned())), "{given}");
    }
    assert!(lora_module(&format!("../x={path}")).is_err());
    assert!(lora_module("sql=/nowhere").is_err());
}

#[test]
fn sources_of_adapters_are_settled_with_their_secrets_hidden() {
    let given = ["--adapter-source", "bucket=s3://adapters/prod", "hub=hf://org", "--adapters-file", "desired.yaml"];
    let settings = Settings::gather(
        None,
        environment(&[
            ("AWS_ACCESS_KEY_ID", "id"),
            ("AWS_SECRET_ACCESS_KEY", "from aws"),
            ("AWS_REGION", "eu-central-1"),
            ("TUNEGATE_S3_SECRET_ACCESS_KEY", "our own"),
            ("AWS_PROFILE", "other"),
        ]),
        flags(&given),
    );
    let config = settings.settle("m".into()).expect("settled").adapters;
    let S3Credentials::Keys(keys) = &config.s3 else { panic!("keys: {:?}", config.s3) };
    assert_eq!((keys.access_key_id.as_str(), keys.secret_access_key.0.as_str()), ("id", "our own"));
    let SourcePlace::S3(place) = &config.sources[0].place else { panic!("a bucket") };
    assert_eq!((place.region.as_str(), place.prefix.as_str()), ("eu-central-1", "prod"));
    assert_eq!(config.follow.desired.as_deref(), Some(Path::new("desired.yaml")));
    assert!(!format!("{config:?}").contains("our own"));
    assert!(settings.shown().iter().all(|(_, value, _)| !value.contains("our own")));
    assert_eq!(settings.warnings, [""; 0]);
    for (line, part) in [
        (&["--adapter-source", "a=s3://bucket", "a=hf://org"][..], "given twice"),
        (&["--adapter-source", "a=ftp://host"], "no kind of source"),
        (&["--adapter-source", "a=s3://bucket", "--s3-access-key-id", "id"], "belongs to it"),
        (&["--fetch-timeout", "0"], "at least 1"),
        (&["--hub-endpoint", "file:///etc"], "no URL"),
        (&["--enable-lora=false", "--adapter-source", "a=hf://org"], "adapters are given"),
    ] {
        let faults = Settings::gather(None, environment(&[]), flags(line)).settle("m".into()).expect_err("a fault");
        assert!(faults.iter().any(|fault| fault.reason.contains(part)), "{line:?}: {faults:?}");
    }
}

const TO_S3: [&str; 2] = ["--adapter-source", "bucket=s3://adapters"];

/// How requests are signed with these variables and flags beside a source that is a bucket.
fn signed(variables: &[(&str, &str)], line: &[&str]) -> Result<S3Credentials, Vec<Fault>> {
    let line: Vec<&str> = TO_S3.iter().chain(line).copied().collect();
    let settings = Settings::gather(None, environment(variables), flags(&line));
    settings.settle("m".into()).map(|config| config.adapters.s3)
}

#[test]
fn roles_are_found_where_awss_own_programs_find_them() {
    let keys = [("AWS_ACCESS_KEY_ID", "id"), ("AWS_SECRET_ACCESS_KEY", "word"), ("AWS_SESSION_TOKEN", "session")];
    let account = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", "/var/run/token"),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/adapters"),
        ("AWS_ROLE_SESSION_NAME", "here"),
    ];
    let task = [("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/credentials/x")];
    let pod = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", "/var/run/pod"),
    ];
    let identity = WebIdentity {
        token_file: "/var/run/token".into(),
        role_arn: "arn:aws:iam::1:role/adapters".to_owned(),
        session_name: Some("here".to_owned()),
        endpoint: None,
    };
    let at_pod = ContainerRole::Pod {
        url: "http://169.254.170.23/v1/credentials".to_owned(),
        token_file: "/var/run/pod".into(),
    };
    let at_task = ContainerRole::Task(Secret("/v2/credentials/x".to_owned()));
    let all = |parts: &[&[(&'static str, &'static str)]]| parts.concat();
    assert!(matches!(signed(&all(&[&pod, &task, &account, &keys]), &[]), Ok(S3Credentials::Keys(_))));
    assert_eq!(signed(&all(&[&pod, &task, &account]), &[]), Ok(S3Credentials::WebIdentity(identity)));
    assert_eq!(signed(&all(&[&pod, &task]), &[]), Ok(S3Credentials::Container(at_task)));
    assert_eq!(signed(&pod, &[]), Ok(S3Credentials::Container(at_pod)));
    assert_eq!(signed(&[], &[]), Ok(S3Credentials::Unsigned));
    assert_eq!(signed(&account[1..], &[]), Ok(S3Credentials::Unsigned), "a role alone is nobody's");
    assert_eq!(signed(&all(&[&keys, &account]), &["--s3-credentials", "none"]), Ok(S3Credentials::Unsigned));
    let instance = |line: &[&str]| signed(&keys, &[&["--s3-credentials", "instance"], line].concat());
    assert_eq!(instance(&[]), Ok(S3Credentials::Instance { endpoint: None }));
    let elsewhere = Some("http://127.0.0.1:1338".to_owned());
    assert_eq!(
        instance(&["--s3-metadata-endpoint", "http://127.0.0.1:1338/"]),
        Ok(S3Credentials::Instance { endpoint: elsewhere })
    );
}

#[test]
fn half_a_role_and_a_desk_without_encryption_are_faults() {
    for (variables, line, place) in [
        (&[("AWS_WEB_IDENTITY_TOKEN_FILE", "/t")][..], &[][..], "AWS_WEB_IDENTITY_TOKEN_FILE"),
        (&[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "https://agent/x")], &[], "AWS_CONTAINER_CREDENTIALS_FULL_URI"),
        (
            &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://agent.example/x")],
            &[],
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
        ),
        (&[("AWS_SECRET_ACCESS_KEY", "word")], &[], "AWS_SECRET_ACCESS_KEY"),
        (
            &[
                ("AWS_ENDPOINT_URL_STS", "http://sts.example"),
                ("AWS_ROLE_ARN", "arn"),
                ("AWS_WEB_IDENTITY_TOKEN_FILE", "/t"),
            ],
            &[],
            "AWS_ENDPOINT_URL_STS",
        ),
        (&[], &["--s3-credentials=instance", "--s3-metadata-endpoint=http://10.0.0.1"], "--s3-metadata-endpoint"),
    ] {
        let faults = signed(variables, line).expect_err(place);
        assert_eq!(faults.iter().map(|fault| fault.place.as_str()).collect::<Vec<_>>(), [place], "{faults:?}");
    }
    let settings = Settings::gather(None, environment(&[("AWS_SECRET_ACCESS_KEY", "word")]), Layer::default());
    assert!(settings.settle("m".into()).is_ok(), "without a bucket they are none of this server's affair");
}

#[test]
fn what_came_from_awss_variables_is_shown_under_their_names() {
    let variables = [
        ("AWS_ACCESS_KEY_ID", "id"),
        ("AWS_SECRET_ACCESS_KEY", "a word"),
        ("AWS_DEFAULT_REGION", "eu-west-1"),
        ("AWS_REGION", "eu-central-1"),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", "/v2/a-word"),
        ("AWS_SESSION_TOKEN", ""),
        ("TUNEGATE_S3_SECRET_ACCESS_KEY", "our own"),
    ];
    let settings = Settings::gather(None, environment(&variables), flags(&TO_S3));
    for (name, place) in [
        ("s3_access_key_id", "AWS_ACCESS_KEY_ID"),
        ("s3_secret_access_key", "TUNEGATE_S3_SECRET_ACCESS_KEY"),
        ("s3_region", "AWS_REGION"),
        ("s3_session_token", "default"),
        ("s3_container_credentials_uri", "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI"),
    ] {
        assert_eq!(settings.place(name), place);
    }
    let shown = format!("{:?}", settings.shown());
    assert!(shown.contains("AWS_REGION") && shown.contains("eu-central-1"), "{shown}");
    assert!(!shown.contains("word") && !shown.contains("our own"), "{shown}");
}

#[test]
fn what_the_record_promises_is_settled_and_a_window_without_a_group_is_named() {
    let settled = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line)).settle("m".into());
    let record = |line: &[&str]| settled(line).expect("settled").record;
    let default = record(&[]);
    assert_eq!((default.durability, default.on_fault), (Durability::Strict, OnFault::Refuse));
    let group = Durability::Group(Duration::from_millis(50));
    assert_eq!(record(&["--record-durability", "group"]).durability, group);
    let line = ["--record-durability", "group", "--record-group-ms", "7", "--record-on-fault", "serve"];
    let said = record(&line);
    assert_eq!((said.durability, said.on_fault), (Durability::Group(Duration::from_millis(7)), OnFault::Serve));
    let line = ["--record-durability", "best-effort", "--record-stall-ms", "9"];
    let said = record(&line);
    assert_eq!((said.durability, said.stall), (Durability::BestEffort, Duration::from_millis(9)));
    for (line, place) in [
        (vec!["--record-group-ms", "7"], "--record-group-ms"),
        (vec!["--record-durability", "group", "--record-group-ms", "0"], "--record-group-ms"),
        (vec!["--record-stall-ms", "0"], "--record-stall-ms"),
    ] {
        assert_eq!(settled(&line).expect_err("a fault")[0].place, place);
    }
    let file = file("record-durability = \"perhaps\"\nrecord-on-fault = \"serve\"\n");
    let faults = Settings::gather(Some(file.path()), environment(&[]), Layer::default()).settle("m".into());
    let all: Vec<String> = faults.expect_err("a fault").iter().map(ToString::to_string).collect();
    assert!(all.len() == 1 && all[0].contains("record-durability"), "{all:?}");
}

#[test]
fn shares_of_the_split_are_settled_and_its_secret_is_not_shown() {
    let gathered = |line: &[&str]| Settings::gather(None, environment(&[]), flags(line));
    let line = ["--split-held-out", "0.2", "--split-audit", "0", "--split-secret", "0123456789abcdef"];
    let split = gathered(&line).settle("m".into()).expect("settled").record.split;
    assert_eq!((split.held_out, split.audit, split.secret.is_some()), (0.2, 0.0, true));
    assert!(gathered(&line).shown().iter().all(|(_, value, _)| !value.contains("0123456789abcdef")));
    for (line, place) in [
        (vec!["--split-held-out", "1.5"], "--split-held-out"),
        (vec!["--split-held-out", "NaN"], "--split-held-out"),
        (vec!["--split-audit", "-0.1"], "--split-audit"),
        (vec!["--split-held-out", "0.6", "--split-audit", "0.5"], "--split-audit"),
        (vec!["--split-secret", "short"], "--split-secret"),
    ] {
        assert_eq!(gathered(&line).settle("m".into()).expect_err("a fault")[0].place, place, "{line:?}");
    }
}

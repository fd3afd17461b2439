//! The official openai client drives a running server. Its Python is named by `TUNEGATE_TEST_PYTHON`; `make test` makes
//! one.

use std::process::{Command, Output};

use crate::support::{golden, server::TestServer};

/// A server with one key, and an adapter whose name has a slash.
async fn server() -> TestServer {
    TestServer::with(|config, _| {
        config.server.api_keys = vec!["secret".into()];
        config.adapters.modules.push(("team/sql".into(), golden("adapters/llama/rslora")));
    })
    .await
}

/// Runs Python beside the server.
async fn python(arguments: [&str; 3]) -> Output {
    let python = std::env::var("TUNEGATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(&python);
    // A proxy of this machine has no business between two processes on it.
    command.args(arguments).env("NO_PROXY", "127.0.0.1");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap();
    output.unwrap_or_else(|error| panic!("'{python}' cannot be run ({error}): set TUNEGATE_TEST_PYTHON"))
}

/// Runs one check of `tests/client/openai_client.py`.
async fn check(server: &TestServer, name: &str) {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client/openai_client.py");
    let output = python([script, &format!("http://{}", server.address), name]).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(
        !error.contains("No module named 'openai'"),
        "this Python has no openai package: run `make test`, which installs it, or set TUNEGATE_TEST_PYTHON"
    );
    assert!(output.status.success(), "{name}:\n{error}");
}

macro_rules! checks {
    ($($sentence:ident => $name:literal,)*) => {$(
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $sentence() {
            check(&server().await, $name).await;
        }
    )*};
}

checks! {
    the_client_gets_whole_answers => "whole",
    the_client_reads_streams => "streamed",
    the_client_gets_many_choices => "many",
    the_client_stops_where_it_says => "stop",
    the_client_reads_log_probabilities => "logprobs",
    the_client_reads_usage => "usage",
    the_client_raises_the_right_errors => "errors",
    the_client_needs_its_key => "keys",
    the_client_lists_models => "models",
    the_client_finds_what_it_stored => "stored",
    the_client_judges_answers => "feedback",
    many_clients_are_answered_as_each_alone => "concurrent",
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_cancels_frees_its_place_and_is_on_record() {
    let server = server().await;
    check(&server, "cancel").await;
    server.gateway.idle().await;
    let rows = server.gateway.journal().follow(Default::default(), 10).await.unwrap();
    let endings: Vec<&str> = rows.iter().map(|row| row.completion.choices[0].ending.as_str()).collect();
    assert!(endings.contains(&"client_left") && endings.contains(&"length"), "{endings:?}");
}

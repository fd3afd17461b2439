//! Who may change what is served.

use serde_json::{Value, json};
use tunegate::{http::route::Route, terms::Digest};

use crate::support::{
    golden,
    server::TestServer,
    wire::{Answer, Request},
};

fn route(route: Route) -> Request {
    let path = route.shown_path().replace("{id}", "poet");
    match route.method().as_str() {
        "POST" => Request::post(&path, &json!({"lora_name": "poet", "lora_path": "rslora"})),
        method => Request::new(method, &path),
    }
}

fn admin_routes() -> impl Iterator<Item = Route> {
    Route::ALL.iter().copied().filter(|route| route.is_admin())
}

async fn server(change: impl FnOnce(&mut tunegate::config::ServerConfig)) -> TestServer {
    TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![golden("adapters/llama")];
        change(&mut config.server);
    })
    .await
}

/// The code under which a request was refused, if it was.
fn code(answer: &Answer) -> Option<String> {
    if answer.status == 200 {
        return None;
    }
    let body: Value = answer.json();
    Some(body["error"]["code"].as_str().unwrap().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_loopback_they_are_open() {
    let server = server(|_| {}).await;
    assert_eq!(admin_routes().count(), 7);
    let load = server.send(route(Route::LoadAdapter)).await;
    assert_eq!(code(&load), None);
    for of in admin_routes() {
        let code = code(&server.send(route(of)).await).unwrap_or_default();
        assert!(!code.starts_with("admin_"), "{of:?}: {code}");
        server.send(route(Route::LoadAdapter)).await;
    }
    let page = route(Route::LoadAdapter).header("origin", "http://evil.example");
    assert_eq!(code(&server.send(page).await).as_deref(), Some("origin_not_allowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn elsewhere_they_are_off_and_say_how_to_turn_them_on() {
    let server = server(|config| config.listen = ([0, 0, 0, 0], 0).into()).await;
    for of in admin_routes() {
        let answer = server.send(route(of)).await;
        assert_eq!((answer.status, code(&answer).as_deref()), (403, Some("admin_off")), "{of:?}");
        for way in ["--admin-key", "--admin-port", "--admin-unauthenticated"] {
            assert!(answer.text().contains(way), "{}", answer.text());
        }
    }
    assert_eq!(server.get("/v1/models").await.status, 200);
    assert_eq!(code(&server.send_unix(route(Route::LoadAdapter)).await), None, "the operator's own socket");
    assert_eq!(server.get("/v1/models").await.json()["data"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_admin_key_opens_them_and_nothing_else_does() {
    for listen in [[127, 0, 0, 1], [0, 0, 0, 0]] {
        let server = server(|config| {
            config.listen = (listen, 0).into();
            config.admin.key = Some("root".to_owned());
        })
        .await;
        let load = || route(Route::LoadAdapter);
        assert_eq!(code(&server.send(load()).await).as_deref(), Some("admin_key_needed"));
        assert_eq!(code(&server.send(load().key("guess")).await).as_deref(), Some("admin_key_needed"));
        assert_eq!(code(&server.send(load().key("root")).await), None);
        assert_eq!(server.get("/v1/models").await.status, 200, "asking needs no key");
        let shown = server.send(route(Route::GetAdapter).key("root")).await.json();
        assert_eq!(shown["history"][0]["who"], "admin");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_application_s_key_does_not_open_them() {
    let secret = |name: &str| Digest::of(name.as_bytes());
    let keys = format!(
        "[[key]]\nname = 'shop'\nhash = '{}'\n[[key]]\nname = 'chief'\nhash = '{}'\nrole = 'admin'\n",
        secret("shop"),
        secret("chief")
    );
    let server = TestServer::with(|config, folder| {
        config.adapters.roots = vec![golden("adapters/llama")];
        config.server.listen = ([0, 0, 0, 0], 0).into();
        config.server.keys_file = Some(folder.join("keys.toml"));
        std::fs::write(folder.join("keys.toml"), &keys).unwrap();
    })
    .await;
    let load = || route(Route::LoadAdapter);
    assert_eq!(code(&server.send(load()).await).as_deref(), Some("invalid_api_key"));
    assert_eq!(code(&server.send(load().key("shop")).await).as_deref(), Some("role_not_allowed"));
    assert_eq!(code(&server.send(load().key("chief")).await), None);

    let server = self::server(|config| {
        config.api_keys = vec!["everybody".to_owned()];
        config.admin.key = Some("root".to_owned());
    })
    .await;
    assert_eq!(code(&server.send(load().key("everybody")).await).as_deref(), Some("role_not_allowed"));
    assert_eq!(code(&server.send(load().key("root")).await), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_port_of_their_own_is_the_only_one_that_answers_them() {
    let server = server(|config| {
        config.listen = ([0, 0, 0, 0], 0).into();
        config.api_keys = vec!["app".to_owned()];
        config.admin.port = Some(0);
    })
    .await;
    let load = || route(Route::LoadAdapter);
    assert_eq!(code(&server.send(load().key("app")).await).as_deref(), Some("admin_elsewhere"));
    assert_eq!(code(&server.send_admin(load()).await), None);
    assert_eq!(server.send_admin(Request::get("/health")).await.status, 200);
    assert_eq!(server.send_admin(Request::get("/v1/models")).await.status, 401, "what needs a key needs it here too");

    let server = self::server(|config| {
        config.admin.port = Some(0);
        config.admin.key = Some("root".to_owned());
    })
    .await;
    assert_eq!(code(&server.send_admin(load()).await).as_deref(), Some("admin_key_needed"));
    assert_eq!(code(&server.send(load().key("root")).await).as_deref(), Some("admin_elsewhere"));
    assert_eq!(code(&server.send_admin(load().key("root")).await), None);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_so_leaves_them_open_to_everybody() {
    let server = server(|config| {
        config.listen = ([0, 0, 0, 0], 0).into();
        config.api_keys = vec!["app".to_owned()];
        config.admin.unauthenticated = true;
    })
    .await;
    assert_eq!(code(&server.send(route(Route::LoadAdapter)).await), None);
    assert_eq!(server.get("/v1/models").await.status, 401);
}

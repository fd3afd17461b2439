//! A whole server around the tiny real model: sockets, keys, engine, adapters, record.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::oneshot,
    task::JoinHandle,
};
use tunegate::{
    app::{self, Built},
    config::Config,
    feedback::{self, Flags},
    gateway::{Gateway, reconcile::Following},
    http::{AppState, Listener, ServeSettings, auth::Keys, router, serve},
    metrics::Metrics,
};

use super::{
    config,
    wire::{Answer, EventStream, Request},
};

pub const CHAT: &str = "/v1/chat/completions";
pub const COMPLETIONS: &str = "/v1/completions";

/// A running server on loopback, without keys unless told otherwise. Dropping it ends it.
pub struct TestServer {
    pub address: SocketAddr,
    pub socket: PathBuf,
    /// The port for admins, where the settings want one.
    pub admin: Option<SocketAddr>,
    /// Where the record is.
    pub data: PathBuf,
    pub gateway: Gateway,
    pub flags: Flags,
    built: Option<Built>,
    following: Option<Following>,
    flagging: Option<feedback::Following>,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl TestServer {
    pub async fn start() -> Self {
        Self::with(|_, _| {}).await
    }

    /// With settings changed; the second argument is a folder for files that they name.
    pub async fn with(change: impl FnOnce(&mut Config, &Path)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(folder.path().join("data"));
        change(&mut config, folder.path());
        let metrics = Arc::new(Metrics::new());
        let keys = Arc::new(Keys::load(&config.server).unwrap());
        let mut built = {
            let (config, metrics) = (config.clone(), Arc::clone(&metrics));
            tokio::task::spawn_blocking(move || app::build(&config, &metrics)).await.unwrap().unwrap()
        };
        let gateway = built.gateway.clone();
        let following = built.follow(&config);
        let flags = built.flags.clone();
        let flagging = Some(flags.follow());
        let router = router(AppState::new(gateway.clone(), flags.clone(), Arc::clone(&metrics), &config, keys));
        // Whatever the settings say of who may connect, tests stay on this machine.
        let tcp = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = tcp.local_addr().unwrap();
        let socket = folder.path().join("server.sock");
        let unix = UnixListener::bind(&socket).unwrap();
        let settings =
            ServeSettings { limits: Arc::new(config.limits.clone()), metrics, grace: Duration::from_secs(5) };
        let (stop, stopped) = oneshot::channel::<()>();
        let mut listeners = vec![Listener::Tcp(tcp), Listener::Unix(unix)];
        let mut admin = None;
        if config.server.admin.port.is_some() {
            let tcp = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            admin = Some(tcp.local_addr().unwrap());
            listeners.push(Listener::Admin(tcp));
        }
        let serving = tokio::spawn(serve(listeners, router, settings, async {
            let _ = stopped.await;
        }));
        Self {
            address,
            socket,
            admin,
            data: config.record.data_dir,
            gateway,
            flags,
            built: Some(built),
            following,
            flagging,
            stop: Some(stop),
            serving: Some(serving),
            _folder: folder,
        }
    }

    /// With keys read from a file of this text.
    pub async fn with_keys(keys: &str, change: impl FnOnce(&mut Config)) -> Self {
        Self::with(|config, folder| {
            let path = folder.join("keys.toml");
            std::fs::write(&path, keys).unwrap();
            config.server.keys_file = Some(path);
            change(config);
        })
        .await
    }

    pub async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    pub async fn send(&self, request: Request) -> Answer {
        request.send(self.connect().await).await
    }

    /// Over the operator's socket.
    pub async fn send_unix(&self, request: Request) -> Answer {
        request.send(UnixStream::connect(&self.socket).await.unwrap()).await
    }

    /// Over the port for admins.
    pub async fn send_admin(&self, request: Request) -> Answer {
        request.send(TcpStream::connect(self.admin.unwrap()).await.unwrap()).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send(Request::get(path)).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send(Request::post(path, body)).await
    }

    /// A streamed answer, as it comes.
    pub async fn stream(&self, path: &str, body: &Value) -> EventStream<TcpStream> {
        Request::post(path, body).stream(self.connect().await).await
    }

    /// A greedy chat of 8 tokens with `model`, with `more` over it.
    pub async fn chat(&self, model: &str, content: &str, more: Value) -> Answer {
        self.post(CHAT, &chat_body(model, content, more)).await
    }

    /// A greedy completion of 8 tokens.
    pub async fn complete(&self, model: &str, prompt: Value, more: Value) -> Answer {
        self.post(COMPLETIONS, &text_body(model, prompt, more)).await
    }

    /// Stops accepting, and waits until every connection has ended.
    pub async fn close(&mut self) {
        drop(self.stop.take());
        if let Some(serving) = self.serving.take() {
            serving.await.unwrap();
        }
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
        }
        drop(self.following.take());
        drop(self.flagging.take());
        if let Some(built) = self.built.take() {
            built.stop();
        }
    }
}

pub fn chat_body(model: &str, content: &str, more: Value) -> Value {
    over(
        json!({
            "model": model, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8,
            "ignore_eos": true,
        }),
        more,
    )
}

pub fn text_body(model: &str, prompt: Value, more: Value) -> Value {
    over(json!({"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 8, "ignore_eos": true}), more)
}

/// Fields of `more` over those of `body`.
fn over(mut body: Value, more: Value) -> Value {
    for (name, value) in more.as_object().unwrap() {
        body[name] = value.clone();
    }
    body
}

//! The accept loop: TCP and Unix sockets, HTTP/1 and HTTP/2 without TLS, with a limit on everything that a client could
//! drag out. `axum::serve` has no header timeout, no buffer limit and no connection limit.

mod activity;
mod sniff;

use std::{future::Future, io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use activity::{Activity, Watched};
use axum::{Router, body::Body};
use http::Request;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tower::ServiceExt;

use super::error::ApiError;
use crate::{config::LimitsConfig, metrics::Metrics};

/// Where a request came from. In every request's extensions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    Tcp(SocketAddr),
    /// The port for those who change what is served.
    Admin(SocketAddr),
    /// The socket in the data directory, which only its owner can open.
    Unix,
}

/// A bound socket.
#[derive(Debug)]
pub enum Listener {
    Tcp(TcpListener),
    Admin(TcpListener),
    Unix(UnixListener),
}

/// What the accept loop is told once.
#[derive(Clone)]
pub struct ServeSettings {
    pub limits: Arc<LimitsConfig>,
    pub metrics: Arc<Metrics>,
    /// How long connections may take to close once `stop` has come.
    pub grace: Duration,
}

/// More headers than this are refused by hyper itself; [`super::limits`] refuses fewer, in words.
const HARD_HEADERS: usize = 256;
/// hyper takes no smaller buffer.
const LEAST_BUFFER: usize = 8 << 10;

/// Serves `router` on every listener until `stop` comes, then lets requests under way end for at most
/// [`ServeSettings::grace`]. To be drained before: whoever sends `stop` ends the answers first.
pub async fn serve(listeners: Vec<Listener>, router: Router, settings: ServeSettings, stop: impl Future<Output = ()>) {
    let (stopped, stopping) = watch::channel(false);
    let mut loops = JoinSet::new();
    for listener in listeners {
        loops.spawn(accept(listener, router.clone(), settings.clone(), stopping.clone()));
    }
    drop(stopping);
    stop.await;
    stopped.send_replace(true);
    while loops.join_next().await.is_some() {}
}

async fn accept(listener: Listener, router: Router, settings: ServeSettings, mut stopping: watch::Receiver<bool>) {
    // Each socket has seats of its own: strangers cannot take the operator's.
    let seats = Arc::new(Semaphore::new(settings.limits.max_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = next(&listener) => accepted,
            _ = stopping.wait_for(|stop| *stop) => break,
            Some(_) = connections.join_next() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                // Out of file descriptors, most likely: some must close before the next can open.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (router, settings, stopping) = (router.clone(), settings.clone(), stopping.clone());
        match Arc::clone(&seats).try_acquire_owned() {
            Ok(seat) => {
                connections.spawn(async move {
                    let line = Line { peer, router, settings, stopping };
                    match stream {
                        Stream::Tcp(stream) => line.serve(stream, seat).await,
                        Stream::Unix(stream) => line.serve(stream, seat).await,
                    }
                });
            }
            Err(_) => {
                connections.spawn(turn_away(stream, settings.limits.max_connections));
            }
        }
    }
    let all = async { while connections.join_next().await.is_some() {} };
    if tokio::time::timeout(settings.grace, all).await.is_err() {
        tracing::warn!(open = connections.len(), "connections were closed before they ended");
    }
}

enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

async fn next(listener: &Listener) -> io::Result<(Stream, Peer)> {
    match listener {
        Listener::Tcp(tcp) | Listener::Admin(tcp) => {
            let (stream, address) = tcp.accept().await?;
            // Tokens are small and each is waited for.
            stream.set_nodelay(true)?;
            let admin = matches!(listener, Listener::Admin(_));
            Ok((Stream::Tcp(stream), if admin { Peer::Admin(address) } else { Peer::Tcp(address) }))
        }
        Listener::Unix(listener) => {
            let (stream, _) = listener.accept().await?;
            Ok((Stream::Unix(stream), Peer::Unix))
        }
    }
}

/// Says why there is no seat, in the shape of every other error.
async fn turn_away(stream: Stream, limit: usize) {
    let error = ApiError::crowded(limit);
    let body = serde_json::to_string(&error.body()).unwrap_or_default();
    let answer = format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nretry-after: 1\r\nconnection: close\r\n\r\n{body}",
        error.status,
        body.len()
    );
    let farewell = async {
        match stream {
            Stream::Tcp(stream) => say_and_close(stream, answer.as_bytes()).await,
            Stream::Unix(stream) => say_and_close(stream, answer.as_bytes()).await,
        }
    };
    // Whether it is read is the client's matter.
    let _ = tokio::time::timeout(Duration::from_secs(1), farewell).await;
}

/// Closing with unread bytes would reset the connection and lose the answer, so those are read first.
async fn say_and_close<S: AsyncRead + AsyncWrite + Unpin>(mut stream: S, answer: &[u8]) -> io::Result<()> {
    stream.write_all(answer).await?;
    stream.shutdown().await?;
    tokio::io::copy(&mut stream, &mut tokio::io::sink()).await.map(drop)
}

/// One connection.
struct Line {
    peer: Peer,
    router: Router,
    settings: ServeSettings,
    stopping: watch::Receiver<bool>,
}

impl Line {
    async fn serve<S>(mut self, stream: S, _seat: OwnedSemaphorePermit)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let _open = Open::new(&self.settings.metrics);
        let limits = Arc::clone(&self.settings.limits);
        // hyper's own look at the first bytes has no timeout.
        let activity = Arc::new(Activity::new());
        let begun = sniff::first_bytes(stream, Arc::clone(&activity));
        let Ok(Ok(stream)) = tokio::time::timeout(limits.header_timeout, begun).await else { return };
        let http2 = stream.is_http2();
        let (router, peer) = (self.router.clone(), self.peer);
        let service = service_fn({
            let activity = Arc::clone(&activity);
            move |mut request: Request<Incoming>| {
                request.extensions_mut().insert(peer);
                let (router, under_way) = (router.clone(), activity.begin());
                async move {
                    let answer = router.oneshot(request.map(Body::new)).await;
                    answer.map(|response| response.map(|body| Watched::new(body, under_way)))
                }
            }
        });
        let builder = builder(&limits);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut watch = tokio::time::interval(watch_period(&limits));
        let mut closing = false;
        loop {
            tokio::select! {
                // How a connection broke is the client's matter; its requests have their own log lines.
                _ = connection.as_mut() => return,
                stop = self.stopping.wait_for(|stop| *stop), if !closing => {
                    drop(stop);
                    closing = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = watch.tick() => {
                    let stalled = activity.let_go(limits.write_timeout);
                    if stalled {
                        tracing::info!(peer = ?self.peer, "an answer that its client does not take was let go");
                    }
                    // On HTTP/2 there are other requests beside it, and other frames than heads.
                    if !http2 && (stalled || activity.head_overdue(limits.header_timeout)) {
                        return;
                    }
                    if activity.idle(limits.idle_timeout) {
                        if closing {
                            return;
                        }
                        closing = true;
                        connection.as_mut().graceful_shutdown();
                    }
                }
            }
        }
    }
}

fn builder(limits: &LimitsConfig) -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        // hyper's own counts from the end of the last answer, not from the head's first byte: it would close idle
        // connections that proxies like to keep.
        .header_read_timeout(None)
        // Twice what is allowed, so that the refusal can be in words.
        .max_buf_size((2 * limits.max_header_bytes).max(LEAST_BUFFER))
        .max_headers(HARD_HEADERS);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.max_streams)
        .max_header_list_size(u32::try_from(2 * limits.max_header_bytes).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(20)
        .max_local_error_reset_streams(20)
        .keep_alive_interval(Duration::from_secs(20))
        .keep_alive_timeout(Duration::from_secs(20));
    builder
}

/// Often enough that no limit is overrun by more than a quarter.
fn watch_period(limits: &LimitsConfig) -> Duration {
    let shortest = limits.idle_timeout.min(limits.write_timeout).min(limits.header_timeout);
    (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(5))
}

/// Counts a connection while it is open.
struct Open(prometheus::IntGauge);

impl Open {
    fn new(metrics: &Metrics) -> Self {
        metrics.http_connections.inc();
        Self(metrics.http_connections.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.dec();
    }
}

//! What goes on on one connection: whether it is idle, and whether its client takes what it asked for.

use std::{
    collections::HashMap,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::body::Body;
use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

/// The requests under way on one connection.
#[derive(Debug)]
pub struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    next: u64,
    under_way: usize,
    /// When the last request ended, or the connection began.
    idle_since: Instant,
    /// Bodies with a part handed out and not asked for more since, and when that was.
    handed_out: HashMap<u64, Instant>,
}

impl Activity {
    pub fn new() -> Self {
        Self(Mutex::new(State { next: 0, under_way: 0, idle_since: Instant::now(), handed_out: HashMap::new() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a request until the answer is dropped.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = self.state();
        state.under_way += 1;
        state.next += 1;
        UnderWay { id: state.next, activity: Arc::clone(self) }
    }

    /// Whether nothing has been under way for `limit`.
    pub fn idle(&self, limit: Duration) -> bool {
        let state = self.state();
        state.under_way == 0 && state.idle_since.elapsed() >= limit
    }

    /// Whether some part of an answer has waited for `limit` to be taken. hyper asks a body for more as long as there is
    /// room between it and the client, so a body that is not asked has a client that does not read.
    pub fn stalled(&self, limit: Duration) -> bool {
        self.state().handed_out.values().any(|since| since.elapsed() >= limit)
    }
}

/// One request under way.
#[derive(Debug)]
pub struct UnderWay {
    id: u64,
    activity: Arc<Activity>,
}

impl UnderWay {
    fn asked(&self) {
        self.activity.state().handed_out.remove(&self.id);
    }

    fn handed_out(&self) {
        self.activity.state().handed_out.insert(self.id, Instant::now());
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        state.handed_out.remove(&self.id);
        state.under_way -= 1;
        state.idle_since = Instant::now();
    }
}

/// An answer's body that says when it was last asked.
#[derive(Debug)]
pub struct Watched {
    body: Body,
    under_way: UnderWay,
}

impl Watched {
    pub fn new(body: Body, under_way: UnderWay) -> Self {
        Self { body, under_way }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.under_way.asked();
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            self.under_way.handed_out();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn a_body_that_nobody_asks_again_is_stalled_until_it_is() {
        let activity = Arc::new(Activity::new());
        let parts = futures_util::stream::iter([Ok::<_, axum::Error>("one"), Ok("two")]);
        let mut body = Watched::new(Body::from_stream(parts), activity.begin());
        assert!(!activity.stalled(Duration::ZERO), "nothing is handed out yet");
        body.frame().await;
        assert!(activity.stalled(Duration::ZERO));
        assert!(!activity.stalled(Duration::from_secs(3600)));
        body.frame().await;
        assert!(body.frame().await.is_none());
        assert!(!activity.stalled(Duration::ZERO), "the body was asked after its last part");
    }

    #[test]
    fn a_connection_is_idle_when_every_answer_is_gone() {
        let activity = Arc::new(Activity::new());
        let (one, other) = (activity.begin(), activity.begin());
        drop(one);
        assert!(!activity.idle(Duration::ZERO));
        drop(other);
        assert!(activity.idle(Duration::ZERO));
        assert!(!activity.idle(Duration::from_secs(3600)));
    }
}

//! What goes on on one connection: whether it is idle, whether a request's head is overdue, and whether the client takes
//! what it asked for.

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

/// An answer's body, until it is let go.
type BodyCell = Arc<Mutex<Option<Body>>>;

/// The requests under way on one connection.
#[derive(Debug)]
pub struct Activity(Mutex<State>);

#[derive(Debug)]
struct State {
    next: u64,
    under_way: HashMap<u64, Answer>,
    /// When the last request ended, or the connection began.
    idle_since: Instant,
    /// When the first bytes of a head came that is not whole yet.
    head_since: Option<Instant>,
}

#[derive(Debug, Default)]
struct Answer {
    body: Option<BodyCell>,
    /// When its last part was handed out, if it has not been asked for more since.
    handed_out: Option<Instant>,
}

impl Activity {
    pub fn new() -> Self {
        Self(Mutex::new(State { next: 0, under_way: HashMap::new(), idle_since: Instant::now(), head_since: None }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Counts a request until its answer is dropped or let go.
    pub fn begin(self: &Arc<Self>) -> UnderWay {
        let mut state = self.state();
        state.next += 1;
        let id = state.next;
        state.under_way.insert(id, Answer::default());
        state.head_since = None;
        UnderWay { id, activity: Arc::clone(self) }
    }

    /// Bytes came. With no request under way they begin the head of one.
    pub fn read(&self) {
        let mut state = self.state();
        if state.under_way.is_empty() && state.head_since.is_none() {
            state.head_since = Some(Instant::now());
        }
    }

    /// Whether nothing has been under way for `limit`.
    pub fn idle(&self, limit: Duration) -> bool {
        let state = self.state();
        state.under_way.is_empty() && state.idle_since.elapsed() >= limit
    }

    /// Whether a head has been coming for `limit`.
    pub fn head_overdue(&self, limit: Duration) -> bool {
        self.state().head_since.is_some_and(|since| since.elapsed() >= limit)
    }

    /// Drops every answer whose last part has waited for `limit` to be taken; true if there was one. hyper asks a body
    /// for more as long as there is room between it and the client, so a body that is not asked has a client that does
    /// not read.
    pub fn let_go(&self, limit: Duration) -> bool {
        let mut stalled = Vec::new();
        let mut state = self.state();
        state.under_way.retain(|_, answer| {
            let waits = answer.handed_out.is_some_and(|since| since.elapsed() >= limit);
            if waits {
                stalled.extend(answer.body.take());
            }
            !waits
        });
        if !stalled.is_empty() && state.under_way.is_empty() {
            state.idle_since = Instant::now();
        }
        // A body's last words may take another lock.
        drop(state);
        stalled.iter().for_each(|body| drop(lock(body).take()));
        !stalled.is_empty()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One request under way.
#[derive(Debug)]
pub struct UnderWay {
    id: u64,
    activity: Arc<Activity>,
}

impl UnderWay {
    fn note(&self, change: impl FnOnce(&mut Answer)) {
        if let Some(answer) = self.activity.state().under_way.get_mut(&self.id) {
            change(answer);
        }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut state = self.activity.state();
        if state.under_way.remove(&self.id).is_some() && state.under_way.is_empty() {
            state.idle_since = Instant::now();
        }
    }
}

/// An answer's body that says when it was last asked, and that can be let go.
#[derive(Debug)]
pub struct Watched {
    body: BodyCell,
    under_way: UnderWay,
}

impl Watched {
    pub fn new(body: Body, under_way: UnderWay) -> Self {
        let body = Arc::new(Mutex::new(Some(body)));
        under_way.note(|answer| answer.body = Some(Arc::clone(&body)));
        Self { body, under_way }
    }
}

impl HttpBody for Watched {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.under_way.note(|answer| answer.handed_out = None);
        let polled = match lock(&self.body).as_mut() {
            Some(body) => Pin::new(body).poll_frame(cx),
            None => return Poll::Ready(Some(Err(axum::Error::new("the client took nothing for too long")))),
        };
        if matches!(polled, Poll::Ready(Some(Ok(_)))) {
            self.under_way.note(|answer| answer.handed_out = Some(Instant::now()));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        lock(&self.body).as_ref().is_some_and(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        lock(&self.body).as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    fn two_parts(activity: &Arc<Activity>) -> Watched {
        let parts = futures_util::stream::iter([Ok::<_, axum::Error>("one"), Ok("two")]);
        Watched::new(Body::from_stream(parts), activity.begin())
    }

    #[tokio::test]
    async fn a_body_that_nobody_asks_again_is_let_go_and_others_are_not() {
        let activity = Arc::new(Activity::new());
        let (mut taken, mut left) = (two_parts(&activity), two_parts(&activity));
        assert!(!activity.let_go(Duration::ZERO), "nothing is handed out yet");
        taken.frame().await;
        taken.frame().await;
        assert!(taken.frame().await.is_none(), "asked after its last part");
        left.frame().await;
        assert!(!activity.let_go(LONG));
        assert!(activity.let_go(Duration::ZERO));
        assert!(left.frame().await.is_some_and(|frame| frame.is_err()));
        assert!(!activity.idle(Duration::ZERO), "the other is still under way");
        drop(taken);
        assert!(activity.idle(Duration::ZERO), "what was let go counts no longer");
    }

    #[test]
    fn a_connection_is_idle_when_every_answer_is_gone() {
        let activity = Arc::new(Activity::new());
        let (one, other) = (activity.begin(), activity.begin());
        drop(one);
        assert!(!activity.idle(Duration::ZERO));
        drop(other);
        assert!(activity.idle(Duration::ZERO));
        assert!(!activity.idle(LONG));
    }

    #[test]
    fn a_head_is_overdue_from_its_first_byte_until_it_is_whole() {
        let activity = Arc::new(Activity::new());
        assert!(!activity.head_overdue(Duration::ZERO), "an idle connection owes nothing");
        activity.read();
        assert!(activity.head_overdue(Duration::ZERO));
        assert!(!activity.head_overdue(LONG));
        let under_way = activity.begin();
        activity.read();
        assert!(!activity.head_overdue(Duration::ZERO), "this is the body");
        drop(under_way);
        assert!(!activity.head_overdue(Duration::ZERO));
    }
}

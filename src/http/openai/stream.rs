//! An answer as server-sent events.

use std::{
    collections::VecDeque,
    convert::Infallible,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum::body::Body;
use bytes::Bytes;
use futures_util::{Stream, stream};
use http::{HeaderValue, Response, header};
use tokio::time::{Instant, Sleep};

use super::writer::Writer;
use crate::{
    gateway::{Reply, ReplyEvent},
    http::{error::ApiError, request::Trace},
};

/// Proxies close what is silent for a minute or less.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The response that shows `reply` as it comes. Dropping its body drops the reply.
pub fn response(reply: Reply, writer: Writer, trace: Trace) -> Response<Body> {
    let frames = writer.opening().into_iter().map(|chunk| frame(&chunk)).collect();
    let answer = Answer { reply, writer, trace, frames, over: false };
    let frames = stream::unfold(answer, |mut answer| async { answer.next().await.map(|frame| (frame, answer)) });
    let mut response = Response::new(Body::from_stream(KeptAlive::new(Box::pin(frames), KEEP_ALIVE)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

struct Answer {
    reply: Reply,
    writer: Writer,
    trace: Trace,
    frames: VecDeque<Bytes>,
    over: bool,
}

impl Answer {
    /// The next frame; `None` when the stream ends.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            if self.over {
                return None;
            }
            match self.reply.next().await {
                Ok(Some(event)) => self.show(event),
                Ok(None) => self.over = true,
                Err(error) => {
                    let error = ApiError::from(error);
                    self.trace.failed(&error);
                    self.frames.push_back(frame(&serde_json::to_string(&error.body()).unwrap_or_default()));
                    self.over = true;
                }
            }
        }
    }

    fn show(&mut self, event: ReplyEvent) {
        let done = matches!(event, ReplyEvent::Done { .. });
        if matches!(event, ReplyEvent::Piece { .. }) {
            self.trace.token();
        }
        self.frames.extend(self.writer.chunk(event).map(|chunk| frame(&chunk)));
        if done {
            self.trace.finished(self.writer.ending(), self.writer.usage());
            self.frames.push_back(frame("[DONE]"));
            self.over = true;
        }
    }
}

/// One event. JSON has no line breaks outside of escapes, so one line holds it.
fn frame(text: &str) -> Bytes {
    Bytes::from(format!("data: {text}\n\n"))
}

/// A stream that says something, if only a comment, in every period.
struct KeptAlive<S> {
    frames: S,
    period: Duration,
    silence: Pin<Box<Sleep>>,
}

impl<S> KeptAlive<S> {
    fn new(frames: S, period: Duration) -> Self {
        Self { frames, period, silence: Box::pin(tokio::time::sleep(period)) }
    }
}

impl<S: Stream<Item = Bytes> + Unpin> Stream for KeptAlive<S> {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = match Pin::new(&mut self.frames).poll_next(cx) {
            Poll::Ready(frame) => frame,
            Poll::Pending => match self.silence.as_mut().poll(cx) {
                Poll::Ready(()) => Some(Bytes::from_static(b": keep-alive\n\n")),
                Poll::Pending => return Poll::Pending,
            },
        };
        let until = Instant::now() + self.period;
        self.silence.as_mut().reset(until);
        Poll::Ready(next.map(Ok))
    }
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_silent_stream_is_kept_alive_by_comments_and_ends_when_it_ends() {
        let period = Duration::from_millis(1);
        let mut silent = KeptAlive::new(stream::pending::<Bytes>(), period);
        for _ in 0..3 {
            assert_eq!(silent.next().await, Some(Ok(Bytes::from_static(b": keep-alive\n\n"))));
        }
        let mut busy = KeptAlive::new(stream::iter([frame("{}")]), Duration::from_secs(3600));
        assert_eq!(busy.next().await, Some(Ok(Bytes::from_static(b"data: {}\n\n"))));
        assert_eq!(busy.next().await, None);
    }
}

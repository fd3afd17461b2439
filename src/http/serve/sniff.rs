//! The first bytes of a connection, read ahead so that reading them can time out.

use std::{
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::activity::Activity;

/// How every HTTP/2 connection begins (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Reads until it is clear whether the client speaks HTTP/2; what was read is read again by whoever reads next. From then
/// on `activity` is told of what comes.
pub async fn first_bytes<S: AsyncRead + Unpin>(mut stream: S, activity: Arc<Activity>) -> io::Result<Begun<S>> {
    let mut first = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < first.len() && PREFACE.starts_with(&first[..filled]) {
        match stream.read(&mut first[filled..]).await? {
            0 => break,
            read => filled += read,
        }
    }
    Ok(Begun { first, from: 0, to: filled, stream, activity })
}

/// A stream whose first bytes are already here.
#[derive(Debug)]
pub struct Begun<S> {
    first: [u8; PREFACE.len()],
    from: usize,
    to: usize,
    stream: S,
    activity: Arc<Activity>,
}

impl<S> Begun<S> {
    pub fn is_http2(&self) -> bool {
        self.first[..self.to] == *PREFACE
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Begun<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.from == self.to {
            let before = buffer.filled().len();
            let polled = Pin::new(&mut self.stream).poll_read(cx, buffer);
            if buffer.filled().len() > before {
                self.activity.read();
            }
            return polled;
        }
        self.activity.read();
        let taken = buffer.remaining().min(self.to - self.from);
        buffer.put_slice(&self.first[self.from..self.from + taken]);
        self.from += taken;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Begun<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nothing_of_what_was_read_ahead_is_lost() {
        for sent in
            [b"GET / HTTP/1.1\r\n\r\n".as_slice(), PREFACE, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nand more", b"P", b""]
        {
            let mut read = Vec::new();
            let mut begun = first_bytes(sent, Arc::new(Activity::new())).await.unwrap();
            assert_eq!(begun.is_http2(), sent.starts_with(PREFACE));
            begun.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, sent);
        }
    }
}

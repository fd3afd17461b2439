//! HTTP/1.1 by hand: what goes over the wire is exactly what a test says.

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// A request as it will be sent.
#[derive(Clone, Debug)]
pub struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// Method and path, a host, and nothing else.
    pub fn new(method: &str, path: &str) -> Self {
        Self { head: format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\n"), body: Vec::new() }
    }

    pub fn post(path: &str, body: &Value) -> Self {
        Self::raw(path, body.to_string().as_bytes())
    }

    /// JSON by its label, whatever it is.
    pub fn raw(path: &str, body: &[u8]) -> Self {
        Self::new("POST", path).header("content-type", "application/json").body(body)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Without the header of this name.
    pub fn without(mut self, name: &str) -> Self {
        let begin = format!("{name}:");
        self.head = self.head.split_inclusive("\r\n").filter(|line| !line.starts_with(&begin)).collect();
        self
    }

    pub fn key(self, secret: &str) -> Self {
        self.header("authorization", &format!("Bearer {secret}"))
    }

    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self.header("content-length", &body.len().to_string())
    }

    pub fn bytes(&self) -> Vec<u8> {
        [self.head.as_bytes(), b"\r\n", &self.body].concat()
    }

    /// One request on a connection of its own.
    pub async fn send<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) -> Answer {
        let request = self.header("connection", "close").bytes();
        // A server that refuses early may close before it has read everything; its answer is what counts.
        let _ = stream.write_all(&request).await;
        Answer::read(&mut Reader::new(stream)).await
    }

    /// Sends it and reads the head of the answer, which must be a stream of events.
    pub async fn stream<S: AsyncRead + AsyncWrite + Unpin>(self, mut stream: S) -> EventStream<S> {
        stream.write_all(&self.bytes()).await.unwrap();
        let mut reader = Reader::new(stream);
        let head = reader.head().await;
        assert_eq!(head.header("content-type"), Some("text/event-stream; charset=utf-8"), "{head:?}");
        EventStream { head, reader, text: String::new() }
    }
}

/// An answer, whole.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Answer {
    pub async fn read<S: AsyncRead + Unpin>(reader: &mut Reader<S>) -> Self {
        let mut answer = reader.head().await;
        if answer.header("transfer-encoding") == Some("chunked") {
            while let Some(chunk) = reader.chunk().await {
                answer.body.extend(chunk);
            }
        } else if let Some(length) = answer.header("content-length") {
            answer.body = reader.exactly(length.parse().unwrap()).await;
        }
        answer
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The text of the first choice.
    pub fn content(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.text());
        let body = self.json();
        let choice = &body["choices"][0];
        choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap().to_owned()
    }

    /// Status, code and parameter of an error, whose shape is checked.
    pub fn error(&self) -> (u16, String, Option<String>) {
        let body = self.json();
        let fields = body["error"].as_object().unwrap_or_else(|| panic!("no error: {body}"));
        assert_eq!(fields.keys().collect::<Vec<_>>(), ["message", "type", "param", "code"], "{body}");
        // vLLM's own routes say it once more beside.
        assert!(body.as_object().unwrap().len() == 1 || body["object"] == "error", "{body}");
        assert!(fields["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
        let param = fields["param"].as_str().map(str::to_owned);
        assert!(param.is_some() || fields["param"].is_null(), "{body}");
        (self.status, fields["code"].as_str().unwrap().to_owned(), param)
    }
}

/// Reads what a server says, piece by piece.
pub struct Reader<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + Unpin> Reader<S> {
    pub fn new(stream: S) -> Self {
        Self { stream, buffer: Vec::new() }
    }

    /// Reads more; false at the end.
    async fn more(&mut self) -> bool {
        self.stream.read_buf(&mut self.buffer).await.unwrap_or(0) > 0
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|pair| pair == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(String::from_utf8(line[..end].to_vec()).unwrap());
            }
            if !self.more().await {
                return None;
            }
        }
    }

    async fn exactly(&mut self, length: usize) -> Vec<u8> {
        while self.buffer.len() < length {
            assert!(self.more().await, "the answer ends early");
        }
        self.buffer.drain(..length).collect()
    }

    async fn head(&mut self) -> Answer {
        let status = self.line().await.expect("an answer");
        let status = status.split(' ').nth(1).unwrap().parse().unwrap();
        let mut headers = Vec::new();
        loop {
            let line = self.line().await.expect("the end of the headers");
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
        Answer { status, headers, body: Vec::new() }
    }

    /// The next chunk of a chunked body; `None` after the last, or where the connection broke off.
    async fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = self.line().await?;
        let size = usize::from_str_radix(&size, 16).unwrap();
        let chunk = self.exactly(size).await;
        self.line().await;
        (size > 0).then_some(chunk)
    }

    /// Waits for the server's next byte or the end; true if the end came without a byte.
    pub async fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && !self.more().await
    }

    /// Everything until the server closes the connection. Waits for that.
    pub async fn until_closed(&mut self) -> Vec<u8> {
        while self.more().await {}
        std::mem::take(&mut self.buffer)
    }

    pub async fn write(&mut self, bytes: &[u8])
    where
        S: AsyncWrite,
    {
        self.stream.write_all(bytes).await.unwrap();
    }
}

/// A streamed answer.
pub struct EventStream<S> {
    pub head: Answer,
    reader: Reader<S>,
    text: String,
}

impl<S: AsyncRead + Unpin> EventStream<S> {
    /// What stands behind the next `data: `; comments are skipped. `None` at the end of the stream.
    pub async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.text.find("\n\n") {
                let event: String = self.text.drain(..end + 2).collect();
                match event.strip_prefix("data: ") {
                    Some(data) => return Some(data.trim_end().to_owned()),
                    None => assert!(event.starts_with(':'), "neither data nor comment: {event:?}"),
                }
                continue;
            }
            let chunk = self.reader.chunk().await?;
            self.text.push_str(&String::from_utf8(chunk).unwrap());
        }
    }

    /// Everything to the end.
    pub async fn all(mut self) -> Vec<String> {
        let mut events = Vec::new();
        while let Some(event) = self.next().await {
            events.push(event);
        }
        events
    }
}

//! Servers on loopback that adapters are fetched from: one that speaks the hub's protocol and serves files by range, one
//! that speaks S3, and a proxy before either that cuts, stalls and spoils.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::{Arc, Mutex},
};

use serde_json::json;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use tokio_rustls::rustls::{
    ServerConfig, ServerConnection, StreamOwned,
    crypto::ring,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};

/// Where the tests' certificates are.
pub fn tls(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name)
}

/// What a hub tells of one revision: its commit and its files.
#[derive(Clone, Default)]
struct Revision {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
}

#[derive(Default)]
struct Shelves {
    /// By path, beginning with `/`.
    files: BTreeMap<String, Vec<u8>>,
    /// By `owner/repository` and revision.
    revisions: BTreeMap<(String, String), Revision>,
    token: Option<String>,
    requests: Vec<String>,
}

/// A server of files, and a hub.
#[derive(Clone)]
pub struct Depot {
    pub address: SocketAddr,
    shelves: Arc<Mutex<Shelves>>,
}

impl Depot {
    pub fn start() -> Self {
        Self::listen(None)
    }

    /// With TLS, for `localhost` and 127.0.0.1, by a certificate that `tests/tls/ca.pem` vouches for.
    pub fn start_tls() -> Self {
        let certificates = CertificateDer::pem_file_iter(tls("server.pem")).unwrap().map(Result::unwrap).collect();
        let key = PrivateKeyDer::from_pem_file(tls("server.key")).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .unwrap();
        Self::listen(Some(Arc::new(config)))
    }

    fn listen(tls: Option<Arc<ServerConfig>>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let depot = Self { address: listener.local_addr().unwrap(), shelves: Arc::default() };
        let served = depot.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (depot, tls) = (served.clone(), tls.clone());
                std::thread::spawn(move || match tls {
                    None => depot.serve(stream),
                    Some(config) => depot.serve(StreamOwned::new(ServerConnection::new(config).unwrap(), stream)),
                });
            }
        });
        depot
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Puts a folder's files under a path.
    pub fn put(&self, path: &str, folder: &Path) {
        for (name, bytes) in files_of(folder) {
            self.put_file(&format!("{path}/{name}"), bytes);
        }
    }

    pub fn put_file(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.shelves.lock().unwrap().files.insert(path.to_owned(), bytes.into());
    }

    /// Puts a folder's files into a repository as a revision; the answer is its commit.
    pub fn commit(&self, id: &str, revision: &str, folder: &Path) -> String {
        let files = files_of(folder);
        let mut hasher = Sha1::new();
        for (name, bytes) in &files {
            hasher.update(name);
            hasher.update(bytes);
        }
        let commit = hex(&hasher.finalize());
        let mut shelves = self.shelves.lock().unwrap();
        for named in [revision, &commit] {
            let revision = Revision { commit: commit.clone(), files: files.clone() };
            shelves.revisions.insert((id.to_owned(), named.to_owned()), revision);
        }
        commit
    }

    /// From now on only this token may ask.
    pub fn demand(&self, token: &str) {
        self.shelves.lock().unwrap().token = Some(token.to_owned());
    }

    /// What was asked, oldest first: the request's line, its range, and whether it carried a token.
    pub fn requests(&self) -> Vec<String> {
        self.shelves.lock().unwrap().requests.clone()
    }

    fn serve(&self, mut stream: impl Read + Write) {
        let Some(head) = read_head(&mut stream) else { return };
        let header = |name: &str| {
            head.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
            })
        };
        let line = head.lines().next().unwrap_or_default().to_owned();
        let (range, token) = (header("range"), header("authorization"));
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let answer = {
            let mut shelves = self.shelves.lock().unwrap();
            let (asked, shown) = (range.as_deref().unwrap_or("whole"), token.as_deref().map_or("", |_| " token"));
            shelves.requests.push(format!("{method} {target} {asked}{shown}"));
            let allowed = shelves.token.as_ref().is_none_or(|wanted| token == Some(format!("Bearer {wanted}")));
            // Large files stand elsewhere and need no token: their addresses are secrets themselves.
            if allowed || target.starts_with("/cdn/") {
                shelves.answer(target, range.as_deref())
            } else {
                ("401 Unauthorized".to_owned(), String::new(), Vec::new())
            }
        };
        let (status, extra, body) = answer;
        let head = format!("HTTP/1.1 {status}\r\nconnection: close\r\n{extra}content-length: {}\r\n\r\n", body.len());
        let body = if method == "HEAD" { &[][..] } else { &body };
        // A client that hangs up has what it wanted.
        let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).and_then(|()| stream.flush());
    }
}

impl Shelves {
    fn answer(&self, target: &str, range: Option<&str>) -> (String, String, Vec<u8>) {
        let path = target.split('?').next().unwrap_or_default();
        let missing = || ("404 Not Found".to_owned(), String::new(), Vec::new());
        if let Some(rest) = path.strip_prefix("/api/models/") {
            let Some((id, revision)) = rest.split_once("/revision/") else { return missing() };
            let Some(found) = self.revisions.get(&(id.to_owned(), revision.replace("%2F", "/"))) else {
                return missing();
            };
            let siblings: Vec<_> = found.files.iter().map(|(name, bytes)| sibling(name, bytes)).collect();
            let body = json!({"id": id, "sha": found.commit, "siblings": siblings}).to_string().into_bytes();
            return ("200 OK".to_owned(), "content-type: application/json\r\n".to_owned(), body);
        }
        if let Some((id, rest)) = path.trim_start_matches('/').split_once("/resolve/") {
            let found = rest.split_once('/').and_then(|(revision, file)| {
                self.revisions.get(&(id.to_owned(), revision.to_owned()))?.files.get_key_value(file)
            });
            return match found {
                None => missing(),
                Some((name, bytes)) if is_large(name) => {
                    let to = format!("location: /cdn/{}\r\n", hex(&Sha256::digest(bytes)));
                    ("302 Found".to_owned(), to, Vec::new())
                }
                Some((_, bytes)) => ranged(bytes, range),
            };
        }
        if let Some(digest) = path.strip_prefix("/cdn/") {
            let all = self.revisions.values().flat_map(|revision| revision.files.values());
            return match all.into_iter().find(|bytes| hex(&Sha256::digest(bytes)) == digest) {
                None => missing(),
                Some(bytes) => ranged(bytes, range),
            };
        }
        self.files.get(path).map_or_else(missing, |bytes| ranged(bytes, range))
    }
}

/// A file as the hub lists it with `blobs=true`.
fn sibling(name: &str, bytes: &[u8]) -> serde_json::Value {
    let blob = Sha1::digest([format!("blob {}\0", bytes.len()).as_bytes(), bytes].concat());
    let mut sibling = json!({"rfilename": name, "size": bytes.len(), "blobId": hex(&blob)});
    if is_large(name) {
        sibling["lfs"] = json!({"sha256": hex(&Sha256::digest(bytes)), "size": bytes.len(), "pointerSize": 134});
    }
    sibling
}

fn is_large(name: &str) -> bool {
    name.ends_with(".safetensors")
}

fn ranged(bytes: &[u8], range: Option<&str>) -> (String, String, Vec<u8>) {
    let tag = format!(
        "etag: \"{}\"\r\naccept-ranges: bytes\r\nlast-modified: Thu, 26 Nov 2026 10:00:00 GMT\r\n",
        hex(&Sha1::digest(bytes))
    );
    let Some((first, last)) = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-')) else {
        return ("200 OK".to_owned(), tag, bytes.to_vec());
    };
    let first: usize = first.parse().unwrap();
    let last = last.parse().unwrap_or(bytes.len() - 1).min(bytes.len() - 1);
    let extra = format!("{tag}content-range: bytes {first}-{last}/{}\r\n", bytes.len());
    ("206 Partial Content".to_owned(), extra, bytes[first..=last].to_vec())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The plain files of a folder, by name.
pub fn files_of(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = std::fs::read_dir(folder).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.path().is_file());
    files.map(|entry| (entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap())).collect()
}

/// A request's head, up to its empty line.
fn read_head(stream: &mut impl Read) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// What goes wrong with one answer, counted in bytes of its body.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The connection is closed after so many.
    Cut(usize),
    /// Nothing comes after so many, and the connection stays open.
    Stall(usize),
    /// This byte is another.
    Flip(usize),
    /// An answer that is no success, instead.
    Status(u16),
    /// A redirect instead.
    To(&'static str),
}

/// Stands before a server, and spoils what was ordered.
#[derive(Clone)]
pub struct Proxy {
    pub address: SocketAddr,
    orders: Arc<Mutex<Vec<(String, Fault)>>>,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    pub fn before(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let proxy = Self { address: listener.local_addr().unwrap(), orders: Arc::default(), requests: Arc::default() };
        let running = proxy.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let proxy = running.clone();
                std::thread::spawn(move || proxy.pass(stream, target));
            }
        });
        proxy
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The next answer to a request whose head holds `part` is spoilt; one order for each answer.
    pub fn order(&self, part: &str, fault: Fault) {
        self.orders.lock().unwrap().push((part.to_owned(), fault));
    }

    /// Orders that were not carried out yet.
    pub fn left(&self) -> usize {
        self.orders.lock().unwrap().len()
    }

    /// The heads of all requests so far.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }

    fn pass(&self, mut client: TcpStream, target: SocketAddr) {
        let Some(head) = read_head(&mut client) else { return };
        self.requests.lock().unwrap().push(head.clone());
        let fault = {
            let mut orders = self.orders.lock().unwrap();
            orders.iter().position(|(part, _)| head.contains(part.as_str())).map(|at| orders.remove(at).1)
        };
        let mut server = TcpStream::connect(target).unwrap();
        let request = format!("{}\r\nconnection: close\r\n\r\n", head.trim_end());
        server.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        // A server that resets the connection has said all it had to say.
        let _ = server.read_to_end(&mut answer);
        let body = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
        let end = |bytes: usize| (body + bytes).min(answer.len());
        // Clients hang up when they have waited long enough; that is what is tested.
        let _ = match fault {
            None => client.write_all(&answer),
            Some(Fault::Cut(bytes)) => client.write_all(&answer[..end(bytes)]),
            Some(Fault::Stall(bytes)) => client.write_all(&answer[..end(bytes)]).and_then(|()| {
                let mut byte = [0];
                client.read(&mut byte).map(drop)
            }),
            Some(Fault::Flip(at)) => {
                let at = end(at).min(answer.len() - 1);
                answer[at] ^= 1;
                client.write_all(&answer)
            }
            Some(Fault::To(url)) => client.write_all(
                format!("HTTP/1.1 302 Found\r\nlocation: {url}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .as_bytes(),
            ),
            Some(Fault::Status(code)) => client
                .write_all(format!("HTTP/1.1 {code} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes()),
        };
        let _ = client.shutdown(Shutdown::Both);
    }
}

/// An S3-speaking server of another maker's (moto), in a process of its own.
pub struct S3 {
    pub address: SocketAddr,
    child: Child,
    orders: ChildStdin,
    answers: BufReader<std::process::ChildStdout>,
}

impl S3 {
    pub const BUCKET: &'static str = "adapters";
    pub const KEY_ID: &'static str = "tests";
    pub const SECRET: &'static str = "a secret of the tests";

    /// `None` where the tests' Python is not set up (`make test` does).
    pub fn start() -> Option<Self> {
        let python = std::env::var("TUNEGATE_TEST_PYTHON").ok()?;
        let script = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/s3/server.py");
        let mut child = Command::new(python)
            .arg(script)
            .arg(Self::BUCKET)
            .env("AWS_ACCESS_KEY_ID", Self::KEY_ID)
            .env("AWS_SECRET_ACCESS_KEY", Self::SECRET)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        answers.read_line(&mut line).unwrap();
        let address = line.trim().parse().unwrap_or_else(|_| panic!("moto did not start: {line:?}"));
        Some(Self { address, child, orders, answers })
    }

    /// Puts a folder's files under a prefix.
    pub fn put(&mut self, prefix: &str, folder: &Path) {
        writeln!(self.orders, "{prefix}\t{}", folder.display()).unwrap();
        self.orders.flush().unwrap();
        let mut line = String::new();
        self.answers.read_line(&mut line).unwrap();
        assert_eq!(line.trim(), "done");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! HTTP for fetching: connects only where it may, follows nothing by itself, and gives up on a connection that stalls.
//!
//! The address that a name resolves to is judged, and that very address is connected to: a name that means something
//! else a moment later (DNS rebinding) leads nowhere.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use http::{HeaderValue, Request, Response, Uri, header};
use http_body::{Body, Frame, SizeHint};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinHandle,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring},
};

use crate::config::ip_of;

/// Why an HTTP exchange failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Never tried again: it is a matter of settings.
    #[error("{0}")]
    Forbidden(String),
    #[error("nothing came for {} ms", .0.as_millis())]
    Stalled(Duration),
    #[error("{0}")]
    Broken(String),
}

/// Which hosts may be connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reach {
    /// The host that the operator named.
    pub host: String,
    /// That host may be asked without encryption: the operator wrote `http://`.
    pub plain: bool,
    /// That host may resolve to a private address.
    pub private: bool,
    /// Other hosts, with public addresses and by TLS, may be connected to as well: a hub keeps large files elsewhere.
    pub others: bool,
    /// That host may be written as a link-local address: it is where a cloud keeps the credentials that the operator wants to
    /// be used. No source is ever there.
    pub credentials: bool,
}

/// A client for one source.
#[derive(Clone)]
pub struct Client {
    reach: Reach,
    stall: Duration,
    tls: TlsConnector,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("reach", &self.reach).finish_non_exhaustive()
    }
}

/// The certificates that servers are judged by: the well-known ones, and those of a PEM file where one is given.
///
/// # Errors
/// If the file cannot be read or holds no certificate.
pub fn trust(more: Option<&std::path::Path>) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = more {
        let fault = |reason: String| format!("{}: {reason}", path.display());
        let certificates = CertificateDer::pem_file_iter(path).map_err(|error| fault(error.to_string()))?;
        let before = roots.len();
        for certificate in certificates {
            let certificate = certificate.map_err(|error| fault(error.to_string()))?;
            roots.add(certificate).map_err(|error| fault(error.to_string()))?;
        }
        if roots.len() == before {
            return Err(fault("there is no certificate in it".to_owned()));
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

impl Client {
    pub fn new(reach: Reach, stall: Duration, tls: TlsConnector) -> Self {
        Self { reach, stall, tls }
    }

    /// Sends one request on a connection of its own. A redirect is an answer like any other.
    ///
    /// # Errors
    /// [`ClientError`]; of the answer's body while it is read.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<Arriving>, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        timeout(self.stall, self.answer(request)).await.map_err(|_| ClientError::Stalled(self.stall))?
    }

    async fn answer<B>(&self, mut request: Request<B>) -> Result<Response<Arriving>, ClientError>
    where
        B: Body<Data = Bytes> + Send + 'static,
        B::Error: std::error::Error + Send + Sync,
    {
        let broken = |error: hyper::Error| ClientError::Broken(deepest(&error));
        let stream = self.connect(request.uri()).await?;
        let authority = request.uri().authority().map(ToString::to_string).unwrap_or_default();
        let host = HeaderValue::from_str(&authority).map_err(|_| forbidden(&authority, "is no host"))?;
        request.headers_mut().insert(header::HOST, host);
        request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
        *request.uri_mut() = target.parse().map_err(|_| forbidden(target, "is no path"))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        let connection = Connection(tokio::spawn(async move {
            // Whoever reads the answer is told of the same error.
            let _ = connection.await;
        }));
        let response = sender.send_request(request).await.map_err(broken)?;
        let (parts, body) = response.into_parts();
        let left = Box::pin(sleep_until(Instant::now() + self.stall));
        Ok(Response::from_parts(parts, Arriving { body, left, stall: self.stall, _connection: connection }))
    }

    async fn connect(&self, uri: &Uri) -> Result<Box<dyn Stream>, ClientError> {
        let host = uri.host().ok_or_else(|| forbidden(&uri.to_string(), "names no host"))?;
        let encrypted = match uri.scheme_str() {
            Some("https") => true,
            Some("http") if host == self.reach.host && self.reach.plain => false,
            Some(_) | None => return Err(forbidden(host, "may be asked by https alone")),
        };
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let addresses = self.addresses(host, port).await?;
        let mut last = ClientError::Broken(format!("{host} has no address"));
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(stream) if !encrypted => return Ok(Box::new(stream)),
                Ok(stream) => {
                    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
                        .map_err(|_| forbidden(host, "cannot stand in a certificate"))?;
                    let stream = self.tls.connect(name, stream).await;
                    return Ok(Box::new(stream.map_err(|error| ClientError::Broken(format!("{host}: {error}")))?));
                }
                Err(error) => last = ClientError::Broken(format!("{host}: {}", error.kind())),
            }
        }
        Err(last)
    }

    /// Where `host` may be connected to.
    async fn addresses(&self, host: &str, port: u16) -> Result<Vec<SocketAddr>, ClientError> {
        let named = host == self.reach.host;
        if !named && !self.reach.others {
            return Err(forbidden(host, "is not the source's host"));
        }
        if let Some(ip) = ip_of(host) {
            // An address that the operator wrote down is meant.
            let fine = match kind_of(ip) {
                Kind::Public => true,
                Kind::Private => named,
                Kind::Never => named && self.reach.credentials && is_link_local(ip),
            };
            return if fine { Ok(vec![(ip, port).into()]) } else { Err(forbidden(host, NOT_PUBLIC)) };
        }
        let local = named && host == "localhost";
        let found = tokio::net::lookup_host((host, port)).await;
        let found: Vec<SocketAddr> = found.map_err(|error| ClientError::Broken(format!("{host}: {error}")))?.collect();
        let fine = |address: &SocketAddr| match kind_of(address.ip()) {
            Kind::Public => true,
            Kind::Private => named && (self.reach.private || (local && address.ip().is_loopback())),
            Kind::Never => false,
        };
        let allowed: Vec<SocketAddr> = found.iter().copied().filter(fine).collect();
        if allowed.is_empty() && !found.is_empty() { Err(forbidden(host, NOT_PUBLIC)) } else { Ok(allowed) }
    }
}

const USER_AGENT: &str = concat!("tunegate/", env!("CARGO_PKG_VERSION"));
const NOT_PUBLIC: &str = "has no public address; a source inside your network needs '?private' behind its place";

fn forbidden(what: &str, why: &str) -> ClientError {
    ClientError::Forbidden(format!("{} {why}", crate::adapters::faults::shown(what)))
}

fn deepest(error: &(dyn std::error::Error + 'static)) -> String {
    let mut deepest = error;
    while let Some(source) = deepest.source() {
        deepest = source;
    }
    deepest.to_string()
}

/// What an address is for, as far as connecting to it is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Public,
    /// This machine, or a network of the operator's.
    Private,
    /// Link-local, where clouds keep their credentials; multicast; addresses that mean nothing.
    Never,
}

fn kind_of(ip: IpAddr) -> Kind {
    match ip {
        IpAddr::V4(ip) => kind_of_v4(ip),
        IpAddr::V6(ip) => {
            let [a, b, .., y, z] = ip.segments();
            let low = Ipv4Addr::from((u32::from(y) << 16) | u32::from(z));
            let embedded = match (a, b) {
                _ if ip.to_ipv4_mapped().is_some() => Some(low),
                // NAT64, and 6to4, which has the address behind its prefix.
                (0x64, 0xff9b) => Some(low),
                (0x2002, _) => Some(Ipv4Addr::from((u32::from(b) << 16) | u32::from(ip.segments()[2]))),
                _ => None,
            };
            match embedded {
                Some(ip) => kind_of_v4(ip),
                None if ip.is_unspecified() || ip.is_multicast() || ip.is_unicast_link_local() => Kind::Never,
                None if ip.is_loopback() || ip.is_unique_local() => Kind::Private,
                // Everything that is given out as global begins with 001.
                None if a >> 13 == 0b001 && !(a == 0x2001 && b == 0xdb8) => Kind::Public,
                None => Kind::Never,
            }
        }
    }
}

fn is_link_local(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn kind_of_v4(ip: Ipv4Addr) -> Kind {
    let [a, b, c, _] = ip.octets();
    let never = a == 0
        || a >= 224
        || ip.is_link_local()
        || ip.is_documentation()
        || (a == 192 && b == 0 && c == 0)
        || (a == 198 && (b & 0xfe) == 18);
    let shared = a == 100 && (b & 0xc0) == 64;
    match never {
        true => Kind::Never,
        false if ip.is_loopback() || ip.is_private() || shared => Kind::Private,
        false => Kind::Public,
    }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Ends with its last user.
#[derive(Debug)]
struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer's body. It fails once nothing has come for the stall time.
#[derive(Debug)]
pub struct Arriving {
    body: Incoming,
    left: Pin<Box<Sleep>>,
    stall: Duration,
    _connection: Connection,
}

impl Body for Arriving {
    type Data = Bytes;
    type Error = ClientError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, ClientError>>> {
        let this = self.get_mut();
        match Pin::new(&mut this.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.left.as_mut().reset(Instant::now() + this.stall);
                Poll::Ready(frame.map(|frame| frame.map_err(|error| ClientError::Broken(deepest(&error)))))
            }
            Poll::Pending => {
                ready!(this.left.as_mut().poll(cx));
                Poll::Ready(Some(Err(ClientError::Stalled(this.stall))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl From<ClientError> for io::Error {
    fn from(error: ClientError) -> Self {
        Self::other(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_public_private_or_never_asked() {
        for (kind, addresses) in [
            (Kind::Public, &["1.1.1.1", "8.8.8.8", "2606:4700::1111", "2002:0808:0808::1", "64:ff9b::8.8.8.8"][..]),
            (
                Kind::Private,
                &[
                    "127.0.0.1",
                    "10.1.2.3",
                    "172.16.0.1",
                    "192.168.1.1",
                    "100.64.0.1",
                    "::1",
                    "fd00::1",
                    "::ffff:127.0.0.1",
                    "64:ff9b::10.0.0.1",
                    "2002:7f00:1::1",
                ],
            ),
            (
                Kind::Never,
                &[
                    "169.254.169.254",
                    "0.0.0.0",
                    "224.0.0.1",
                    "255.255.255.255",
                    "192.0.0.1",
                    "198.18.0.1",
                    "fe80::1",
                    "::",
                    "ff02::1",
                    "::ffff:169.254.169.254",
                    "2002:a9fe:a9fe::1",
                    "2001:db8::1",
                    "fec0::1",
                ],
            ),
        ] {
            for address in addresses {
                assert_eq!(kind_of(address.parse().unwrap()), kind, "{address}");
            }
        }
    }

    #[tokio::test]
    async fn only_the_named_host_is_connected_to() {
        let tls = trust(None).unwrap();
        let client = |host: &str, private, others| {
            let reach = Reach { host: host.to_owned(), plain: true, private, others, credentials: false };
            Client::new(reach, Duration::from_secs(5), tls.clone())
        };
        let forbidden = |client: Client, host: &'static str| async move {
            matches!(client.addresses(host, 443).await, Err(ClientError::Forbidden(_)))
        };
        assert!(forbidden(client("files.example", false, false), "other.example").await);
        assert!(forbidden(client("files.example", true, true), "127.0.0.1").await);
        assert!(forbidden(client("files.example", true, true), "[::1]").await);
        assert!(forbidden(client("files.example", true, true), "localhost").await, "another host's private address");
        assert!(forbidden(client("169.254.169.254", true, true), "169.254.169.254").await);
        assert!(!forbidden(client("127.0.0.1", false, false), "127.0.0.1").await);
        assert!(!forbidden(client("localhost", false, false), "localhost").await);
        let metadata = |host: &str| {
            let reach = Reach { credentials: true, ..client(host, false, false).reach };
            Client::new(reach, Duration::from_secs(5), tls.clone())
        };
        assert!(!forbidden(metadata("169.254.169.254"), "169.254.169.254").await);
        assert!(forbidden(metadata("169.254.169.254"), "169.254.170.2").await);
        assert!(forbidden(metadata("0.0.0.0"), "0.0.0.0").await);
        let uri: Uri = "http://1.1.1.1/".parse().unwrap();
        assert!(matches!(
            client("files.example", false, true).connect(&uri).await,
            Err(ClientError::Forbidden(reason)) if reason.contains("https")
        ));
    }
}

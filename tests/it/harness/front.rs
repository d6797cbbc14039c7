//! A server in front of a test's upstream, so that a gateway reaches that over TLS, or through a socket of the machine. It passes
//! bytes on and judges none.
//!
//! `KEYGATE_TEST_UPSTREAMS=tls` (or `unix`, or `http2`) puts one before every upstream of a gateway that [`GatewayBuilder`] writes a configuration
//! for.
//!
//! [`GatewayBuilder`]: super::GatewayBuilder

use std::collections::HashMap;
use std::future::pending;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex};
use std::thread;

use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use rustls::pki_types::pem::PemObject;
use rustls::server::WebPkiClientVerifier;
use rustls::{HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream, UnixListener};
use tokio::runtime::{Builder, Handle};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::authority::Authority;
use super::http2_server::translator;
use super::transport::Certificate;

/// Set by `transports.rs` when it runs the suite again.
pub(crate) const VARIABLE: &str = "KEYGATE_TEST_UPSTREAMS";

/// The file with [`AUTHORITY`] in the folder of a gateway.
const CA: &str = "front-ca.pem";

/// Driven by a thread of its own.
pub(super) static RUNTIME: LazyLock<Handle> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    thread::spawn(move || runtime.block_on(pending::<()>()));
    handle
});
static AUTHORITY: LazyLock<Authority> = LazyLock::new(Authority::new);
/// The fronts with TLS by the port of their upstream.
static FRONTS: LazyLock<Mutex<HashMap<u16, Front>>> = LazyLock::new(Mutex::default);

/// How a front ends a connection whose upstream has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// With the word of TLS for it (`close_notify`).
    Proper,
    /// As somebody would who cuts the connection.
    Cut,
}

/// A server with TLS.
pub(crate) struct Front {
    address: SocketAddr,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    handshakes: Arc<Mutex<Vec<Handshake>>>,
}

/// A handshake that succeeded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handshake {
    pub(crate) is_resumed: bool,
    /// The name that was asked for.
    pub(crate) name: Option<String>,
    /// The client's certificate.
    pub(crate) client: Option<Vec<u8>>,
}

impl Front {
    pub(crate) fn start(config: ServerConfig, upstream: SocketAddr) -> Self {
        Self::ending(Ending::Proper, config, upstream)
    }

    pub(crate) fn ending(ending: Ending, config: ServerConfig, upstream: SocketAddr) -> Self {
        Self::listening(([127, 0, 0, 1], 0).into(), ending, config, upstream)
    }

    /// At this address.
    pub(crate) fn at(address: SocketAddr, config: ServerConfig, upstream: SocketAddr) -> Self {
        Self::listening(address, Ending::Proper, config, upstream)
    }

    fn listening(address: SocketAddr, ending: Ending, config: ServerConfig, upstream: SocketAddr) -> Self {
        let listener = std::net::TcpListener::bind(address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let config = Arc::new(Mutex::new(Arc::new(config)));
        let handshakes: Arc<Mutex<Vec<Handshake>>> = Arc::default();
        let (current, made) = (Arc::clone(&config), Arc::clone(&handshakes));
        RUNTIME.spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((near, _)) = listener.accept().await {
                let (current, made) = (Arc::clone(&current), Arc::clone(&made));
                tokio::spawn(async move {
                    // First: an upstream that is down gets no handshake.
                    let Ok(far) = TcpStream::connect(upstream).await else { return };
                    let acceptor = TlsAcceptor::from(Arc::clone(&current.lock().unwrap()));
                    let Ok(near) = acceptor.accept(near).await else { return };
                    made.lock().unwrap().push(Handshake::of(&near));
                    pass(near, far, ending).await;
                });
            }
        });
        Self { address, config, handshakes }
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// For connections that come from now on.
    pub(crate) fn renew(&self, config: ServerConfig) {
        *self.config.lock().unwrap() = Arc::new(config);
    }

    /// Every handshake so far.
    pub(crate) fn handshakes(&self) -> Vec<Handshake> {
        self.handshakes.lock().unwrap().clone()
    }
}

impl Handshake {
    fn of(stream: &TlsStream<TcpStream>) -> Self {
        let session = stream.get_ref().1;
        Self {
            is_resumed: session.handshake_kind() == Some(HandshakeKind::Resumed),
            name: session.server_name().map(str::to_owned),
            client: session.peer_certificates().map(|chain| chain[0].to_vec()),
        }
    }
}

/// A server's side of TLS with this certificate.
pub(crate) fn server_config(certificate: &Certificate) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(rustls::ALL_VERSIONS);
    finish(builder.unwrap().with_no_client_auth(), certificate)
}

/// The same, for clients with a certificate from `clients`.
pub(crate) fn demanding(certificate: &Certificate, clients: &Authority) -> ServerConfig {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(clients.der()).unwrap();
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider)).build().unwrap();
    let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(rustls::ALL_VERSIONS);
    finish(builder.unwrap().with_client_cert_verifier(verifier), certificate)
}

fn finish(
    builder: rustls::ConfigBuilder<ServerConfig, rustls::server::WantsServerCert>,
    certificate: &Certificate,
) -> ServerConfig {
    let key = PrivateKeyDer::from_pem_slice(certificate.key_pem.as_bytes()).unwrap();
    let mut config = builder.with_single_cert(vec![certificate.der.clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config
}

/// A socket at this path, in front of an upstream.
pub(crate) fn socket(path: &Path, upstream: SocketAddr) {
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    listener.set_nonblocking(true).unwrap();
    RUNTIME.spawn(async move {
        let listener = UnixListener::from_std(listener).unwrap();
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(async move {
                let Ok(far) = TcpStream::connect(upstream).await else { return };
                pass(near, far, Ending::Proper).await;
            });
        }
    });
}

/// Passes bytes on, both ways, until the upstream has ended and its client too.
pub(super) async fn pass<S>(near: S, far: TcpStream, ending: Ending)
where
    S: AsyncRead + AsyncWrite + Send + 'static,
{
    far.set_nodelay(true).unwrap();
    let (mut from_near, mut to_near) = split(near);
    let (mut from_far, mut to_far) = far.into_split();
    let up = tokio::spawn(async move {
        let (mut part, mut goes_on) = (vec![0; 16 << 10], true);
        while let Ok(count @ 1..) = from_near.read(&mut part).await {
            // What comes later is read and thrown away: what an upstream said before it closed must arrive.
            goes_on = goes_on && to_far.write_all(&part[..count]).await.is_ok();
        }
        let _ = to_far.shutdown().await;
    });
    let mut part = vec![0; 16 << 10];
    let has_ended = loop {
        match from_far.read(&mut part).await {
            Ok(0) => break ending == Ending::Proper,
            Ok(count) => {
                if to_near.write_all(&part[..count]).await.is_err() || to_near.flush().await.is_err() {
                    break false;
                }
            }
            Err(_) => break false,
        }
    };
    if has_ended && to_near.shutdown().await.is_ok() {
        let _ = up.await;
    } else {
        up.abort();
    }
}

/// What is between a gateway and the upstreams of a test.
#[derive(Clone, Copy)]
enum Link {
    Tls,
    Unix,
    Http2,
}

/// This configuration with a front before each upstream, if this run is to have them. `folder` is the gateway's.
pub(crate) fn behind_fronts(toml: String, folder: &Path) -> String {
    let Ok(link) = std::env::var(VARIABLE) else { return toml };
    let link = match &*link {
        "tls" => Link::Tls,
        "unix" => Link::Unix,
        "http2" => Link::Http2,
        other => panic!("{VARIABLE} says {other}; it can be tls, unix or http2"),
    };
    let (mut section, mut lines, mut tables) = (String::new(), String::new(), String::new());
    for line in toml.lines() {
        if line.starts_with('[') {
            line.trim_matches(['[', ']']).clone_into(&mut section);
        }
        let environment = line.split(" = ").next().filter(|key| ["live", "test"].contains(key));
        let is_list =
            section.starts_with("upstreams.") && environment.is_some() && line.contains("http://127");
        if let (true, Some(environment)) = (is_list, environment) {
            lines += &fronted(line, link, folder);
            match link {
                Link::Tls => tables += &format!("[{section}.{environment}_tls]\nca = \"{CA}\"\n"),
                Link::Http2 if environment == "live" => lines += "\nprotocol = \"http2\"",
                Link::Http2 | Link::Unix => {}
            }
        } else {
            lines += line;
        }
        lines += "\n";
    }
    AUTHORITY.write(folder, CA.trim_end_matches(".pem"));
    lines + &tables
}

/// This line with a front for each address.
fn fronted(line: &str, link: Link, folder: &Path) -> String {
    const BEFORE: &str = "http://127.0.0.1:";
    let mut pieces = line.split(BEFORE);
    let mut fronted = pieces.next().unwrap().to_owned();
    for piece in pieces {
        let digits = piece.find(|c: char| !c.is_ascii_digit()).unwrap_or(piece.len());
        let (port, rest) = piece.split_at(digits);
        let port: u16 = port.parse().unwrap();
        fronted += &match link {
            Link::Tls => with_tls(port),
            Link::Unix => with_socket(port, folder),
            Link::Http2 => format!("http://{}", translator(port)),
        };
        fronted += rest;
    }
    fronted
}

fn with_tls(port: u16) -> String {
    let certificate = || AUTHORITY.issue(&["127.0.0.1"]);
    let start = || Front::start(server_config(&certificate()), ([127, 0, 0, 1], port).into());
    FRONTS.lock().unwrap().entry(port).or_insert_with(start).url()
}

fn with_socket(port: u16, folder: &Path) -> String {
    let path: PathBuf = folder.join(format!("front-{port}.sock"));
    if !path.exists() {
        socket(&path, ([127, 0, 0, 1], port).into());
    }
    format!("unix:{}", path.display())
}

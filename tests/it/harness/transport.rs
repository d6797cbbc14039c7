//! The transport of a test's calls: HTTP/1.1 or HTTP/2, in plain text or over TLS.

use std::fs;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion};

use super::PATIENCE;

/// The server name of every call.
pub(crate) const HOST: &str = "api.example.com";
/// Set by `transports.rs` when it runs the suite again.
pub(crate) const VARIABLE: &str = "KEYGATE_TEST_TRANSPORT";

/// The transport of a gateway's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Http1,
    /// With prior knowledge.
    Http2,
    TlsHttp1,
    TlsHttp2,
}

impl Transport {
    pub(crate) const ALL: [Self; 4] = [Self::Http1, Self::Http2, Self::TlsHttp1, Self::TlsHttp2];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Http1 => "http1",
            Self::Http2 => "http2",
            Self::TlsHttp1 => "tls-http1",
            Self::TlsHttp2 => "tls-http2",
        }
    }

    /// The transport of this run: HTTP/1.1 in plain text, unless the variable names another.
    pub(crate) fn of_this_run() -> Self {
        let Ok(name) = std::env::var(VARIABLE) else { return Self::Http1 };
        let named = Self::ALL.into_iter().find(|transport| transport.name() == name);
        named.unwrap_or_else(|| panic!("{VARIABLE} says {name}; it can be {:?}", Self::ALL.map(Self::name)))
    }

    pub(crate) const fn has_tls(self) -> bool {
        matches!(self, Self::TlsHttp1 | Self::TlsHttp2)
    }

    pub(crate) const fn is_http2(self) -> bool {
        matches!(self, Self::Http2 | Self::TlsHttp2)
    }

    /// `https` over TLS.
    pub(crate) const fn scheme(self) -> &'static str {
        if self.has_tls() { "https" } else { "http" }
    }
}

/// A self-signed certificate and its key.
pub(crate) struct Certificate {
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pem: String,
    pub(crate) key_pem: String,
}

impl Certificate {
    pub(crate) fn for_names(names: &[&str]) -> Self {
        Self::with(names, |_| {})
    }

    pub(crate) fn with(names: &[&str], change: impl FnOnce(&mut rcgen::CertificateParams)) -> Self {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = rcgen::CertificateParams::new(names).unwrap();
        change(&mut parameters);
        let key = rcgen::KeyPair::generate().unwrap();
        let made = parameters.self_signed(&key).unwrap();
        Self { der: made.der().clone(), pem: made.pem(), key_pem: key.serialize_pem() }
    }

    /// Writes `NAME.pem` and `NAME-key.pem`; only the owner can read the key.
    pub(crate) fn write(&self, folder: &Path, name: &str) {
        fs::write(folder.join(format!("{name}.pem")), &self.pem).unwrap();
        let key = folder.join(format!("{name}-key.pem"));
        fs::write(&key, &self.key_pem).unwrap();
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    }
}

/// The certificate of every gateway over TLS that has no other.
pub(crate) static CERTIFICATE: LazyLock<Certificate> = LazyLock::new(|| Certificate::for_names(&[HOST]));

/// A client's side of TLS that trusts [`CERTIFICATE`].
pub(crate) fn client_config(alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CERTIFICATE.der.clone()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    config.resumption = Resumption::disabled();
    config
}

pub(crate) fn server_name() -> ServerName<'static> {
    ServerName::try_from(HOST).unwrap()
}

/// A connection that blocks, with or without TLS.
pub(crate) enum Pipe {
    Plain(TcpStream),
    Tls(Box<StreamOwned<ClientConnection, TcpStream>>),
}

impl Pipe {
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr, alpn: Option<&str>) -> Self {
        Self::begin(TcpStream::connect(address).unwrap(), alpn)
    }

    /// The same on a socket that is already connected.
    #[track_caller]
    pub(crate) fn begin(stream: TcpStream, alpn: Option<&str>) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        let Some(alpn) = alpn else { return Self::Plain(stream) };
        let config = client_config(&[alpn], rustls::ALL_VERSIONS);
        Self::tls(stream, config, server_name())
    }

    pub(crate) fn tls(stream: TcpStream, config: ClientConfig, name: ServerName<'static>) -> Self {
        let session = ClientConnection::new(Arc::new(config), name).unwrap();
        Self::Tls(Box::new(StreamOwned::new(session, stream)))
    }

    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref(),
        }
    }
}

/// Writes, and never waits for the server to send.
fn write_tls(stream: &mut StreamOwned<ClientConnection, TcpStream>, bytes: &[u8]) -> io::Result<usize> {
    flush_tls(stream)?;
    let taken = stream.conn.writer().write(bytes)?;
    // The bytes are accepted; an error shows at the next write.
    let _ = flush_tls(stream);
    Ok(taken)
}

fn flush_tls(stream: &mut StreamOwned<ClientConnection, TcpStream>) -> io::Result<()> {
    let StreamOwned { conn, sock } = stream;
    while conn.is_handshaking() {
        conn.complete_io(sock)?;
    }
    while conn.wants_write() {
        conn.write_tls(sock)?;
    }
    Ok(())
}

/// Reads the available data, also if writing fails: a server may have answered before it
/// closed.
fn read_tls(stream: &mut StreamOwned<ClientConnection, TcpStream>, buffer: &mut [u8]) -> io::Result<usize> {
    let StreamOwned { conn, sock } = stream;
    while conn.is_handshaking() {
        conn.complete_io(sock)?;
    }
    loop {
        match conn.reader().read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            read => return read,
        }
        conn.read_tls(sock)?;
        conn.process_new_packets().map_err(io::Error::other)?;
    }
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.read(buffer),
            Self::Tls(stream) => read_tls(stream, buffer),
        }
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(stream) => stream.write(bytes),
            Self::Tls(stream) => write_tls(stream, bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(stream) => stream.flush(),
            Self::Tls(stream) => flush_tls(stream),
        }
    }
}

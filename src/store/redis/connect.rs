//! One connection to one server: TCP, TLS if it is configured, authentication, and the check of the server.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, Value};
use rustls::crypto::aws_lc_rs;
use rustls::version::{TLS12, TLS13};
use rustls::{AlertDescription, CertificateError, ClientConfig, RootCertStore};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use zeroize::Zeroizing;

use super::scripts::{bytes, unexpected};
use super::settings::{Node, OpenError, TlsFiles};
use crate::dial::{self, Preference};
use crate::pem::{read_certificates, read_key};
use crate::store::StoreFault;
use crate::vocabulary::clock::Clock;

/// Requests in a connection's queue; further senders wait.
const QUEUE: usize = 512;
/// The oldest Redis that has read-only scripts with flags.
const OLDEST: u32 = 7;

/// The number of servers of which it is remembered which address worked.
const SERVERS: usize = 32;

/// Makes connections to any server.
#[derive(Clone)]
pub(super) struct Dialler {
    greeting: RedisConnectionInfo,
    tls: Option<Tls>,
    /// The configuration keys that the message about a refused login names.
    ours: [&'static str; 2],
    /// How long the shortest of the callers' waits for a connection is.
    patience: Duration,
    clock: Clock,
    /// By server, those used last at the end.
    servers: Arc<Mutex<Vec<Arc<dial::Dialer>>>>,
}

/// The login at a server.
pub(super) struct Credentials {
    pub(super) username: Option<String>,
    pub(super) password: Option<Zeroizing<String>>,
    /// The configuration keys that they come from.
    pub(super) keys: [&'static str; 2],
}

impl Dialler {
    pub(super) fn new(
        credentials: &Credentials,
        database: i64,
        tls: Option<Tls>,
        patience: Duration,
    ) -> Self {
        let mut greeting = RedisConnectionInfo::default().set_db(database).set_skip_set_lib_name();
        if let Some(username) = &credentials.username {
            greeting = greeting.set_username(username);
        }
        if let Some(password) = &credentials.password {
            greeting = greeting.set_password(password.as_str());
        }
        Self {
            greeting,
            tls,
            ours: credentials.keys,
            patience,
            clock: Clock::system(),
            servers: Arc::default(),
        }
    }

    /// A connection to a master of a supported version. Has no time-out of its own.
    pub(super) async fn dial_master(&self, node: &Node) -> Result<MultiplexedConnection, StoreFault> {
        let mut connection = self.dial(node).await?;
        let hello = ::redis::cmd("HELLO").query_async(&mut connection).await;
        let role = hello.map_err(|error| self.explain(&error)).and_then(check_server);
        role.map_err(|cause| at(node, cause)).map(|()| connection)
    }

    /// A connection to a server of any role.
    pub(super) async fn dial(&self, node: &Node) -> Result<MultiplexedConnection, StoreFault> {
        let failed = |cause| at(node, cause);
        let dialling = self.server(node);
        // Without Nagle's algorithm, which would hold a lookup back until the one before it is answered.
        let stream = dialling.dial(self.patience, &self.clock).await;
        let stream = stream.map_err(|error| failed(error.to_string()))?;
        let greeted = match &self.tls {
            None => self.greet(stream).await,
            Some(tls) => self.greet(tls.handshake(node, stream).await.map_err(failed)?).await,
        };
        greeted.map_err(|error| failed(self.explain(&error)))
    }

    /// The dialer of a server, which remembers which of its addresses worked.
    fn server(&self, node: &Node) -> Arc<dial::Dialer> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = servers.iter().position(|server| server.is_for(&node.host, node.port));
        let server = match known {
            Some(at) => servers.remove(at),
            None => Arc::new(dial::Dialer::new(&node.host, node.port, Preference::LastGood)),
        };
        if servers.len() == SERVERS {
            servers.remove(0);
        }
        servers.push(Arc::clone(&server));
        server
    }

    async fn greet<S>(&self, stream: S) -> Result<MultiplexedConnection, RedisError>
    where
        S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    {
        // The callers have time-outs; those of the client would only be a second set.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let (connection, driver) =
            MultiplexedConnection::new_with_config(&self.greeting, stream, config).await?;
        // It ends with the last copy of the connection.
        tokio::spawn(driver);
        Ok(connection)
    }

    /// A hint for the message about a server that does not answer.
    pub(super) const fn hint_at_silence(&self) -> &'static str {
        // A Redis without TLS reads a handshake as the beginning of a long command, and waits.
        if self.tls.is_some() { "; see whether this is the port where it speaks TLS" } else { "" }
    }

    /// The error with what to do, if the server's own text does not say it.
    fn explain(&self, error: &RedisError) -> String {
        if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("NOAUTH") {
            let [username, password_file] = self.ours;
            return format!("it refuses the login: check {username} and {password_file}");
        }
        // With TLS 1.3 a server judges our certificate after the handshake.
        let cause = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
        match (&self.tls, cause.and_then(|cause| cause.downcast_ref::<io::Error>())) {
            (Some(tls), Some(error)) => tls.explain(error, None),
            _ => error.to_string(),
        }
    }
}

pub(super) fn at(node: &Node, cause: impl std::fmt::Display) -> StoreFault {
    StoreFault::failed(format_args!("Redis at {node}: {cause}"))
}

/// Refuses a replica, which would answer with outdated data, and a version that is too old.
fn check_server(hello: Value) -> Result<(), String> {
    let [role, version] = fields(hello, ["role", "version"]).map_err(|error| error.to_string())?;
    let major = version.as_deref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if role.as_deref() != Some("master") {
        Err("it is a replica, and keygate uses the master only; give store.url the master's address, or \
             store.sentinels"
            .to_owned())
    } else if major.is_none_or(|major| major < OLDEST) {
        Err(format!("it is version {}; Redis {OLDEST} is needed", version.unwrap_or_default()))
    } else {
        Ok(())
    }
}

/// Some fields of an answer that alternates names and values.
pub(super) fn fields<const N: usize>(
    answer: Value,
    names: [&str; N],
) -> Result<[Option<String>; N], RedisError> {
    let Value::Array(answer) = answer else { return Err(unexpected()) };
    let mut found = names.map(|_| None);
    let mut answer = answer.into_iter();
    while let (Some(name), Some(value)) = (answer.next(), answer.next()) {
        let name = bytes(name)?;
        if let Some(n) = names.iter().position(|wanted| wanted.as_bytes() == name) {
            found[n] = String::from_utf8(bytes(value)?).ok();
        }
    }
    Ok(found)
}

/// TLS towards a server: the trusted authorities, and our certificate.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    has_certificate: bool,
}

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, OpenError> {
        let mut roots = RootCertStore::empty();
        for authority in read_certificates(&files.ca)? {
            roots.add(authority)?;
        }
        let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .with_root_certificates(roots);
        let config = match &files.client {
            None => config.with_no_client_auth(),
            Some((certificate, key)) => {
                config.with_client_auth_cert(read_certificates(certificate)?, read_key(key)?)?
            }
        };
        let connector = TlsConnector::from(Arc::new(config));
        Ok(Self { connector, has_certificate: files.client.is_some() })
    }

    async fn handshake(
        &self,
        node: &Node,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(node.host.clone())
            .map_err(|_| "the host is no name that a certificate could be for".to_owned())?;
        let handshake = self.connector.connect(name, stream).await;
        handshake.map_err(|error| self.explain(&error, Some(&node.host)))
    }

    /// `host` is the server of the handshake; `None` after it.
    fn explain(&self, error: &io::Error, host: Option<&str>) -> String {
        use CertificateError as Bad;
        use rustls::Error as Tls;
        let cause = error.get_ref().and_then(|inner| inner.downcast_ref::<Tls>());
        match cause {
            Some(Tls::InvalidCertificate(Bad::UnknownIssuer | Bad::BadSignature)) => {
                "its certificate is from no authority in store.tls.ca: name the right file, or check which server answers there"
                    .to_owned()
            }
            Some(Tls::InvalidCertificate(Bad::NotValidForName | Bad::NotValidForNameContext { .. })) => {
                format!("its certificate is not for {}: use a name that it contains, or issue one for this name", host.unwrap_or_default())
            }
            Some(Tls::InvalidCertificate(Bad::Expired | Bad::ExpiredContext { .. })) => {
                "its certificate has expired: renew it".to_owned()
            }
            Some(Tls::InvalidMessage(_)) => {
                "it does not speak TLS: use its TLS port, or remove TLS from the configuration".to_owned()
            }
            Some(Tls::AlertReceived(AlertDescription::CertificateRequired)) => {
                "it demands a client certificate: give store.tls.cert and store.tls.key".to_owned()
            }
            Some(Tls::AlertReceived(alert)) => {
                format!("it refuses our side of TLS ({alert:?}): check store.tls.cert and store.tls.key")
            }
            // A server that wants a certificate may send its refusal, or only close the connection.
            _ if !self.has_certificate && host.is_none() => {
                format!("{error}; should it demand a client certificate, give store.tls.cert and store.tls.key")
            }
            _ => error.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_and_old_versions_are_refused() {
        let hello = |version: &str, role: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            check_server(Value::Array(vec![
                text("version"),
                text(version),
                text("proto"),
                Value::Int(2),
                text("role"),
                text(role),
            ]))
        };
        assert!(hello("7.0.15", "master").is_ok() && hello("8.1.0", "master").is_ok());
        for (version, role) in [("7.0.15", "replica"), ("6.2.14", "master"), ("?", "master")] {
            assert!(hello(version, role).is_err(), "{version} {role}");
        }
        assert!(check_server(Value::Nil).is_err());
    }
}

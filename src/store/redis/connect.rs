//! One connection to one server: TCP, TLS if it is configured, authentication, and the check of the server.

use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{AsyncConnectionConfig, ErrorKind, RedisConnectionInfo, RedisError, Value};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::login::{Login, Password};
use super::scripts::{bytes, unexpected};
use super::settings::{Node, OpenError, TlsFiles};
use crate::dial;
use crate::store::StoreFault;
use crate::tls::client::{self, tls_error};
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
    login: Arc<Login>,
    /// How long the shortest of the callers' waits for a connection is.
    patience: Duration,
    clock: Clock,
    /// By server, those used last at the end.
    servers: Arc<Mutex<Vec<Arc<dial::Dialer>>>>,
}

/// Why a connection did not come about.
enum Failure {
    /// The server refuses the password.
    Login,
    /// TLS failed: our files may be out of date.
    Tls(String),
    Other(String),
}

impl Dialler {
    pub(super) fn new(login: Login, database: i64, tls: Option<Tls>, patience: Duration) -> Self {
        Self {
            greeting: RedisConnectionInfo::default().set_db(database).set_skip_set_lib_name(),
            tls,
            login: Arc::new(login),
            patience,
            clock: Clock::system(),
            servers: Arc::default(),
        }
    }

    /// A connection to a master of a supported version. Has no time-out of its own.
    pub(super) async fn dial_master(&self, node: &Node) -> Result<MultiplexedConnection, StoreFault> {
        let mut connection = self.dial(node).await?;
        let hello = ::redis::cmd("HELLO").query_async(&mut connection).await;
        let role = hello.map_err(|error| match self.explain(&error) {
            Failure::Login => error.to_string(),
            Failure::Tls(cause) | Failure::Other(cause) => cause,
        });
        let role = role.and_then(check_server);
        role.map_err(|cause| at(node, cause)).map(|()| connection)
    }

    /// Reads the files of the login and of TLS again, for connections that come later.
    pub(super) fn reread_files(&self) -> Result<(), OpenError> {
        self.login.reread()?;
        self.tls.as_ref().map_or(Ok(false), Tls::reread).map(drop)
    }

    /// A connection to a server of any role. Where the server refuses the login or TLS fails, the files may have changed
    /// since they were read: then it is tried again with what they contain now.
    pub(super) async fn dial(&self, node: &Node) -> Result<MultiplexedConnection, StoreFault> {
        let (mut password, mut refused, mut is_tls_renewed) = (self.login.first(), Vec::new(), false);
        loop {
            match self.attempt(node, password.as_ref()).await {
                Ok(connection) => {
                    password.into_iter().for_each(|password| self.login.note_accepted(node, password));
                    return Ok(connection);
                }
                Err(Failure::Login) => {
                    refused.extend(password.take());
                    let other = self.login.after(&refused).await;
                    password = Some(other.map_err(|advice| at(node, advice))?);
                }
                Err(Failure::Tls(_)) if !is_tls_renewed && self.renew_tls().await => is_tls_renewed = true,
                Err(Failure::Tls(cause) | Failure::Other(cause)) => return Err(at(node, cause)),
            }
        }
    }

    async fn attempt(
        &self,
        node: &Node,
        password: Option<&Password>,
    ) -> Result<MultiplexedConnection, Failure> {
        let dialling = self.server(node);
        // Without Nagle's algorithm, which would hold a lookup back until the one before it is answered.
        let stream = dialling.dial(self.patience, &self.clock).await;
        let stream = stream.map_err(|error| Failure::Other(error.to_string()))?;
        let greeting = self.login.greeting(&self.greeting, password);
        let greeted = match &self.tls {
            None => greet(stream, &greeting).await,
            Some(tls) => greet(tls.handshake(node, stream).await.map_err(Failure::Tls)?, &greeting).await,
        };
        greeted.map_err(|error| self.explain(&error))
    }

    /// Whether the files of TLS have changed, and can be read.
    async fn renew_tls(&self) -> bool {
        let Some(tls) = self.tls.clone() else { return false };
        // The files may be on a disk that hangs.
        let reread = tokio::task::spawn_blocking(move || tls.reread()).await;
        reread.is_ok_and(|reread| reread.unwrap_or(false))
    }

    /// The dialer of a server, which remembers which of its addresses worked.
    fn server(&self, node: &Node) -> Arc<dial::Dialer> {
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        let known = servers.iter().position(|server| server.is_for(&node.host, node.port));
        let server = match known {
            Some(at) => servers.remove(at),
            None => Arc::new(dial::Dialer::new(&node.host, node.port)),
        };
        if servers.len() == SERVERS {
            servers.remove(0);
        }
        servers.push(Arc::clone(&server));
        server
    }

    /// A hint for the message about a server that does not answer.
    pub(super) const fn hint_at_silence(&self) -> &'static str {
        // A Redis without TLS reads a handshake as the beginning of a long command, and waits.
        if self.tls.is_some() { "; see whether this is the port where it speaks TLS" } else { "" }
    }

    /// The error with what to do, if the server's own text does not say it.
    fn explain(&self, error: &RedisError) -> Failure {
        if error.kind() == ErrorKind::AuthenticationFailed || error.code() == Some("NOAUTH") {
            return Failure::Login;
        }
        // With TLS 1.3 a server judges our certificate after the handshake.
        let cause = error.source().and_then(|source| source.downcast_ref::<Arc<dyn Error + Send + Sync>>());
        match (&self.tls, cause.and_then(|cause| cause.downcast_ref::<io::Error>())) {
            (Some(tls), Some(error)) => Failure::Tls(tls.explain(error, None)),
            _ => Failure::Other(error.to_string()),
        }
    }
}

async fn greet<S>(stream: S, greeting: &RedisConnectionInfo) -> Result<MultiplexedConnection, RedisError>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    // The callers have time-outs; those of the client would only be a second set.
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(None)
        .set_response_timeout(None)
        .set_pipeline_buffer_size(QUEUE);
    let (connection, driver) = MultiplexedConnection::new_with_config(greeting, stream, config).await?;
    // It ends with the last copy of the connection.
    tokio::spawn(driver);
    Ok(connection)
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

/// TLS towards a server: the trusted authorities, and our certificate. Its copies share what was read last.
#[derive(Clone)]
pub(super) struct Tls {
    files: TlsFiles,
    loaded: Arc<Mutex<Loaded>>,
}

struct Loaded {
    connector: TlsConnector,
    /// Of the files' contents.
    digest: [u8; 32],
}

impl Tls {
    pub(super) fn load(files: &TlsFiles) -> Result<Self, OpenError> {
        let loaded = Arc::new(Mutex::new(Loaded::read(files)?));
        Ok(Self { files: files.clone(), loaded })
    }

    /// Reads the files again. Whether they have changed since.
    fn reread(&self) -> Result<bool, OpenError> {
        let read = Loaded::read(&self.files)?;
        let before = std::mem::replace(&mut *self.loaded(), read).digest;
        Ok(self.loaded().digest != before)
    }

    fn loaded(&self) -> MutexGuard<'_, Loaded> {
        self.loaded.lock().unwrap_or_else(PoisonError::into_inner)
    }

    const fn has_certificate(&self) -> bool {
        self.files.client.is_some()
    }

    async fn handshake(
        &self,
        node: &Node,
        stream: TcpStream,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(node.host.clone())
            .map_err(|_| "the host is no name that a certificate could be for".to_owned())?;
        let connector = self.loaded().connector.clone();
        let handshake = connector.connect(name, stream).await;
        handshake.map_err(|error| self.explain(&error, Some(&node.host)))
    }

    /// `host` is the server of the handshake; `None` after it.
    fn explain(&self, error: &io::Error, host: Option<&str>) -> String {
        match tls_error(error) {
            // A server that wants a certificate may send its refusal, or only close the connection.
            None if !self.has_certificate() && host.is_none() => {
                format!(
                    "{error}; should it demand a client certificate, give store.tls.cert and store.tls.key"
                )
            }
            _ => client::explain(error, &self.files.of_client(), "store.tls", host),
        }
    }
}

impl Loaded {
    fn read(files: &TlsFiles) -> Result<Self, OpenError> {
        let client::Loaded { config, digest } = client::Loaded::read(&files.of_client())?;
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), digest })
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

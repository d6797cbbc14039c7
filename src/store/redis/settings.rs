//! The settings of a Redis: its place, the login, and the time-outs.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use zeroize::Zeroizing;

use crate::secret_file::{self, SecretFileError};
use crate::tls::client::{Files, LoadError, Trust};
use crate::vocabulary::network::{InvalidServer, Server, parse_number};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub place: Place,
    /// `None` for plain text.
    pub tls: Option<TlsFiles>,
    /// The user of Redis' access control list; `None` for its default user.
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// The hash tag. Stores of several installations can share one Redis.
    pub cell: Cell,
    /// The file for what a gateway remembers of changed records; `None` for none.
    pub memory_file: Option<PathBuf>,
    /// How long connecting may take, finding the master included. A lookup gives up earlier.
    pub connect_timeout: Duration,
    /// How long a lookup may take, connecting included.
    pub lookup_timeout: Duration,
    /// How long a mutation, or one page of a list, may take.
    pub command_timeout: Duration,
}

impl Settings {
    /// The defaults, for the Redis at `address`.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self::at(Place::Fixed(address))
    }

    /// The defaults, for the Redis at this place.
    #[must_use]
    pub fn at(place: Place) -> Self {
        Self {
            place,
            tls: None,
            username: None,
            password_file: None,
            cell: Cell::default(),
            memory_file: None,
            connect_timeout: Duration::from_secs(1),
            lookup_timeout: Duration::from_millis(100),
            command_timeout: Duration::from_secs(1),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        let node = Node::new("127.0.0.1", 6379);
        Self::new(Address { node, database: 0, encrypted: false })
    }
}

/// How the master is found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// At a fixed address.
    Fixed(Address),
    /// Sentinels say where it is.
    Sentinel(Sentinels),
    /// It is the node of a cluster that has our slot. These are the nodes to ask first.
    Cluster(Vec<Node>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(address) => address.fmt(f),
            Self::Sentinel(Sentinels { nodes, master, .. }) => {
                write!(f, "the master `{master}` of the sentinels {}", join(nodes))
            }
            Self::Cluster(nodes) => write!(f, "the cluster of {}", join(nodes)),
        }
    }
}

fn join(nodes: &[Node]) -> String {
    nodes.iter().map(Node::to_string).collect::<Vec<_>>().join(", ")
}

/// The sentinels, and the name by which they know the master.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sentinels {
    pub nodes: Vec<Node>,
    pub master: String,
    /// The login at the sentinels.
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
}

/// The files for TLS. Verification cannot be turned off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The authorities that the server's certificate may be from, in PEM.
    pub ca: PathBuf,
    /// Our certificate and its key, for a server that asks for one.
    pub client: Option<(PathBuf, PathBuf)>,
}

impl TlsFiles {
    pub(super) fn of_client(&self) -> Files {
        Files { trust: Trust::Authorities(self.ca.clone()), client: self.client.clone() }
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum InvalidPlace {
    #[error("{0}")]
    Form(&'static str),
    #[error("{form}; {cause}")]
    Server { form: &'static str, cause: InvalidServer },
}

/// The address of one server.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    pub(super) host: String,
    pub(super) port: u16,
}

impl Node {
    pub(super) fn new(host: &str, port: u16) -> Self {
        Self { host: host.to_owned(), port }
    }

    /// # Errors
    /// The spelling that is expected.
    pub fn parse(text: &str) -> Result<Self, InvalidPlace> {
        const FORM: &str = "write host:port, as in \"10.0.0.5:6379\"";
        if text.contains('@') {
            return Err(InvalidPlace::Form("leave user and password out of it; there are keys for them"));
        }
        let server = Server::parse(text).map_err(|cause| InvalidPlace::Server { form: FORM, cause })?;
        Ok(Self::new(&server.host, server.port.ok_or(InvalidPlace::Form(FORM))?))
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }
    }
}

/// Where one Redis is: `redis://host:port/database`, or `rediss://` for TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    pub(super) node: Node,
    pub(super) database: i64,
    pub(super) encrypted: bool,
}

impl Address {
    /// # Errors
    /// The spelling that is expected. The text itself is not repeated: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, InvalidPlace> {
        const FORM: &str = "write redis://host:port, as in \"redis://127.0.0.1:6379\", or rediss:// for TLS";
        const DATABASE: &str = "write redis://host:port/database, the database a number from 0 to 65535";
        const PORT: u16 = 6379;
        let (rest, encrypted) = match url.strip_prefix("rediss://") {
            Some(rest) => (rest, true),
            None => (url.strip_prefix("redis://").ok_or(InvalidPlace::Form(FORM))?, false),
        };
        if rest.contains('@') {
            return Err(InvalidPlace::Form(
                "leave user and password out of it; write `username` and `password_file`",
            ));
        }
        let (place, database) = rest.split_once('/').unwrap_or((rest, ""));
        let database = match database {
            "" => 0,
            number => parse_number::<u16>(number).ok_or(InvalidPlace::Form(DATABASE))?,
        };
        let server = Server::parse(place).map_err(|cause| InvalidPlace::Server { form: FORM, cause })?;
        let node = Node::new(&server.host, server.port.unwrap_or(PORT));
        Ok(Self { node, database: database.into(), encrypted })
    }

    /// Whether it asks for TLS.
    #[must_use]
    pub const fn encrypted(&self) -> bool {
        self.encrypted
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { node, database, .. } = self;
        if *database == 0 { node.fmt(f) } else { write!(f, "{node}/{database}") }
    }
}

/// A store's name within its Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell(Box<str>);

impl Cell {
    /// # Errors
    /// Anything but 1 to 32 lower-case letters, digits, `-` and `_`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err("a cell is 1 to 32 lower-case letters, digits, `-` and `_`, as in \"kg\"")
        }
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Cell {
    fn default() -> Self {
        Self("kg".into())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a connection cannot even be tried. A Redis that is down is no such reason.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error(transparent)]
    Password(#[from] SecretFileError),
    #[error("{key} {} does not hold a password: write it there as text, on one line", path.display())]
    NoPassword { key: &'static str, path: PathBuf },
    #[error("store.tls: {0}")]
    Tls(#[from] LoadError),
    #[error("store.url begins with rediss://, which needs trusted authorities: set store.tls.ca")]
    NoAuthority,
}

/// The password in the file that the key `key` names.
pub(super) fn read_password(key: &'static str, path: &Path) -> Result<Zeroizing<String>, OpenError> {
    let bytes = secret_file::read(key, path)?;
    match std::str::from_utf8(bytes.trim_ascii_end()) {
        Ok(text) if !text.is_empty() && !text.contains(['\n', '\r']) => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(OpenError::NoPassword { key, path: path.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown_without_secrets() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "127.0.0.1:6379"),
            ("redis://redis.internal", "redis.internal:6379"),
            ("redis://[::1]:7000/", "[::1]:7000"),
            ("redis://a:1/3", "a:1/3"),
            ("rediss://a:1/3", "a:1/3"),
        ] {
            let address = Address::parse(url).unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(address.encrypted(), url.starts_with("rediss://"));
        }
        for wrong in [
            "redis://",
            "redis://:6379",
            "redis://a:",
            "redis://a:0",
            "redis://a:99999",
            "redis://a/x",
            "redis://a:+6379",
            "redis://a:06379",
            "redis://[junk]:6379",
            "redis://a/-1",
            "redis://a/+1",
            "redis://a/65536",
            "redis://a b",
            "http://a",
            "a:6379",
            "unix:///run/redis.sock",
            "redis://:hunter2@a",
            "redis://user:hunter2@a:6379",
            "redissss://a",
        ] {
            let refusal = Address::parse(wrong).unwrap_err().to_string();
            assert!(!refusal.contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn a_node_has_a_host_and_a_port() {
        for text in ["10.0.0.5:26379", "redis.internal:1", "[::1]:7000"] {
            assert_eq!(Node::parse(text).map(|node| node.to_string()).as_deref(), Ok(text));
        }
        for wrong in
            ["a", "a:", ":1", "a:0", "a:+1", "a:01", "[junk]:1", "redis://a:1", "a:1/0", "me:hunter2@a:1", ""]
        {
            assert!(!Node::parse(wrong).unwrap_err().to_string().contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn a_cell_is_a_word() {
        assert!(Cell::parse("eu-1").is_ok());
        for wrong in ["", "a}", "{", "A", "a b", &"x".repeat(33)] {
            assert!(Cell::parse(wrong).is_err(), "{wrong}");
        }
    }
}

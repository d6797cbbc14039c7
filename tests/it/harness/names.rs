//! Names with several addresses for the processes that a test starts, and an address that answers nothing.
//!
//! `localhost` has one address on some machines and two on others. So the names are in a file that nss_wrapper reads for
//! the resolver of the C library.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use tokio::net::TcpSocket;

use super::http2::runtime;

const LIBRARY: &str = "libnss_wrapper.so";

/// Names, and the addresses of each in the order in which the resolver gives them.
pub(crate) struct Names {
    folder: TempDir,
    changes: AtomicU64,
}

impl Names {
    #[track_caller]
    pub(crate) fn new(names: &[(&str, &[IpAddr])]) -> Self {
        let known = Self { folder: TempDir::new().unwrap(), changes: AtomicU64::new(0) };
        known.change(names);
        for (name, addresses) in names {
            assert_eq!(
                known.resolved(name),
                *addresses,
                "no nss_wrapper: install libnss-wrapper, as tests/run does"
            );
        }
        known
    }

    /// Gives the names other addresses, for the processes too that know them.
    pub(crate) fn change(&self, names: &[(&str, &[IpAddr])]) {
        let lines = names
            .iter()
            .flat_map(|(name, addresses)| addresses.iter().map(move |address| format!("{address} {name}\n")));
        std::fs::write(self.file(), lines.collect::<String>()).unwrap();
        // nss_wrapper reads a file again when the second of its date is another.
        let changes = self.changes.fetch_add(1, Ordering::SeqCst) + 1;
        let date = SystemTime::now() + Duration::from_secs(10 * changes);
        File::options().write(true).open(self.file()).unwrap().set_modified(date).unwrap();
    }

    /// Has this process look names up here. It finds no others.
    pub(crate) fn told_to(&self, command: &mut Command) {
        command.env("LD_PRELOAD", LIBRARY).env("NSS_WRAPPER_HOSTS", self.file());
    }

    fn file(&self) -> std::path::PathBuf {
        self.folder.path().join("hosts")
    }

    /// The addresses as another process gets them.
    fn resolved(&self, name: &str) -> Vec<IpAddr> {
        let mut command = Command::new("getent");
        command.args(["ahosts", name]);
        self.told_to(&mut command);
        let told = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let streams = told.lines().filter(|line| line.contains("STREAM"));
        streams.filter_map(|line| line.split_whitespace().next()?.parse().ok()).collect()
    }
}

/// An address that takes no connection and refuses none: the queue of its listener is full, so SYNs get no answer.
pub(crate) struct Swallowing {
    _listener: TcpListener,
    _queue: Vec<TcpStream>,
}

impl Swallowing {
    pub(crate) fn at(address: SocketAddr) -> Self {
        let listener = runtime().block_on(async {
            let socket = TcpSocket::new_v4().unwrap();
            // Connections of a server that was there before may linger.
            socket.set_reuseaddr(true).unwrap();
            socket.bind(address).unwrap();
            socket.listen(1).unwrap().into_std().unwrap()
        });
        let (mut queue, mut swallowed) = (Vec::new(), 0);
        // Twice, since a busy machine may be late once.
        while swallowed < 2 {
            match TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
                Ok(stream) => queue.push(stream),
                Err(_) => swallowed += 1,
            }
        }
        Self { _listener: listener, _queue: queue }
    }
}

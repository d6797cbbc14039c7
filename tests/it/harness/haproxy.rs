//! A real HAProxy in front of gateways, for long forms (`apt-get install haproxy`).

use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use super::eventually;

/// A running HAProxy. Ended when dropped.
pub(crate) struct Haproxy {
    child: Child,
    _folder: TempDir,
}

impl Haproxy {
    /// With this configuration, behind the usual defaults; waits until it listens on these addresses.
    #[track_caller]
    pub(crate) fn start(configuration: &str, listens: &[SocketAddr]) -> Self {
        let folder = TempDir::new().unwrap();
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, format!("{DEFAULTS}{configuration}")).unwrap();
        let mut command = Command::new("haproxy");
        command.arg("-q").arg("-db").arg("-f").arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn().expect("haproxy is installed (apt-get install haproxy)");
        let haproxy = Self { child, _folder: folder };
        for address in listens {
            eventually("HAProxy listens", || TcpStream::connect(address).is_ok());
        }
        haproxy
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// No retries: they would hide a request that a gateway lost.
const DEFAULTS: &str = "
global
    nbthread 1
defaults
    mode http
    timeout connect 2s
    timeout client 10m
    timeout server 10m
    timeout check 1s
    retries 0
    option http-no-delay
    http-reuse always
";

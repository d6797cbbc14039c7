//! A Redis for one test, with commands that break it.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use keygate::store::redis::{Address, Settings};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Authority, PATIENCE, eventually};

/// A running redis-server, or another server with its options and protocol, for example Valkey's: the one that
/// `KEYGATE_TEST_REDIS_SERVER` names by its path. It is also the sentinel. Ended with the test.
pub(crate) struct RedisServer {
    folder: TempDir,
    port: u16,
    tls_port: Option<u16>,
    child: Option<Child>,
    options: Vec<String>,
    /// Whether it is a sentinel, which writes its state into its configuration.
    is_sentinel: bool,
}

impl RedisServer {
    pub(crate) fn start() -> Self {
        Self::with(&[])
    }

    /// With more options for redis-server, as on its command line.
    pub(crate) fn with(options: &[&str]) -> Self {
        Self::new(options, false, None)
    }

    /// With TLS on a port of its own, and a certificate for 127.0.0.1 from this authority. Plain text stays.
    pub(crate) fn with_tls(authority: &Authority, options: &[&str]) -> Self {
        let folder = TempDir::new().unwrap();
        authority.write(folder.path(), "ca");
        authority.issue(&["127.0.0.1"]).write(folder.path(), "server");
        let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
        let (ca, cert, key) = (file("ca.pem"), file("server.pem"), file("server-key.pem"));
        let files = ["--tls-ca-cert-file", &ca, "--tls-cert-file", &cert, "--tls-key-file", &key];
        // The files are read at its start.
        Self::new(&[&files, options].concat(), true, None)
    }

    /// A sentinel with this configuration.
    pub(crate) fn sentinel(configuration: &str) -> Self {
        Self::new(&[], false, Some(configuration))
    }

    fn new(options: &[&str], has_tls: bool, sentinel: Option<&str>) -> Self {
        // A port that was free a moment ago may be taken: by another test, or as the local end of a
        // connection.
        for _ in 0..20 {
            let (port, tls_port) = (free_port(), has_tls.then(free_port));
            let mut options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
            options.extend(tls_port.iter().flat_map(|port| ["--tls-port".to_owned(), port.to_string()]));
            let folder = TempDir::new().unwrap();
            if let Some(configuration) = sentinel {
                fs::write(folder.path().join("sentinel.conf"), configuration).unwrap();
            }
            let is_sentinel = sentinel.is_some();
            let mut server = Self { folder, port, tls_port, child: None, options, is_sentinel };
            if server.launch() {
                return server;
            }
        }
        panic!("redis-server does not start");
    }

    fn launch(&mut self) -> bool {
        let port = self.port.to_string();
        let mut command = Command::new(program());
        if self.is_sentinel {
            command.args(["sentinel.conf", "--sentinel"]);
        }
        command.current_dir(self.folder.path()).args(["--port", &port, "--bind", "127.0.0.1"]);
        command.args(["--save", "", "--appendonly", "no", "--logfile", "redis.log"]).args(&self.options);
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn();
        let child = child.expect("redis-server is installed; tests/run sees to it");
        let (address, own) = (self.address(), format!("process_id:{}\r\n", child.id()));
        self.child = Some(child);
        let mut ended = false;
        eventually("redis-server answers or ends", || {
            ended = self.child.as_mut().unwrap().try_wait().unwrap().is_some();
            // Another process's server could also answer on this port.
            ended
                || try_command(address, &["INFO", "server"]).is_some_and(|info| info.contains(&own))
                || try_command(address, &["PING"]).is_some_and(|answer| answer.contains("NOAUTH"))
        });
        !ended
    }

    /// The server's kind and version, for output.
    pub(crate) fn version(&self) -> String {
        let info = self.command(&["INFO", "server"]);
        let told = |name: &str| info.lines().find_map(|line| line.strip_prefix(name)).map(str::to_owned);
        let valkey = told("valkey_version:").map(|version| format!("Valkey {version}"));
        valkey.unwrap_or_else(|| format!("Redis {}", told("redis_version:").unwrap()))
    }

    pub(crate) fn port(&self) -> String {
        self.port.to_string()
    }

    /// Its address for TLS.
    pub(crate) fn tls_url(&self) -> String {
        format!("rediss://127.0.0.1:{}", self.tls_port.unwrap())
    }

    pub(crate) fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The folder of its files.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://{}", self.address())
    }

    /// Settings for a store in it, with long time-outs for a busy machine.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            connect_timeout: PATIENCE,
            lookup_timeout: PATIENCE,
            command_timeout: PATIENCE,
            ..Settings::new(Address::parse(&self.url()).unwrap())
        }
    }

    /// Sends one command; returns the answer as it came over the wire.
    #[track_caller]
    pub(crate) fn command(&self, parts: &[&str]) -> String {
        try_command(self.address(), parts).expect("an answer from redis-server")
    }

    /// The same as this user, whose password does not matter.
    #[track_caller]
    pub(crate) fn command_as(&self, user: &str, parts: &[&str]) -> String {
        let mut stream = TcpStream::connect(self.address()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let quoted: Vec<String> = parts.iter().map(|part| format!("\"{part}\"")).collect();
        write!(stream, "AUTH {user} any\r\n{}\r\nQUIT\r\n", quoted.join(" ")).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// The same for a server that may not answer, or close connections.
    pub(crate) fn asked(&self, parts: &[&str]) -> Option<String> {
        try_command(self.address(), parts)
    }

    /// The data that it would load from its disk after a restart.
    pub(crate) fn dump(&self) -> Vec<u8> {
        // In compressed data, the search would find nothing.
        assert_eq!(self.command(&["CONFIG", "SET", "rdbcompression", "no"]), "+OK\r\n");
        assert_eq!(self.command(&["SAVE"]), "+OK\r\n");
        fs::read(self.folder.path().join("dump.rdb")).unwrap()
    }

    /// All data in it, for comparison, without the leases.
    pub(crate) fn contents(&self) -> Vec<(String, String)> {
        let keys = self.command(&["KEYS", "*"]);
        let mut keys: Vec<&str> =
            keys.split("\r\n").filter(|line| line.starts_with('{') && !line.contains(":gateway")).collect();
        keys.sort_unstable();
        keys.into_iter().map(|key| (key.to_owned(), self.command(&["DUMP", key]))).collect()
    }

    /// Every key and its value, as they come over the wire.
    pub(crate) fn values(&self) -> String {
        let scanned = self.command(&["SCAN", "0", "COUNT", "100000"]);
        let mut names: Vec<&str> = scanned.split("\r\n").filter(|line| line.starts_with('{')).collect();
        // Redis may move keys while it frees memory.
        names.sort_unstable();
        let read = |name: &&str| match self.command(&["TYPE", name]).trim() {
            "+string" => self.command(&["GET", name]),
            "+hash" => self.command(&["HGETALL", name]),
            "+zset" => self.command(&["ZRANGE", name, "0", "-1"]),
            "+set" => self.command(&["SMEMBERS", name]),
            "+list" => self.command(&["LRANGE", name, "0", "-1"]),
            "+stream" => self.command(&["XRANGE", name, "-", "+"]),
            other => panic!("{name} is {other}: read it too"),
        };
        let values: String = names.iter().map(read).collect();
        names.join("\r\n") + &values
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = self.child.as_ref().unwrap().id();
        kill_process(Pid::from_raw(i32::try_from(id).unwrap()).unwrap(), signal).unwrap();
    }

    /// Ends it as a power failure would: the data in memory is lost.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Starts it again on the same port: empty, unless its options keep data on disk.
    pub(crate) fn revive(&mut self) {
        self.kill();
        eventually("its port is free again", || self.launch());
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> OsString {
    env::var_os("KEYGATE_TEST_REDIS_SERVER").unwrap_or_else(|| "redis-server".into())
}

/// A free port whose bus port, 10,000 above for a node of a cluster, is free as well. Both are
/// below those that the system gives to connections, so that a server that is stopped finds them free when it is started
/// again. No two of a process are the same, and those of two processes are apart.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u16 = 10_000;
    const COUNT: u32 = 10_000;
    const APART: u32 = 1_009;
    loop {
        let number = std::process::id().wrapping_mul(APART) % COUNT + NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + u16::try_from(number % COUNT).unwrap();
        let is_free = |port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
        if is_free(port) && is_free(port + 10_000) {
            return port;
        }
    }
}

fn try_command(address: SocketAddr, parts: &[&str]) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut request = format!("*{}\r\n", parts.len());
    for part in parts {
        request += &format!("${}\r\n{part}\r\n", part.len());
    }
    // Its answer shows the end of the first one.
    request += "*2\r\n$4\r\nPING\r\n$12\r\nend-of-reply\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let (mut answer, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&answer);
        if let Some(end) = text.find("$12\r\nend-of-reply\r\n") {
            return Some(text[..end].to_owned());
        }
        if text.matches("-NOAUTH").count() == 2 {
            return Some(text.into_owned());
        }
        // It loads the data from its disk, and answers no command meanwhile.
        if text.contains("-LOADING") {
            return None;
        }
        match stream.read(&mut part).ok()? {
            0 => return None,
            n => answer.extend_from_slice(&part[..n]),
        }
    }
}

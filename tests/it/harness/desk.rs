//! The ways of an operator to a gateway: beside a running one, remote with a token, or at a store without a
//! gateway.

use std::fs;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Stdio;

use serde_json::Value;
use tempfile::TempDir;

use super::gateway::Gateway;
use super::process::{Process, keygate};
use super::redis::RedisServer;

/// Upstreams for gateways that forward nothing.
pub(crate) const NOWHERE: [&str; 2] = ["http://127.0.0.1:9", "http://127.0.0.1:10"];

/// The way of commands to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Socket,
    Tcp,
    Store,
}

impl Way {
    pub(crate) const ALL: [Self; 3] = [Self::Socket, Self::Tcp, Self::Store];
}

pub(crate) struct Desk {
    way: Way,
    /// The folder with the configuration.
    folder: TempDir,
    /// A folder with a token and no configuration.
    elsewhere: TempDir,
    serving: Option<Process>,
    address: Option<SocketAddr>,
    admin_url: String,
}

/// The result of a command.
#[derive(Clone, Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Ran {
    /// Each line of standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Vec<Value> {
        let line = |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {self:?}"));
        self.out.lines().map(line).collect()
    }
}

/// A section for the store in this Redis, with the pepper that it needs.
pub(crate) fn in_redis(redis: &RedisServer) -> String {
    format!(
        "[keys]\npepper_file = \"pepper\"\n[store]\nkind = \"redis\"\nurl = \"{}\"\nconnect_timeout = \"20s\"\n\
         lookup_timeout = \"20s\"\ncommand_timeout = \"20s\"\n",
        redis.url()
    )
}

impl Desk {
    pub(crate) fn new(way: Way) -> Self {
        Self::with(way, "", NOWHERE)
    }

    /// With more settings, and the gateway in front of these upstreams. The folder has a file `pepper`.
    pub(crate) fn with(way: Way, settings: &str, [live, test]: [&str; 2]) -> Self {
        let [folder, elsewhere] = [(); 2].map(|()| TempDir::new().unwrap());
        let made = keygate(folder.path(), &["admin", "token", "remote-desk", "--json"]).output().unwrap();
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        write_secret(&folder.path().join("admin-tokens"), made["line"].as_str().unwrap());
        write_secret(&elsewhere.path().join("token"), made["token"].as_str().unwrap());
        write_secret(&folder.path().join("pepper"), &"pepper".repeat(8));
        let admin =
            "[admin]\nsocket = \"keygate.sock\"\nlisten = \"127.0.0.1:0\"\ntokens_file = \"admin-tokens\"\n";
        Gateway::builder()
            .settings(admin)
            .settings(settings)
            .upstream("api", live, test)
            .write(folder.path());
        let mut desk =
            Self { way, folder, elsewhere, serving: None, address: None, admin_url: String::new() };
        if way != Way::Store {
            desk.serve();
        }
        desk
    }

    /// Starts the gateway.
    pub(crate) fn serve(&mut self) {
        let serving = Process::serve(self.folder.path());
        self.address = Some(serving.address());
        let line = serving.err_line("admin API on ");
        line.split_once("admin API on ").unwrap().1.clone_into(&mut self.admin_url);
        self.serving = Some(serving);
    }

    /// Ends the gateway by a signal, and returns what it logs from then on.
    pub(crate) fn stop(&mut self) -> Vec<String> {
        let mut serving = self.serving.take().unwrap();
        serving.terminate();
        let mut log = vec![serving.err_line("a second signal ends them")];
        serving.terminate();
        while !log.last().is_some_and(|line: &String| line.ends_with("the gateway has ended")) {
            log.push(serving.err_line(""));
        }
        serving.wait();
        log
    }

    /// Ends the gateway as a crash would.
    pub(crate) fn kill(&mut self) {
        let mut serving = self.serving.take().unwrap();
        serving.signal(rustix::process::Signal::KILL);
        serving.wait();
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The gateway's public address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    pub(crate) fn admin_url(&self) -> &str {
        &self.admin_url
    }

    /// The secret of the token.
    pub(crate) fn token(&self) -> String {
        fs::read_to_string(self.elsewhere.path().join("token")).unwrap()
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        self.feed(arguments, "")
    }

    /// Runs a command that must succeed; returns its output.
    #[track_caller]
    pub(crate) fn done(&self, arguments: &[&str]) -> Ran {
        let ran = self.run(arguments);
        assert_eq!(ran.code, 0, "{arguments:?} by {:?}: {ran:?}", self.way);
        ran
    }

    /// A new key of Example Ltd with all scopes: its id and its secret.
    #[track_caller]
    pub(crate) fn create_key(&self, name: &str) -> (String, String) {
        let words = ["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", name, "--json"];
        let made = self.done(&words).json().remove(0);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        (text(&made["key"]["id"]), text(&made["secret"]))
    }

    /// Runs a command with this standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &str) -> Ran {
        let mut command = match self.way {
            Way::Socket | Way::Store => keygate(self.folder.path(), arguments),
            Way::Tcp => {
                let way = ["--admin-url", &self.admin_url, "--token-file", "token"];
                keygate(self.elsewhere.path(), &[arguments, &way].concat())
            }
        };
        command.env("USER", "ada").stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        // A command may end before it has read all of it.
        let feeding = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        Ran {
            code: output.status.code().unwrap(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    /// The operator's name in the audit trail.
    pub(crate) fn operator(&self) -> String {
        match self.way {
            Way::Tcp => "remote-desk".to_owned(),
            Way::Socket | Way::Store => format!("ada (uid {})", rustix::process::getuid().as_raw()),
        }
    }
}

pub(crate) fn write_secret(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
}

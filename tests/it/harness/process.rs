//! The keygate binary, run as a process.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, PAUSE};

/// A process that is ended with its test.
pub(crate) struct Process {
    child: Child,
    out: Receiver<String>,
    err: Receiver<String>,
}

impl Process {
    /// `keygate` with these arguments, in this folder.
    pub(crate) fn keygate(folder: &Path, arguments: &[&str]) -> Self {
        Self::start(keygate(folder, arguments))
    }

    pub(crate) fn start(command: Command) -> Self {
        Self::start_to(command, Stdio::piped())
    }

    /// With its standard output elsewhere: no lines can be read from that then.
    pub(crate) fn start_to(mut command: Command, out: Stdio) -> Self {
        command.stdout(out).stderr(Stdio::piped());
        Self::start_as_it_is(command)
    }

    /// With both its outputs as the command says. Only lines on pipes can be read.
    pub(crate) fn start_as_it_is(mut command: Command) -> Self {
        command.stdin(Stdio::null());
        Self::start_with_input(command)
    }

    /// The same, with its standard input as the command says, too.
    pub(crate) fn start_with_input(mut command: Command) -> Self {
        let mut child = command.spawn().unwrap();
        let out = child.stdout.take().map_or_else(|| channel().1, lines);
        let err = child.stderr.take().map_or_else(|| channel().1, lines);
        Self { child, out, err }
    }

    /// Writes to its standard input, which must be a pipe.
    #[track_caller]
    pub(crate) fn say(&mut self, line: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{line}").unwrap();
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// `keygate serve` on the configuration in `folder`.
    pub(crate) fn serve(folder: &Path) -> Self {
        Self::keygate(folder, &["serve"])
    }

    /// `keygate serve` in this folder with so many open files at most, and the line that says what it has room for.
    pub(crate) fn serve_with_files(folder: &Path, files: usize) -> (Self, String) {
        let mut command = Command::new("sh");
        command
            .args(["-c", &format!("ulimit -n {files}; exec \"$0\" serve")])
            .arg(keygate(folder, &[]).get_program())
            .current_dir(folder);
        let process = Self::start(command);
        let room = process.err_line(" info room: ");
        (process, room)
    }

    /// The address on which it reports to listen.
    #[track_caller]
    pub(crate) fn address(&self) -> SocketAddr {
        let line = self.err_line("listening on http://");
        let address = line.split("http://").nth(1).and_then(|rest| rest.split(' ').next());
        address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address in {line:?}"))
    }

    /// The address that it reports for its metrics.
    #[track_caller]
    pub(crate) fn ops_address(&self) -> SocketAddr {
        let line = self.err_line("metrics and probes on http://");
        line.rsplit("http://").next().and_then(|address| address.parse().ok()).expect("an address")
    }

    pub(crate) fn terminate(&self) {
        self.signal(Signal::TERM);
    }

    pub(crate) fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// A line of /proc/PID/status in bytes.
    pub(crate) fn memory(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.id())).unwrap();
        let line = status.lines().find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
    }

    /// Waits for a line on standard output that contains `part`, and returns it.
    #[track_caller]
    pub(crate) fn out_line(&self, part: &str) -> String {
        wait_for_line(&self.out, part)
    }

    /// Waits for a line on standard error that contains `part`, and returns it.
    #[track_caller]
    pub(crate) fn err_line(&self, part: &str) -> String {
        wait_for_line(&self.err, part)
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Everything that it writes from now on to its end, on both outputs, after the lines that were already waited
    /// for.
    pub(crate) fn told(&self) -> String {
        self.out.iter().chain(self.err.iter()).map(|line| line + "\n").collect()
    }

    /// Ends the process by a signal, and returns the unread rest of both its outputs.
    pub(crate) fn end(mut self) -> (String, String) {
        self.terminate();
        self.wait();
        let rest = |lines: &Receiver<String>| lines.iter().map(|line| line + "\n").collect();
        (rest(&self.out), rest(&self.err))
    }

    /// Waits for its end.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            let told = || self.err.try_iter().collect::<Vec<_>>();
            assert!(Instant::now() < until, "the process does not end; it said {:#?}", told());
            thread::sleep(PAUSE);
        }
    }
}

/// Creates a live key with every scope with `keygate keys create`, in the only organisation or in the first one, and
/// returns its secret.
#[track_caller]
pub(crate) fn create_key(folder: &Path) -> String {
    let orgs = keygate(folder, &["orgs", "list", "--json"]).output().unwrap().stdout;
    let org: &[&str] = if orgs.is_empty() { &["--org", "Example Ltd"] } else { &[] };
    create_key_by(keygate(folder, &[&["keys", "create", "--all-scopes", "--name", "a key"], org].concat()))
}

/// The same with this command.
#[track_caller]
pub(crate) fn create_key_by(mut command: Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `keygate` with these arguments, in this folder, without variables of the caller's environment that would change
/// it.
pub(crate) fn keygate(folder: &Path, arguments: &[&str]) -> Command {
    program(&binary(), folder, arguments)
}

/// The binary under test: the one of this build, or an optimised one that the environment names, for the long forms.
fn binary() -> PathBuf {
    std::env::var_os("KEYGATE_TEST_BINARY")
        .map_or_else(|| env!("CARGO_BIN_EXE_keygate").into(), PathBuf::from)
}

/// The same for this binary.
pub(crate) fn program(binary: &Path, folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(binary);
    command.args(arguments).current_dir(folder).env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    command
}

/// Puts the binary into a folder, for a user who may not enter the one where it is. Another process writes the file: a process
/// that another test starts meanwhile would inherit it open from this one, and a file that is open for writing cannot be run.
#[track_caller]
pub(crate) fn copy_binary(folder: &Path) -> PathBuf {
    let copy = folder.join("keygate");
    let copied = Command::new("cp").arg(binary()).arg(&copy).status().unwrap();
    assert!(copied.success());
    copy
}

fn lines(pipe: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = channel();
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}

#[track_caller]
fn wait_for_line(lines: &Receiver<String>, part: &str) -> String {
    let mut before = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) if line.contains(part) => return line,
            Ok(line) => before.push(line),
            Err(error) => panic!("no line with {part:?} ({error}); there was {before:#?}"),
        }
    }
}

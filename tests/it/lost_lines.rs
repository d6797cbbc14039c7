//! Records and log lines that cannot be written: they are counted, told once, and the gateway goes on.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::{Call, GatewayBuilder, Process, eventually, fetch, refusing};

fn configured() -> TempDir {
    let folder = TempDir::new().unwrap();
    let settings = "[ops]\nlisten = \"127.0.0.1:0\"\n[log]\nrequests = \"json\"";
    GatewayBuilder::default()
        .settings(settings)
        .upstream("api", &refusing(), "http://127.0.0.1:9")
        .write(folder.path());
    folder
}

/// A pipe with a name: its reader may go, and another may come.
fn pipe(folder: &Path) -> PathBuf {
    let path = folder.join("pipe");
    mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    path
}

/// A reader. It waits for no writer.
fn reader(pipe: &Path) -> File {
    let flags = OFlags::NONBLOCK.bits().cast_signed();
    OpenOptions::new().read(true).custom_flags(flags).open(pipe).unwrap()
}

fn writer(pipe: &Path) -> Stdio {
    OpenOptions::new().write(true).open(pipe).unwrap().into()
}

fn send(address: SocketAddr, count: usize) {
    for _ in 0..count {
        fetch(address, &Call::get("/v1/jobs")).refusal(401, "authentication_error");
    }
}

fn dropped(ops: SocketAddr, what: &str, reason: &str) -> f64 {
    value(&scrape(ops), &format!("keygate_{what}_dropped_total{{reason=\"{reason}\"}}")).unwrap()
}

#[test]
fn records_that_cannot_be_written_are_counted_and_told_once() {
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    let (unread, gone) = std::io::pipe().unwrap();
    drop(unread);
    for (output, cause) in [(Stdio::from(full), "No space left"), (Stdio::from(gone), "Broken pipe")] {
        let folder = configured();
        let process = Process::start_to(keygate(folder.path(), &["serve"]), output);
        let (address, ops) = (process.address(), process.ops_address());
        assert_eq!(dropped(ops, "records", "write_failed"), 0.0);
        send(address, 3);
        let line = process.err_line("records of requests cannot be written to standard output");
        assert!(line.contains(cause), "{line}");
        eventually("all are counted", || dropped(ops, "records", "write_failed") == 3.0);
        send(address, 3);
        eventually("all are counted", || dropped(ops, "records", "write_failed") == 6.0);
        assert_eq!(dropped(ops, "records", "queue_full"), 0.0);
        let (_, told) = process.end();
        assert!(!told.contains("records of requests"), "{told}");
    }
}

#[test]
fn records_are_written_again_when_somebody_reads_again() {
    let folder = configured();
    let pipe = pipe(folder.path());
    let unread = reader(&pipe);
    let process = Process::start_to(keygate(folder.path(), &["serve"]), writer(&pipe));
    let (address, ops) = (process.address(), process.ops_address());
    drop(unread);
    send(address, 2);
    eventually("they are counted", || dropped(ops, "records", "write_failed") == 2.0);
    let mut again = BufReader::new(reader(&pipe));
    send(address, 1);
    process.err_line("records of requests are written again; 2 were lost");
    let mut line = String::new();
    again.read_line(&mut line).unwrap();
    assert!(line.starts_with('{') && line.ends_with("}\n"), "{line}");
}

#[test]
fn lines_of_the_log_that_cannot_be_written_are_counted_and_told_later() {
    let folder = configured();
    let pipe = pipe(folder.path());
    let mut read = BufReader::new(reader(&pipe));
    let mut command = keygate(folder.path(), &["serve"]);
    command.stderr(writer(&pipe)).stdout(Stdio::null());
    let process = Process::start_as_it_is(command);
    let mut told = String::new();
    let mut read_until = |read: &mut BufReader<File>, part: &str| {
        eventually(part, || {
            // Nothing to read is an error here, and what was read before it is kept.
            let _ = read.read_line(&mut told);
            told.contains(part)
        });
        std::mem::take(&mut told)
    };
    let started = read_until(&mut read, "metrics and probes on http://");
    let ops = started.lines().find_map(|line| line.split("metrics and probes on http://").nth(1));
    let ops: SocketAddr = ops.unwrap().parse().unwrap();
    drop(read);
    assert_eq!(dropped(ops, "log_lines", "write_failed"), 0.0);
    process.signal(Signal::HUP);
    eventually("it is counted", || dropped(ops, "log_lines", "write_failed") >= 1.0);
    let mut again = BufReader::new(reader(&pipe));
    process.signal(Signal::HUP);
    read_until(&mut again, "of this log were lost before the line above");
}

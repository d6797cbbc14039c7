//! What the log and the records tell after an incident, where they go, and what wrong settings of them do.

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::upstream::Reply;
use crate::harness::{
    Call, Gateway, GatewayBuilder, Process, Upstream, eventually, fetch, own_address, refusing,
};

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n";

fn configured(settings: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    GatewayBuilder::default()
        .settings(&format!("{OPS}{settings}"))
        .upstream("api", &refusing(), "http://127.0.0.1:9")
        .write(folder.path());
    folder
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_line_of_the_log_has_its_time_its_level_and_its_event() {
    let folder = configured("[server]\nlisten = \"127.0.0.1:0\"\ntrusted_proxies = []\n");
    let process = Process::serve(folder.path());
    let line = process.err_line("listening on http://");
    let (time, rest) = line.split_once(' ').unwrap();
    assert!(time.len() == 24 && time.ends_with('Z') && time.starts_with("20"), "{line}");
    assert!(rest.starts_with("info started: listening on http://127.0.0.1:"), "{line}");
    fs::write(folder.path().join("policy.toml"), "no policy").unwrap();
    process.signal(Signal::HUP);
    let line = process.err_line("configuration_refused");
    assert!(line.ends_with(" error configuration_refused: the one before stays in force:"), "{line}");
}

/// The event tells what a line is about, so the message does not say it once more.
#[test]
fn each_line_of_a_gateway_that_starts_reloads_and_ends_says_its_fact_once() {
    for format in ["text", "json"] {
        let folder = configured(&format!("[log]\nformat = \"{format}\"\n"));
        let process = Process::serve(folder.path());
        let mut said = Vec::new();
        let mut wait_for = |part: &str| {
            while !said.last().is_some_and(|line: &String| line.contains(part)) {
                said.push(process.err_line(""));
            }
        };
        wait_for("listening on http://");
        process.signal(Signal::HUP);
        wait_for("configuration_read");
        fs::write(folder.path().join("policy.toml"), "no policy").unwrap();
        process.signal(Signal::HUP);
        wait_for("configuration_refused");
        process.terminate();
        wait_for("stopped");
        let mut events = Vec::new();
        // What a refusal says goes on in further lines of the text.
        for line in said.iter().filter(|line| format == "json" || line.starts_with("20")) {
            let (event, message) = if format == "json" {
                let line: Value = serde_json::from_str(line).unwrap();
                (line["event"].as_str().unwrap().to_owned(), line["message"].as_str().unwrap().to_owned())
            } else {
                let (event, message) = line.splitn(3, ' ').nth(2).unwrap().split_once(": ").unwrap();
                (event.to_owned(), message.to_owned())
            };
            let begins = event.split('_').next().unwrap();
            assert!(!message.to_lowercase().starts_with(begins), "{line}");
            events.push(event);
        }
        for event in ["room", "started", "configuration_read", "configuration_refused", "stopping", "stopped"]
        {
            assert!(events.iter().any(|one| one == event), "{event}: {said:#?}");
        }
    }
}

#[test]
fn log_and_records_go_to_files_which_are_opened_again_on_a_signal() {
    let log = "[log]\nformat = \"json\"\nfile = \"gateway.log\"\nrequests_file = \"requests.jsonl\"\n";
    let folder = configured(log);
    let process = Process::serve(folder.path());
    process.err_line("keygate: the log goes to ");
    let [log, records] = ["gateway.log", "requests.jsonl"].map(|name| folder.path().join(name));
    let mut address = None;
    eventually("it listens", || {
        let listening = lines(&log).into_iter().find(|line| line["event"] == "started");
        let message = listening.map(|line| line["message"].as_str().unwrap().to_owned());
        address = message.and_then(|text| text.split("http://").nth(1)?.split(' ').next()?.parse().ok());
        address.is_some()
    });
    let address: SocketAddr = address.unwrap();
    fetch(address, &Call::get("/v1/jobs")).refusal(401, "authentication_error");
    eventually("the record is written", || lines(&records).len() == 1);
    assert_eq!(fs::metadata(&records).unwrap().permissions().mode() & 0o777, 0o640);
    for file in [&log, &records] {
        fs::rename(file, file.with_extension("1")).unwrap();
    }
    process.signal(Signal::USR1);
    eventually("both are there again", || log.exists() && records.exists());
    eventually("the log says so", || lines(&log).first().is_some_and(|line| line["event"] == "log_reopened"));
    fetch(address, &Call::get("/v1/jobs")).refusal(401, "authentication_error");
    eventually("the record is in the new file", || lines(&records).len() == 1);
    assert_eq!(lines(&records.with_extension("1")).len(), 1);
    process.end();
    let events: Vec<_> = lines(&log).into_iter().map(|line| line["event"].clone()).collect();
    assert_eq!(events, ["log_reopened", "stopping", "stopped"]);
}

#[test]
fn a_file_that_cannot_be_opened_again_is_told_and_the_open_one_is_written_on() {
    let folder = configured("[log]\nrequests_file = \"records/requests.jsonl\"\n");
    fs::create_dir(folder.path().join("records")).unwrap();
    let process = Process::serve(folder.path());
    let address = process.address();
    fs::rename(folder.path().join("records"), folder.path().join("moved")).unwrap();
    process.signal(Signal::USR1);
    let line = process.err_line("log_not_reopened");
    assert!(line.contains("records/requests.jsonl cannot be opened again: No such file"), "{line}");
    fetch(address, &Call::get("/v1/jobs")).refusal(401, "authentication_error");
    eventually("the record is written", || lines(&folder.path().join("moved/requests.jsonl")).len() == 1);
}

#[test]
fn wrong_settings_of_the_log_do_not_start_and_say_where() {
    for (settings, said) in [
        (
            "file = \"a.log\"\nrequests_file = \"a.log\"\n",
            "log.requests_file: is the file of log.file; records of requests need one of their own",
        ),
        (
            "requests = \"off\"\nrequests_file = \"a\"\n",
            "log.requests_file: has no effect with requests = \"off\"; remove one of the two",
        ),
        (
            "requests = \"off\"\nnames = true\n",
            "log.names: has no effect with requests = \"off\"; remove one of the two",
        ),
        ("format = \"xml\"\n", "log.format"),
        ("requests_file = \"none/a\"\n", "log.requests_file: cannot open "),
        ("file = \"none/a\"\n", "log.file: cannot open "),
    ] {
        let folder = configured(&format!("[log]\n{settings}"));
        let ran = keygate(folder.path(), &["serve"]).output().unwrap();
        let err = String::from_utf8(ran.stderr).unwrap();
        assert!(!ran.status.success() && err.contains(said), "{settings}: {err}");
    }
}

const POLICY: &str = r#"
scopes = ["jobs:read", "admin:all"]

[[route]]
id = "jobs"
methods = ["GET", "POST"]
paths = ["/jobs/{id}", "/jobs/{id}/parts/{part}", "/jobs/latest"]
scopes = ["jobs:read"]
upstream = "api"

[[route]]
id = "admin"
methods = ["GET"]
paths = ["/admin"]
scopes = ["admin:all"]
upstream = "api"

[[route]]
id = "away"
methods = ["GET"]
paths = ["/away"]
scopes = ["jobs:read"]
upstream = "away"
"#;

/// A gateway behind a trusted proxy, with these settings of its records.
fn recorded(log: &str) -> (Upstream, Gateway) {
    let upstream = Upstream::with(|_| Reply::ok("twelve bytes"));
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\ntrusted_proxies = [\"127.0.0.1\"]\n[log]\n\
         requests_file = \"requests.jsonl\"\n{log}"
    );
    let gateway = Gateway::builder()
        .settings(&settings)
        .policy(POLICY)
        .upstream("api", &upstream.url(), "http://127.0.0.1:9")
        .upstream("away", &refusing(), "http://127.0.0.1:9")
        .start();
    (upstream, gateway)
}

/// The record of the request that was sent as number `count`.
fn record(gateway: &Gateway, count: usize) -> Value {
    let file = gateway.folder().join("requests.jsonl");
    eventually("the record is written", || lines(&file).len() == count);
    lines(&file).remove(count - 1)
}

#[test]
fn a_record_tells_from_where_to_where_how_much_and_what_was_missing() {
    let (upstream, gateway) = recorded("");
    let key = gateway.key_with(&["jobs:read"]);
    let call = |call: Call| call.key(&key.secret).field("X-Forwarded-For", "198.51.100.7");
    gateway.fetch(&call(Call::post("/jobs/1/parts/2", "123456789")));
    let sent = record(&gateway, 1);
    let expected = serde_json::json!({
        "client.address": "198.51.100.7",
        "http.route": "jobs",
        "url.template": "/jobs/{id}/parts/{part}",
        "endpoint": upstream.address().to_string(),
        "http.request.body.size": 9,
        "http.response.body.size": 12,
        "reason": null,
        "missing_scope": null,
    });
    for (field, value) in expected.as_object().unwrap() {
        assert_eq!(sent[field], *value, "{field}");
    }
    assert_eq!((sent.get("key_name"), sent.get("organization_name")), (None, None));
    gateway.fetch(&call(Call::get("/jobs/latest")));
    assert_eq!(record(&gateway, 2)["url.template"], "/jobs/latest");
    gateway.fetch(&call(Call::get("/admin"))).refusal(403, "authorization_error");
    let refused = record(&gateway, 3);
    assert_eq!((&refused["missing_scope"], &refused["endpoint"]), (&Value::from("admin:all"), &Value::Null));
    assert_ne!(refused["http.response.body.size"], 0);
    gateway.fetch(&call(Call::get("/away"))).refusal(502, "bad_gateway");
    let away = record(&gateway, 4);
    assert!(away["endpoint"].as_str().unwrap().starts_with("127.0.0.1:"), "{away}");
    gateway.fetch(&Call::get("/no/such/path")).refusal(401, "authentication_error");
    let stranger = record(&gateway, 5);
    assert_eq!(
        (&stranger["client.address"], &stranger["url.template"]),
        (&Value::from("127.0.0.1"), &Value::Null)
    );
}

#[test]
fn a_record_has_names_where_they_are_asked_for() {
    let (_upstream, gateway) = recorded("names = true\n");
    let key = gateway.key_with(&["jobs:read"]);
    gateway.fetch(&Call::get("/jobs/1").key(&key.secret));
    let record = record(&gateway, 1);
    assert_eq!(
        (&record["key_name"], &record["organization_name"]),
        (&"a key".into(), &"an organisation".into())
    );
}

#[test]
fn an_endpoint_that_comes_and_goes_is_told_as_flapping() {
    const TIMES: usize = 8;
    // What listened at a port of another test for a moment would be an endpoint that is there and does not answer.
    let address = own_address();
    let url = format!("http://{address}");
    let folder = TempDir::new().unwrap();
    let policy =
        POLICY.replace("scopes = [\"jobs:read\"]", "public = true").replace("\"away\"\n", "\"api\"\n");
    GatewayBuilder::default()
        .settings(OPS)
        .policy(&policy)
        .upstream("api", &url, "http://127.0.0.1:9")
        .write(folder.path());
    let process = Process::serve(folder.path());
    let (gateway, ops) = (process.address(), process.ops_address());
    for n in 0..TIMES {
        eventually("it is away", || fetch(gateway, &Call::get("/jobs/1")).status == 502);
        let listener = TcpListener::bind(address).unwrap();
        let answers = std::thread::spawn(move || serve_one(&listener));
        eventually("it is back", || fetch(gateway, &Call::get("/jobs/1")).status == 200);
        answers.join().unwrap();
        println!("{n}");
    }
    let series = "keygate_log_events_total{event=\"upstream_unreachable\"}";
    assert_eq!(value(&scrape(ops), series), Some(TIMES as f64));
    let (_, log) = process.end();
    let told = |part: &str| log.lines().filter(|line| line.contains(part)).count();
    assert_eq!(told(" error upstream_unreachable: upstream "), 3, "{log}");
    assert_eq!(told(" error upstream_unreachable: flapping: 4 times in "), 1, "{log}");
    assert_eq!(told(&format!(": and {} more like this in the last ", TIMES - 4)), 1, "{log}");
    assert_eq!(told(" info endpoint_reachable: "), 3, "{log}");
}

/// Takes one connection and answers its requests until it has answered one.
fn serve_one(listener: &TcpListener) {
    use std::io::{Read, Write};
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.read(&mut [0; 4096]).unwrap();
    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").unwrap();
}

//! `keygate dev`, `keygate serve` and `keygate keys`, run as processes.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::process::{Process, keygate};
use crate::harness::{Call, Gateway, Upstream, fetch};

/// Everything that `dev` prints up to the line after the curl lines.
fn welcome(dev: &Process) -> Vec<String> {
    let mut lines = Vec::new();
    loop {
        lines.push(dev.out_line(""));
        if lines.last().unwrap().starts_with("Each request") {
            return lines;
        }
    }
}

fn dev(folder: &Path) -> Process {
    Process::keygate(folder, &["dev", "--listen", "127.0.0.1:0"])
}

#[test]
fn the_commands_that_dev_prints_work_in_a_shell() {
    let folder = TempDir::new().unwrap();
    let mut dev = dev(folder.path());
    let lines = welcome(&dev);
    assert!(lines[1].contains("demonstration") && lines[1].contains("FirstHandAPI"), "{lines:#?}");
    let exports: Vec<&String> = lines.iter().filter(|line| line.starts_with("export ")).collect();
    let curls: Vec<&String> = lines.iter().filter(|line| line.starts_with("curl ")).collect();
    assert!(exports[0].starts_with("export FIRSTHAND_API_KEY=fh_live_sk_"), "{exports:#?}");
    assert_eq!((exports.len(), curls.len()), (3, 4));
    let mut answers = Vec::new();
    for curl in &curls {
        let script = exports.iter().chain([curl]).map(|line| format!("{line}\n")).collect::<String>();
        let done = Command::new("sh").arg("-c").arg(&script).output().unwrap();
        let promised = curl.split_once('#').unwrap().1.trim()[..3].to_owned();
        let answer = String::from_utf8(done.stdout).unwrap();
        assert!(answer.starts_with(&format!("HTTP/1.1 {promised} ")), "{curl}\n{answer}");
        answers.push(answer);
    }
    assert!(answers[0].contains(r#""environment": "live""#) && answers[0].contains(r#""stars": 5"#));
    assert!(answers[1].contains(r#""environment": "test""#) && answers[1].contains(r#""stars": 4"#));
    assert!(answers[2].contains("jobs:write"), "{}", answers[2]);
    for status in ["200", "200", "403", "401"] {
        let line = dev.out_line(" jobs.");
        assert!(line.contains(&format!(" {status} ")), "{line}");
        assert!(!line.contains("sk_"), "{line}");
    }
    dev.signal(Signal::INT);
    assert_eq!(dev.wait().code(), Some(0));
}

#[test]
fn dev_keeps_its_folder_private_and_revokes_the_keys_of_its_last_start() {
    let folder = TempDir::new().unwrap();
    let url = |lines: &[String]| lines[0].rsplit_once("http://").unwrap().1.parse().unwrap();
    let secret = |lines: &[String]| {
        let line = lines.iter().find(|line| line.starts_with("export FIRSTHAND_API_KEY=")).unwrap();
        line.split_once('=').unwrap().1.to_owned()
    };
    let mut first = dev(folder.path());
    let lines = welcome(&first);
    let old = secret(&lines);
    assert_eq!(fetch(url(&lines), &Call::get("/v1/jobs").key(&old)).status, 200);
    let mode = |path: &str| fs::metadata(folder.path().join(path)).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(".keygate"), 0o700);
    assert_eq!(mode(".keygate/keygate.redb"), 0o600);
    assert_eq!(mode(".keygate/admin.sock"), 0o600);
    assert_eq!(fs::read_to_string(folder.path().join(".keygate/.gitignore")).unwrap(), "*\n");
    first.signal(Signal::TERM);
    assert_eq!(first.wait().code(), Some(0));

    let second = dev(folder.path());
    let lines = welcome(&second);
    assert_eq!(fetch(url(&lines), &Call::get("/v1/jobs").key(&old)).status, 401);
    assert_eq!(fetch(url(&lines), &Call::get("/v1/jobs").key(&secret(&lines))).status, 200);
}

#[test]
fn commands_reach_dev_with_the_configuration_that_it_names() {
    let folder = TempDir::new().unwrap();
    let dev = dev(folder.path());
    let lines = welcome(&dev);
    let line = lines.iter().find(|line| line.starts_with("To look at its keys: ")).unwrap();
    // As whoever has built it types it: there is no keygate in the path.
    let command = line.split_once(": ").unwrap().1;
    let listed = Command::new("sh").args(["-c", command]).current_dir(folder.path()).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    for name in ["live, all scopes", "live, read only", "test, all scopes"] {
        assert!(listed.contains(name), "{listed}");
    }
}

#[test]
fn dev_listens_on_loopback_only_and_names_a_port_in_use() {
    let folder = TempDir::new().unwrap();
    let open = keygate(folder.path(), &["dev", "--listen", "0.0.0.0:0"]).output().unwrap();
    assert_eq!(open.status.code(), Some(2));
    let said = String::from_utf8(open.stderr).unwrap();
    assert!(said.contains("loopback"), "{said}");

    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let refused = keygate(folder.path(), &["dev", "--listen", &address]).output().unwrap();
    assert_eq!(refused.status.code(), Some(1));
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(said.contains(&address) && said.contains("server.listen"), "{said}");
}

/// A folder with a configuration in front of these upstreams.
fn configured(live: &Upstream, test: &Upstream) -> TempDir {
    let folder = TempDir::new().unwrap();
    let settings = "[admin]\nsocket = \"keygate.sock\"\n[log]\nrequests = \"text\"";
    Gateway::builder().settings(settings).api(live, test).write(folder.path());
    folder
}

fn serve(folder: &Path) -> (Process, std::net::SocketAddr) {
    let serve = Process::keygate(folder, &["serve"]);
    let line = serve.err_line("listening on http://");
    let address = line.split_once("http://").unwrap().1.split(' ').next().unwrap().parse().unwrap();
    (serve, address)
}

/// The standard output of a command that must succeed.
#[track_caller]
fn said(folder: &Path, arguments: &[&str]) -> String {
    let done = keygate(folder, arguments).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

#[test]
fn keys_can_be_created_and_revoked_with_and_without_a_running_gateway() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = configured(&live, &test);
    let before = said(
        folder.path(),
        &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "made before"],
    );
    let (mut serving, address) = serve(folder.path());
    let during = said(
        folder.path(),
        &[
            "keys",
            "create",
            "--all-scopes",
            "--org",
            "Example Ltd",
            "--name",
            "made meanwhile",
            "--environment",
            "test",
        ],
    );
    let status = |secret: &str| fetch(address, &Call::get("/v1/jobs").key(secret.trim())).status;
    assert_eq!((status(&before), status(&during)), (200, 200));

    let listed = said(folder.path(), &["keys", "list"]);
    let rows: Vec<&str> = listed.lines().collect();
    assert_eq!(rows.len(), 3, "{listed}");
    assert!(rows[1].contains("made meanwhile") && rows[2].contains("made before"), "newest first: {listed}");
    assert!(!listed.contains(before.trim()) && rows[2].contains(&before.trim()[before.trim().len() - 4..]));

    let id = rows[2].split(' ').next().unwrap();
    let unasked = keygate(folder.path(), &["keys", "revoke", id]).output().unwrap();
    assert_eq!(unasked.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&unasked.stderr).contains("--yes"));
    assert_eq!(status(&before), 200);
    said(folder.path(), &["keys", "revoke", id, "--yes"]);
    assert_eq!((status(&before), status(&during)), (401, 200), "dead at once, though it was cached");

    serving.signal(Signal::TERM);
    assert_eq!(serving.wait().code(), Some(0));
    assert!(!folder.path().join("keygate.sock").exists());
    let listed = said(folder.path(), &["keys", "list", "--json"]);
    let keys: Vec<serde_json::Value> =
        listed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((keys[0]["status"].as_str(), keys[1]["status"].as_str()), (Some("active"), Some("revoked")));
}

#[test]
fn a_key_gets_the_requested_scopes_and_expiry() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = configured(&live, &test);
    let (_serving, address) = serve(folder.path());
    let narrow = [
        "keys",
        "create",
        "--org",
        "Example Ltd",
        "--name",
        "narrow",
        "--scopes",
        "jobs:read,usage:read",
        "--expires-in",
        "1h",
        "--json",
    ];
    let made: serde_json::Value = serde_json::from_str(&said(folder.path(), &narrow)).unwrap();
    assert_eq!(made["key"]["scopes"], serde_json::json!(["jobs:read", "usage:read"]));
    assert!(made["key"]["expires_at"].is_string());
    let secret = made["secret"].as_str().unwrap();
    assert_eq!(fetch(address, &Call::get("/v1/jobs").key(secret)).status, 200);
    assert_eq!(fetch(address, &Call::get("/v1/webhook_events").key(secret)).status, 403);
    for wrong in [
        &["--scopes", "jobs:delete"][..],
        &["--environment", "prod"],
        &["--expires-in", "soon"],
        &["--org", "org_1"],
    ] {
        let refused = keygate(
            folder.path(),
            &[&["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "x"], wrong].concat(),
        )
        .output()
        .unwrap();
        assert!(matches!(refused.status.code(), Some(1 | 2)), "{wrong:?}");
        assert!(refused.stdout.is_empty() && !refused.stderr.is_empty(), "{wrong:?}");
    }
}

#[test]
fn a_lifetime_that_is_no_duration_is_answered_with_what_to_write() {
    let folder = TempDir::new().unwrap();
    let create = ["keys", "create", "--name", "x", "--expires-in"];
    let edit = ["keys", "edit", "key_01J9ZQ6T5N8XKD3V4WPYB7C2HM", "--expires-in"];
    let token = ["admin", "token", "ada", "--expires-in"];
    for (command, text, advice) in [
        (&create[..], "never", "without this option a key never expires: leave it out"),
        (&create, "2999-12-31", "write how long it shall last from now: until then it is 35"),
        (&create, "2999-12-31T12:00:00+02:00", "write how long it shall last from now: until then it is 35"),
        (&create, "2001-12-31", "this time is over; write how long it shall last from now, as in 90d"),
        (&create, "soon", "write a number and a unit, as in 90d, 12h or 30m"),
        (&edit, "Never", "without this option the end of the key stays as it is"),
        (&token, "never", "a token always expires: write a long time, as in 365d"),
        (&["keys", "list", "--unused"], "never", "write a number and a unit, as in 90d, 12h or 30m"),
    ] {
        let refused = keygate(folder.path(), &[command, &[text]].concat()).output().unwrap();
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(advice), "{text}: {said}");
    }
}

#[test]
fn a_gateway_neither_logs_nor_stores_a_secret() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = configured(&live, &test);
    let (mut serving, address) = serve(folder.path());
    let secret =
        said(folder.path(), &["keys", "create", "--all-scopes", "--org", "Example Ltd", "--name", "secret"])
            .trim()
            .to_owned();
    for call in [
        Call::get("/v1/jobs").key(&secret),
        Call::get("/v1/jobs").key(&format!("{secret}x")),
        Call::get(&format!("/v1/jobs/{secret}?key={secret}")),
        Call::get("/v1/jobs").field("x-api-key", &secret).field("cookie", &secret),
        Call::new(&secret, "/v1/jobs").key(&secret),
        Call::get("//").key(&secret),
    ] {
        fetch(address, &call);
    }
    let mut written: Vec<String> = (0..6).map(|_| serving.out_line(" req_")).collect();
    serving.signal(Signal::TERM);
    serving.wait();
    written.push(serving.err_line("the gateway has ended"));
    let random = &secret[11..];
    assert!(!written.concat().contains(random), "{written:#?}");
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        let kept = fs::read(&path).unwrap_or_default();
        assert!(!kept.windows(random.len()).any(|part| part == random.as_bytes()), "{}", path.display());
    }
}

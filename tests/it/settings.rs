//! Settings that look right and are not: `keygate check` and `keygate serve` say so, and how to write what is meant.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;

use rustix::process::geteuid;
use tempfile::TempDir;

use crate::harness::Gateway;
use crate::harness::process::{Process, keygate};
use crate::harness::transport::CERTIFICATE;

const ROUTE: &str =
    "[[route]]\nid = \"a\"\nmethods = [\"GET\"]\npaths = [\"/a\"]\npublic = true\nupstream = \"api\"\n";

/// A folder with a configuration that has these settings and this policy.
fn configured(settings: &str, policy: &str) -> TempDir {
    let folder = TempDir::new().unwrap();
    let builder = Gateway::builder().upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2");
    builder.settings(settings).policy(policy).write(folder.path());
    folder
}

/// The exit code, standard output and standard error.
fn check_with(folder: &Path, environment: &[(&str, &str)]) -> (i32, String, String) {
    let output = keygate(folder, &["check"]).envs(environment.iter().copied()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

fn check(folder: &Path) -> (i32, String, String) {
    check_with(folder, &[])
}

/// Starts a gateway, and returns what it has said on standard error when it listens: the messages without time, level and
/// event.
fn said_at_start(folder: &Path, environment: &[(&str, &str)]) -> String {
    let mut command = keygate(folder, &["serve"]);
    command.envs(environment.iter().copied());
    let gateway = Process::start(command);
    let mut said = String::new();
    loop {
        let line = gateway.err_line("");
        said.push_str(line.split_once(": ").unwrap().1);
        said.push('\n');
        if line.contains("listening on") {
            return said;
        }
    }
}

#[test]
fn wildcards_and_parameters_of_other_routers_are_mistakes_with_the_right_spelling() {
    let paths =
        r#"["/static/*", "/api/:id", "/api/**", "/users/<id>/x", "/caf\u00e9", "v1", "/a b/{id}.json"]"#;
    let folder = configured("", &ROUTE.replace("[\"/a\"]", paths));
    let expected = r#"policy.toml:4:10: route[a].paths[0]: invalid value "/static/*"; the segment "*" is no parameter; write "/static/{*rest}": {id} is one whole segment, {*rest} at the end is everything beneath
policy.toml:4:23: route[a].paths[1]: invalid value "/api/:id"; the segment ":id" is no parameter; write "/api/{id}": {id} is one whole segment, {*rest} at the end is everything beneath
policy.toml:4:35: route[a].paths[2]: invalid value "/api/**"; the segment "**" is no parameter; write "/api/{*rest}": {id} is one whole segment, {*rest} at the end is everything beneath
policy.toml:4:46: route[a].paths[3]: invalid value "/users/<id>/x"; the segment "<id>" is no parameter; write "/users/{id}/x": {id} is one whole segment, {*rest} at the end is everything beneath
policy.toml:4:63: route[a].paths[4]: invalid value "/café"; the segment "café" has two readings; write "/caf%C3%A9": a path has no empty or dot segments, no needless percent-encoding and no `;`
policy.toml:4:77: route[a].paths[5]: invalid value "v1"; a path starts with a slash; write "/v1"
policy.toml:4:83: route[a].paths[6]: invalid value "/a b/{id}.json"; the segment "a b" has two readings: a path has no empty or dot segments, no needless percent-encoding and no `;`

7 mistakes
"#;
    assert_eq!(check(folder.path()), (1, String::new(), expected.to_owned()));
}

#[test]
fn a_variable_that_nearly_sets_a_key_fails_the_check_and_warns_at_the_start() {
    let folder = configured("", ROUTE);
    let environment = [
        ("KEYGATE_SERVER_LISTEN", "127.0.0.1:1"),
        ("KEYGATE_SERVER__WORKER", "3"),
        ("KEYGATE_PEPPER_FILE", "pepper"),
        ("keygate.log.requests", "json"),
        ("KEYGAT__CACHE__TTL", "1s"),
        ("KEYGATE_UPSTREAMS_API_LIVE", "[]"),
        // These are not near misses: of commands, of an orchestrator for a service called keygate, of other programs.
        ("KEYGATE_ADMIN_TOKEN", "x"),
        ("KEYGATE_SERVICE_HOST", "10.0.0.1"),
        ("KEYGATE_PORT_8080_TCP_ADDR", "10.0.0.1"),
        ("KEYGATE_STORE_PORT", "tcp://10.0.0.1:6379"),
        ("KEYGATE_HOME", "/opt/keygate"),
        ("SERVER_LISTEN", "x"),
        // Whoever sets the right one too may need the other elsewhere.
        ("KEYGATE_OPS_LISTEN", "127.0.0.1:1"),
        ("KEYGATE__OPS__LISTEN", "off"),
    ];
    let ignored = [
        "KEYGATE_PEPPER_FILE: the variable has no effect; did you mean KEYGATE__KEYS__PEPPER_FILE?",
        "KEYGATE_SERVER_LISTEN: the variable has no effect; did you mean KEYGATE__SERVER__LISTEN?",
        "KEYGATE_SERVER__WORKER: the variable has no effect; did you mean KEYGATE__SERVER__WORKERS?",
        "KEYGATE_UPSTREAMS_API_LIVE: the variable has no effect; did you mean KEYGATE__UPSTREAMS__API__LIVE?",
        "KEYGAT__CACHE__TTL: the variable has no effect; did you mean KEYGATE__CACHE__TTL?",
        "keygate.log.requests: the variable has no effect; did you mean KEYGATE__LOG__REQUESTS?",
    ];
    let expected = format!("{}\n\n6 mistakes\n", ignored.join("\n"));
    assert_eq!(check_with(folder.path(), &environment), (1, String::new(), expected));
    let said = said_at_start(folder.path(), &environment);
    let warnings: Vec<&str> =
        said.lines().filter(|line| line.contains("the variable has no effect")).collect();
    assert_eq!(warnings, ignored);
}

#[test]
fn a_variable_with_the_prefix_is_told_its_section() {
    let folder = configured("", ROUTE);
    let environment = [
        ("KEYGATE__SERVER_LISTEN", "127.0.0.1:1"),
        ("KEYGATE___SERVER__WORKERS", "2"),
        ("KEYGATE__PEPPER_FILE", "pepper"),
    ];
    let expected = "\
KEYGATE__PEPPER_FILE: pepper_file: unknown key `pepper_file`; did you mean KEYGATE__KEYS__PEPPER_FILE?
KEYGATE__SERVER_LISTEN: server_listen: unknown key `server_listen`; did you mean KEYGATE__SERVER__LISTEN?
KEYGATE___SERVER__WORKERS: _server: unknown key `_server`; did you mean `server`?

3 mistakes
";
    assert_eq!(check_with(folder.path(), &environment), (1, String::new(), expected.to_owned()));
}

/// Every setting that names a file with a secret, and a configuration that has them all.
const SECRETS: [&str; 7] =
    ["pepper", "audit-key", "outbox-key", "tokens", "server-key.pem", "redis-password", "sentinel-password"];
const WITH_SECRETS: &str = r#"
[server]
listen = "127.0.0.1:0"
tls = [{ cert = "server.pem", key = "server-key.pem" }]
[keys]
pepper_file = "pepper"
[audit]
key_file = "audit-key"
[outbox]
url = "http://127.0.0.1:3/orgs"
key_file = "outbox-key"
[admin]
listen = "127.0.0.1:0"
tokens_file = "tokens"
[store]
kind = "redis"
sentinels = ["127.0.0.1:4"]
master_name = "mymaster"
password_file = "redis-password"
sentinel_password_file = "sentinel-password"
"#;

#[test]
fn one_rule_says_who_may_read_a_file_with_a_secret() {
    let folder = configured(WITH_SECRETS, ROUTE);
    let path = |name: &str| folder.path().join(name);
    for name in SECRETS {
        fs::write(path(name), "0123456789abcdef0123456789abcdef\n").unwrap();
    }
    fs::write(path("tokens"), "").unwrap();
    CERTIFICATE.write(folder.path(), "server");
    let give = |name: &str, mode: u32| {
        fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    SECRETS.iter().for_each(|name| give(name, 0o600));
    let (code, out, err) = check(folder.path());
    assert_eq!((code, &*err), (0, ""), "{out}");

    // As Kubernetes makes them with fsGroup: of root, and the group of the process may read them.
    if geteuid().is_root() {
        for mode in [0o440, 0o640] {
            SECRETS.iter().for_each(|name| give(name, mode));
            let (code, _, err) = check(folder.path());
            assert_eq!((code, &*err), (0, ""), "{mode:o}");
        }
    }
    // Others may never read them, and the group only what root owns.
    let mut refused = vec![("0644", 0o644), ("0604", 0o604), ("0660", 0o660)];
    if geteuid().is_root() {
        for name in SECRETS {
            chown(path(name), Some(12_345), Some(12_345)).unwrap();
        }
        refused.push(("0440 of a user", 0o440));
    }
    for (what, mode) in refused {
        for name in SECRETS {
            SECRETS.iter().for_each(|name| give(name, 0o600));
            give(name, mode);
            let (code, out, err) = check(folder.path());
            assert_eq!((code, &*out), (1, ""), "{what} {name}");
            let said = format!("{name} can be read by others: chmod 600 {name}\n\n1 mistake\n");
            assert!(err.ends_with(&said), "{what}: {err}");
        }
    }
}

#[test]
fn a_terminator_that_is_not_named_is_a_warning() {
    let plaintext = "[server]\nlisten = \"127.0.0.1:0\"\nplaintext = \"behind a TLS terminator\"\nmax_connections_per_client = 100\n";
    let folder = configured(plaintext, ROUTE);
    let warning = "keygate.toml:3:13: server.plaintext: `trusted_proxies` does not name the TLS terminator, so every client \
                   has the terminator's address: all of them share 100 connections, one turn where lookups wait, the \
                   signups of one network, and one place in address lists; set trusted_proxies = [\"…\"]";
    let (code, out, err) = check(folder.path());
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains(&format!("\nlisten     127.0.0.1:0\nwarning    {warning}\n")), "{out}");
    let said = said_at_start(folder.path(), &[]);
    assert!(said.starts_with(&format!("{warning}\n")), "{said}");

    let named = configured(&format!("{plaintext}trusted_proxies = [\"192.0.2.7\"]\n"), ROUTE);
    assert!(!check(named.path()).1.contains("trusted_proxies"));
    assert!(!said_at_start(named.path(), &[]).contains("trusted_proxies"));
}

#[test]
fn the_shipped_deployment_names_its_terminator() {
    let shipped = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/docker");
    let settings = fs::read_to_string(shipped.join("keygate.toml")).unwrap();
    let compose = fs::read_to_string(shipped.join("compose.yml")).unwrap();
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("pepper"), "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(folder.path().join("pepper"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(folder.path().join("keygate.toml"), settings.replace("/var/lib/keygate/pepper", "pepper"))
        .unwrap();
    fs::write(folder.path().join("policy.toml"), ROUTE).unwrap();
    let (code, out, err) = check(folder.path());
    assert_eq!((code, &*err), (0, ""));
    assert!(!out.contains("warning"), "{out}");
    let line = settings.lines().find(|line| line.starts_with("trusted_proxies = ")).unwrap();
    let address = line.split('"').nth(1).unwrap();
    assert!(compose.contains(&format!("gateway: {address}\n")), "the network's address at the machine");
}

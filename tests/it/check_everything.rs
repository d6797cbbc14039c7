//! `keygate check` shows every mistake at once, each of them once, at the line where it is.

use std::fs::{self, OpenOptions};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, geteuid, kill_process};
use tempfile::TempDir;

use crate::harness::desk::write_secret;
use crate::harness::process::{Process, copy_binary, keygate};
use crate::harness::transport::Certificate;
use crate::harness::{Call, Gateway, eventually, fetch};

/// Writes `keygate.toml` and `policy.toml`.
fn configured(toml: impl AsRef<[u8]>, policy: impl AsRef<[u8]>) -> TempDir {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("keygate.toml"), toml).unwrap();
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    folder
}

/// The exit code, standard output and standard error.
fn run(folder: &Path, arguments: &[&str]) -> (i32, String, String) {
    ran(keygate(folder, arguments))
}

fn ran(mut command: Command) -> (i32, String, String) {
    let output = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

#[track_caller]
fn assert_check_says(folder: &Path, expected: &str) {
    assert_eq!(run(folder, &["check"]), (1, String::new(), expected.to_owned()));
}

const TOML: &str = "\
[server]
listen = \"127.0.0.1:0\"
[store]
kind = \"embedded\"
[upstreams.api]
live = [\"http://127.0.0.1:9000\"]
test = [\"http://127.0.0.1:9001\"]
[policy]
file = \"policy.toml\"
";
const POLICY: &str = "\
scopes = [\"orders:read\", \"orders:write\"]

[[route]]
id = \"orders\"
methods = [\"GET\"]
paths = [\"/orders\"]
scopes = [\"orders:read\"]
upstream = \"api\"
";

#[test]
fn the_gateway_is_no_upstream_of_its_own() {
    let toml = "\
[server]
listen = \"[::]:8080\"
plaintext = \"behind a TLS terminator\"
[admin]
listen = \"127.0.0.1:8080\"
tokens_file = \"tokens\"
[ops]
listen = \"127.0.0.1:9464\"
[store]
kind = \"embedded\"
[outbox]
url = \"http://localhost:9464/orgs\"
key_file = \"key\"
[upstreams.api]
live = [\"http://127.0.0.1:9000\", \"http://localhost:8080\"]
test = [\"http://[::1]:8080\", \"http://127.0.0.1:9464\", \"http://127.0.0.1:9001\"]
[policy]
file = \"policy.toml\"
";
    let folder = configured(toml, POLICY);
    for name in ["tokens", "key"] {
        fs::write(folder.path().join(name), "# 0123456789abcdef0123456789abcdef").unwrap();
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    assert_check_says(
        folder.path(),
        "\
keygate.toml:5:10: admin.listen: 127.0.0.1:8080 is also the address of server.listen; give each its own port
keygate.toml:12:7: outbox.url: this is the gateway itself (ops.listen); name the service that is notified
keygate.toml:15:34: upstreams.api.live[1]: http://localhost:8080 is this gateway itself (server.listen), so requests would come back to it; name the address of your API
keygate.toml:16:9: upstreams.api.test[0]: http://[::1]:8080 is this gateway itself (server.listen), so requests would come back to it; name the address of your API
keygate.toml:16:30: upstreams.api.test[1]: http://127.0.0.1:9464 is this gateway itself (ops.listen), so requests would come back to it; name the address of your API

5 mistakes
",
    );
}

#[test]
fn a_name_that_this_machine_gives_itself_is_told_as_a_warning() {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = name.trim();
    let toml = TOML
        .replace(
            "\"127.0.0.1:0\"\n",
            "\"0.0.0.0:8080\"\nplaintext = \"behind a TLS terminator\"\ntrusted_proxies = [\"192.0.2.7\"]\n",
        )
        .replace("9000\"", &format!("9000\", \"http://{name}:8080\""))
        .replace("9001\"", "9001\", \"http://api.invalid:8080\"")
        + &format!("[outbox]\nurl = \"http://{name}:8080/orgs\"\nkey_file = \"key\"\n");
    let folder = configured(toml, POLICY);
    write_secret(&folder.path().join("key"), "0123456789abcdef0123456789abcdef");
    let (code, out, err) = run(folder.path(), &["check"]);
    assert_eq!((code, &*err), (0, ""));
    let warnings: Vec<&str> = out.lines().filter(|line| line.starts_with("warning ")).collect();
    let upstream = format!(
        "warning    keygate.toml:8:8: upstreams.api.live: http://{name}:8080 is this gateway itself (server.listen) by the \
         names that this machine has in /etc/hosts and for itself, so requests would come back to it; name the address of \
         your API"
    );
    let outbox = format!(
        "warning    keygate.toml:13:7: outbox.url: http://{name}:8080 is this gateway itself (server.listen) by the names \
         that this machine has in /etc/hosts and for itself; name the service that is notified"
    );
    assert_eq!(warnings[..2], [upstream, outbox], "{out}");
    assert!(!out.contains("warning    keygate.toml:9"), "{out}");
}

#[test]
fn every_wrong_line_of_a_file_of_tokens_is_told() {
    let admin = "[admin]\nlisten = \"127.0.0.1:0\"\ntokens_file = \"tokens\"\n";
    let folder = configured(format!("{TOML}{admin}"), POLICY);
    let made = run(folder.path(), &["admin", "token", "ada", "--add", "tokens"]);
    assert_eq!(made.0, 0, "{made:?}");
    let good = fs::read_to_string(folder.path().join("tokens")).unwrap();
    fs::write(folder.path().join("tokens"), format!("ada 12\n{good}# a word\n\nkgadmin_secret\n{good}bob\n"))
        .unwrap();
    let said = "tokens, lines 1, 5 and 7: expected a name, 64 hexadecimal digits and a time, perhaps a role and organisations, as \
                `keygate admin token` prints them\n";
    assert_check_says(folder.path(), &format!("keygate.toml:12:15: admin.tokens_file: {said}\n1 mistake\n"));
    let (code, out, err) = run(folder.path(), &["serve"]);
    assert!(code == 1 && out.is_empty() && err.contains(said), "{err}");
}

#[test]
fn a_mistake_in_a_route_hides_no_conflict() {
    let second = "\
[[route]]
id = \"orders\"
methods = [\"GET\", \"get\"]
paths = [\"/orders\", \"orders/{id}\"]
scopes = [\"order:read\"]
upstream = \"apj\"
[[route]]
id = \"writing\"
methods = [\"GET\"]
paths = [\"/orders\"]
any_scope = [\"orders:write\"]
upstream = \"api\"
environment = \"tset\"
";
    let folder = configured(TOML, format!("{POLICY}{second}"));
    assert_check_says(
        folder.path(),
        "\
policy.toml:9:1: route[orders]: two routes are called \"orders\"; give each its own id; the other is in line 3
policy.toml:9:1: route[orders]: routes \"orders\" and \"orders\" both claim GET /orders; remove it from one of them
policy.toml:11:19: route[orders].methods[1]: \"get\" is not a method; did you mean \"GET\"?
policy.toml:12:21: route[orders].paths[1]: invalid value \"orders/{id}\"; a path starts with a slash; write \"/orders/{id}\"
policy.toml:13:11: route[orders].scopes[0]: \"order:read\" is not in the list `scopes` at the top of the file; did you mean `orders:read`?
policy.toml:14:12: route[orders].upstream: there is no upstream \"apj\"; did you mean `api`?
policy.toml:15:1: route[writing]: routes \"orders\" and \"writing\" both claim GET /orders; remove it from one of them, or write one route with any_scope = [\"orders:read\", \"orders:write\"] if one of them is enough
policy.toml:21:15: route[writing].environment: invalid value \"tset\"; did you mean \"test\"?
policy.toml:21:15: route[writing].environment: only valid on a public route to an upstream; remove it

9 mistakes
",
    );
}

#[test]
fn one_missing_bracket_is_one_mistake_and_hides_no_other() {
    for (right, wrong, said) in [
        (
            "\"orders:write\"]",
            "\"orders:write\"",
            "policy.toml:1:10: invalid TOML: the list that begins here has no end; write ] behind it",
        ),
        (
            "methods = [\"GET\"]",
            "methods = [\"GET\"",
            "policy.toml:5:11: invalid TOML: the list that begins here has no end; write ] behind it",
        ),
        (
            "methods = [\"GET\"]",
            "methods = [\"GET]",
            "policy.toml:5:12: invalid TOML: the text that begins here has no end; write the quotation mark behind it",
        ),
        (
            "[[route]]",
            "[[route]",
            "policy.toml:3:9: invalid TOML: unclosed array table, expected `]`; write [[route]]",
        ),
    ] {
        let another = "[[route]]\nid = \"second\"\nmethods = [\"GET\"]\npaths = [\"/second\"]\nany_key = true\nupstream = \"apj\"\n";
        let folder = configured(TOML, format!("{}{another}", POLICY.replacen(right, wrong, 1)));
        let expected = format!(
            "{said}\npolicy.toml:14:12: route[second].upstream: there is no upstream \"apj\"; did you mean `api`?\n\n2 mistakes\n"
        );
        assert_check_says(folder.path(), &expected);
    }
    let folder = configured(TOML.replace("[upstreams.api]", "[upstreams.api"), POLICY);
    assert_check_says(
        folder.path(),
        "keygate.toml:5:15: invalid TOML: unclosed table, expected `]`; write [upstreams.api]\n\n1 mistake\n",
    );
}

#[test]
fn a_key_or_a_section_that_stands_twice_is_told_with_both_lines() {
    let toml = format!("{TOML}[ops]\nlisten = \"off\"\n# again\nlisten = \"off\"\n[store]\npath = \"x\"\n");
    assert_check_says(
        configured(toml, POLICY).path(),
        "\
keygate.toml:13:1: `listen` stands twice in [ops], lines 11 and 13; remove one
keygate.toml:14:1: [store] stands twice, lines 3 and 14; put its keys below one heading

2 mistakes
",
    );
    let policy = format!(
        "{POLICY}[route]\nid = \"b\"\nmethods = [\"GET\"]\npaths = [\"/b\"]\nany_key = true\nupstream = \"api\"\n"
    );
    assert_check_says(
        configured(TOML, policy).path(),
        "policy.toml:9:1: a heading with single brackets, and with double ones in line 3; write [[route]]\n\n1 mistake\n",
    );
}

#[test]
fn a_file_in_another_encoding_is_told_and_still_checked() {
    let toml = format!("# Zugänge\n{}", TOML.replace("embedded", "embeded"));
    let kind = "store.kind: invalid value \"embeded\"; did you mean \"embedded\"?";
    let utf16: Vec<u8> = format!("\u{FEFF}{toml}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert_check_says(
        configured(utf16, POLICY).path(),
        &format!(
            "keygate.toml:1:1: the file is in UTF-16; save it as UTF-8\nkeygate.toml:5:8: {kind}\n\n2 mistakes\n"
        ),
    );
    let latin1 = |text: &str| -> Vec<u8> { text.chars().map(|c| u8::try_from(c).unwrap()).collect() };
    assert_check_says(
        configured(latin1(&toml), latin1(&format!("# é\n{POLICY}"))).path(),
        &format!(
            "\
keygate.toml:1:6: the byte 0xE4 is not UTF-8, so the file is probably in Latin-1 or Windows-1252; save it as UTF-8
keygate.toml:5:8: {kind}
policy.toml:1:3: the byte 0xE9 is not UTF-8, so the file is probably in Latin-1 or Windows-1252; save it as UTF-8

3 mistakes
"
        ),
    );
    let marked = configured(format!("\u{FEFF}{TOML}"), format!("\u{FEFF}{POLICY}"));
    assert_eq!(run(marked.path(), &["check"]).0, 0, "a byte-order mark of UTF-8 is allowed");
}

#[test]
fn mistakes_in_files_are_told_at_the_line_that_names_the_file_beside_all_others() {
    let toml = "\
[server]
listen = \"127.0.0.1:0\"
tls = [
  { cert = \"good.pem\", key = \"other-key.pem\" },
  { cert = \"none.pem\", key = \"good-key.pem\" },
  { cert = \"good.pem\", key = \"open-key.pem\" },
]
[keys]
pepper_file = \"short\"
[audit]
key_file = \"none\"
[store]
kind = \"redis\"
url = \"rediss://127.0.0.1:1\"
password_file = \"two-lines\"
[store.tls]
ca = \"good-key.pem\"
[upstreams.api]
live = [\"http://127.0.0.1:9000\"]
tset = [\"http://127.0.0.1:9001\"]
shared = true
[policy]
file = \"policy.toml\"
";
    let folder = configured(toml, POLICY);
    let write = |name: &str, text: &str, mode: u32| {
        fs::write(folder.path().join(name), text).unwrap();
        fs::set_permissions(folder.path().join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    Certificate::for_names(&["good.example"]).write(folder.path(), "good");
    Certificate::for_names(&["other.example"]).write(folder.path(), "other");
    write("open-key.pem", "x", 0o604);
    write("short", "x", 0o600);
    write("two-lines", "a\nb", 0o600);
    let expected = "\
keygate.toml:4:30: server.tls[good.pem].key: the key in other-key.pem does not belong to the first certificate in good.pem; name a pair that belongs together, with the server's own certificate first in its file
keygate.toml:5:12: server.tls[none.pem].cert: cannot read none.pem: No such file or directory (os error 2)
keygate.toml:6:30: server.tls[good.pem].key: the key open-key.pem can be read by others: chmod 600 open-key.pem
keygate.toml:9:15: keys.pepper_file: short is too short: write at least 32 random bytes, for instance with `openssl rand -base64 48`
keygate.toml:11:12: audit.key_file: cannot read none: No such file or directory (os error 2)
keygate.toml:15:17: store.password_file: two-lines does not hold a password: write it there as text, on one line
keygate.toml:17:6: store.tls.ca: there is no certificate in good-key.pem; name the file with the certificate, and its chain behind it
keygate.toml:20:1: upstreams.api.tset: unknown key `tset`; did you mean `test`?

8 mistakes
";
    assert_check_says(folder.path(), expected);
    // `serve` refuses the same files in the same words.
    fs::write(folder.path().join("keygate.toml"), toml.replace("tset = [\"http://127.0.0.1:9001\"]", ""))
        .unwrap();
    let (_, _, checked) = run(folder.path(), &["check"]);
    assert_eq!(run(folder.path(), &["serve"]), (1, String::new(), checked));
}

#[test]
fn a_role_that_does_not_fit_is_told_with_the_other_mistakes() {
    let folder = configured(TOML, POLICY.replace("\"api\"", "\"apj\""));
    let expected = "\
--role proxy: this role creates no keys, so it needs a store that other gateways share; set store.kind = \"redis\"
policy.toml:8:12: route[orders].upstream: there is no upstream \"apj\"; did you mean `api`?

2 mistakes
";
    let said = run(folder.path(), &["check", "--role", "proxy"]);
    assert_eq!(said, (1, String::new(), expected.to_owned()));
}

#[test]
fn messages_say_what_to_write() {
    let toml = TOML.replace(
        "[server]\n",
        "[server]\ntls = { cert = \"a\", key = \"b\" }\nworkers = four\nidle_timeout =\n",
    );
    let policy = POLICY
        .replace("[\"GET\"]", "[\"*\", \"any\", \"GET, POST\", \"GET\"]")
        .replace("\"orders:write\"]", "\"orders:*\"]");
    assert_check_says(
        configured(toml, policy).path(),
        "\
keygate.toml:2:7: server.tls: expected a list of sections, found a section; write a list, tls = [{ … }], or [[server.tls]] for each of them
keygate.toml:3:11: invalid TOML: a text stands in quotation marks; put it in quotes
keygate.toml:4:15: invalid TOML: there is no value; write one behind the =
policy.toml:1:26: scopes[1]: invalid value \"orders:*\"; there is no wildcard: list the scopes
policy.toml:5:12: route[orders].methods[0]: \"*\" is not a method; there is no wildcard: list the methods, as in [\"GET\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\"]
policy.toml:5:17: route[orders].methods[1]: \"any\" is not a method; there is no wildcard: list the methods, as in [\"GET\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\"]
policy.toml:5:24: route[orders].methods[2]: \"GET, POST\" is not a method; write each method for itself, as in [\"GET\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\"]

7 mistakes
",
    );
}

#[test]
fn a_misspelt_scope_of_a_new_key_is_told_with_the_right_one() {
    let folder = configured(TOML, POLICY);
    let create = ["keys", "create", "--org", "Example Ltd", "--name", "a", "--scopes", "order:read"];
    let said = run(folder.path(), &create);
    let expected = "keygate: scopes: there is no scope order:read; did you mean orders:read?";
    // Lines of the log may stand beside it.
    let is_told = said.2.lines().any(|line| line == expected);
    assert!(said.0 == 1 && said.1.is_empty() && is_told, "{said:?}");
}

#[test]
fn dev_says_that_it_listens_on_loopback_only() {
    let folder = TempDir::new().unwrap();
    for address in ["0.0.0.0", "0.0.0.0:8080", "[::]:8080", "192.0.2.1:80"] {
        let (code, out, err) = run(folder.path(), &["dev", "--listen", address]);
        let said = format!(
            "error: invalid value '{address}' for '--listen <ADDRESS>': dev listens on loopback only; for other addresses use \
             init and serve\n"
        );
        assert!(code == 2 && out.is_empty() && err.starts_with(&said), "{err}");
    }
    assert!(!folder.path().join(".keygate").exists());
}

#[test]
fn an_address_that_cannot_be_had_is_told_with_what_to_do() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap();
    let folder = configured(TOML.replace("127.0.0.1:0", &address.to_string()), POLICY);
    let said = format!(
        "keygate: cannot listen on {address}: Address already in use (os error 98); another process listens there; stop it, or \
         set server.listen (KEYGATE__SERVER__LISTEN) to an address that is free\n"
    );
    assert_eq!(without_room(run(folder.path(), &["serve"])), (1, String::new(), said));
}

/// The configuration of a gateway on 127.0.0.1 that anybody can start, and a command that does so without the rights of
/// root. The user and the group are those that are nobody's. `capabilities` are the only ones that it may have.
fn on_port(port: u16, capabilities: &[&str]) -> (TempDir, Command) {
    let toml = TOML.replace("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    let folder = configured(format!("{toml}[ops]\nlisten = \"off\"\n"), POLICY);
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    if !geteuid().is_root() {
        let command = keygate(folder.path(), &["serve"]);
        return (folder, command);
    }
    // The binary may lie in a folder that only root can enter.
    let binary = copy_binary(folder.path());
    let only =
        capabilities.iter().fold("-all".to_owned(), |only, capability| format!("{only},+{capability}"));
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"]);
    for set in ["bounding-set", "inh-caps", "ambient-caps"] {
        command.arg(format!("--{set}={only}"));
    }
    command.arg(binary).arg("serve").current_dir(folder.path());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap());
    (folder, command)
}

/// The capabilities that the shipped unit gives, in the spelling of setpriv(1).
fn capabilities_of_the_unit() -> Vec<String> {
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/keygate.service");
    let unit = fs::read_to_string(unit).unwrap();
    let given = unit.lines().find_map(|line| line.strip_prefix("AmbientCapabilities=")).unwrap();
    given.split_whitespace().map(|name| name.trim_start_matches("CAP_").to_ascii_lowercase()).collect()
}

#[test]
fn ports_below_1024_take_the_capability_of_the_unit_and_nothing_more() {
    let first_free = fs::read_to_string("/proc/sys/net/ipv4/ip_unprivileged_port_start").unwrap_or_default();
    if first_free.trim() != "1024" {
        println!("not tested: on this machine everybody may have ports from {} on", first_free.trim());
        return;
    }
    let (_folder, command) = on_port(443, &[]);
    let said = "keygate: cannot listen on 127.0.0.1:443: Permission denied (os error 13); ports below 1024 need the right \
                CAP_NET_BIND_SERVICE, and deploy/README.md shows how to give it; or set server.listen \
                (KEYGATE__SERVER__LISTEN) to a higher port\n";
    assert_eq!(without_room(ran(command)), (1, String::new(), said.to_owned()));
    if !geteuid().is_root() {
        println!("not tested: only root can give the capability, and this is not root");
        return;
    }
    let port = (600..1024).rev().find(|port| TcpListener::bind(("127.0.0.1", *port)).is_ok()).unwrap();
    let given = capabilities_of_the_unit();
    let (_folder, command) = on_port(port, &given.iter().map(String::as_str).collect::<Vec<_>>());
    let serving = Process::start(command);
    let address = serving.address();
    assert_eq!(address.port(), port);
    let status = fs::read_to_string(format!("/proc/{}/status", serving.id())).unwrap();
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    // CAP_NET_BIND_SERVICE is number 10 (capability.h).
    assert_eq!((&*field("CapEff:"), &*field("Uid:")), ("0000000000000400", "65534\t65534\t65534\t65534"));
    assert_eq!(fetch(address, &Call::get("/orders")).status, 401);
    serving.end();
}

/// What a start said after its first line, which tells how much room there is.
fn without_room((code, out, err): (i32, String, String)) -> (i32, String, String) {
    let rest = err.split_once('\n').filter(|(first, _)| first.contains(" info room: "));
    (code, out, rest.map_or_else(|| err.clone(), |(_, rest)| rest.to_owned()))
}

#[test]
fn a_gateway_whose_log_cannot_be_written_serves_all_the_same() {
    let folder = TempDir::new().unwrap();
    let builder = Gateway::builder().upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2");
    // Nobody can read its address, so it gets one that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    builder.settings(&format!("[server]\nlisten = \"{address}\"\nworkers = 1\n")).write(folder.path());
    let full = || OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut command = keygate(folder.path(), &["serve"]);
    let mut serving = command.stdin(Stdio::null()).stdout(full()).stderr(full()).spawn().unwrap();
    eventually("it serves", || {
        assert_eq!(serving.try_wait().unwrap(), None, "it has ended");
        std::net::TcpStream::connect(address).is_ok()
    });
    assert_eq!(fetch(address, &Call::get("/v1/jobs")).status, 401);
    kill_process(Pid::from_raw(i32::try_from(serving.id()).unwrap()).unwrap(), Signal::TERM).unwrap();
    assert_eq!(serving.wait().unwrap().code(), Some(0));
}

#[test]
fn a_reload_tells_the_line_that_names_a_wrong_certificate() {
    let toml = TOML.replace(
        "[server]\n",
        "[server]\ndrain_delay = \"0s\"\ntls = [{ cert = \"a.pem\", key = \"a-key.pem\" }]\n",
    );
    let folder = configured(format!("{toml}[ops]\nlisten = \"off\"\n"), POLICY);
    Certificate::for_names(&["a.example"]).write(folder.path(), "a");
    let mut serving = Process::serve(folder.path());
    serving.err_line("listening on https://");
    fs::write(folder.path().join("a.pem"), "").unwrap();
    serving.signal(Signal::HUP);
    serving.err_line(": the one before stays in force");
    serving.err_line("keygate.toml:3:17: server.tls[a.pem].cert: there is no certificate in a.pem; ");
    serving.terminate();
    assert_eq!(serving.wait().code(), Some(0));
}

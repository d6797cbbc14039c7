//! A narrow rule beside a wide one, in front of routers that read some paths of the wide rule as paths of the narrow one.
//!
//! `KEYGATE_LONG=1 cargo test --test it other_routers:: -- --nocapture` sends 20,000 paths and not 1,500, and installs
//! Starlette and Express with `pip` and `npm`. It uses nginx, PHP, Go, Sinatra and Rails where they are installed
//! (`apt-get install nginx-light php-cli golang-go ruby-sinatra ruby-rails`), and says which are missing.

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use keygate::config::FIRSTHAND_POLICY;
use tempfile::TempDir;

use crate::harness::{Call, Gateway, PATIENCE, Process, TestKey, World, is_long, unhurried};

/// Under each prefix a wide rule, whose key the attacker has, and a narrow one.
const RULES: [(&str, &[&str], &[&str], &str); 5] = [
    ("a", &["/a/{*rest}"], &["/a/admin", "/a/admin/{*rest}"], ""),
    ("b", &["/b/{*rest}"], &["/b/admin", "/b/admin/{*rest}"], "encoded_slash = true\n"),
    ("c", &["/c/{id}"], &["/c/admin", "/c/admin/x"], "encoded_slash = true\n"),
    ("d", &["/d/{id}/audit"], &["/d/{id}"], ""),
    ("e", &["/e/{id}", "/e/{id}/files/{*path}"], &["/e/admin", "/e/admin/files/x"], ""),
];

/// All rules; `more` is added to the wide ones.
fn policy(more: &str) -> String {
    let mut policy = "scopes = [\"wide\", \"narrow\"]\n".to_owned();
    for (name, wide, narrow, settings) in RULES {
        policy += &format!(
            "[[route]]\nid = \"{name}.wide\"\nmethods = [\"GET\"]\npaths = {wide:?}\nscopes = [\"wide\"]\nupstream = \
             \"api\"\n{settings}{more}[[route]]\nid = \"{name}.narrow\"\nmethods = [\"GET\"]\npaths = {narrow:?}\nscopes = \
             [\"narrow\"]\nupstream = \"api\"\n"
        );
    }
    policy
}

/// The targets that reach the upstream, of these.
fn forwarded(world: &World, targets: &[String], key: &TestKey) -> Vec<String> {
    let (mut wire, mut forwarded) = (world.gateway.connect(), Vec::new());
    for target in targets {
        world.live.forget();
        let call = Call::get(target).key(&key.secret);
        let answer = wire.call(&call).unwrap_or_else(|| {
            // A refusal may have closed the connection.
            wire = world.gateway.connect();
            wire.call(&call).unwrap_or_else(|| panic!("no answer to {target}"))
        });
        let seen = world.live.seen();
        assert_eq!(seen.len(), usize::from(answer.status == 200), "{target}: {}", answer.status);
        forwarded.extend(seen.iter().map(|seen| seen.request_line().split(' ').nth(1).unwrap().to_owned()));
    }
    forwarded
}

#[test]
fn a_path_that_some_router_reads_as_another_rules_needs_the_access_of_both_rules() {
    let world = World::with(&policy(""));
    let [wide, narrow, both] = [&["wide"][..], &["narrow"], &["wide", "narrow"]];
    let [wide, narrow, both] = [wide, narrow, both].map(|scopes| world.gateway.key_with(scopes));
    for concerned in [
        "/a/admin.json",
        "/a/admin.json/",
        "/a/admin.tar.gz",
        "/a/Admin.json",
        "/a/admin%20",
        "/a/admin.",
        "/a/admin%20/x",
        "/a/admin.json%3Fx",
        "/a/admin%20%23",
        "/a/admin.json;x",
        "/a/admin.;x/y",
        "/b/admin%2Fx",
        "/b/admin%5Cx",
        "/b/%2Fadmin",
        "/b/admin%2Fx.json",
        "/c/admin%2Fx",
        "/c/admin%2F",
        "/d/x%3F/audit",
        "/d/x%23/audit",
        "/e/admin.json",
        "/e/admin/files/x.json",
        "/e/admin%3F/files/y",
    ] {
        let statuses = [&wide, &narrow, &both].map(|key| world.status("GET", concerned, Some(key)));
        assert_eq!(statuses, [400, 400, 200], "{concerned}");
        assert_eq!(world.status("GET", concerned, None), 401, "{concerned}");
    }
    for (harmless, status) in [
        ("/a/index.html", 200),
        ("/a/a.b.c", 200),
        ("/a/v1.2", 200),
        ("/a/v1.2/", 200),
        ("/a/report%20final.pdf", 200),
        ("/a/dir/admin.json", 200),
        ("/a/administration.json", 200),
        ("/a/.well-known", 200),
        ("/b/x%2Fadmin.json", 200),
        ("/c/x%2Fy.tar.gz", 200),
        ("/d/x.json/audit", 200),
        ("/e/x/files/a.b", 200),
        ("/e/file.json", 200),
        ("/e/x%3F", 200),
        // Of the narrow rule itself, in every reading.
        ("/a/admin/x.json", 403),
    ] {
        assert_eq!(world.status("GET", harmless, Some(&wide)), status, "{harmless}");
    }
    assert_eq!(world.status("GET", "/a/admin/x.json", Some(&narrow)), 200);
}

#[test]
fn a_rule_can_say_that_its_upstream_reads_paths_exactly() {
    let world = World::with(&policy("literal = true\n"));
    let key = world.gateway.key_with(&["wide"]);
    for target in ["/a/admin.json", "/a/admin%20", "/b/admin%2Fx", "/d/x%3F/audit", "/e/admin.json"] {
        assert_eq!(world.status("GET", target, Some(&key)), 200, "{target}");
    }
    for target in ["/a/Admin", "/a/admin;x", "/a/admin%3F", "/d/x%2F/audit"] {
        assert_eq!(world.status("GET", target, Some(&key)), 400, "{target} has two readings in any case");
    }
}

#[test]
fn the_rules_count_that_have_the_method_or_deny_it_and_their_targets_and_public_ones_too() {
    let world = World::with(
        r#"
scopes = ["a"]
[[route]]
id = "public"
methods = ["GET", "DELETE"]
paths = ["/p/{*rest}"]
public = true
upstream = "api"
[[route]]
id = "closed"
methods = ["GET"]
paths = ["/p/closed"]
scopes = ["a"]
upstream = "api"
[[route]]
id = "open"
methods = ["GET"]
paths = ["/p/open"]
public = true
upstream = "api"
[[route]]
id = "denies"
methods = ["POST"]
paths = ["/p/denies"]
other_methods = "deny"
scopes = ["a"]
upstream = "api"
[[route]]
id = "write"
methods = ["POST"]
paths = ["/p/write"]
scopes = ["a"]
upstream = "api"
[[route]]
id = "own"
methods = ["GET"]
paths = ["/p/own"]
any_key = true
serve = "keys.self"
"#,
    );
    let key = world.gateway.live_key().secret;
    for (method, target, stranger, holder) in [
        ("GET", "/p/open.json", 200, 200),
        ("GET", "/p/other.json", 200, 200),
        ("GET", "/p/closed.json", 401, 200),
        ("DELETE", "/p/closed.json", 200, 200),
        ("GET", "/p/write.json", 200, 200),
        ("GET", "/p/denies.json", 401, 400),
        ("DELETE", "/p/denies/", 401, 400),
        ("GET", "/p/own.json", 401, 400),
    ] {
        let status = |call: Call| world.gateway.fetch(&call).status;
        assert_eq!(status(Call::new(method, target)), stranger, "{method} {target}");
        assert_eq!(status(Call::new(method, target).key(&key)), holder, "{method} {target}");
    }
}

#[test]
fn behind_a_proxy_of_decoded_paths_the_shipped_policy_keeps_its_rules_apart() {
    let world = World::with(FIRSTHAND_POLICY);
    let [auditor, reader] = ["audit:read", "jobs:read"].map(|scope| world.gateway.key_with(&[scope]));
    for target in ["/v1/jobs/X%3F/audit", "/v1/jobs/X%23/audit", "/v1/jobs/X%3Fa=b/audit"] {
        assert_eq!(world.status("GET", target, Some(&auditor)), 400, "{target}");
        assert_eq!(world.status("GET", target, Some(&reader)), 400, "{target}");
    }
    assert_eq!(world.status("GET", "/v1/jobs/X/audit", Some(&auditor)), 200);
    for target in ["/v1/jobs/X%3F", "/v1/jobs/a.b", "/v1/submissions/summary.json"] {
        assert_eq!(world.status("GET", target, Some(&reader)), 200, "{target}");
    }
}

#[test]
fn check_lists_the_rules_with_paths_that_some_routers_read_as_those_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let [live, test] = ["http://127.0.0.1:9", "http://127.0.0.1:10"];
    let listed = |policy: &str| {
        Gateway::builder().policy(policy).upstream("api", live, test).write(folder.path());
        let ran =
            Command::new(env!("CARGO_BIN_EXE_keygate")).arg("check").current_dir(folder.path()).output();
        let text = String::from_utf8(ran.unwrap().stdout).unwrap();
        let lines = text.lines().skip_while(|line| !line.starts_with("literal"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let lines = listed(&policy(""));
    assert_eq!(
        lines[..2],
        [
            "literal    a.wide (policy.toml:2): some routers read paths of it as those of other rules, as with \".json\" or \
             \"%20\" at the end; literal = true in a.wide if its upstream reads paths exactly",
            "           needs the access of both rules: a.narrow",
        ]
    );
    let of: Vec<&str> = lines.iter().filter_map(|line| line.strip_prefix("literal    ")).collect();
    assert!(of.iter().zip(["a.w", "b.w", "c.w", "e.w"]).all(|(line, rule)| line.starts_with(rule)), "{of:?}");
    assert_eq!(of.len(), 4, "the path /d/{{id}} has no literal within /d/{{id}}/audit: {lines:#?}");
    assert_eq!(listed(&policy("literal = true\n")), [""; 0]);

    let wide = "[[route]]\nid = \"rest\"\nmethods = [\"GET\", \"POST\"]\npaths = [\"/v1/{*rest}\"]\nany_key = \
                true\nupstream = \"api\"\n";
    let lines = listed(&format!("{FIRSTHAND_POLICY}\n{wide}"));
    assert_eq!(lines.len(), 3, "one for both, one for refused: {lines:#?}");
    assert!(
        lines[1].starts_with("           needs the access of both rules: jobs.read, jobs.audit, "),
        "{lines:#?}"
    );
    assert!(
        lines[2].starts_with("           refused, since the targets differ: auth.signup, "),
        "{lines:#?}"
    );
}

/// Paths that are odd in up to three ways, always the same ones.
fn odd_paths(count: usize) -> Vec<String> {
    const NAMES: [&str; 7] = ["admin", "admin", "admin", "Admin", "x", "admin/x", "admin/files/x"];
    const BEFORE: [&str; 10] = ["", "", "", "", "", "%20", "%2F", "%5C", "x%2F", "+"];
    const AFTER: [&str; 48] = [
        ".json",
        ".html",
        ".",
        "..",
        "%20",
        "+",
        "%2B",
        "%20.",
        ".%20",
        "%2Ejson",
        ".json.",
        "..json",
        ".php",
        ";",
        ";x",
        ";x=1.2",
        "%3Bx",
        "%3F",
        "%3Fa=b",
        "%23",
        "%23x",
        "%3F/audit",
        "%23/audit",
        "/audit",
        "%2F",
        "%2Fx",
        "%5C",
        "%5Cx",
        "%2F%2F",
        "%2Faudit",
        "/",
        "/x",
        "/%20",
        "/.json",
        "%C2%A0",
        "%E3%80%80",
        "%25",
        "%26",
        "&x",
        "=",
        ":",
        "@",
        "~",
        "!",
        "'",
        "*",
        ",",
        "%22",
    ];
    let mut state = 15_u64;
    let mut pick = |choices: &[&'static str]| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        choices[usize::try_from(state >> 33).unwrap() % choices.len()]
    };
    let mut paths = BTreeSet::new();
    while paths.len() < count {
        let prefix = pick(&["a", "b", "c", "d", "e"]);
        let mut path = format!("/{prefix}/{}{}", pick(&BEFORE), pick(&NAMES));
        for _ in 0..pick(&["1", "2", "3"]).parse::<u8>().unwrap() {
            path += pick(&AFTER);
        }
        paths.insert(path);
    }
    paths.into_iter().collect()
}

/// A router that some upstream could have; tells whether the path reaches a handler of the narrow rule.
type Model = fn(&str) -> bool;

/// Routers in a few lines, so that the short form needs none to be installed.
const MODELS: [(&str, Model); 5] = [
    ("format suffix", |path| {
        let path = path.strip_suffix('/').unwrap_or(path);
        let (folder, name) = path.rsplit_once('/').unwrap();
        let name = name.rsplit_once('.').filter(|(name, _)| !name.is_empty()).map_or(name, |(name, _)| name);
        is_narrow(&format!("{folder}/{name}"))
    }),
    ("format of several parts", |path| {
        let path = path.strip_suffix('/').unwrap_or(path);
        let (folder, name) = path.rsplit_once('/').unwrap();
        let name = name.split_once('.').filter(|(name, _)| !name.is_empty()).map_or(name, |(name, _)| name);
        is_narrow(&format!("{folder}/{name}"))
    }),
    ("decoded target", |path| {
        let path = decoded(path);
        is_narrow(path.split(['?', '#']).next().unwrap())
    }),
    ("decoded path", |path| is_narrow(&decoded(path))),
    ("trimmed names", |path| {
        let path = decoded(path);
        let names: Vec<&str> =
            path.split(['/', '\\']).map(|name| name.trim_end_matches([' ', '.'])).collect();
        is_narrow(&names.join("/"))
    }),
];

fn decoded(path: &str) -> String {
    let mut octets = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((first, further)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| std::str::from_utf8(further.get(..2)?).ok());
        match escaped.flatten().and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(octet) => {
                octets.push(octet);
                rest = &further[2..];
            }
            None => {
                octets.push(*first);
                rest = further;
            }
        }
    }
    String::from_utf8_lossy(&octets).into_owned()
}

fn is_narrow(path: &str) -> bool {
    let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
    matches!(
        segments[..],
        ["a" | "b", "admin", ..]
            | ["c" | "e", "admin"]
            | ["c", "admin", "x"]
            | ["e", "admin", "files", "x"]
            | ["d", _]
    )
}

/// A router that runs as a process, and what it was started with.
struct Router {
    name: &'static str,
    address: SocketAddr,
    _process: Process,
}

impl Router {
    /// The paths of which a handler of the narrow rule gets the request.
    fn narrow_of<'p>(&self, paths: &'p [String]) -> Vec<&'p str> {
        paths.iter().map(|path| &**path).filter(|path| self.answer_to(path).ends_with("narrow")).collect()
    }

    /// The whole answer, or what of it comes in time.
    fn answer_to(&self, path: &str) -> String {
        let mut connection = TcpStream::connect(self.address).unwrap();
        connection.set_read_timeout(Some(PATIENCE)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n");
        let mut answer = Vec::new();
        if connection.write_all(request.as_bytes()).is_ok() {
            let _ = connection.read_to_end(&mut answer);
        }
        String::from_utf8_lossy(&answer).trim_end_matches(['\r', '\n', '0']).to_owned()
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn start(name: &'static str, folder: &Path, command: impl FnOnce(u16) -> Command) -> Router {
    let port = free_port();
    let mut command = command(port);
    command.current_dir(folder).env("PORT", port.to_string());
    let process = Process::start(command);
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    unhurried(&format!("{name} listens"), || TcpStream::connect(address).is_ok());
    Router { name, address, _process: process }
}

pub(crate) fn is_installed(program: &str) -> bool {
    let found =
        Command::new("sh").args(["-c", &format!("command -v {program}")]).stdout(Stdio::null()).status();
    found.is_ok_and(|status| status.success())
}

/// A command with its arguments.
fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(arguments);
    command
}

fn succeeds(folder: &Path, program: &str, arguments: &[&str]) -> bool {
    let ran =
        command(program, arguments).current_dir(folder).stdout(Stdio::null()).stderr(Stdio::null()).status();
    ran.is_ok_and(|status| status.success())
}

const FLASK: &str = r#"
import os
from flask import Flask
app = Flask("routers")
def narrow(**_): return "narrow"
def wide(**_): return "wide"
for p in ("a", "b"):
    for path in (f"/{p}/admin", f"/{p}/admin/<path:r>"): app.add_url_rule(path, path, narrow)
    app.add_url_rule(f"/{p}/<path:r>", p, wide)
for path in ("/c/admin", "/c/admin/x", "/d/<x>", "/e/admin", "/e/admin/files/x"): app.add_url_rule(path, path, narrow)
for path in ("/c/<x>", "/d/<x>/audit", "/e/<x>", "/e/<x>/files/<path:r>"): app.add_url_rule(path, path, wide)
import logging; logging.getLogger("werkzeug").setLevel(logging.ERROR)
app.run("127.0.0.1", int(os.environ["PORT"]), threaded=True)
"#;

const STARLETTE: &str = r#"
import os, uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
async def narrow(_): return PlainTextResponse("narrow")
async def wide(_): return PlainTextResponse("wide")
narrows = ["/a/admin", "/a/admin/{r:path}", "/b/admin", "/b/admin/{r:path}", "/c/admin", "/c/admin/x", "/d/{x}", "/e/admin", "/e/admin/files/x"]
wides = ["/a/{r:path}", "/b/{r:path}", "/c/{x}", "/d/{x}/audit", "/e/{x}", "/e/{x}/files/{r:path}"]
app = Starlette(routes=[Route(p, narrow) for p in narrows] + [Route(p, wide) for p in wides])
uvicorn.run(app, host="127.0.0.1", port=int(os.environ["PORT"]), log_level="error")
"#;

const EXPRESS: &str = r#"
const app = require("express")();
const narrow = (_, res) => res.send("narrow"), wide = (_, res) => res.send("wide");
app.get(["/a/admin", "/a/admin/*r", "/b/admin", "/b/admin/*r", "/c/admin", "/c/admin/x", "/d/:x", "/e/admin", "/e/admin/files/x"], narrow);
app.get(["/a/*r", "/b/*r", "/c/:x", "/d/:x/audit", "/e/:x", "/e/:x/files/*r"], wide);
app.listen(+process.env.PORT, "127.0.0.1");
"#;

/// As tutorials do it: the decoded path, compared with regular expressions.
const PHP: &str = r#"<?php
$path = rawurldecode(parse_url($_SERVER["REQUEST_URI"], PHP_URL_PATH) ?: "");
echo preg_match('#^/([ab]/admin(/.*)?|[ce]/admin|c/admin/x|d/[^/]+|e/admin/files/x)/?$#', $path) ? "narrow" : "wide";
"#;

/// PHP's own server finds scripts: each handler of the narrow rule is a file.
const PHP_SCRIPT: &str = "<?php echo 'narrow';";

const GO: &str = r#"package main
import ("net/http"; "os")
func main() {
	mux := http.NewServeMux()
	say := func(text string) func(http.ResponseWriter, *http.Request) { return func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte(text)) } }
	for _, p := range []string{"/a/admin", "/a/admin/", "/b/admin", "/b/admin/", "/c/admin", "/d/", "/e/admin"} { if p != "/d/" { mux.HandleFunc(p, say("narrow")) } }
	for _, p := range []string{"/a/", "/b/", "/c/", "/e/"} { mux.HandleFunc(p, say("wide")) }
	http.ListenAndServe("127.0.0.1:"+os.Getenv("PORT"), mux)
}
"#;

const SINATRA: &str = r#"
require "webrick"
require "sinatra/base"
class App < Sinatra::Base
  set :environment, :production
  set :server, :webrick
  set :server_settings, { AccessLog: [], Logger: WEBrick::Log.new(File::NULL) }
  set :port, ENV["PORT"].to_i
  set :bind, "127.0.0.1"
  set :host_authorization, { permitted_hosts: [] } rescue nil
  disable :protection
  ["/a/admin", "/a/admin.:format", "/a/admin/*", "/b/admin", "/b/admin/*", "/c/admin", "/c/admin/x", "/d/:x", "/e/admin", "/e/admin.:format", "/e/admin/files/x"].each { |p| get(p) { "narrow" } }
  ["/a/*", "/b/*", "/c/:x", "/d/:x/audit", "/e/:x", "/e/:x/files/*"].each { |p| get(p) { "wide" } }
  run!
end
"#;

const RAILS: &str = r#"
require "action_controller/railtie"
require "rack/handler/webrick"
class SayController < ActionController::API
  def narrow; render plain: "narrow"; end
  def wide; render plain: "wide"; end
end
class App < Rails::Application
  config.eager_load = false
  config.secret_key_base = "x" * 64
  config.hosts.clear
  config.logger = Logger.new(File::NULL)
end
App.initialize!
App.routes.draw do
  ["/a/admin", "/a/admin/*r", "/b/admin", "/b/admin/*r", "/c/admin", "/c/admin/x", "/d/:x", "/e/admin", "/e/admin/files/x"].each { |p| get p, to: "say#narrow" }
  ["/a/*r", "/b/*r", "/c/:x", "/d/:x/audit", "/e/:x", "/e/:x/files/*r"].each { |p| get p, to: "say#wide" }
end
Rack::Handler::WEBrick.run(App, Host: "127.0.0.1", Port: ENV["PORT"].to_i, AccessLog: [], Logger: WEBrick::Log.new(File::NULL))
"#;

/// Locations of nginx itself, and the same behind one that forwards the decoded path or the path as it is.
fn nginx(folder: &Path, port: u16, to: Option<(&str, SocketAddr)>) -> Command {
    let locations = match to {
        Some((uri, upstream)) => format!("location / {{ proxy_pass http://{upstream}{uri}; }}"),
        None => {
            let exact = ["/a/admin", "/b/admin", "/c/admin", "/c/admin/x", "/e/admin", "/e/admin/files/x"];
            let beneath = ["/a/admin/", "/b/admin/"];
            let exact = exact.map(|path| format!("location = {path} {{ return 200 narrow; }}\n")).concat();
            let beneath = beneath.map(|path| format!("location {path} {{ return 200 narrow; }}\n")).concat();
            format!(
                "{exact}{beneath}location ~ ^/d/[^/]+$ {{ return 200 narrow; }}\nlocation / {{ return 200 wide; }}"
            )
        }
    };
    let folder = folder.join(format!("nginx-{port}"));
    fs::create_dir_all(&folder).unwrap();
    let configuration = format!(
        "daemon off; master_process off; pid {0}/pid; error_log /dev/null;\nevents {{}}\nhttp {{ access_log off; \
         client_body_temp_path {0}/body; proxy_temp_path {0}/proxy; fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; \
         scgi_temp_path {0}/s;\nserver {{ listen 127.0.0.1:{port}; keepalive_requests 1000000; {locations} }} }}\n",
        folder.display()
    );
    let file = folder.join("nginx.conf");
    fs::write(&file, configuration).unwrap();
    command("nginx", &["-p", folder.to_str().unwrap(), "-c", file.to_str().unwrap()])
}

/// The routers that this machine has; the long form adds those that registries have, and says what is missing.
fn routers(folder: &Path) -> (Vec<Router>, Vec<&'static str>) {
    let (mut routers, mut missing) = (Vec::new(), Vec::new());
    let python = std::env::var("KEYGATE_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    if succeeds(folder, &python, &["-c", "import flask"]) {
        routers.push(start("Flask", folder, |_| command(&python, &["-c", FLASK])));
    } else {
        missing.push("Flask");
    }
    if is_long() {
        further(folder, &python, &mut routers, &mut missing);
    }
    if is_installed("nginx") {
        let own = start("nginx", folder, |port| nginx(folder, port, None));
        let mut behind = Vec::new();
        for router in routers.iter().chain([&own]) {
            for (name, uri) in [("nginx with $uri", "$uri"), ("nginx, plain", "")] {
                let to = Some((uri, router.address));
                behind.push(start(name, folder, |port| nginx(folder, port, to)));
            }
        }
        routers.push(own);
        routers.append(&mut behind);
    } else {
        missing.push("nginx");
    }
    (routers, missing)
}

fn further(folder: &Path, python: &str, routers: &mut Vec<Router>, missing: &mut Vec<&'static str>) {
    let packages = folder.join("python");
    let target = packages.to_str().unwrap();
    if succeeds(
        folder,
        python,
        &["-m", "pip", "install", "--quiet", "--target", target, "starlette", "uvicorn"],
    ) {
        routers.push(start("Starlette", folder, |_| {
            let mut command = command(python, &["-c", STARLETTE]);
            command.env("PYTHONPATH", target);
            command
        }));
    } else {
        missing.push("Starlette (pip)");
    }
    if succeeds(folder, "npm", &["install", "--no-audit", "--no-fund", "--prefix", ".", "express"]) {
        routers.push(start("Express", folder, |_| command("node", &["-e", EXPRESS])));
    } else {
        missing.push("Express (npm)");
    }
    if is_installed("php") {
        fs::write(folder.join("router.php"), PHP).unwrap();
        let listen = |port: u16| format!("127.0.0.1:{port}");
        routers.push(start("PHP", folder, |port| command("php", &["-q", "-S", &listen(port), "router.php"])));
        for place in ["a/admin", "b/admin"] {
            fs::create_dir_all(folder.join("php").join(place)).unwrap();
            fs::write(folder.join("php").join(place).join("index.php"), PHP_SCRIPT).unwrap();
        }
        routers.push(start("PHP's files", folder, |port| {
            command("php", &["-q", "-S", &listen(port), "-t", "php"])
        }));
    } else {
        missing.push("PHP");
    }
    fs::write(folder.join("main.go"), GO).unwrap();
    if succeeds(folder, "go", &["build", "-o", "mux", "main.go"]) {
        routers.push(start("Go", folder, |_| Command::new(folder.join("mux"))));
    } else {
        missing.push("Go");
    }
    if succeeds(folder, "ruby", &["-e", "require 'sinatra/base'"]) {
        routers.push(start("Sinatra", folder, |_| command("ruby", &["-e", SINATRA])));
    } else {
        missing.push("Sinatra");
    }
    if succeeds(folder, "ruby", &["-e", "require 'action_controller/railtie'"]) {
        routers.push(start("Rails", folder, |_| command("ruby", &["-e", RAILS])));
    } else {
        missing.push("Rails");
    }
}

#[test]
fn no_handler_of_the_narrow_rule_runs_for_a_key_of_the_wide_one_whatever_the_router() {
    let paths = odd_paths(if is_long() { 20_000 } else { 1_500 });
    let forwarded = |more: &str| {
        let world = World::with(&policy(more));
        forwarded(&world, &paths, &world.gateway.key_with(&["wide"]))
    };
    // Where the rules promise an upstream that reads exactly, the same paths do reach handlers of the narrow rule.
    let (mended, promised) = (forwarded(""), forwarded("literal = true\n"));
    println!("{} paths: {} pass, {} with literal = true", paths.len(), mended.len(), promised.len());
    for (name, reaches_narrow) in MODELS {
        let [mended, promised] = [&mended, &promised]
            .map(|passed| passed.iter().filter(|path| reaches_narrow(path)).collect::<Vec<_>>());
        println!("{name}: {} and {}", mended.len(), promised.len());
        assert_eq!(mended, [""; 0], "{name}");
        assert!(!promised.is_empty(), "{name} would find a hole");
    }
    let folder = TempDir::new().unwrap();
    let some: Vec<String> = promised.iter().step_by(5).cloned().collect();
    let (routers, missing) = routers(folder.path());
    println!("missing: {missing:?}");
    // All stay up to the end: some are behind others.
    for router in &routers {
        assert!(router.answer_to("/a/admin").ends_with("narrow"), "{} works", router.name);
        let [of_mended, of_promised] = [&mended, &some].map(|paths| router.narrow_of(paths));
        println!("{}: {} and {} of a fifth", router.name, of_mended.len(), of_promised.len());
        assert_eq!(of_mended, [""; 0], "{}", router.name);
    }
}

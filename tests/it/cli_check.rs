//! `keygate check` and `keygate init`.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

/// Runs keygate in `folder`, with nothing in its environment but `environment`.
fn keygate(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_keygate"))
        .args(arguments)
        .current_dir(folder)
        .env_clear()
        .envs(environment.iter().copied())
        .output()
        .unwrap()
}

/// Exit code, standard output, standard error.
fn ran(folder: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String, String) {
    let Output { status, stdout, stderr } = keygate(folder, arguments, environment);
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A folder with what `keygate init` writes.
fn initialised() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let (code, _, error) = ran(folder.path(), &["init"], &[]);
    assert_eq!((code, &*error), (0, ""));
    folder
}

const SUMMARY: &str = "\
keygate.toml: fine

listen     127.0.0.1:8080
store      embedded, keygate.redb
audit      kept 400 days
warning    neither audit.key_file nor keys.pepper_file is set, so every process that can write to the store can forge the audit trail
removed    from requests, in every spelling: cf-connecting-ip, client-ip, fastly-client-ip, forwarded, proxy, true-client-ip, x-auth-request-*, x-client-ip, x-cluster-client-ip, x-envoy-external-address, x-envoy-internal, x-envoy-original-path, x-forwarded-client-cert, x-forwarded-email, x-forwarded-for, x-forwarded-groups, x-forwarded-host, x-forwarded-method, x-forwarded-path, x-forwarded-port, x-forwarded-preferred-username, x-forwarded-prefix, x-forwarded-proto, x-forwarded-scheme, x-forwarded-server, x-forwarded-ssl, x-forwarded-uri, x-forwarded-user, x-host, x-http-method, x-http-method-override, x-method-override, x-middleware-subrequest, x-original-host, x-original-method, x-original-path, x-original-uri, x-original-url, x-real-ip, x-remote-user, x-rewrite-url
upstream   api: live http://127.0.0.1:9000; test http://127.0.0.1:9001
routes     11, of which 1 public
public     health: GET /healthz
";

#[test]
fn the_files_that_init_writes_pass_check() {
    let folder = initialised();
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["keygate.toml", "policy.toml"]);
    assert_eq!(ran(folder.path(), &["check"], &[]), (0, SUMMARY.to_owned(), String::new()));
}

#[test]
fn the_example_that_init_writes_passes_check_and_is_the_whole_contract() {
    let folder = tempfile::tempdir().unwrap();
    let (code, said, error) = ran(folder.path(), &["init", "--example", "firsthand"], &[]);
    assert_eq!((code, &*error), (0, ""));
    assert!(said.contains("Its routes are those of FirstHandAPI.\n"), "{said}");
    let example = SUMMARY
        .replace("11, of", "20, of")
        .replace("health: GET /healthz", "auth.signup: POST /v1/auth/signup");
    assert_eq!(ran(folder.path(), &["check"], &[]), (0, example, String::new()));
    let policy = fs::read_to_string(folder.path().join("policy.toml")).unwrap();
    assert_eq!(policy, include_str!("../../config/policy.toml"));

    let (code, _, error) = ran(folder.path(), &["init", "--example", "secondhand", "other"], &[]);
    assert_eq!(code, 2);
    assert!(error.contains("[possible values: firsthand]"), "{error}");
}

#[test]
fn init_makes_the_folder_and_says_what_comes_next() {
    let folder = tempfile::tempdir().unwrap();
    let program = env!("CARGO_BIN_EXE_keygate");
    let expected = format!(
        "\
Wrote etc/gateway/keygate.toml and etc/gateway/policy.toml.

Next:
  1. Say in etc/gateway/keygate.toml where your API is: `live` and `test` under [upstreams.api].
  2. Say in etc/gateway/policy.toml who may do what. Replace its sample routes by yours.
  3. {program} check --config etc/gateway/keygate.toml
  4. {program} serve --config etc/gateway/keygate.toml
  5. {program} keys create --config etc/gateway/keygate.toml --org 'Example Ltd' --name 'my service' --scopes reports:read
"
    );
    assert_eq!(ran(folder.path(), &["init", "etc/gateway"], &[]), (0, expected, String::new()));
    let (code, out, _) = ran(folder.path(), &["check", "--config", "etc/gateway/keygate.toml"], &[]);
    assert_eq!(code, 0);
    assert!(out.contains("store      embedded, etc/gateway/keygate.redb\n"), "{out}");
}

#[test]
fn init_overwrites_nothing() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("policy.toml"), "mine").unwrap();
    let expected = "./policy.toml exists already, nothing was written; name another folder\n";
    assert_eq!(ran(folder.path(), &["init"], &[]), (1, String::new(), expected.to_owned()));
    assert_eq!(fs::read_to_string(folder.path().join("policy.toml")).unwrap(), "mine");
    assert!(!folder.path().join("keygate.toml").exists());
}

#[test]
fn check_shows_all_mistakes_and_exits_with_1() {
    let folder = tempfile::tempdir().unwrap();
    let toml = "[server]\nlisten = \"0.0.0.0:8080\"\n[store]\nkind = \"embeded\"\n[policy]\nfile = \"policy.toml\"\n";
    let policy =
        "[[route]]\nid = \"jobs\"\nmethods = [\"get\"]\npaths = [\"/v1/jobs\"]\nupstream = \"api\"\n";
    fs::write(folder.path().join("keygate.toml"), toml).unwrap();
    fs::write(folder.path().join("policy.toml"), policy).unwrap();
    let expected = "\
keygate.toml:2:10: server.listen: 0.0.0.0:8080 is not a loopback address, so keys would cross the network in plain text; set tls, or listen on loopback, or put a TLS terminator in front and set plaintext = \"behind a TLS terminator\"
keygate.toml:4:8: store.kind: invalid value \"embeded\"; did you mean \"embedded\"?
policy.toml:1:1: route[jobs]: the route has no access rule; add scopes = […], any_scope = […], any_key = true or public = true
policy.toml:3:12: route[jobs].methods[0]: \"get\" is not a method; did you mean \"GET\"?
policy.toml:5:12: route[jobs].upstream: there is no upstream \"api\"; there are no upstreams

5 mistakes
";
    assert_eq!(ran(folder.path(), &["check"], &[]), (1, String::new(), expected.to_owned()));
}

#[test]
fn the_environment_overrides_the_file() {
    let folder = initialised();
    let (code, out, _) = ran(folder.path(), &["check"], &[("KEYGATE__SERVER__LISTEN", "127.0.0.1:9999")]);
    assert_eq!(code, 0);
    assert!(out.contains("listen     127.0.0.1:9999\n"), "{out}");

    let wrong = [("KEYGATE__SERVER__LISEN", "127.0.0.1:9999")];
    let expected =
        "KEYGATE__SERVER__LISEN: server.lisen: unknown key `lisen`; did you mean `listen`?\n\n1 mistake\n";
    assert_eq!(ran(folder.path(), &["check"], &wrong), (1, String::new(), expected.to_owned()));
}

#[test]
fn a_file_that_cannot_be_read_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    let expected = "none.toml: cannot read the file: No such file or directory (os error 2); name the configuration file with --config\n";
    assert_eq!(
        ran(folder.path(), &["check", "--config", "none.toml"], &[]),
        (2, String::new(), expected.to_owned())
    );
}

#[test]
fn a_wrong_argument_exits_with_2() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["chek"][..], &["check", "--confg", "x"], &[]] {
        let (code, out, error) = ran(folder.path(), arguments, &[]);
        assert_eq!((code, &*out), (2, ""), "{arguments:?}");
        assert!(error.contains("Usage: keygate"), "{error}");
    }
}

#[test]
fn help_shows_examples_for_every_command() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [&["--help"][..], &["check", "--help"], &["init", "--help"]] {
        let (code, out, error) = ran(folder.path(), arguments, &[]);
        assert_eq!((code, &*error), (0, ""), "{arguments:?}");
        assert!(out.contains("Examples:\n  keygate "), "{out}");
    }
}

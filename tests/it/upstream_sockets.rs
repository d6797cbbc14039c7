//! Upstreams behind a socket of the machine.

use std::path::Path;

use tempfile::TempDir;

use crate::harness::front::socket;
use crate::harness::{Call, GatewayBuilder, Process, Tuned, Upstream};

fn gateway_before(path: &Path, upstream: &str, folder: TempDir) -> (crate::harness::Gateway, String) {
    let url = format!("unix:{}", path.display());
    let gateway = Tuned::default().live(url).upstream(upstream).builder().start_in(folder);
    let key = gateway.live_key().secret;
    (gateway, key)
}

#[test]
fn requests_go_through_one_connection_to_a_socket_and_its_host_is_as_the_configuration_says() {
    for (host, expected) in [
        ("", "api.example.com"),
        ("host = \"client\"", "api.example.com"),
        ("host = \"endpoint\"", "localhost"),
        ("host = \"api.internal\"", "api.internal"),
        ("host = \"api:8000\"", "api:8000"),
    ] {
        let (folder, upstream) = (TempDir::new().unwrap(), Upstream::start("live"));
        let path = folder.path().join("api.sock");
        socket(&path, upstream.address());
        let (gateway, key) = gateway_before(&path, host, folder);
        for _ in 0..3 {
            assert_eq!(gateway.fetch(&Call::post("/things", "body").key(&key)).text(), "live");
        }
        assert_eq!(upstream.connections(), 1);
        assert!(upstream.seen().iter().all(|seen| seen.value("host") == expected), "{host}");
    }
}

#[test]
fn a_socket_that_is_not_there_is_unreachable_until_it_is() {
    let (folder, upstream) = (TempDir::new().unwrap(), Upstream::start("live"));
    let path = folder.path().join("api.sock");
    let (gateway, key) = gateway_before(&path, "", folder);
    let call = Call::get("/things").key(&key);
    let message = gateway.fetch(&call).refusal(502, "bad_gateway");
    assert_eq!(message, "The service behind this gateway could not be reached");
    socket(&path, upstream.address());
    assert_eq!(gateway.fetch(&call).status, 200);
}

#[test]
fn the_socket_of_operators_is_no_upstream_by_any_of_its_names() {
    let folder = TempDir::new().unwrap();
    let link = folder.path().join("link");
    std::os::unix::fs::symlink(folder.path(), &link).unwrap();
    let admin = folder.path().join("admin.sock");
    for path in [admin.clone(), link.join("admin.sock"), folder.path().join("admin.sock.handover")] {
        let toml = format!(
            "[admin]\nsocket = \"{}\"\n[upstreams.api]\nlive = [\"unix:{}\"]\ntest = [\"http://127.0.0.1:9\"]\n",
            admin.display(),
            path.display()
        );
        GatewayBuilder::default().settings(&toml).write(folder.path());
        let told = Process::keygate(folder.path(), &["check"]).err_line("upstreams.api.live[0]");
        assert!(told.contains("is this gateway's socket for operators"), "{told}");
    }
}

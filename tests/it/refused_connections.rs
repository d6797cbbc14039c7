//! Connections that end before their first request: they have no record and no answer, so each is counted by its cause.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tempfile::TempDir;

use crate::harness::metrics::scrape;
use crate::harness::transport::{CERTIFICATE, client_config, server_name};
use crate::harness::{Call, Gateway, PATIENCE, Transport, Upstream, Wire, eventually};

const FAMILY: &str = "keygate_connections_refused_total";

/// The counts by their causes.
fn counts(gateway: &Gateway) -> BTreeMap<String, u64> {
    let text = scrape(gateway.ops_address());
    let series = text.lines().filter_map(|line| line.strip_prefix(FAMILY)?.strip_prefix("{reason=\""));
    let series = series.map(|rest| rest.split_once("\"} ").unwrap());
    series.map(|(reason, count)| (reason.to_owned(), count.parse().unwrap())).collect()
}

/// Waits until these have been counted, once each, and no others.
#[track_caller]
fn counted_once(gateway: &Gateway, reasons: &[&str]) {
    let mut all = BTreeMap::new();
    eventually(&format!("{reasons:?} are counted"), || {
        all = counts(gateway);
        reasons.iter().all(|reason| all[*reason] > 0)
    });
    for (reason, count) in all {
        assert_eq!(count, u64::from(reasons.contains(&&*reason)), "{reason}");
    }
}

fn start(server: &str, transport: Transport) -> (Gateway, [Upstream; 2]) {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = TempDir::new().unwrap();
    CERTIFICATE.write(folder.path(), "server");
    let settings =
        format!("[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\n{server}\n[ops]\nlisten = \"127.0.0.1:0\"");
    let gateway = Gateway::builder().transport(transport).settings(&settings).api(&live, &test);
    (gateway.start_in(folder), [live, test])
}

const TLS: &str = "tls = [{ cert = \"server.pem\", key = \"server-key.pem\" }]";

/// Reads to the end, which must come.
fn ended(mut stream: &TcpStream) {
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut part = [0; 1024];
    loop {
        match stream.read(&mut part) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => {
                let is_late = matches!(error.kind(), std::io::ErrorKind::WouldBlock);
                assert!(!is_late, "it is not closed");
                return;
            }
        }
    }
}

/// A handshake; the stream after it.
fn handshake(gateway: &Gateway, config: ClientConfig, name: ServerName<'static>) -> std::io::Result<Tls> {
    let mut tcp = TcpStream::connect(gateway.address()).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(rustls::StreamOwned::new(session, tcp))
}

type Tls = rustls::StreamOwned<ClientConnection, TcpStream>;

#[test]
fn every_way_to_fail_before_http_over_tls_has_its_count() {
    let (gateway, _upstreams) = start(TLS, Transport::TlsHttp1);
    assert!(counts(&gateway).values().all(|count| *count == 0));
    let say = |bytes: &[u8]| {
        let mut stream = TcpStream::connect(gateway.address()).unwrap();
        stream.write_all(bytes).unwrap();
        stream
    };
    // A client that is served counts nowhere, and neither does one that goes away before it has said anything.
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs")).status, 401);
    ended(&say(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n"));
    counted_once(&gateway, &["not_tls"]);
    drop(say(b"\x16\x03\x01"));
    counted_once(&gateway, &["not_tls", "handshake_broken_off"]);

    let nobody_trusted =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(rustls::ALL_VERSIONS)
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
    assert!(handshake(&gateway, nobody_trusted, server_name()).is_err());
    counted_once(&gateway, &["not_tls", "handshake_broken_off", "tls_refused"]);

    // A ClientHello of TLS 1.0 with one cipher and no extensions.
    let hello = [&[0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 1][..], &[7; 32], &[0, 0, 2, 0, 0x2f, 1, 0]];
    ended(&say(&hello.concat()));
    counted_once(&gateway, &["not_tls", "handshake_broken_off", "tls_refused", "tls_unsupported"]);

    assert!(handshake(&gateway, client_config(&["imap"], rustls::ALL_VERSIONS), server_name()).is_err());
    let mut http2 = handshake(&gateway, client_config(&["h2"], rustls::ALL_VERSIONS), server_name()).unwrap();
    http2.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").unwrap();
    ended(http2.get_ref());
    let all = ["not_tls", "handshake_broken_off", "tls_refused", "tls_unsupported", "tls_failed", "preface"];
    counted_once(&gateway, &all);
}

#[test]
fn clients_that_take_too_long_before_their_first_request_are_counted() {
    let (gateway, _upstreams) = start(&format!("{TLS}\nhandshake_timeout = \"300ms\""), Transport::TlsHttp1);
    ended(&TcpStream::connect(gateway.address()).unwrap());
    counted_once(&gateway, &["handshake_timeout"]);
    let (gateway, _upstreams) = start(&format!("{TLS}\nhead_timeout = \"300ms\""), Transport::TlsHttp1);
    let silent = handshake(&gateway, client_config(&["h2"], rustls::ALL_VERSIONS), server_name()).unwrap();
    ended(silent.get_ref());
    counted_once(&gateway, &["head_timeout"]);

    let (gateway, _upstreams) = start("head_timeout = \"300ms\"", Transport::Http1);
    let mut half = Wire::connect(gateway.address());
    half.send(b"GET /v1/jobs HTTP/1.1\r\nhost: ");
    assert!(half.is_closed());
    counted_once(&gateway, &["head_timeout"]);
}

#[test]
fn connections_above_a_limit_are_counted_by_the_limit() {
    let (gateway, _upstreams) = start("max_connections_per_client = 1", Transport::Http1);
    let mut first = gateway.connect();
    assert_eq!(first.call(&Call::get("/v1/jobs")).unwrap().status, 401);
    assert!(Wire::connect(gateway.address()).is_closed());
    counted_once(&gateway, &["max_connections_per_client"]);

    let trusting = "max_connections = 1\ntrusted_proxies = [\"127.0.0.1/32\"]";
    let (gateway, _upstreams) = start(trusting, Transport::Http1);
    let mut first = gateway.connect();
    assert_eq!(first.call(&Call::get("/v1/jobs")).unwrap().status, 401);
    assert!(Wire::connect(gateway.address()).is_closed());
    counted_once(&gateway, &["max_connections"]);
}

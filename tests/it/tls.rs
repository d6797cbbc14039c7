//! TLS with clients: versions, protocols, certificates by name, resumption; and the messages about unusable files.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, Resumption};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::version::{TLS12, TLS13};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, HandshakeKind, ProtocolVersion, SignatureScheme,
    StreamOwned,
};
use tempfile::TempDir;

use crate::harness::process::{Process, keygate};
use crate::harness::transport::{CERTIFICATE, Certificate, HOST, client_config, server_name};
use crate::harness::{Call, Gateway, GatewayBuilder, PATIENCE, Transport, Upstream};

const SERVER: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\ntls = [{ cert = \"server.pem\", key = \"server-key.pem\" }]";

/// A gateway over TLS, and its upstream for live keys.
fn start(more: &str) -> (Gateway, Upstream) {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let folder = TempDir::new().unwrap();
    CERTIFICATE.write(folder.path(), "server");
    let builder = Gateway::builder().transport(Transport::TlsHttp1).settings(&format!("{SERVER}\n{more}"));
    (builder.api(&live, &test).start_in(folder), live)
}

type Tls = StreamOwned<ClientConnection, TcpStream>;

/// Completes a handshake.
fn handshake(gateway: &Gateway, config: ClientConfig, name: ServerName<'static>) -> std::io::Result<Tls> {
    let mut tcp = TcpStream::connect(gateway.address()).unwrap();
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut session = ClientConnection::new(Arc::new(config), name).unwrap();
    while session.is_handshaking() {
        session.complete_io(&mut tcp)?;
    }
    Ok(StreamOwned::new(session, tcp))
}

/// The first line of the answer to a request without a key.
fn ask(tls: &mut Tls) -> String {
    tls.write_all(format!("GET /v1/jobs HTTP/1.1\r\nhost: {HOST}\r\nconnection: close\r\n\r\n").as_bytes())
        .unwrap();
    let mut answer = String::new();
    tls.read_to_string(&mut answer).unwrap();
    answer.lines().next().unwrap_or_default().to_owned()
}

#[test]
fn tls_1_2_and_1_3_are_spoken_and_the_upstream_is_told_of_https() {
    let (gateway, live) = start("");
    for (version, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let config = client_config(&["http/1.1"], &[version]);
        let mut tls = handshake(&gateway, config, server_name()).unwrap();
        assert_eq!(tls.conn.protocol_version(), Some(expected));
        assert_eq!(ask(&mut tls), "HTTP/1.1 401 Unauthorized");
    }
    let key = gateway.live_key();
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).text(), "live");
    assert_eq!(live.only().value("x-forwarded-proto"), "https");
}

#[test]
fn alpn_selects_the_protocol() {
    let (gateway, _live) = start("");
    let agreed = |offered: &[&str]| {
        handshake(&gateway, client_config(offered, rustls::ALL_VERSIONS), server_name())
            .map(|tls| tls.conn.alpn_protocol().map(<[u8]>::to_vec))
    };
    assert_eq!(agreed(&["http/1.1", "h2"]).unwrap().as_deref(), Some(&b"h2"[..]), "h2 where both can");
    assert_eq!(agreed(&["http/1.1"]).unwrap().as_deref(), Some(&b"http/1.1"[..]));
    assert_eq!(agreed(&[]).unwrap(), None);
    assert!(agreed(&["spdy/3"]).is_err());
    let mut silent_about_it =
        handshake(&gateway, client_config(&[], rustls::ALL_VERSIONS), server_name()).unwrap();
    assert_eq!(ask(&mut silent_about_it), "HTTP/1.1 401 Unauthorized");
}

/// Accepts every certificate, and records it.
#[derive(Debug, Default)]
struct TakesAll(Mutex<Option<CertificateDer<'static>>>);

impl ServerCertVerifier for TakesAll {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        *self.0.lock().unwrap() = Some(end_entity.clone().into_owned());
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[test]
fn a_client_gets_the_certificate_for_its_server_name_or_the_first() {
    let first = Certificate::for_names(&["one.example.com", "*.wild.example.com"]);
    let second =
        Certificate::for_names(&["two.example.com", "special.wild.example.com", "*.wild.example.com"]);
    let folder = TempDir::new().unwrap();
    first.write(folder.path(), "first");
    second.write(folder.path(), "second");
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder()
        .transport(Transport::TlsHttp1)
        .settings("[server]\nlisten = \"127.0.0.1:0\"\ntls = [{ cert = \"first.pem\", key = \"first-key.pem\" }, { cert = \"second.pem\", key = \"second-key.pem\" }]")
        .api(&live, &test)
        .start_in(folder);
    let given = |name: &str| {
        let seen = Arc::new(TakesAll::default());
        let mut config = client_config(&[], rustls::ALL_VERSIONS);
        config.dangerous().set_certificate_verifier(seen.clone());
        handshake(&gateway, config, ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        let given = seen.0.lock().unwrap().take().unwrap();
        if given == first.der {
            "first"
        } else if given == second.der {
            "second"
        } else {
            "neither"
        }
    };
    for (name, expected) in [
        ("one.example.com", "first"),
        ("two.example.com", "second"),
        ("TWO.example.com", "second"),
        ("any.wild.example.com", "first"),
        // A name of its own before a wildcard.
        ("special.wild.example.com", "second"),
        // A wildcard matches exactly one label.
        ("wild.example.com", "first"),
        ("unknown.example.com", "first"),
        // An address is not a server name: such a client sends none.
        ("127.0.0.1", "first"),
    ] {
        assert_eq!(given(name), expected, "{name}");
    }
}

#[test]
fn a_session_is_resumed_by_its_ticket_on_any_worker() {
    let (gateway, _live) = start("");
    for version in [&TLS12, &TLS13] {
        let mut config = client_config(&["http/1.1"], &[version]);
        config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
        let mut kinds = Vec::new();
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut tls = handshake(&gateway, config.clone(), server_name()).unwrap();
            assert_eq!(ask(&mut tls), "HTTP/1.1 401 Unauthorized");
            kinds.push(tls.conn.handshake_kind().unwrap());
            // Left open, so that the next connection goes to another worker.
            open.push(handshake(&gateway, config.clone(), server_name()).unwrap());
        }
        assert!(matches!(kinds[0], HandshakeKind::Full | HandshakeKind::FullWithHelloRetryRequest));
        assert!(kinds[1..].iter().all(|kind| *kind == HandshakeKind::Resumed), "{version:?}: {kinds:?}");
    }
}

#[test]
fn an_unfinished_handshake_is_closed_and_delays_no_other_client() {
    let (gateway, _live) = start("handshake_timeout = \"500ms\"");
    let begun = Instant::now();
    let mut silent: Vec<TcpStream> = (0..8).map(|_| TcpStream::connect(gateway.address()).unwrap()).collect();
    let mut stuck = TcpStream::connect(gateway.address()).unwrap();
    stuck.write_all(&[22, 3, 1, 2, 0, 1, 0]).unwrap();
    assert_eq!(gateway.fetch(&Call::get("/v1/jobs")).status, 401);
    assert!(begun.elapsed() < Duration::from_millis(500), "the others were not waited for");
    silent.push(stuck);
    for mut client in silent {
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(client.read(&mut [0; 16]).unwrap_or(0), 0, "closed without a word");
    }
    assert!(begun.elapsed() >= Duration::from_millis(500));
}

#[test]
fn a_silent_client_within_tls_is_closed_after_the_head_timeout() {
    let (gateway, _live) = start("head_timeout = \"300ms\"");
    for alpn in ["http/1.1", "h2"] {
        let config = client_config(&[alpn], rustls::ALL_VERSIONS);
        let mut tls = handshake(&gateway, config, server_name()).unwrap();
        let begun = Instant::now();
        assert_eq!(tls.read(&mut [0; 16]).unwrap_or(0), 0, "{alpn}");
        assert!(begun.elapsed() < PATIENCE / 2, "{alpn}");
    }
}

#[test]
fn plain_text_on_the_port_of_tls_is_closed_without_an_answer_in_http() {
    let (gateway, live) = start("");
    for plain in [&b"GET /v1/jobs HTTP/1.1\r\nhost: h\r\n\r\n"[..], b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        let mut client = TcpStream::connect(gateway.address()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(plain).unwrap();
        let mut answer = Vec::new();
        let _ = client.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"HTTP/") && answer.len() <= 7, "{answer:?}");
    }
    assert_eq!(live.connections(), 0);
}

#[test]
fn curl_speaks_http_2_and_1_1_over_tls_1_3_and_1_2() {
    let (gateway, live) = start("");
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("ca.pem"), &CERTIFICATE.pem).unwrap();
    let key = gateway.live_key();
    let port = gateway.address().port();
    for (arguments, expected) in [
        (&["--http2", "--tlsv1.3"][..], "200 2 live"),
        (&["--http1.1", "--tlsv1.3"], "200 1.1 live"),
        (&["--http2", "--tls-max", "1.2"], "200 2 live"),
        (&["--http2", "--data-binary", "@ca.pem"], "200 2 live"),
    ] {
        let out = Command::new("curl")
            .args(["--silent", "--show-error", "--cacert", "ca.pem", "--max-time", "20"])
            .args(["--resolve", &format!("{HOST}:{port}:127.0.0.1")])
            .args(["--header", &format!("Authorization: Bearer {}", key.secret)])
            .args(["--write-out", "\n%{http_code} %{http_version}"])
            .args(arguments)
            .arg(format!("https://{HOST}:{port}/v1/jobs"))
            .current_dir(folder.path())
            .output()
            .unwrap();
        let text = String::from_utf8(out.stdout).unwrap();
        let (body, rest) = text.rsplit_once('\n').unwrap();
        assert_eq!(
            format!("{rest} {body}"),
            expected,
            "{arguments:?}: {}",
            String::from_utf8_lossy(&out.stderr)
        );
    }
    let sent = live.seen().pop().unwrap();
    assert_eq!((sent.request_line(), &*sent.body), ("POST /v1/jobs HTTP/1.1", CERTIFICATE.pem.as_bytes()));
}

/// A folder with a valid configuration for TLS.
fn configured() -> TempDir {
    let folder = TempDir::new().unwrap();
    CERTIFICATE.write(folder.path(), "server");
    builder().write(folder.path());
    folder
}

fn builder() -> GatewayBuilder {
    Gateway::builder().settings(SERVER).upstream("api", "http://127.0.0.1:1", "http://127.0.0.1:2")
}

fn run(folder: &Path, command: &str) -> (i32, String, String) {
    let Output { status, stdout, stderr } = keygate(folder, &[command]).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// The message of `check` and `serve`, which must be the same.
#[track_caller]
fn assert_refused(folder: &Path, expected: &str) {
    let said = format!("{expected}\n\n1 mistake\n");
    for command in ["check", "serve"] {
        assert_eq!(run(folder, command), (1, String::new(), said.clone()), "{command}");
    }
}

#[test]
fn check_shows_the_names_of_a_certificate_and_how_long_it_is_valid() {
    let folder = configured();
    let (code, out, err) = run(folder.path(), "check");
    assert_eq!((code, &*err), (0, ""));
    assert!(out.contains("tls        api.example.com, until 4096-01-01T00:00:00.000Z\n"), "{out}");
}

#[test]
fn a_missing_or_unusable_file_is_named() {
    let folder = configured();
    let path = |name: &str| folder.path().join(name);
    fs::rename(path("server.pem"), path("moved.pem")).unwrap();
    assert_refused(
        folder.path(),
        "keygate.toml:4:17: server.tls[server.pem].cert: cannot read server.pem: No such file or directory (os error 2)",
    );
    fs::copy(path("server-key.pem"), path("server.pem")).unwrap();
    assert_refused(
        folder.path(),
        "keygate.toml:4:17: server.tls[server.pem].cert: there is no certificate in server.pem; name the file with the certificate, and its chain behind it",
    );
    fs::copy(path("moved.pem"), path("server.pem")).unwrap();
    fs::write(path("server-key.pem"), &CERTIFICATE.pem).unwrap();
    assert_refused(
        folder.path(),
        "keygate.toml:4:37: server.tls[server.pem].key: there is no private key in server-key.pem; name the file with the key of the certificate, not encrypted",
    );
    fs::write(path("server-key.pem"), "-----BEGIN PRIVATE KEY-----\n%%%\n-----END PRIVATE KEY-----\n")
        .unwrap();
    let (code, _, err) = run(folder.path(), "check");
    assert_eq!(code, 1);
    assert!(
        err.starts_with("keygate.toml:4:37: server.tls[server.pem].key: server-key.pem is no PEM: "),
        "{err}"
    );
}

#[test]
fn a_key_of_another_certificate_is_refused() {
    let folder = configured();
    Certificate::for_names(&["other.example.com"]).write(folder.path(), "other");
    fs::copy(folder.path().join("other-key.pem"), folder.path().join("server-key.pem")).unwrap();
    assert_refused(
        folder.path(),
        "keygate.toml:4:37: server.tls[server.pem].key: the key in server-key.pem does not belong to the first certificate in server.pem; name a pair that belongs \
         together, with the server's own certificate first in its file",
    );
}

#[test]
fn a_key_that_others_can_read_is_refused() {
    let folder = configured();
    let key = folder.path().join("server-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).unwrap();
    assert_refused(
        folder.path(),
        "keygate.toml:4:37: server.tls[server.pem].key: the key server-key.pem can be read by others: chmod 600 server-key.pem",
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o400)).unwrap();
    assert_eq!(run(folder.path(), "check").0, 0);
}

#[test]
fn private_keys_of_every_form_are_accepted() {
    let folder = configured();
    for (name, arguments) in [
        ("sec1", &["ecparam", "-name", "prime256v1", "-genkey", "-noout"][..]),
        ("pkcs1", &["genrsa", "-traditional"]),
        ("pkcs8", &["genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"]),
        ("ed25519", &["genpkey", "-algorithm", "ed25519"]),
    ] {
        let openssl = |arguments: &[&str]| {
            let out = Command::new("openssl").args(arguments).current_dir(folder.path()).output().unwrap();
            assert!(out.status.success(), "{name}: {}", String::from_utf8_lossy(&out.stderr));
        };
        openssl(&[arguments, &["-out", "server-key.pem"]].concat());
        openssl(&[
            "req",
            "-x509",
            "-key",
            "server-key.pem",
            "-out",
            "server.pem",
            "-days",
            "2",
            "-subj",
            "/CN=x",
            "-addext",
            "subjectAltName=DNS:x.example.com",
        ]);
        fs::set_permissions(folder.path().join("server-key.pem"), fs::Permissions::from_mode(0o600)).unwrap();
        let (code, out, err) = run(folder.path(), "check");
        assert_eq!((code, &*err), (0, ""), "{name}");
        assert!(out.contains("tls        x.example.com, until 20"), "{name}: {out}");
    }
}

#[test]
fn all_mistakes_in_certificates_are_reported_at_once() {
    let folder = configured();
    Certificate::for_names(&[]).write(folder.path(), "nameless");
    let toml = folder.path().join("keygate.toml");
    let text = fs::read_to_string(&toml).unwrap().replace(
        "tls = [",
        "tls = [{ cert = \"none.pem\", key = \"none\" }, { cert = \"nameless.pem\", key = \"nameless-key.pem\" }, ",
    );
    fs::write(&toml, text).unwrap();
    let expected = "\
keygate.toml:4:17: server.tls[none.pem].cert: cannot read none.pem: No such file or directory (os error 2)
keygate.toml:4:35: server.tls[none.pem].key: cannot read the key none: No such file or directory (os error 2)
keygate.toml:4:54: server.tls[nameless.pem].cert: the certificate in nameless.pem has no DNS name, so no client would get it; remove it, or put it first

3 mistakes
";
    assert_eq!(run(folder.path(), "check"), (1, String::new(), expected.to_owned()));
}

#[test]
fn certificate_problems_for_clients_are_warnings_in_check_and_serve() {
    for (years, complaint) in [
        ((2020, 2021), "expired on 2021-01-01T00:00:00.000Z; renew it"),
        ((2220, 2221), "is not valid before 2220-01-01T00:00:00.000Z; correct the clock, or wait"),
    ] {
        let folder = configured();
        let certificate = Certificate::with(&[HOST], |parameters| {
            parameters.not_before = rcgen::date_time_ymd(years.0, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(years.1, 1, 1);
        });
        certificate.write(folder.path(), "server");
        let complaint = format!("server.tls: the certificate in server.pem {complaint}");
        // A unit with `ExecStartPre=keygate check` must get as far as `serve`.
        let (code, out, err) = run(folder.path(), "check");
        assert_eq!((code, &*err), (0, ""));
        let wanted =
            format!("tls        {HOST}, until {}-01-01T00:00:00.000Z\nwarning    {complaint}\n", years.1);
        assert!(out.contains(&wanted), "{out}");
        let process = Process::keygate(folder.path(), &["serve"]);
        process.err_line(&complaint);
        process.err_line("listening on https://127.0.0.1:");
    }
}

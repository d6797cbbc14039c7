//! TLS to Redis: the certificates that keygate trusts, its own certificate, and the messages about mismatches.

use std::fs;
use std::io::Read;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use keygate::store::keeper::{Keeper, LinkState};
use keygate::store::redis::{Address, OpenError, Redis, Settings, TlsFiles};
use keygate::store::{Committed, Lookup, Store};
use keygate::vocabulary::key::record::Sealer;
use tempfile::TempDir;
use tokio::runtime::Handle;

use crate::harness::{Authority, Call, Gateway, PATIENCE, RedisServer, Upstream, eventually};
use crate::store_contract::{Heard, Maker, Shared, assert_found, event, insert};

/// A folder with the authority's certificate, and one of a client with its key.
fn files(authority: &Authority) -> TempDir {
    let folder = TempDir::new().unwrap();
    authority.write(folder.path(), "ca");
    authority.issue(&["client"]).write(folder.path(), "client");
    folder
}

fn trusting(folder: &Path) -> TlsFiles {
    TlsFiles { ca: folder.join("ca.pem"), client: None }
}

fn with_certificate(folder: &Path) -> TlsFiles {
    let client = Some((folder.join("client.pem"), folder.join("client-key.pem")));
    TlsFiles { client, ..trusting(folder) }
}

fn open(url: &str, tls: Option<TlsFiles>) -> Result<Redis, OpenError> {
    let settings = Settings {
        tls,
        connect_timeout: PATIENCE,
        lookup_timeout: PATIENCE,
        command_timeout: PATIENCE,
        ..Settings::new(Address::parse(url).unwrap())
    };
    Redis::open(settings, Sealer::default(), Handle::current())
}

/// The reason why an open store does not answer.
async fn refusal(url: &str, tls: TlsFiles) -> String {
    let store = open(url, Some(tls)).unwrap();
    match store.lookup(Maker::new().digest()).await {
        Lookup::Unavailable(fault) => fault.to_string(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn lookups_mutations_and_events_go_over_tls() {
    let authority = Authority::new();
    let (server, files) =
        (RedisServer::with_tls(&authority, &["--tls-auth-clients", "no"]), files(&authority));
    let store: Shared = Arc::new(open(&server.tls_url(), Some(trusting(files.path()))).unwrap());
    assert_eq!(store.keeper().begin().await, Ok(true));
    let (heard, made) = (Heard::default(), Maker::new());
    store.subscribe(heard.sink());
    let (org, digest) = (made.org(), made.digest());
    let key = made.key(org.id, &[digest]);
    insert(&store, &org, &key).await;
    assert_found(&store, digest, &key, &org).await;
    assert_eq!(store.commit(event(org.id)).await, Ok(Committed { event: Some(1) }));
    let until = std::time::Instant::now() + PATIENCE;
    while store.keeper().link_state() != LinkState::Up {
        assert!(std::time::Instant::now() < until, "{:?}", store.keeper().link_state());
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_certificate_of_another_authority_or_name_is_refused_with_the_reason() {
    let authority = Authority::new();
    let server = RedisServer::with_tls(&authority, &["--tls-auth-clients", "no"]);
    let told = refusal(&server.tls_url(), trusting(files(&Authority::new()).path())).await;
    assert!(told.contains("from no authority in store.tls.ca"), "{told}");
    let by_name = server.tls_url().replace("127.0.0.1", "localhost");
    let told = refusal(&by_name, trusting(files(&authority).path())).await;
    assert!(told.contains("its certificate is not for localhost"), "{told}");
    let folder = files(&authority);
    let settings = Settings {
        tls: Some(trusting(folder.path())),
        lookup_timeout: PATIENCE,
        ..Settings::new(Address::parse(&server.url().replace("redis://", "rediss://")).unwrap())
    };
    let plain = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
    let told = format!("{:?}", plain.lookup(Maker::new().digest()).await);
    assert!(told.contains("see whether this is the port where it speaks TLS"), "{told}");
}

#[tokio::test]
async fn a_redis_that_requires_a_certificate_gets_keygates() {
    let authority = Authority::new();
    let (server, files) = (RedisServer::with_tls(&authority, &[]), files(&authority));
    let store = open(&server.tls_url(), Some(with_certificate(files.path()))).unwrap();
    assert_eq!(store.begin().await, Ok(true));
    let told = refusal(&server.tls_url(), trusting(files.path())).await;
    assert!(told.contains("client certificate") && told.contains("store.tls.cert"), "{told}");
    Authority::new().issue(&["client"]).write(files.path(), "client");
    let told = refusal(&server.tls_url(), with_certificate(files.path())).await;
    assert!(told.contains("Redis at 127.0.0.1"), "{told}");
}

#[tokio::test]
async fn a_store_with_missing_or_unusable_certificate_files_does_not_open() {
    let authority = Authority::new();
    let files = files(&authority);
    let url = "rediss://127.0.0.1:1";
    assert!(matches!(open(url, None).unwrap_err(), OpenError::NoAuthority));
    let refused = |tls| open(url, Some(tls)).unwrap_err().to_string();
    let none = TlsFiles { ca: files.path().join("none.pem"), client: None };
    assert!(refused(none).contains("store.tls: cannot read"));
    fs::write(files.path().join("ca.pem"), "no certificate").unwrap();
    assert!(refused(trusting(files.path())).contains("there is no certificate in"));
    authority.write(files.path(), "ca");
    Authority::new().issue(&["other"]).write(files.path(), "other");
    let mixed = Some((files.path().join("client.pem"), files.path().join("other-key.pem")));
    let told = refused(TlsFiles { client: mixed, ..trusting(files.path()) });
    assert!(told.contains("store.tls: ") && told.contains("its own key"), "{told}");
}

/// No downgrade: nothing is sent in plain text before the server's certificate is verified.
#[tokio::test]
async fn no_password_is_sent_to_a_server_that_is_not_trusted() {
    let authority = Authority::new();
    let files = files(&authority);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let password = files.path().join("password");
    fs::write(&password, "hunter2").unwrap();
    fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let settings = Settings {
        tls: Some(trusting(files.path())),
        password_file: Some(password),
        ..Settings::new(Address::parse(&format!("rediss://127.0.0.1:{port}")).unwrap())
    };
    let store = Redis::open(settings, Sealer::default(), Handle::current()).unwrap();
    let sent = std::thread::spawn(move || {
        let mut sent = Vec::new();
        listener.accept().unwrap().0.read_to_end(&mut sent).unwrap();
        sent
    });
    assert!(matches!(store.lookup(Maker::new().digest()).await, Lookup::Unavailable(_)));
    let sent = tokio::task::spawn_blocking(move || sent.join().unwrap()).await.unwrap();
    assert_eq!(sent[0], 22, "a TLS handshake");
    assert!(!sent.windows(7).any(|part| part == b"hunter2") && !sent.windows(5).any(|part| part == b"HELLO"));
}

#[test]
fn tls_to_redis_is_set_in_the_configuration() {
    let authority = Authority::new();
    let (server, files) = (RedisServer::with_tls(&authority, &[]), files(&authority));
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder()
        .api(&live, &test)
        .settings(&format!(
            "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\nconnect_timeout = \"10s\"\n\
             lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n\
             tls = {{ ca = \"ca.pem\", cert = \"client.pem\", key = \"client-key.pem\" }}\n\
             [cache]\nlookup_timeout = \"10s\"",
            server.tls_url()
        ))
        .start_in(files);
    let key = gateway.live_key();
    eventually("the key works", || gateway.fetch(&Call::get("/v1/jobs").key(&key.secret)).status == 200);
}

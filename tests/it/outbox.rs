//! Notifications of new organisations: signed, repeated until they are accepted, and sent only for organisations
//! that exist.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tempfile::TempDir;

use crate::harness::desk::write_secret;
use crate::harness::metrics::{scrape, value};
use crate::harness::{Call, Gateway, Reply, Seen, Upstream, eventually, operator};

const KEY: &[u8] = b"a key of thirty-two bytes or more";

fn gateway(receiver: &Upstream) -> Gateway {
    let folder = TempDir::new().unwrap();
    let key = folder.path().join("outbox-key");
    fs::write(&key, KEY).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let url = receiver.url();
    Gateway::builder()
        .settings("[signup]\nenabled = true\nfree_credits_cents = 500\n[ops]\nlisten = \"127.0.0.1:0\"")
        .settings(&format!("[outbox]\nurl = \"{url}/internal/news?from=keygate\"\nkey_file = \"outbox-key\""))
        .upstream("api", &Upstream::start("live").url(), &Upstream::start("test").url())
        .start_in(folder)
}

fn sign_up(gateway: &Gateway, email: &str) -> String {
    let body = format!(r#"{{"name":"Ada","email":"{email}"}}"#);
    let answer = gateway.fetch(&Call::post("/v1/auth/signup", body));
    assert_eq!(answer.status, 200, "{}", answer.text());
    answer.json()["organization_id"].as_str().unwrap().to_owned()
}

/// The notifications about one organisation.
fn about<'s>(seen: &'s [Seen], org: &str) -> Vec<&'s Seen> {
    seen.iter().filter(|seen| seen.value("idempotency-key") == org).collect()
}

fn is_signed(seen: &Seen) -> bool {
    is_signed_under(KEY, seen)
}

/// As a receiver in any language would find out, which has this key.
fn is_signed_under(key: &[u8], seen: &Seen) -> bool {
    let signature = seen.value("keygate-signature");
    let mut parts = signature.strip_prefix("t=").unwrap().split(",v1=");
    let time = parts.next().unwrap();
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
    mac.update(time.as_bytes());
    mac.update(b".");
    mac.update(&seen.body);
    let own: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    parts.any(|digits| digits == own)
}

#[test]
fn a_signup_notifies_the_upstream_signed_and_until_it_accepts() {
    let receiver = Upstream::start("taken");
    let gateway = gateway(&receiver);
    let org = sign_up(&gateway, "ada@example.com");
    eventually("the news arrive", || about(&receiver.seen(), &org).len() == 1);
    let seen = receiver.seen();
    let news = about(&seen, &org)[0];
    assert_eq!(news.request_line(), "POST /internal/news?from=keygate HTTP/1.1");
    assert_eq!(news.value("content-type"), "application/json");
    assert!(is_signed(news), "{:#?}", news.head);
    let body: serde_json::Value = serde_json::from_slice(&news.body).unwrap();
    assert_eq!(body["type"], "org.created");
    let data = &body["data"];
    assert_eq!((&data["organization_id"], &data["name"]), (&org.clone().into(), &"Ada".into()));
    assert_eq!((&data["email"], &data["verified"]), (&"ada@example.com".into(), &true.into()));
    assert_eq!(data["credits_cents"], 500);
    assert!(!String::from_utf8_lossy(&news.body).contains("_sk_"), "no secret leaves this way");
    gateway.advance(Duration::from_secs(120));
    let later = sign_up(&gateway, "bob@example.com");
    eventually("later news arrive", || about(&receiver.seen(), &later).len() == 1);
    assert_eq!(about(&receiver.seen(), &org).len(), 1, "what was taken is not sent again");
}

#[test]
fn refused_notifications_are_sent_again_unchanged() {
    let attempts: Mutex<HashMap<String, usize>> = Mutex::default();
    let receiver = Upstream::with(move |seen| {
        let mut attempts = attempts.lock().unwrap();
        let attempt = attempts.entry(seen.value("idempotency-key").to_owned()).or_default();
        *attempt += 1;
        match *attempt {
            1 => Reply::raw("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n"),
            2 => Reply::Custom(Box::new(|_| {})),
            _ => Reply::ok(""),
        }
    });
    let gateway = gateway(&receiver);
    let org = sign_up(&gateway, "ada@example.com");
    for sent in 1..=3 {
        eventually("the news are sent once more", || about(&receiver.seen(), &org).len() >= sent);
        gateway.advance(Duration::from_secs(31));
    }
    let later = sign_up(&gateway, "bob@example.com");
    eventually("later news arrive", || !about(&receiver.seen(), &later).is_empty());
    let seen = receiver.seen();
    let news = about(&seen, &org);
    assert_eq!(news.len(), 3, "what was taken is not sent again");
    assert!(news.iter().all(|sent| sent.body == news[0].body && is_signed(sent)));
}

/// A receiver that refuses everything, and from when it is told so answers by `taken`.
fn refusing_at_first(taken: impl Fn() -> Reply + Send + Sync + 'static) -> (Upstream, Arc<AtomicBool>) {
    let takes = Arc::new(AtomicBool::new(false));
    let told = Arc::clone(&takes);
    let receiver = Upstream::with(move |_| {
        if told.load(Ordering::SeqCst) {
            taken()
        } else {
            Reply::raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n")
        }
    });
    (receiver, takes)
}

/// Restarts the gateway with these keys for its signatures, the new one first.
fn restart_with_keys(gateway: &mut Gateway, files: &[&str]) {
    let path = gateway.folder().join("keygate.toml");
    let toml = fs::read_to_string(&path).unwrap();
    let old = toml.lines().find(|line| line.starts_with("key_file")).unwrap().to_owned();
    fs::write(&path, toml.replace(&old, &format!("key_files = {files:?}"))).unwrap();
    gateway.restart();
}

#[test]
fn a_new_key_signs_beside_the_one_before_until_that_is_removed() {
    const NEW: &[u8] = b"another key of thirty-two bytes or more";
    let (receiver, takes) = refusing_at_first(|| Reply::ok(""));
    let mut gateway = gateway(&receiver);
    write_secret(&gateway.folder().join("new-key"), std::str::from_utf8(NEW).unwrap());
    let signed = |org: &str| {
        let seen = receiver.seen();
        let last = *about(&seen, org).last().unwrap();
        (is_signed_under(KEY, last), is_signed_under(NEW, last))
    };
    // A receiver has one of the keys, and nothing waits for ever: not what was there before the change either.
    let early = sign_up(&gateway, "ada@example.com");
    eventually("it is refused", || !about(&receiver.seen(), &early).is_empty());
    assert_eq!(signed(&early), (true, false));
    restart_with_keys(&mut gateway, &["new-key", "outbox-key"]);
    let refused = about(&receiver.seen(), &early).len();
    takes.store(true, Ordering::SeqCst);
    gateway.advance(Duration::from_secs(60));
    eventually("it is sent again", || about(&receiver.seen(), &early).len() > refused);
    assert_eq!(signed(&early), (true, true));
    let between = sign_up(&gateway, "bob@example.com");
    eventually("it is told", || !about(&receiver.seen(), &between).is_empty());
    assert_eq!(signed(&between), (true, true));
    restart_with_keys(&mut gateway, &["new-key"]);
    let late = sign_up(&gateway, "eve@example.com");
    eventually("it is told", || !about(&receiver.seen(), &late).is_empty());
    assert_eq!(signed(&late), (false, true));
}

fn signed_at(seen: &Seen) -> u64 {
    let (time, _) = seen.value("keygate-signature")[2..].split_once(',').unwrap();
    time.parse().unwrap()
}

#[test]
fn notifications_are_signed_when_they_are_sent() {
    let (release, released) = mpsc::channel::<()>();
    let released = Mutex::new(released);
    let (receiver, takes) = refusing_at_first(move || {
        // The first delivery waits; the later ones find the sender gone.
        let _ = released.lock().unwrap().recv();
        Reply::ok("")
    });
    let gateway = gateway(&receiver);
    let orgs = ["ada@example.com", "bob@example.com"].map(|email| sign_up(&gateway, email));
    eventually("all were refused", || orgs.iter().all(|org| !about(&receiver.seen(), org).is_empty()));
    let refused = receiver.seen().len();
    takes.store(true, Ordering::SeqCst);
    gateway.advance(Duration::from_secs(60));
    eventually("one is being taken", || receiver.seen().len() > refused);
    gateway.advance(Duration::from_secs(600));
    let now = gateway.now().0 / 1000;
    drop(release);
    eventually("the others follow", || receiver.seen().len() >= refused + 3);
    let seen = receiver.seen();
    let (first, others) = seen[refused..].split_first().unwrap();
    assert!(signed_at(first) <= now - 600, "{:#?}", first.head);
    assert!(others.iter().all(|news| signed_at(news) >= now && is_signed(news)), "{others:#?}");
}

/// The number of waiting notifications in the metrics.
fn waiting(gateway: &Gateway) -> Option<f64> {
    value(&scrape(gateway.ops_address()), "keygate_outbox_waiting")
}

#[test]
fn waiting_notifications_are_counted() {
    let (receiver, takes) = refusing_at_first(|| Reply::ok(""));
    let gateway = gateway(&receiver);
    for email in ["ada@example.com", "bob@example.com"] {
        sign_up(&gateway, email);
    }
    eventually("these two and the gateway's own wait", || waiting(&gateway) == Some(3.0));
    takes.store(true, Ordering::SeqCst);
    gateway.advance(Duration::from_secs(31));
    eventually("nothing waits any more", || waiting(&gateway) == Some(0.0));
}

#[test]
fn an_operators_organisation_is_notified_too_and_a_refused_signup_is_not() {
    let receiver = Upstream::start("taken");
    let gateway = gateway(&receiver);
    sign_up(&gateway, "ada@example.com");
    let twice = Call::post("/v1/auth/signup", r#"{"name":"Eve","email":"ada@example.com"}"#);
    gateway.fetch(&twice).refusal(409, "conflict");
    let made = gateway.block_on(gateway.lifecycle().create_org(&operator(), "by hand")).unwrap();
    eventually("the operator's organisation is told of", || {
        !about(&receiver.seen(), &made.id.to_string()).is_empty()
    });
    assert!(receiver.seen().iter().all(|seen| !String::from_utf8_lossy(&seen.body).contains("Eve")));
}

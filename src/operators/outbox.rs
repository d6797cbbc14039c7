//! The outbox: it sends news of organisations to the upstream until the upstream accepts them.
//!
//! The store keeps news together with the change that they report ([`crate::store::outbox::News`]). The outbox takes
//! them from there.
//!
//! Each is a signed `POST` with JSON, and is sent at least once: a gateway may end after the receiver has accepted it
//! and before this is noted. `Idempotency-Key` is the id of the organisation, by which the receiver recognises news
//! that it has already.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hmac::Mac;
use http::header::{CONTENT_TYPE, HOST};
use http::{HeaderValue, Request, StatusCode, Uri};
use http_body_util::Full;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use crate::dial::Dialer;
use crate::store::Store;
use crate::store::outbox::News;
use crate::telemetry::{Event, Notice};
use crate::upstream::endpoint::{Address, Endpoint, InvalidEndpoint};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::key::Pepper;

/// The receiver of news.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receiver {
    endpoint: Endpoint,
    host: Box<str>,
    port: u16,
    path: Box<str>,
}

impl Receiver {
    #[must_use]
    pub const fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Takes `http://host:port/path`.
    ///
    /// # Errors
    /// [`InvalidEndpoint`] says what to write instead.
    pub fn parse(text: &str) -> Result<Self, InvalidEndpoint> {
        if !text.starts_with("http://") {
            return Err(InvalidEndpoint::OnlyHttp);
        }
        let after_scheme = text.find("://").map_or(0, |at| at + 3);
        let at = text[after_scheme..].find('/').map_or(text.len(), |at| at + after_scheme);
        let (origin, path) = text.split_at(at);
        let path = if path.is_empty() { "/" } else { path };
        let endpoint = Endpoint::parse(origin)?;
        let Address::Tcp { host, port } = endpoint.address().clone() else {
            return Err(InvalidEndpoint::OnlyHttp);
        };
        match path.parse::<Uri>() {
            Ok(target) if target.path_and_query().is_some_and(|target| target.as_str() == path) => {
                Ok(Self { endpoint, host, port, path: path.into() })
            }
            _ => Err(InvalidEndpoint::Form),
        }
    }
}

impl fmt::Display for Receiver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.endpoint, self.path)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub receiver: Receiver,
    /// The file with the key of the signatures; while a new one replaces it, the files of both.
    pub key_files: Vec<PathBuf>,
}

/// How often news are fetched from the store.
const EVERY: Duration = Duration::from_secs(1);
/// How long a receiver may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);
/// After this time news that were not accepted are sent again. It is longer than [`PATIENCE`]: the attempt before
/// must have ended.
const AGAIN: Duration = Duration::from_secs(30);
/// The number of news sent one after the other before the store is asked again.
const BATCH: usize = 16;

/// The number of news that wait, and of those that are held, for metrics; `None` until they were counted for the first
/// time.
#[derive(Debug, Default)]
pub struct Backlog(Mutex<(Option<u64>, Option<u64>)>);

impl Backlog {
    #[must_use]
    pub fn waiting(&self) -> Option<u64> {
        self.counts().0
    }

    /// News without a proof that keygate has written them.
    #[must_use]
    pub fn held(&self) -> Option<u64> {
        self.counts().1
    }

    fn counts(&self) -> (Option<u64>, Option<u64>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, waiting: u64) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).0 = Some(waiting);
    }

    /// Logs that there are some, each time there are more.
    fn note_held(&self, held: u64) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).1.replace(held);
        if held > before.unwrap_or(0) {
            Notice::NewsUnproven.log(&format!(
                "{held} news of organisations in the store have no proof that this installation has written them, and are not \
                 delivered: a gateway of an older release wrote them, or somebody else who can write to the store; when all \
                 gateways are upgraded, `keygate store accept` has them made anew from the records of the organisations"
            ));
        }
    }
}

/// How often the news that wait are counted.
const COUNTED_EVERY: Duration = Duration::from_secs(5);

/// Counts the news that wait, for as long as it is polled. It runs beside the sending, which a receiver that hangs
/// delays.
pub async fn count(store: Arc<dyn Store>, backlog: Arc<Backlog>) {
    loop {
        // While the store cannot answer, the number stays what it was.
        if let Ok(waiting) = store.outbox().backlog().await {
            backlog.note(waiting);
        }
        if let Ok((held, _)) = store.outbox().held(None, 1).await {
            backlog.note_held(held);
        }
        sleep(COUNTED_EVERY).await;
    }
}

/// Sends the news that are due, for as long as it is polled.
pub async fn deliver(store: Arc<dyn Store>, receiver: Receiver, keys: Vec<Pepper>, clock: Clock) {
    let mut is_told = false;
    let server = Dialer::new(&receiver.host, receiver.port);
    loop {
        let now = clock.kept();
        // Where the store does not answer, that is logged elsewhere. The news wait in it.
        let claimed = store.outbox().claim(now, now.plus(AGAIN), BATCH).await.unwrap_or_default();
        let is_last = claimed.len() < BATCH;
        for news in claimed {
            let org = news.org;
            // The time of this attempt: the news before may have taken long, and receivers refuse old signatures.
            let sending = async {
                let stream = server.dial(PATIENCE, &clock).await?;
                send(&receiver, stream, &keys, &news, clock.now().wall).await
            };
            let sent = timeout(PATIENCE, sending).await;
            let failed = match sent.unwrap_or(Err(SendError::TimedOut)) {
                Ok(()) => store.outbox().delivered(org).await.err().map(|fault| fault.to_string()),
                Err(error) => Some(error.to_string()),
            };
            match failed {
                Some(error) if !is_told => {
                    is_told = Event::NewsNotDelivered.log(clock.mono(), || {
                        format!(
                            "news of {org} could not be delivered to {receiver}: {error}; trying again until they are accepted"
                        )
                    });
                }
                None if std::mem::take(&mut is_told) => {
                    Notice::NewsDelivered.log(&format!("news are delivered to {receiver} again"));
                }
                Some(_) | None => {}
            }
        }
        if is_last {
            sleep(EVERY).await;
        }
    }
}

/// Why news were not delivered.
#[derive(Debug, Error)]
enum SendError {
    #[error("it cannot be reached: {0}")]
    Io(#[from] std::io::Error),
    #[error("it broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the request cannot be made: {0}")]
    Request(#[from] http::Error),
    #[error("it answered {0}")]
    Status(StatusCode),
    #[error("it took too long")]
    TimedOut,
}

async fn send(
    receiver: &Receiver,
    stream: TcpStream,
    keys: &[Pepper],
    news: &News,
    now: UnixMillis,
) -> Result<(), SendError> {
    let Receiver { endpoint, path, .. } = receiver;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let request = Request::post(&**path)
        .header(HOST, endpoint.host_field())
        .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
        .header("idempotency-key", news.org.to_string())
        .header("keygate-signature", sign(keys, now, &news.body))
        .body(Full::new(Bytes::from(news.body.clone())))?;
    let status = sender.send_request(request).await.map(|answer| answer.status());
    driver.abort();
    match status? {
        status if status.is_success() => Ok(()),
        status => Err(SendError::Status(status)),
    }
}

/// `t=` the time in Unix seconds, `v1=` HMAC-SHA-256 in hexadecimal digits over that number, a dot and the body. With
/// the time in it, an old message cannot pass for a new one. With several keys there is a `v1=` for each, and a receiver
/// that knows one of them is content.
fn sign(keys: &[Pepper], now: UnixMillis, body: &[u8]) -> String {
    let seconds = now.0 / 1000;
    let mut signature = format!("t={seconds}");
    for key in keys {
        let mut mac = key.hmac("");
        mac.update(seconds.to_string().as_bytes());
        mac.update(b".");
        mac.update(body);
        signature.push_str(",v1=");
        signature.extend(mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")));
    }
    signature
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_receiver_is_an_origin_and_a_path() {
        for (text, shown) in [
            ("http://127.0.0.1:9000/internal/news", "http://127.0.0.1:9000/internal/news"),
            ("http://api.internal", "http://api.internal:80/"),
            ("http://[::1]:9000/a?b=c", "http://[::1]:9000/a?b=c"),
        ] {
            assert_eq!(Receiver::parse(text).unwrap().to_string(), shown);
        }
        for bad in ["https://a/b", "a/b", "http:///b", "http://a/b c", "http://u@a/b", "http://a/b#c"] {
            assert!(Receiver::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_signature_is_what_any_hmac_library_makes_of_time_and_body() {
        // printf '1790000000.{}' | openssl dgst -sha256 -hmac "$(printf 'k%.0s' $(seq 32))"
        let key = |byte| Pepper::new(vec![byte; 32]).unwrap();
        let at = UnixMillis(1_790_000_000_123);
        let alone = "t=1790000000,v1=c4cacc6f6a3ea0cea1a40ea5fa3e180ef9daed20feb42d4b3d90b65d86d6deff";
        assert_eq!(sign(&[key(b'k')], at, b"{}"), alone);
        let both = sign(&[key(b'n'), key(b'k')], at, b"{}");
        let (time, signatures) = both.split_once(',').unwrap();
        let signatures: Vec<&str> = signatures.split(',').collect();
        assert_eq!(
            format!("{time},{}", signatures[1]),
            alone,
            "a receiver with the old key finds its signature"
        );
        assert_eq!(signatures.len(), 2);
    }
}

//! The API that keygate itself serves: signup, keys, the audit trail. Its requests pass the same stages as requests
//! that are forwarded.
//!
//! An operation runs on the control runtime in a task of its own, so that a change that has begun is completed even if
//! the client hangs up. One that has not begun then is dropped, unless it takes rights away.

mod admission;
mod audit;
mod body;
mod keys;
mod query;
mod signup;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::StatusCode;
use serde::Serialize;
use sha2::{Digest as _, Sha256};
use tokio::runtime::Handle;
use tokio::task::JoinHandle;
use zeroize::Zeroizing;

use self::admission::Admissions;
use crate::lifecycle::{
    CallingKey, Escalation, Idempotency, Lifecycle, LifecycleError, Origin, Presence, Principal, Waiting,
};
use crate::policy::target::Operation;
use crate::store::Propagation;
use crate::store::indexes::Full;
use crate::telemetry::Event;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::RequestId;
use crate::vocabulary::key::PresentedKey;
use crate::vocabulary::rejection::{Conflict, FieldError, NotFound, Rejection, Unavailable};
use crate::vocabulary::text::{append_json, to_json};

pub use self::admission::Place;

/// The description of the API, as OpenAPI 3.1. A test compares it with the policy that is shipped, and every answer
/// that the tests get with it.
pub const DESCRIPTION: &str = include_str!("openapi.json");
/// The largest body of an operation, in bytes.
pub const BODY_LEN: u64 = 64 << 10;
/// The longest idempotency key, in bytes.
const IDEMPOTENCY_KEY_LEN: usize = 255;

/// A request for an operation, taken apart.
#[derive(Debug)]
pub struct Call {
    pub operation: Operation,
    /// The path's parameter, if the path has one.
    pub id: Option<String>,
    pub query: Option<String>,
    pub body: Bytes,
    /// `None` on a public route.
    pub caller: Option<CallingKey>,
    pub idempotency: Option<Idempotency>,
    pub address: IpAddr,
    pub request: RequestId,
    /// When the request's head had come.
    pub arrived: Instant,
    /// From [`Api::admit`].
    pub place: Place,
    presence: Presence,
}

impl Call {
    /// A call without parameters, query and body.
    #[must_use]
    pub fn new(
        operation: Operation,
        place: Place,
        address: IpAddr,
        request: RequestId,
        arrived: Instant,
    ) -> Self {
        Self {
            operation,
            id: None,
            query: None,
            body: Bytes::new(),
            caller: None,
            idempotency: None,
            address,
            request,
            arrived,
            place,
            presence: Presence::unwatched(),
        }
    }

    fn origin(&self) -> Origin {
        let principal = self.caller.clone().map_or(Principal::Stranger, Principal::Key);
        let presence = self.presence.clone();
        Origin {
            arrived: Some(self.arrived),
            presence,
            ..Origin::request(principal, self.address, self.request)
        }
    }
}

/// The answer of an operation.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub body: Bytes,
    /// How far the requested change has come among the gateways.
    pub propagation: Option<Propagation>,
}

impl Answer {
    fn json(value: &impl Serialize) -> Result<Self, Rejection> {
        let body = to_json(value).map_err(|error| internal(&error))?;
        Ok(Self { status: StatusCode::OK, body: body.into(), propagation: None })
    }

    /// A body with a secret, which is wiped when the last part of it has been handed to the connection.
    fn secret(body: Zeroizing<Vec<u8>>) -> Self {
        Self { status: StatusCode::OK, body: Bytes::from_owner(body), propagation: None }
    }

    fn propagated(self, propagation: Option<Propagation>) -> Self {
        Self { propagation, ..self }
    }

    const fn nothing() -> Self {
        Self { status: StatusCode::NO_CONTENT, body: Bytes::new(), propagation: None }
    }
}

/// The identity of a request that may be sent twice: its caller, its idempotency key, and a hash of everything that
/// must be the same the second time.
///
/// # Errors
/// 400 for an idempotency key that is empty or too long.
pub fn idempotency(
    operation: Operation,
    caller: &PresentedKey<'_>,
    name: &[u8],
    path: &str,
    body: &[u8],
) -> Result<Option<Idempotency>, Rejection> {
    if !operation.makes_something() {
        return Ok(None);
    }
    if name.is_empty() || name.len() > IDEMPOTENCY_KEY_LEN {
        let error = FieldError::new("Idempotency-Key", "must be 1 to 255 bytes");
        return Err(Rejection::Invalid([error].into()));
    }
    let mut fingerprint = Sha256::new();
    // A path has no zero byte, so its end is unambiguous.
    for part in [operation.name().as_bytes(), b"\0", path.as_bytes(), b"\0", body] {
        fingerprint.update(part);
    }
    Idempotency::derive(caller, name, fingerprint.finalize().into()).map(Some).map_err(refuse)
}

/// The API, for the workers.
#[derive(Clone, Debug)]
pub struct Api {
    lifecycle: Arc<Lifecycle>,
    control: Handle,
    admissions: Arc<Admissions>,
}

impl Api {
    /// Operations run on the runtime `control`.
    #[must_use]
    pub fn new(lifecycle: Arc<Lifecycle>, control: Handle) -> Self {
        Self { lifecycle, control, admissions: Arc::default() }
    }

    #[must_use]
    pub const fn lifecycle(&self) -> &Arc<Lifecycle> {
        &self.lifecycle
    }

    /// A place for an operation, to be taken before its body is read; `length` is what the head says of the body, in
    /// bytes. What takes rights away waits for its place, and everything else is refused where there is none.
    ///
    /// # Errors
    /// 429 with `Retry-After`.
    pub async fn admit(
        &self,
        operation: Operation,
        caller: Option<&CallingKey>,
        address: IpAddr,
        length: Option<u64>,
    ) -> Result<Place, Rejection> {
        self.admissions.check_pause(operation, caller, self.lifecycle.clock().mono())?;
        self.admissions.admit(operation, caller, address, length).await
    }

    /// Carries out an operation. If its caller stops waiting before it has begun, it is dropped, unless it takes rights
    /// away.
    ///
    /// # Errors
    /// The refusal that the client gets.
    pub async fn serve(&self, mut call: Call) -> Result<Answer, Rejection> {
        let (lifecycle, admissions) = (Arc::clone(&self.lifecycle), Arc::clone(&self.admissions));
        let org =
            call.caller.as_ref().map(|caller| caller.org).filter(|_| call.operation == Operation::CreateKey);
        let waiting = (!call.operation.takes_away()).then(|| {
            let (presence, waiting) = Presence::watched();
            call.presence = presence;
            waiting
        });
        let task = self.control.spawn(async move {
            let answer = carry_out(&lifecycle, call).await;
            if let (Err(Rejection::RateLimited(pause)), Some(org)) = (&answer, org) {
                admissions.pause(org, lifecycle.clock().mono(), *pause);
            }
            answer
        });
        let mut attended = Attended { task, waiting };
        // Cancelled with its runtime, or panicked; the panic is logged already.
        (&mut attended.task).await.unwrap_or(Err(Rejection::Internal))
    }
}

/// A running operation, and its caller, which waits until this is dropped.
struct Attended {
    task: JoinHandle<Result<Answer, Rejection>>,
    /// `None` for one that goes on without its caller.
    waiting: Option<Waiting>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        if self.waiting.as_ref().is_some_and(Waiting::leave) {
            self.task.abort();
        }
    }
}

async fn carry_out(lifecycle: &Lifecycle, call: Call) -> Result<Answer, Rejection> {
    match call.operation {
        Operation::Signup => signup::sign_up(lifecycle, &call).await,
        Operation::CreateKey => keys::create(lifecycle, &call).await,
        Operation::ListKeys => keys::list(lifecycle, &call).await,
        Operation::GetOwnKey => keys::read_own(lifecycle, &call).await,
        Operation::GetKey => keys::read(lifecycle, &call).await,
        Operation::UpdateKey => keys::update(lifecycle, call).await,
        Operation::RotateKey => keys::rotate(lifecycle, &call).await,
        Operation::RevokeKey => keys::revoke(lifecycle, &call).await,
        Operation::ListAuditRecords => audit::list(lifecycle, &call).await,
    }
}

/// A page of a list.
#[derive(Serialize)]
struct List<T> {
    object: &'static str,
    data: Vec<T>,
    has_more: bool,
    next_cursor: Option<String>,
}

impl<T> List<T> {
    const fn new(data: Vec<T>, next_cursor: Option<String>) -> Self {
        Self { object: "list", data, has_more: next_cursor.is_some(), next_cursor }
    }
}

/// The refusal that a client gets for a change that did not happen.
fn refuse(error: LifecycleError) -> Rejection {
    match error {
        LifecycleError::Invalid(errors) => Rejection::Invalid(errors.into()),
        LifecycleError::NoOrg(_) | LifecycleError::NoKey(_) => Rejection::NotFound(NotFound::NoResource),
        LifecycleError::Stranger | LifecycleError::OrgUnnamed => Rejection::NotFound(NotFound::NoRoute),
        LifecycleError::Caller(refusal) => refusal.into(),
        LifecycleError::MissingScope(scope) => Rejection::MissingScope(scope.into()),
        LifecycleError::Escalation(escalation) => Rejection::Escalation(Escalation::message(escalation)),
        LifecycleError::SecretEnding(end) => Rejection::SecretEnding(end),
        LifecycleError::Descendants { found, .. } => Rejection::Conflict(Conflict::Descendants(found)),
        LifecycleError::Revoked(_) => Rejection::Conflict(Conflict::KeyRevoked),
        LifecycleError::Expired(_) => Rejection::Conflict(Conflict::KeyExpired),
        LifecycleError::Full(Full::Organisation) => Rejection::Conflict(Conflict::KeysFull),
        LifecycleError::Full(Full::Maker) => Rejection::Conflict(Conflict::MakerFull),
        LifecycleError::EmailTaken => Rejection::Conflict(Conflict::EmailTaken),
        LifecycleError::IdempotencyMismatch => Rejection::IdempotencyMismatch,
        LifecycleError::QuotaExceeded { retry_after } => Rejection::RateLimited(retry_after),
        LifecycleError::Contended(_) => Rejection::Conflict(Conflict::Contended),
        LifecycleError::Store(fault) => {
            let line = || format!("an operation could not be carried out: {fault}");
            Event::OperationUnavailable.log(Clock::system().mono(), line);
            Rejection::Unavailable(Unavailable::Store)
        }
        // Nobody reads it.
        LifecycleError::CallerLeft => Rejection::BodyBroken,
        LifecycleError::Randomness(_)
        | LifecycleError::Collision
        | LifecycleError::KeptAnswer
        // Only operators ask for what ends so.
        | LifecycleError::Unprovable { .. }
        | LifecycleError::BackupRuns
        | LifecycleError::NotCompacted(_)
        | LifecycleError::NoBackup
        | LifecycleError::NewerStore
        | LifecycleError::Prefix(_) => {
            internal(&error)
        }
    }
}

fn internal(error: &dyn std::error::Error) -> Rejection {
    Event::OperationFailed.log(Clock::system().mono(), || format!("an operation failed: {error}"));
    Rejection::Internal
}

/// The room for an answer with a secret, in bytes. A longer one, of a key with hundreds of scopes, leaves copies of its
/// beginning behind.
const SECRET_ROOM: usize = 8 << 10;

/// The JSON of an answer with a secret.
fn render_secret(answer: &impl Serialize) -> serde_json::Result<Zeroizing<Vec<u8>>> {
    let mut body = Zeroizing::new(Vec::with_capacity(SECRET_ROOM));
    append_json(answer, &mut body)?;
    Ok(body)
}

/// A secret on its way to its owner, once.
#[derive(Serialize)]
#[serde(transparent)]
struct Shown(Zeroizing<String>);

impl Shown {
    fn new(secret: &crate::vocabulary::key::ApiKey) -> Self {
        Self(Zeroizing::new(secret.expose().to_owned()))
    }
}

//! Every refusal that keygate can give, and the one map from it to what a client reads.
//!
//! Two audiences, two fields: [`Rejection::message`] is for the client and tells a stranger nothing;
//! [`Rejection::reason`] is for the operator's records and metrics, and names the cause. Both are exhaustive, so a
//! new refusal does not compile until it has its row.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use serde::Serialize;

pub use super::unsafe_message::{Unescaped, Unsafe};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::admission::{Dead, Refusal};
use crate::vocabulary::key::scope::OneOf;
use crate::vocabulary::reason::{ErrorStatus, ErrorType, Reason};

/// Why a request gets an answer of keygate's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The message has two readings, or none.
    Unsafe(Unsafe),
    /// The request target is longer than the limit.
    TargetTooLong,
    /// The header fields are more, or larger together, than the limit.
    HeadTooLarge,
    /// The body is larger than the route allows.
    BodyTooLarge,
    /// The client stopped sending its body.
    BodyStalled,
    /// The client broke its body off.
    BodyBroken,
    /// No valid key.
    Unauthenticated(Unauthenticated),
    /// A valid key that may do nothing from here or now.
    Forbidden(Forbidden),
    /// No rule, or nothing there to serve it.
    NotFound(NotFound),
    /// A valid key without the scope of the route, or of what it wants to give away.
    MissingScope(OneOf),
    /// A valid key that asks for more than it has.
    Escalation(&'static str),
    /// A secret that was rotated out and ends then. It may take rights away, and not give any.
    SecretEnding(UnixMillis),
    /// Body or parameters of keygate's own API that cannot be taken; each by its field.
    Invalid(Box<[FieldError]>),
    /// A body of keygate's own API that is no JSON object, or has a field twice.
    InvalidBody,
    /// The request conflicts with the current state.
    Conflict(Conflict),
    /// The idempotency key was used for another request.
    IdempotencyMismatch,
    /// Too many requests; the next may come after this time.
    RateLimited(Duration),
    /// No answer, or none that can be passed on, from any upstream endpoint.
    BadGateway(BadGateway),
    /// The upstream took too long to begin its answer.
    GatewayTimeout,
    /// The request has lasted for as long as its route allows.
    Overdue,
    /// Nothing is wrong with the request, but it cannot be served now.
    Unavailable(Unavailable),
    /// Something is wrong here, and the log says what.
    Internal,
}

/// A value that cannot be taken, by the field it came in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldError {
    pub field: Cow<'static, str>,
    pub message: Cow<'static, str>,
}

impl FieldError {
    #[must_use]
    pub const fn new(field: &'static str, message: &'static str) -> Self {
        Self { field: Cow::Borrowed(field), message: Cow::Borrowed(message) }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Why a caller is not authenticated. One answer for all; only the record tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unauthenticated {
    /// No Authorization field.
    Missing,
    /// Another scheme than Bearer, or no single token behind it.
    NotBearer,
    /// A token that no key of this installation can look like.
    Malformed,
    /// A well-formed key that the store does not know.
    Unknown,
    /// A known key that opens nothing.
    Dead(Dead),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forbidden {
    OrganisationSuspended,
    /// Signed up and not verified yet.
    OrganisationPending,
    /// The client's address is not on the key's list.
    Address,
    /// A live key that a browser sent.
    Browser,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    NoRoute,
    /// Nothing of this id, or nothing that the caller may know of.
    NoResource,
    /// Signing up is not open to strangers.
    SignupOff,
    /// A route that keygate serves itself, at a gateway that only lets requests through.
    NotServedHere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conflict {
    EmailTaken,
    KeyRevoked,
    KeyExpired,
    /// The organisation has as many live keys as it may have.
    KeysFull,
    /// The calling key has made as many of them as it may make.
    MakerFull,
    /// The same thing keeps being changed by others.
    Contended,
    /// Another number of keys than expected would be revoked: so many were made with the key and are not revoked.
    Descendants(usize),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadGateway {
    Unreachable,
    /// No name of its servers could be resolved.
    Unresolved,
    /// The handshake of TLS failed, or TLS ended with an error before an answer came.
    NoTls,
    /// The connection ended before a whole answer head had come.
    BrokeOff,
    /// Something that is no answer, or an answer that cannot be passed on, for example an unrequested 101.
    InvalidAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The store cannot answer, and nothing usable is cached.
    Store,
    /// Its lookup did not get its turn in time, or the queue was full.
    Lookups,
    /// As many of the client's requests are in flight as may be.
    Share,
    /// As many connections to upstreams are open as may be.
    Upstreams,
    /// As many requests are at their upstream as may be, or of their client's, and as many wait for it as may.
    Upstream,
    /// As many requests over HTTP/2 are held as there is memory for.
    Requests,
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Dead(dead) => Self::Unauthenticated(Unauthenticated::Dead(dead)),
            Refusal::OrganisationSuspended => Self::Forbidden(Forbidden::OrganisationSuspended),
            Refusal::OrganisationPending => Self::Forbidden(Forbidden::OrganisationPending),
            Refusal::Address => Self::Forbidden(Forbidden::Address),
            Refusal::MissingScope(scopes) => Self::MissingScope(scopes),
        }
    }
}

impl Rejection {
    #[must_use]
    pub const fn status(&self) -> ErrorStatus {
        match self {
            Self::Unsafe(_) | Self::BodyStalled | Self::BodyBroken | Self::Invalid(_) | Self::InvalidBody => {
                ErrorStatus::BadRequest
            }
            Self::TargetTooLong => ErrorStatus::UriTooLong,
            Self::HeadTooLarge => ErrorStatus::HeaderFieldsTooLarge,
            Self::BodyTooLarge => ErrorStatus::PayloadTooLarge,
            Self::Unauthenticated(_) => ErrorStatus::Unauthorized,
            Self::Forbidden(_) | Self::MissingScope(_) | Self::Escalation(_) | Self::SecretEnding(_) => {
                ErrorStatus::Forbidden
            }
            Self::Conflict(_) | Self::IdempotencyMismatch => ErrorStatus::Conflict,
            Self::RateLimited(_) => ErrorStatus::TooManyRequests,
            Self::Internal => ErrorStatus::Internal,
            Self::NotFound(_) => ErrorStatus::NotFound,
            Self::BadGateway(_) => ErrorStatus::BadGateway,
            Self::GatewayTimeout | Self::Overdue => ErrorStatus::GatewayTimeout,
            Self::Unavailable(_) => ErrorStatus::ServiceUnavailable,
        }
    }

    #[must_use]
    pub const fn error_type(&self) -> ErrorType {
        match self {
            Self::Unsafe(_)
            | Self::TargetTooLong
            | Self::HeadTooLarge
            | Self::BodyTooLarge
            | Self::BodyStalled
            | Self::BodyBroken
            | Self::Invalid(_)
            | Self::InvalidBody => ErrorType::Validation,
            Self::Unauthenticated(_) => ErrorType::Authentication,
            Self::Forbidden(_) => ErrorType::Forbidden,
            Self::MissingScope(_) | Self::Escalation(_) | Self::SecretEnding(_) => ErrorType::Authorization,
            Self::Conflict(_) => ErrorType::Conflict,
            Self::IdempotencyMismatch => ErrorType::Idempotency,
            Self::RateLimited(_) => ErrorType::RateLimit,
            Self::Internal => ErrorType::Internal,
            Self::NotFound(_) => ErrorType::NotFound,
            Self::BadGateway(_) => ErrorType::BadGateway,
            Self::GatewayTimeout | Self::Overdue => ErrorType::GatewayTimeout,
            Self::Unavailable(_) => ErrorType::ServiceUnavailable,
        }
    }

    /// The message for the client.
    #[must_use]
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Unsafe(cause) => cause.message(),
            Self::TargetTooLong => Cow::Borrowed("The request target is too long"),
            Self::HeadTooLarge => Cow::Borrowed("The request header fields are too large"),
            Self::BodyTooLarge => Cow::Borrowed("The request body is too large"),
            Self::BodyStalled => Cow::Borrowed("The request body stopped arriving"),
            Self::BodyBroken => Cow::Borrowed("The request body is incomplete"),
            Self::Unauthenticated(_) => Cow::Borrowed("Invalid or missing API key"),
            Self::Forbidden(cause) => Cow::Borrowed(match cause {
                Forbidden::OrganisationSuspended => "This organization is suspended",
                Forbidden::OrganisationPending => "This organization is not verified yet",
                Forbidden::Address => "This API key may not be used from this address",
                Forbidden::Browser => {
                    "A browser sent this live API key; everybody who opens the page can read it, so revoke it and send live \
                     keys from servers only"
                }
            }),
            Self::Escalation(message) => Cow::Borrowed(message),
            Self::SecretEnding(end) => Cow::Owned(format!(
                "This secret was rotated out and ends at {end}; it can revoke keys, but not make, rotate or change them"
            )),
            Self::Invalid(_) => Cow::Borrowed("The request is invalid, see details"),
            Self::InvalidBody => Cow::Borrowed("The request body must be one JSON object, each field once"),
            Self::Conflict(cause) => cause.message(),
            Self::IdempotencyMismatch => Cow::Borrowed("This Idempotency-Key was used for another request"),
            Self::RateLimited(_) => Cow::Borrowed("Too many requests, please retry later"),
            Self::Internal => Cow::Borrowed("Something went wrong here"),
            Self::NotFound(_) => Cow::Borrowed("No such resource"),
            Self::MissingScope(scopes) => {
                Cow::Owned(format!("This API key lacks the required scope: {scopes}"))
            }
            Self::BadGateway(cause) => Cow::Borrowed(match cause {
                BadGateway::Unreachable | BadGateway::Unresolved => {
                    "The service behind this gateway could not be reached"
                }
                BadGateway::NoTls => "No secure connection to the service behind this gateway could be made",
                BadGateway::BrokeOff => "The service behind this gateway broke off before it answered",
                BadGateway::InvalidAnswer => "The service behind this gateway gave an invalid answer",
            }),
            Self::GatewayTimeout => Cow::Borrowed("The service behind this gateway took too long to answer"),
            Self::Overdue => Cow::Borrowed("The request took longer than it may"),
            Self::Unavailable(_) => Cow::Borrowed("Temporarily unavailable, please retry"),
        }
    }

    /// The word for the operator's records and metrics.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Unsafe(cause) => cause.reason(),
            Self::TargetTooLong => Reason::TargetTooLong,
            Self::HeadTooLarge => Reason::HeadTooLarge,
            Self::BodyTooLarge => Reason::BodyTooLarge,
            Self::BodyStalled => Reason::BodyStalled,
            Self::BodyBroken => Reason::BodyBroken,
            Self::Unauthenticated(cause) => match cause {
                Unauthenticated::Missing => Reason::KeyMissing,
                Unauthenticated::NotBearer => Reason::KeyNotBearer,
                Unauthenticated::Malformed => Reason::KeyMalformed,
                Unauthenticated::Unknown => Reason::KeyUnknown,
                Unauthenticated::Dead(Dead::Revoked) => Reason::KeyRevoked,
                Unauthenticated::Dead(Dead::Disabled) => Reason::KeyDisabled,
                Unauthenticated::Dead(Dead::Expired) => Reason::KeyExpired,
                Unauthenticated::Dead(Dead::SecretEnded) => Reason::KeyRotated,
                Unauthenticated::Dead(Dead::WrongEnvironment) => Reason::KeyWrongEnvironment,
            },
            Self::Forbidden(Forbidden::OrganisationSuspended) => Reason::OrganisationSuspended,
            Self::Forbidden(Forbidden::OrganisationPending) => Reason::OrganisationPending,
            Self::Forbidden(Forbidden::Address) => Reason::AddressNotAllowed,
            Self::Forbidden(Forbidden::Browser) => Reason::KeyInBrowser,
            Self::NotFound(NotFound::NoRoute) => Reason::NoRoute,
            Self::NotFound(NotFound::NoResource) => Reason::NoResource,
            Self::NotFound(NotFound::SignupOff) => Reason::SignupOff,
            Self::NotFound(NotFound::NotServedHere) => Reason::NotServedHere,
            Self::Escalation(_) | Self::SecretEnding(_) => Reason::Escalation,
            Self::Invalid(_) => Reason::Invalid,
            Self::InvalidBody => Reason::InvalidBody,
            Self::Conflict(Conflict::EmailTaken) => Reason::EmailTaken,
            Self::Conflict(Conflict::KeyRevoked) => Reason::TargetRevoked,
            Self::Conflict(Conflict::KeyExpired) => Reason::TargetExpired,
            Self::Conflict(Conflict::KeysFull | Conflict::MakerFull) => Reason::KeysFull,
            Self::Conflict(Conflict::Contended) => Reason::Contended,
            Self::Conflict(Conflict::Descendants(_)) => Reason::DescendantsDiffer,
            Self::IdempotencyMismatch => Reason::IdempotencyMismatch,
            Self::RateLimited(_) => Reason::RateLimited,
            Self::Internal => Reason::Internal,
            Self::MissingScope(_) => Reason::ScopeMissing,
            Self::BadGateway(BadGateway::Unreachable) => Reason::UpstreamUnreachable,
            Self::BadGateway(BadGateway::Unresolved) => Reason::UpstreamUnresolved,
            Self::BadGateway(BadGateway::NoTls) => Reason::UpstreamTls,
            Self::BadGateway(BadGateway::BrokeOff) => Reason::UpstreamBrokeOff,
            Self::BadGateway(BadGateway::InvalidAnswer) => Reason::UpstreamInvalidAnswer,
            Self::GatewayTimeout => Reason::UpstreamTimeout,
            Self::Overdue => Reason::TotalTimeout,
            Self::Unavailable(Unavailable::Store) => Reason::StoreUnavailable,
            Self::Unavailable(Unavailable::Lookups) => Reason::LookupsExhausted,
            Self::Unavailable(Unavailable::Share) => Reason::ShareExhausted,
            Self::Unavailable(Unavailable::Upstreams) => Reason::UpstreamsExhausted,
            Self::Unavailable(Unavailable::Upstream) => Reason::UpstreamFull,
            Self::Unavailable(Unavailable::Requests) => Reason::RequestsExhausted,
        }
    }

    /// The fields that were wrong, for the envelope's `details`.
    #[must_use]
    pub const fn details(&self) -> Option<&[FieldError]> {
        match self {
            Self::Invalid(errors) => Some(errors),
            _ => None,
        }
    }

    /// The challenge of a 401 (RFC 6750, section 3): bare when no credentials came, alike for every other
    /// cause.
    #[must_use]
    pub const fn challenge(&self) -> Option<&'static str> {
        match self {
            Self::Unauthenticated(Unauthenticated::Missing) => Some("Bearer realm=\"keygate\""),
            Self::Unauthenticated(_) => Some("Bearer realm=\"keygate\", error=\"invalid_token\""),
            _ => None,
        }
    }

    /// Whether the connection must end with this answer: where the refused request ends, two parsers could
    /// disagree, so whatever follows it could be a request to one of them and a body to the other (RFC 9112,
    /// section 11.2).
    #[must_use]
    pub const fn ends_connection(&self) -> bool {
        matches!(self, Self::Unsafe(Unsafe::TransferEncoding | Unsafe::Expect))
    }

    /// How long a client should wait before it tries again. `random` spreads those that were refused together over
    /// three seconds: with the same wait they would all come back together.
    #[must_use]
    pub const fn retry_after(&self, random: u8) -> Option<Duration> {
        match self {
            Self::RateLimited(after) => Some(*after),
            Self::Unavailable(_) => Some(Duration::from_secs(1 + random as u64 % 3)),
            _ => None,
        }
    }
}

impl Conflict {
    fn message(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::EmailTaken => "An organization with this e-mail address exists",
            Self::KeyRevoked => "This API key is revoked",
            Self::KeyExpired => "This API key has expired",
            Self::KeysFull => {
                "This organization has as many live API keys as it may have, revoke some that are not needed"
            }
            Self::MakerFull => {
                "This API key has made as many live API keys as one key may make, revoke some or use another key"
            }
            Self::Contended => "The resource is being changed by other requests, please retry",
            Self::Descendants(found) => {
                return Cow::Owned(format!(
                    "Keys that were made with this key and are not revoked: {found}; `expected` is another number, so \
                     nothing was revoked"
                ));
            }
        })
    }
}

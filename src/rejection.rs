//! Every refusal that keygate can give, and the one map from it to what a client reads.
//!
//! Two audiences, two fields: [`Rejection::message`] is for the client and tells a stranger nothing;
//! [`Rejection::reason`] is for the operator's record and names the cause. Both are exhaustive, so a new
//! refusal does not compile until it has its row.

use std::borrow::Cow;
use std::time::Duration;

use http::StatusCode;

use crate::key::record::Dead;
use crate::key::scope::Scope;

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
    /// A valid key without the route's scope.
    MissingScope(Scope),
    /// No answer, or none that can be passed on, from any upstream endpoint.
    BadGateway(BadGateway),
    /// The upstream took too long to begin its answer.
    GatewayTimeout,
    /// Nothing is wrong with the request, but it cannot be served now.
    Unavailable(Unavailable),
}

/// What makes a request impossible to forward safely.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unsafe {
    TargetForm,
    MethodConnect,
    PathCharacter,
    PathEscape,
    PathEncodedSlash,
    PathEmptySegment,
    PathDotSegment,
    PathNotUtf8,
    PathDoubleEncoding,
    /// Decoded once, or with `;` parameters or a trailing slash cut off, the path falls under another rule.
    PathTwoReadings,
    HostMissing,
    HostRepeated,
    HostInvalid,
    HostMismatch,
    AuthorizationRepeated,
    TransferEncoding,
    Expect,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotFound {
    NoRoute,
    /// The policy names an operation that this version does not have.
    NoOperation,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BadGateway {
    Unreachable,
    /// The connection ended before a whole answer head had come.
    BrokeOff,
    /// An answer that cannot be passed on, such as a 101 that nobody asked for.
    InvalidAnswer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unavailable {
    /// The store cannot answer, and nothing usable is cached.
    Store,
    /// Too many lookups are under way.
    Lookups,
}

/// The `type` of the error envelope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorType {
    Validation,
    Authentication,
    Authorization,
    Forbidden,
    NotFound,
    BadGateway,
    ServiceUnavailable,
    GatewayTimeout,
}

impl ErrorType {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Validation => "validation_error",
            Self::Authentication => "authentication_error",
            Self::Authorization => "authorization_error",
            Self::Forbidden => "forbidden",
            Self::NotFound => "not_found",
            Self::BadGateway => "bad_gateway",
            Self::ServiceUnavailable => "service_unavailable",
            Self::GatewayTimeout => "gateway_timeout",
        }
    }
}

impl Rejection {
    #[must_use]
    pub const fn status(&self) -> StatusCode {
        match self {
            Self::Unsafe(_) | Self::BodyStalled | Self::BodyBroken => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthenticated(_) => StatusCode::UNAUTHORIZED,
            Self::Forbidden(_) | Self::MissingScope(_) => StatusCode::FORBIDDEN,
            Self::NotFound(_) => StatusCode::NOT_FOUND,
            Self::BadGateway(_) => StatusCode::BAD_GATEWAY,
            Self::GatewayTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Unavailable(_) => StatusCode::SERVICE_UNAVAILABLE,
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
            | Self::BodyBroken => ErrorType::Validation,
            Self::Unauthenticated(_) => ErrorType::Authentication,
            Self::Forbidden(_) => ErrorType::Forbidden,
            Self::MissingScope(_) => ErrorType::Authorization,
            Self::NotFound(_) => ErrorType::NotFound,
            Self::BadGateway(_) => ErrorType::BadGateway,
            Self::GatewayTimeout => ErrorType::GatewayTimeout,
            Self::Unavailable(_) => ErrorType::ServiceUnavailable,
        }
    }

    /// What the client reads.
    #[must_use]
    pub fn message(&self) -> Cow<'static, str> {
        match self {
            Self::Unsafe(cause) => Cow::Borrowed(cause.message()),
            Self::TargetTooLong => Cow::Borrowed("The request target is too long"),
            Self::HeadTooLarge => Cow::Borrowed("The request header fields are too large"),
            Self::BodyTooLarge => Cow::Borrowed("The request body is too large"),
            Self::BodyStalled => Cow::Borrowed("The request body stopped arriving"),
            Self::BodyBroken => Cow::Borrowed("The request body is incomplete"),
            Self::Unauthenticated(_) => Cow::Borrowed("Invalid or missing API key"),
            Self::Forbidden(Forbidden::OrganisationSuspended) => {
                Cow::Borrowed("This organization is suspended")
            }
            Self::NotFound(_) => Cow::Borrowed("No such resource"),
            Self::MissingScope(scope) => {
                Cow::Owned(format!("This API key lacks the required scope: {scope}"))
            }
            Self::BadGateway(_) => Cow::Borrowed("The service behind this gateway could not be reached"),
            Self::GatewayTimeout => Cow::Borrowed("The service behind this gateway took too long to answer"),
            Self::Unavailable(_) => Cow::Borrowed("Temporarily unavailable, please retry"),
        }
    }

    /// What the operator's record says: a word from a closed list, safe as a label.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unsafe(cause) => cause.reason(),
            Self::TargetTooLong => "target_too_long",
            Self::HeadTooLarge => "head_too_large",
            Self::BodyTooLarge => "body_too_large",
            Self::BodyStalled => "body_stalled",
            Self::BodyBroken => "body_broken",
            Self::Unauthenticated(cause) => match cause {
                Unauthenticated::Missing => "key_missing",
                Unauthenticated::NotBearer => "key_not_bearer",
                Unauthenticated::Malformed => "key_malformed",
                Unauthenticated::Unknown => "key_unknown",
                Unauthenticated::Dead(Dead::Revoked) => "key_revoked",
                Unauthenticated::Dead(Dead::Disabled) => "key_disabled",
                Unauthenticated::Dead(Dead::Expired) => "key_expired",
                Unauthenticated::Dead(Dead::SecretEnded) => "key_rotated",
                Unauthenticated::Dead(Dead::WrongEnvironment) => "key_wrong_environment",
            },
            Self::Forbidden(Forbidden::OrganisationSuspended) => "organisation_suspended",
            Self::NotFound(NotFound::NoRoute) => "no_route",
            Self::NotFound(NotFound::NoOperation) => "no_operation",
            Self::MissingScope(_) => "scope_missing",
            Self::BadGateway(BadGateway::Unreachable) => "upstream_unreachable",
            Self::BadGateway(BadGateway::BrokeOff) => "upstream_broke_off",
            Self::BadGateway(BadGateway::InvalidAnswer) => "upstream_invalid_answer",
            Self::GatewayTimeout => "upstream_timeout",
            Self::Unavailable(Unavailable::Store) => "store_unavailable",
            Self::Unavailable(Unavailable::Lookups) => "lookups_exhausted",
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

    /// How long a client should wait before it tries again.
    #[must_use]
    pub const fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Unavailable(_) => Some(Duration::from_secs(1)),
            _ => None,
        }
    }
}

impl Unsafe {
    const fn message(self) -> &'static str {
        match self {
            Self::TargetForm => "The request target must be an absolute path",
            Self::MethodConnect => "CONNECT is not supported",
            Self::PathCharacter => "The path has a character that must be percent-encoded",
            Self::PathEscape => "The path has an invalid percent-encoding",
            Self::PathEncodedSlash => "The path has an encoded slash or backslash",
            Self::PathEmptySegment => "The path has an empty segment",
            Self::PathDotSegment => "The path has a dot segment",
            Self::PathNotUtf8 => "The path is not UTF-8",
            Self::PathDoubleEncoding => "The path is percent-encoded twice",
            Self::PathTwoReadings => "The path is ambiguous",
            Self::HostMissing => "The Host field is missing",
            Self::HostRepeated => "There is more than one Host field",
            Self::HostInvalid => "The Host field is invalid",
            Self::HostMismatch => "The Host field and the request target disagree",
            Self::AuthorizationRepeated => "There is more than one Authorization field",
            Self::TransferEncoding => "The transfer coding is not supported",
            Self::Expect => "The expectation is not supported",
        }
    }

    const fn reason(self) -> &'static str {
        match self {
            Self::TargetForm => "target_form",
            Self::MethodConnect => "method_connect",
            Self::PathCharacter => "path_character",
            Self::PathEscape => "path_escape",
            Self::PathEncodedSlash => "path_encoded_slash",
            Self::PathEmptySegment => "path_empty_segment",
            Self::PathDotSegment => "path_dot_segment",
            Self::PathNotUtf8 => "path_not_utf8",
            Self::PathDoubleEncoding => "path_double_encoding",
            Self::PathTwoReadings => "path_two_readings",
            Self::HostMissing => "host_missing",
            Self::HostRepeated => "host_repeated",
            Self::HostInvalid => "host_invalid",
            Self::HostMismatch => "host_mismatch",
            Self::AuthorizationRepeated => "authorization_repeated",
            Self::TransferEncoding => "transfer_encoding",
            Self::Expect => "expect",
        }
    }
}

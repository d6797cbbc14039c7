//! The status codes of gRPC that keygate answers with (the list is `doc/statuscodes.md` of gRPC).

use super::reason::ErrorStatus;

/// A status code of gRPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrpcStatus {
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    Aborted = 10,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    Unauthenticated = 16,
}

impl GrpcStatus {
    /// The number on the wire.
    #[must_use]
    pub const fn number(self) -> u8 {
        self as u8
    }
}

impl From<ErrorStatus> for GrpcStatus {
    /// What a gRPC caller is told in the place of an HTTP status. The only place where this is decided.
    ///
    /// It is not the map that gRPC clients use for answers without a status of gRPC (`doc/http-grpc-status-mapping.md`):
    /// that map guesses what a proxy may have meant, and keygate knows. A 404 is a method that nobody serves here, which a
    /// gRPC server tells with UNIMPLEMENTED. A path, a head or a body beyond a limit is RESOURCE_EXHAUSTED, as a message or
    /// metadata beyond a limit of a gRPC server. A 409 comes only from keygate's own API, which has no gRPC form; it is
    /// ABORTED, as in the map of `google.rpc.Code`.
    fn from(status: ErrorStatus) -> Self {
        match status {
            ErrorStatus::BadRequest => Self::InvalidArgument,
            ErrorStatus::Unauthorized => Self::Unauthenticated,
            ErrorStatus::Forbidden => Self::PermissionDenied,
            ErrorStatus::NotFound => Self::Unimplemented,
            ErrorStatus::Conflict => Self::Aborted,
            ErrorStatus::PayloadTooLarge
            | ErrorStatus::UriTooLong
            | ErrorStatus::TooManyRequests
            | ErrorStatus::HeaderFieldsTooLarge => Self::ResourceExhausted,
            ErrorStatus::Internal => Self::Internal,
            ErrorStatus::BadGateway | ErrorStatus::ServiceUnavailable => Self::Unavailable,
            ErrorStatus::GatewayTimeout => Self::DeadlineExceeded,
        }
    }
}

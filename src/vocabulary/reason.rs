//! The words for a refusal, each from a closed list: the type and the status that a client reads, and the reason that
//! records and metrics name.

use http::StatusCode;

use super::closed::closed;

closed! {
    /// The `type` of the error envelope.
    ErrorType:
    Validation = "validation_error",
    Authentication = "authentication_error",
    Authorization = "authorization_error",
    Forbidden = "forbidden",
    NotFound = "not_found",
    Conflict = "conflict",
    Idempotency = "idempotency_error",
    RateLimit = "rate_limit_exceeded",
    Internal = "internal_error",
    BadGateway = "bad_gateway",
    ServiceUnavailable = "service_unavailable",
    GatewayTimeout = "gateway_timeout",
}

macro_rules! error_statuses {
    ($($name:ident = $code:ident $text:literal,)*) => {
        /// The status of a refusal.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum ErrorStatus {
            $($name,)*
        }

        impl ErrorStatus {
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];

            #[must_use]
            pub const fn code(self) -> StatusCode {
                match self { $(Self::$name => StatusCode::$code),* }
            }

            /// The number, as a label.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }
        }
    };
}

error_statuses! {
    BadRequest = BAD_REQUEST "400",
    Unauthorized = UNAUTHORIZED "401",
    Forbidden = FORBIDDEN "403",
    NotFound = NOT_FOUND "404",
    Conflict = CONFLICT "409",
    PayloadTooLarge = PAYLOAD_TOO_LARGE "413",
    UriTooLong = URI_TOO_LONG "414",
    TooManyRequests = TOO_MANY_REQUESTS "429",
    HeaderFieldsTooLarge = REQUEST_HEADER_FIELDS_TOO_LARGE "431",
    Internal = INTERNAL_SERVER_ERROR "500",
    BadGateway = BAD_GATEWAY "502",
    ServiceUnavailable = SERVICE_UNAVAILABLE "503",
    GatewayTimeout = GATEWAY_TIMEOUT "504",
}

macro_rules! reasons {
    ($($name:ident = $text:literal $about:ident,)*) => {
        /// Why a request was refused, or an answer cut: a word from a closed list, for records and metrics.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Reason {
            $($name,)*
        }

        impl Reason {
            pub const ALL: [Self; [$($text),*].len()] = [$(Self::$name),*];

            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text),* }
            }

            const fn about(self) -> About {
                match self { $(Self::$name => About::$about),* }
            }
        }
    };
}

/// The subject of a reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum About {
    /// The message: malformed, ambiguous, too large, incomplete.
    Message,
    /// The key: whether it may do what the request asks for.
    Decision,
    /// The request to keygate's own API.
    Api,
    /// The upstream.
    Upstream,
    /// The room for requests that are held or forwarded at once.
    Room,
    /// keygate itself.
    Keygate,
}

reasons! {
    NotHttp = "not_http" Message,
    RequestLine = "request_line" Message,
    MethodCharacter = "method_character" Message,
    HttpVersion = "http_version" Message,
    FieldMalformed = "field_malformed" Message,
    FieldCarriageReturn = "field_carriage_return" Message,
    ContentLength = "content_length" Message,
    TargetForm = "target_form" Message,
    TargetFragment = "target_fragment" Message,
    MethodConnect = "method_connect" Message,
    PathCharacter = "path_character" Message,
    QueryCharacter = "query_character" Message,
    PathEscape = "path_escape" Message,
    PathEncodedSlash = "path_encoded_slash" Message,
    PathEmptySegment = "path_empty_segment" Message,
    PathDotSegment = "path_dot_segment" Message,
    PathNotUtf8 = "path_not_utf8" Message,
    PathDoubleEncoding = "path_double_encoding" Message,
    PathTwoReadings = "path_two_readings" Message,
    HostMissing = "host_missing" Message,
    HostRepeated = "host_repeated" Message,
    HostInvalid = "host_invalid" Message,
    HostMismatch = "host_mismatch" Message,
    AuthorizationRepeated = "authorization_repeated" Message,
    TransferEncoding = "transfer_encoding" Message,
    Expect = "expect" Message,
    TargetTooLong = "target_too_long" Message,
    HeadTooLarge = "head_too_large" Message,
    BodyTooLarge = "body_too_large" Message,
    BodyStalled = "body_stalled" Message,
    BodyBroken = "body_broken" Message,
    KeyMissing = "key_missing" Decision,
    KeyNotBearer = "key_not_bearer" Decision,
    KeyMalformed = "key_malformed" Decision,
    KeyUnknown = "key_unknown" Decision,
    KeyRevoked = "key_revoked" Decision,
    KeyDisabled = "key_disabled" Decision,
    KeyExpired = "key_expired" Decision,
    KeyRotated = "key_rotated" Decision,
    KeyWrongEnvironment = "key_wrong_environment" Decision,
    OrganisationSuspended = "organisation_suspended" Decision,
    OrganisationPending = "organisation_pending" Decision,
    AddressNotAllowed = "address_not_allowed" Decision,
    KeyInBrowser = "key_in_browser" Decision,
    ScopeMissing = "scope_missing" Decision,
    Escalation = "escalation" Decision,
    NoRoute = "no_route" Decision,
    NotServedHere = "not_served_here" Decision,
    StoreUnavailable = "store_unavailable" Decision,
    LookupsExhausted = "lookups_exhausted" Decision,
    NoResource = "no_resource" Api,
    SignupOff = "signup_off" Api,
    Invalid = "invalid" Api,
    InvalidBody = "invalid_body" Api,
    EmailTaken = "email_taken" Api,
    TargetRevoked = "target_revoked" Api,
    TargetExpired = "target_expired" Api,
    KeysFull = "keys_full" Api,
    Contended = "contended" Api,
    DescendantsDiffer = "descendants_differ" Api,
    IdempotencyMismatch = "idempotency_mismatch" Api,
    RateLimited = "rate_limited" Api,
    UpstreamUnreachable = "upstream_unreachable" Upstream,
    UpstreamUnresolved = "upstream_unresolved" Upstream,
    UpstreamTls = "upstream_tls" Upstream,
    UpstreamBrokeOff = "upstream_broke_off" Upstream,
    UpstreamInvalidAnswer = "upstream_invalid_answer" Upstream,
    UpstreamTimeout = "upstream_timeout" Upstream,
    TotalTimeout = "total_timeout" Upstream,
    ShareExhausted = "share_exhausted" Room,
    UpstreamsExhausted = "upstreams_exhausted" Room,
    UpstreamFull = "upstream_full" Room,
    RequestsExhausted = "requests_exhausted" Room,
    Internal = "internal" Keygate,
}

impl Reason {
    /// Whether authentication or authorization gives this reason, and metrics count it as their decision.
    #[must_use]
    pub const fn is_decision(self) -> bool {
        match self.about() {
            About::Decision => true,
            About::Message | About::Api | About::Upstream | About::Room | About::Keygate => false,
        }
    }

    /// Whether the message itself is refused with this reason.
    #[must_use]
    pub const fn is_of_message(self) -> bool {
        match self.about() {
            About::Message => true,
            About::Decision | About::Api | About::Upstream | About::Room | About::Keygate => false,
        }
    }

    /// Whether there was no room to hold or forward the request.
    #[must_use]
    pub const fn is_of_room(self) -> bool {
        match self.about() {
            About::Room => true,
            About::Message | About::Decision | About::Api | About::Upstream | About::Keygate => false,
        }
    }
}

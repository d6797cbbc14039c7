//! Callers that speak gRPC: how they are recognised, what they read in the place of an HTTP refusal, and how long they wait.
//!
//! A gRPC client takes the outcome of a call from `grpc-status`, and tells its program little of an answer without one. So
//! such a caller is refused with HTTP 200 and a head that is also the end of the answer (*Trailers-Only* in
//! `doc/PROTOCOL-HTTP2.md` of gRPC). It is the same over HTTP/1.1, which only a proxy between a gRPC client and keygate
//! speaks.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::policy::route::Route;
use crate::policy::target::Target;
use crate::upstream::Total;
use crate::vocabulary::grpc::GrpcStatus;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");
const GRPC_MESSAGE: HeaderName = HeaderName::from_static("grpc-message");
/// How long a client that repeats calls should wait, in milliseconds (gRFC A6).
const GRPC_RETRY_PUSHBACK_MS: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// In which words a caller is refused.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Dialect {
    /// An HTTP status and the JSON envelope.
    #[default]
    Http,
    Grpc,
    /// gRPC-Web, as octets.
    GrpcWeb,
    /// gRPC-Web in base64.
    GrpcWebText,
}

impl Dialect {
    /// The dialect of a POST. No other request is a call of gRPC, so of others no field is looked at.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        headers.get(CONTENT_TYPE).map_or(Self::Http, |value| Self::of_media_type(value.as_bytes()))
    }

    /// Letters of any case, and any parameters (RFC 9110, section 8.3.1). The formats behind `+` are an open list.
    fn of_media_type(value: &[u8]) -> Self {
        let Some((kind, rest)) = value.split_at_checked(b"application/grpc".len()) else { return Self::Http };
        if !kind.eq_ignore_ascii_case(b"application/grpc") {
            return Self::Http;
        }
        let end = rest.iter().position(|byte| b"+;".contains(byte)).unwrap_or(rest.len());
        match rest[..end].trim_ascii_end() {
            b"" => Self::Grpc,
            rest if rest.eq_ignore_ascii_case(b"-web") => Self::GrpcWeb,
            rest if rest.eq_ignore_ascii_case(b"-web-text") => Self::GrpcWebText,
            _ => Self::Http,
        }
    }

    /// The dialect of a refusal to a caller that speaks this one, on this route: gRPC-Web only where the route allows it, and
    /// for keygate's own API neither.
    ///
    /// `None`: there is no route, or it is not known yet who asks. Then the dialect must not depend on the route, or a 401
    /// would tell a stranger which routes there are.
    pub(super) fn on(self, route: Option<&Route>) -> Self {
        match (self, route.map(|route| route.target)) {
            (_, Some(Target::Operation(_))) => Self::Http,
            (Self::Http | Self::Grpc, _) => self,
            (Self::GrpcWeb | Self::GrpcWebText, _) if route.is_some_and(|route| route.grpc_web) => self,
            (Self::GrpcWeb | Self::GrpcWebText, _) => Self::Http,
        }
    }

    /// The media type of a refusal. Clients of gRPC-Web compare it with the kind that they speak.
    pub(super) const fn media_type(self) -> HeaderValue {
        HeaderValue::from_static(match self {
            Self::Http => "application/json",
            Self::Grpc => "application/grpc",
            Self::GrpcWeb => "application/grpc-web",
            Self::GrpcWebText => "application/grpc-web-text",
        })
    }

    /// How long a request may last: as long as `total` says, or as its caller waits if that is shorter.
    ///
    /// A `grpc-timeout` that is none limits nothing and goes up as it came: some servers pass it over, others refuse the
    /// call, and here no call is refused that its server would take.
    #[inline]
    pub(super) fn limit(self, total: Total, headers: &HeaderMap) -> Total {
        if self == Self::Http { total } else { Self::shorter(total, headers) }
    }

    #[cold]
    fn shorter(total: Total, headers: &HeaderMap) -> Total {
        match (headers.get(GRPC_TIMEOUT).and_then(|value| parse_timeout(value.as_bytes())), total) {
            (None, total) => total,
            (Some(timeout), Total::Unlimited) => Total::AtMost(timeout),
            (Some(timeout), Total::AtMost(total)) => Total::AtMost(total.min(timeout)),
        }
    }
}

/// Writes a refusal into the head that ends its answer. `after`: how long the caller should wait before it tries again.
pub(super) fn tell(headers: &mut HeaderMap, status: GrpcStatus, message: &str, after: Option<Duration>) {
    headers.insert(GRPC_STATUS, HeaderValue::from(u16::from(status.number())));
    // Every character that a field cannot have was encoded.
    if let Ok(message) = HeaderValue::try_from(percent_encode(message)) {
        headers.insert(GRPC_MESSAGE, message);
    }
    if let Some(after) = after {
        // Upwards, so that nobody comes too early.
        let millis = u64::try_from(after.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX);
        headers.insert(GRPC_RETRY_PUSHBACK_MS, HeaderValue::from(millis));
    }
}

/// A message as `grpc-message` carries it: of its UTF-8 only octets from 0x20 to 0x7E stay, without `%`.
fn percent_encode(message: &str) -> String {
    let mut encoded = String::with_capacity(message.len());
    for byte in message.bytes() {
        if matches!(byte, b' '..=b'~') && byte != b'%' {
            encoded.push(char::from(byte));
        } else {
            const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
            encoded.push('%');
            encoded.push(char::from(DIGITS[usize::from(byte >> 4)]));
            encoded.push(char::from(DIGITS[usize::from(byte & 0xf)]));
        }
    }
    encoded
}

/// A `grpc-timeout`: one to eight digits and a unit, `H` `M` `S` (hours, minutes, seconds) or `m` `u` `n` (thousandths,
/// millionths and billionths of a second). 0 is what some clients send when their time is over.
fn parse_timeout(value: &[u8]) -> Option<Duration> {
    let (unit, digits) = value.split_last()?;
    if !matches!(digits.len(), 1..=8) {
        return None;
    }
    let number = digits.iter().try_fold(0_u64, |number, digit| {
        digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
    })?;
    match unit {
        b'H' => Some(Duration::from_secs(number * 3600)),
        b'M' => Some(Duration::from_secs(number * 60)),
        b'S' => Some(Duration::from_secs(number)),
        b'm' => Some(Duration::from_millis(number)),
        b'u' => Some(Duration::from_micros(number)),
        b'n' => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn dialect(media_type: &str) -> Dialect {
        let headers = HeaderMap::from_iter([(CONTENT_TYPE, media_type.parse().unwrap())]);
        Dialect::of(&headers)
    }

    #[test]
    fn a_caller_is_recognised_by_its_media_type() {
        for (media_type, expected) in [
            ("application/grpc", Dialect::Grpc),
            ("application/grpc+proto", Dialect::Grpc),
            ("application/grpc+json", Dialect::Grpc),
            ("Application/GRPC+thrift; a=b", Dialect::Grpc),
            ("application/grpc;charset=utf-8", Dialect::Grpc),
            ("application/grpc ; a=\"+\"", Dialect::Grpc),
            ("application/grpc-web", Dialect::GrpcWeb),
            ("application/GRPC-Web+proto", Dialect::GrpcWeb),
            ("application/grpc-web; a=b", Dialect::GrpcWeb),
            ("application/grpc-web-text", Dialect::GrpcWebText),
            ("application/grpc-web-text+proto", Dialect::GrpcWebText),
            ("application/grpc-webtext", Dialect::Http),
            ("application/grpcx", Dialect::Http),
            ("application/grpc/x", Dialect::Http),
            ("application/grpc, application/json", Dialect::Http),
            ("application/grp", Dialect::Http),
            ("application/json; application/grpc", Dialect::Http),
            ("", Dialect::Http),
        ] {
            assert_eq!(dialect(media_type), expected, "{media_type}");
        }
        assert_eq!(Dialect::of(&HeaderMap::new()), Dialect::Http);
    }

    #[test]
    fn the_shorter_time_counts_and_one_that_is_none_does_not() {
        const SECOND: Duration = Duration::from_secs(1);
        let limited = |dialect: Dialect, total, timeout: &'static str| {
            dialect.limit(total, &HeaderMap::from_iter([(GRPC_TIMEOUT, HeaderValue::from_static(timeout))]))
        };
        for (total, timeout, expected) in [
            (Total::Unlimited, "1S", Total::AtMost(SECOND)),
            (Total::AtMost(2 * SECOND), "1S", Total::AtMost(SECOND)),
            (Total::AtMost(SECOND), "2S", Total::AtMost(SECOND)),
            (Total::AtMost(SECOND), "0n", Total::AtMost(Duration::ZERO)),
            (Total::AtMost(SECOND), "1s", Total::AtMost(SECOND)),
            (Total::Unlimited, "", Total::Unlimited),
            (Total::Unlimited, "1", Total::Unlimited),
        ] {
            assert_eq!(limited(Dialect::Grpc, total, timeout), expected, "{timeout}");
            assert_eq!(limited(Dialect::GrpcWeb, total, timeout), expected, "{timeout}");
            assert_eq!(limited(Dialect::Http, total, timeout), total);
        }
    }

    #[test]
    fn every_unit_of_a_timeout_has_its_length() {
        for (value, nanos) in [
            ("99999999H", 359_999_996_400_000_000_000_u128),
            ("1M", 60_000_000_000),
            ("00000007S", 7_000_000_000),
            ("1m", 1_000_000),
            ("1u", 1_000),
            ("1n", 1),
        ] {
            assert_eq!(
                parse_timeout(value.as_bytes()).map(|timeout| timeout.as_nanos()),
                Some(nanos),
                "{value}"
            );
        }
        for value in
            ["", "S", "1", "100000000S", "1h", "1s", "+1S", "-1S", " 1S", "1S ", "1.5S", "1 S", "1SS", "١S"]
        {
            assert_eq!(parse_timeout(value.as_bytes()), None, "{value}");
        }
    }

    #[test]
    fn a_wait_is_told_in_whole_milliseconds_and_never_too_short() {
        let mut headers = HeaderMap::new();
        tell(&mut headers, GrpcStatus::Unavailable, "50 % of Zürich\n", Some(Duration::from_micros(1500)));
        let value = |name| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(value(GRPC_STATUS), "14");
        assert_eq!(value(GRPC_MESSAGE), "50 %25 of Z%C3%BCrich%0A");
        assert_eq!(value(GRPC_RETRY_PUSHBACK_MS), "2");
    }

    fn percent_decode(encoded: &str) -> Vec<u8> {
        let mut parts = encoded.split('%');
        let mut decoded = parts.next().unwrap().as_bytes().to_vec();
        for part in parts {
            decoded.push(u8::from_str_radix(&part[..2], 16).unwrap());
            decoded.extend_from_slice(&part.as_bytes()[2..]);
        }
        decoded
    }

    proptest! {
        #[test]
        fn an_encoded_message_is_a_field_value_that_decodes_to_the_message(message in any::<String>()) {
            let encoded = percent_encode(&message);
            prop_assert!(encoded.bytes().all(|byte| (0x20..=0x7e).contains(&byte)));
            prop_assert!(HeaderValue::from_str(&encoded).is_ok());
            prop_assert_eq!(percent_decode(&encoded), message.as_bytes());
        }

        #[test]
        fn any_timeout_of_the_form_is_read_and_nothing_else(value in prop_oneof!["[0-9]{0,9}[HMSmunhs]?", ".{0,12}"]) {
            let (digits, unit) = value.split_at(value.char_indices().last().map_or(0, |(at, _)| at));
            let is_one = (1..=8).contains(&digits.len())
                && digits.bytes().all(|byte| byte.is_ascii_digit())
                && ["H", "M", "S", "m", "u", "n"].contains(&unit);
            let parsed = parse_timeout(value.as_bytes());
            prop_assert_eq!(parsed.is_some(), is_one);
            if let (Some(parsed), "m") = (parsed, unit) {
                prop_assert_eq!(parsed.as_millis(), digits.parse::<u128>().unwrap());
            }
        }

        #[test]
        fn no_media_type_makes_the_reader_panic(value in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Dialect::of_media_type(&value);
            let _ = Dialect::of_media_type(&[b"application/grpc", &value[..]].concat());
        }
    }
}

//! Whether a request is sent again.

use http::{Method, Request};

use super::connection::{Unanswered, Undelivered};
use super::error::BrokenOff;
use super::request_body::RequestBody;
use crate::vocabulary::upstream::Retries;

/// Where an undelivered request goes. Only [`after`] gives the request back.
#[derive(Debug)]
pub(super) enum Retry {
    /// Over another connection to the same endpoint: nothing of it was sent.
    SameEndpoint(Box<Request<RequestBody>>),
    /// Nothing of it was sent either.
    NextEndpoint(Box<Request<RequestBody>>),
    /// Once more, over a new connection to the same endpoint, though it was sent. The reason for it is the client's
    /// answer if that connection cannot be made.
    OnceMore(Box<Request<RequestBody>>, BrokenOff),
    /// To the next endpoint, though it was sent: it waited at one that fails its checks.
    Elsewhere(Box<Request<RequestBody>>),
    /// Nowhere.
    Never(BrokenOff),
}

/// Whether doing twice what a request without a body asks for is as good as doing it once.
pub(super) fn is_repeatable(method: &Method, retries: Retries) -> bool {
    match retries {
        Retries::Never => false,
        Retries::Safe => is_safe(method),
        Retries::Idempotent => is_safe(method) || *method == Method::PUT || *method == Method::DELETE,
    }
}

fn is_safe(method: &Method) -> bool {
    *method == Method::GET || *method == Method::HEAD || *method == Method::OPTIONS
}

/// The rule of retries.
///
/// Once a byte was sent, the upstream may have carried the request out, and to send it twice could do twice
/// what the client wanted once (RFC 9110, section 9.2.2). A request that was not sent has no such risk:
///
/// - A reused connection may be closed by the server just when the next request comes. That says nothing
///   about the endpoint, so the endpoint keeps its turn. This ends, because each such try uses up a kept
///   connection.
/// - A new connection that takes no request is a fault of the endpoint, as is an endpoint that cannot be
///   connected to. The next endpoint gets the request, so each is tried once.
///
/// Nothing else is tried for a request that [`left`] its endpoint.
///
/// The server may also close a reused connection when the request is already on its way. `unanswered` is that request,
/// as it was sent, where it [`is_repeatable`] and not a byte came after it. It is sent once more, to the same
/// endpoint: one whose server the request itself brings down must not bring down the next.
pub(super) fn after(undelivered: Undelivered, is_reused: bool, unanswered: Option<&Unanswered>) -> Retry {
    match undelivered {
        Undelivered::Unsent(request) if is_reused => Retry::SameEndpoint(request),
        Undelivered::Unsent(request) => Retry::NextEndpoint(request),
        Undelivered::BrokeOff(cause) if is_reused => match unanswered.and_then(Unanswered::request) {
            Some(request) => Retry::OnceMore(Box::new(request), cause),
            None => Retry::Never(cause),
        },
        Undelivered::BrokeOff(cause) => Retry::Never(cause),
    }
}

/// What becomes of a request that waited at an endpoint which fails its checks, and whose connection keygate has ended for that. Where
/// the endpoint closes connections, because a request brought it down, nothing waits there: such a request goes nowhere else.
pub(super) fn left(undelivered: Undelivered, unanswered: Option<&Unanswered>) -> Retry {
    match (unanswered.and_then(Unanswered::request), undelivered) {
        (Some(request), _) => Retry::Elsewhere(Box::new(request)),
        (None, Undelivered::Unsent(request)) => Retry::NextEndpoint(request),
        (None, Undelivered::BrokeOff(cause)) => Retry::Never(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unanswered() -> Unanswered {
        Unanswered::from(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec())
    }

    #[test]
    fn what_was_not_sent_goes_elsewhere_and_a_reused_connection_is_no_fault_of_the_endpoint() {
        let unsent = || Undelivered::Unsent(Box::default());
        assert!(matches!(after(unsent(), true, None), Retry::SameEndpoint(_)));
        assert!(matches!(after(unsent(), false, None), Retry::NextEndpoint(_)));
    }

    #[test]
    fn what_was_sent_is_sent_again_only_on_a_reused_connection_without_a_byte_of_an_answer() {
        let broken = || Undelivered::BrokeOff(BrokenOff::Closed);
        assert!(matches!(after(broken(), true, Some(&unanswered())), Retry::OnceMore(..)));
        for (is_reused, unanswered) in [(false, Some(&unanswered())), (true, None), (false, None)] {
            let retry = after(broken(), is_reused, unanswered);
            assert!(matches!(retry, Retry::Never(BrokenOff::Closed)), "{retry:?}");
        }
    }

    #[test]
    fn methods_are_repeatable_by_what_the_route_says() {
        let all = ["GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "PATCH", "PROPFIND"];
        for (retries, repeatable) in [(Retries::Never, 0), (Retries::Safe, 3), (Retries::Idempotent, 5)] {
            for (n, method) in all.iter().enumerate() {
                let method = Method::from_bytes(method.as_bytes()).unwrap();
                assert_eq!(is_repeatable(&method, retries), n < repeatable, "{method} {retries:?}");
            }
        }
    }
}

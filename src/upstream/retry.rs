//! Whether a request is sent again.

use http::Request;

use super::connection::Undelivered;
use super::error::BrokenOff;
use super::request_body::RequestBody;

/// Where an undelivered request goes. Only [`after`] gives the request back.
#[derive(Debug)]
pub(super) enum Retry {
    /// Over another connection to the same endpoint.
    SameEndpoint(Box<Request<RequestBody>>),
    NextEndpoint(Box<Request<RequestBody>>),
    /// Nowhere.
    Never(BrokenOff),
}

/// The rule of retries: a request is tried again only while not a byte of it was sent.
///
/// Once a byte was sent, the upstream may have carried the request out, and to send it twice could do twice
/// what the client wanted once (RFC 9110, section 9.2.2). A request that was not sent has no such risk:
///
/// - A reused connection may be closed by the server just when the next request comes. That says nothing
///   about the endpoint, so the endpoint keeps its turn. This ends, because each such try uses up a kept
///   connection.
/// - A new connection that takes no request is a fault of the endpoint, as is an endpoint that cannot be
///   connected to. The next endpoint gets the request, so each is tried once.
pub(super) fn after(undelivered: Undelivered, is_reused: bool) -> Retry {
    match undelivered {
        Undelivered::Unsent(request) if is_reused => Retry::SameEndpoint(request),
        Undelivered::Unsent(request) => Retry::NextEndpoint(request),
        Undelivered::BrokeOff(cause) => Retry::Never(cause),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_sent_goes_elsewhere_and_a_reused_connection_is_no_fault_of_the_endpoint() {
        let unsent = || Undelivered::Unsent(Box::default());
        assert!(matches!(after(unsent(), true), Retry::SameEndpoint(_)));
        assert!(matches!(after(unsent(), false), Retry::NextEndpoint(_)));
    }

    #[test]
    fn what_may_have_been_sent_is_never_sent_again() {
        for is_reused in [false, true] {
            let retry = after(Undelivered::BrokeOff(BrokenOff::Closed), is_reused);
            assert!(matches!(retry, Retry::Never(BrokenOff::Closed)), "{retry:?}");
        }
    }
}

//! Words of routes about upstreams: the number of one, and which requests may be sent to it twice.

/// An upstream of the configuration, by its place in the list of upstreams, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

/// Which requests may be sent twice, where the first ended without a byte of an answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Retries {
    /// None.
    Never,
    /// GET, HEAD and OPTIONS, which ask for no change (RFC 9110, section 9.2.1).
    #[default]
    Safe,
    /// Also PUT and DELETE, which change the same once or twice (RFC 9110, section 9.2.2).
    Idempotent,
}

//! Upstreams by number, as routes name them.

/// An upstream of the configuration, by its place in the list of upstreams, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UpstreamId(pub usize);

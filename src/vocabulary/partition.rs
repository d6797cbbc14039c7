//! The handling of requests while a gateway is cut off from the store.

/// The behaviour of a gateway that can neither hear of changes nor ask the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnPartition {
    /// It serves the keys that it knows for as long as the stale window.
    #[default]
    Serve,
    /// It refuses every key once its lease has ended, whatever it can still look up.
    Refuse,
}

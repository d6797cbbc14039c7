//! Changes that can take rights away, as numbered events.

use crate::id::OrgId;
use crate::key::Digest;

/// The number of an event. Contiguous from 1 within a store; 0 stands before the first.
pub type Seq = u64;

/// What an event is about, and so what a cache must look up again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// The key that this digest opens.
    Digest(Digest),
    /// Every key of the organisation.
    Org(OrgId),
}

/// Who is told of events: the fence of this process.
///
/// A store calls [`EventSink::apply`] for every event, in order, *before* it reports the change as committed.
pub trait EventSink: Send + Sync + 'static {
    /// Event `seq` has happened and concerns `subjects`.
    fn apply(&self, seq: Seq, subjects: &[Subject]);
    /// Events up to `seq` may have been missed: nothing cached before may be used without a new lookup.
    fn reset(&self, seq: Seq);
}

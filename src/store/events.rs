//! Changes that can take rights away, as numbered events.

use std::time::Duration;

use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Digest;

/// The number of an event. Contiguous from 1 within a store; 0 stands before the first.
pub type Seq = u64;

/// What an event is about, and so what a cache must look up again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// The key that this digest opens.
    Digest(Digest),
    /// Every key of the organisation.
    Org(OrgId),
    /// The same as [`Subject::Digest`], and the secret opens nothing any more, for ever: its key is revoked,
    /// or the secret was ended. Remembered, should the store forget it.
    Revoked(Digest),
}

/// Who is told of events: the fence of this process.
///
/// A store calls [`EventSink::apply`] for every event, in order, *before* it reports the change as committed.
pub trait EventSink: Send + Sync + 'static {
    /// Event `seq` has happened and concerns `subjects`.
    fn apply(&self, seq: Seq, subjects: &[Subject]);
    /// Events up to `seq` may have been missed: nothing cached before may be used without a new lookup.
    fn reset(&self, seq: Seq);
    /// So long ago every event that there was had been applied, and further ones were on their way here; `None`:
    /// so it will be for as long as this process lives. Where this is not said for a while, events may be lost on
    /// their way.
    fn assure(&self, _age: Option<Duration>) {}
    /// So long ago the server that answers was last known to take changes, and now it says that it takes none,
    /// as one does that was replaced, or may have been, by another which this process does not see. `None`: it
    /// takes them again, or another is asked. Said where it begins and where it ends.
    fn suspect(&self, _age: Option<Duration>) {}
    /// All sinks have applied an event, so long after it was written. Only of events that were written while
    /// this process followed them.
    fn note_lag(&self, _lag: Duration) {}
}

/// The subjects of an event as a store keeps them, one after the other: each one's kind (`01` digest, `02`
/// organisation, `03` digest revoked), then its 32 or 16 bytes.
pub(super) fn encode(subjects: &[Subject]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(33 * subjects.len());
    for subject in subjects {
        match subject {
            Subject::Digest(digest) => {
                bytes.push(1);
                bytes.extend_from_slice(digest.as_bytes());
            }
            Subject::Org(org) => {
                bytes.push(2);
                bytes.extend_from_slice(&org.to_bytes());
            }
            Subject::Revoked(digest) => {
                bytes.push(3);
                bytes.extend_from_slice(digest.as_bytes());
            }
        }
    }
    bytes
}

/// The other way; `None` for what [`encode`] of this version does not write.
pub(super) fn decode(mut bytes: &[u8]) -> Option<Vec<Subject>> {
    let mut subjects = Vec::new();
    while let Some((kind, rest)) = bytes.split_first() {
        let (subject, rest) = match kind {
            1 | 3 => {
                let (digest, rest) = rest.split_first_chunk()?;
                let digest = Digest::from_bytes(*digest);
                (if *kind == 1 { Subject::Digest(digest) } else { Subject::Revoked(digest) }, rest)
            }
            2 => rest.split_first_chunk().map(|(org, rest)| (Subject::Org(OrgId::from_bytes(*org)), rest))?,
            _ => return None,
        };
        subjects.push(subject);
        bytes = rest;
    }
    Some(subjects)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn subject() -> impl Strategy<Value = Subject> {
        prop_oneof![
            any::<[u8; 32]>().prop_map(|bytes| Subject::Digest(Digest::from_bytes(bytes))),
            any::<[u8; 16]>().prop_map(|bytes| Subject::Org(OrgId::from_bytes(bytes))),
            any::<[u8; 32]>().prop_map(|bytes| Subject::Revoked(Digest::from_bytes(bytes))),
        ]
    }

    proptest! {
        #[test]
        fn subjects_survive_the_store(subjects in proptest::collection::vec(subject(), 0..5)) {
            let bytes = encode(&subjects);
            prop_assert_eq!(decode(&bytes), Some(subjects));
            if let Some((_, cut)) = bytes.split_last() {
                prop_assert_eq!(decode(cut), None);
            }
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(&bytes);
        }
    }
}

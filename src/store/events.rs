//! Changes that can take rights away, as numbered events.

use std::time::Duration;

use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;

/// The number of an event. Contiguous from 1 within a store; 0 stands before the first.
pub type Seq = u64;

/// The subject of an event: a cache must look it up again.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Subject {
    /// The key that this digest opens.
    Digest(Digest),
    /// Every key of the organisation.
    Org(OrgId),
    /// The same as [`Subject::Digest`], and the secret never opens anything again: its key is revoked, or the secret
    /// was ended. The process remembers this in case the store loses it.
    Revoked(Digest),
    /// The key with this id, whatever opens it: its record could not be read. An older gateway cannot read an event with this
    /// subject, and looks everything up again.
    Key(KeyId),
}

/// The receiver of events, for example the fence of this process.
///
/// A store calls [`EventSink::apply`] for every event, in order, *before* it reports the change as committed.
pub trait EventSink: Send + Sync + 'static {
    /// Event `seq` has happened and concerns `subjects`.
    fn apply(&self, seq: Seq, subjects: &[Subject]);
    /// Events up to `seq` may have been missed: everything cached before must be looked up again.
    fn reset(&self, seq: Seq);
    /// This long ago, every event up to then had been applied and the link to the store worked. `None`: this holds
    /// for the life of the process. If there is no such call for a while, events may have been lost.
    fn assure(&self, _age: Option<Duration>) {}
    /// The server that answers refuses changes, as a master does that may have been replaced by another server which
    /// this process does not see. It last accepted one this long ago. `None`: it accepts changes again, or another
    /// server is asked. Called when the suspicion begins and when it ends.
    fn suspect(&self, _age: Option<Duration>) {}
    /// All sinks have applied an event this long after it was written. Called only for events that were written while
    /// this process followed them.
    fn note_lag(&self, _lag: Duration) {}
}

/// The bytes in which a store keeps the subjects of an event. For each subject: its kind (`01` digest, `02`
/// organisation, `03` revoked digest, `04` key), then its 32 or 16 bytes.
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
            Subject::Key(key) => {
                bytes.push(4);
                bytes.extend_from_slice(&key.to_bytes());
            }
        }
    }
    bytes
}

/// The subjects that [`encode`] has written; `None` for bytes that this version does not write.
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
            4 => rest.split_first_chunk().map(|(key, rest)| (Subject::Key(KeyId::from_bytes(*key)), rest))?,
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
            any::<[u8; 16]>().prop_map(|bytes| Subject::Key(KeyId::from_bytes(bytes))),
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

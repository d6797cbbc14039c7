//! Kept answers.

use std::time::Duration;

use keygate::store::answers::KeptAnswer;
use keygate::store::{CommitError, Mutation};
use keygate::vocabulary::clock::UnixMillis;

use super::{Maker, NOW, Shared};

pub(super) async fn an_answer_is_kept_until_it_ends(store: Shared) {
    let made = Maker::new();
    let first = made.answer(made.digest());
    let keep = |answer: &KeptAnswer| Mutation { answer: Some(answer.clone()), ..Mutation::default() };
    let at = async |now| store.answers().find(first.index, now).await.unwrap();
    assert_eq!(at(NOW).await, None);
    store.commit(keep(&first)).await.unwrap();
    let last = UnixMillis(first.ends_at.0 - 1);
    assert_eq!(at(last).await, Some(first.sealed.clone()));
    assert_eq!(at(first.ends_at).await, None);
    let later = |made_at: UnixMillis| KeptAnswer {
        sealed: b"later".to_vec(),
        made_at,
        ends_at: made_at.plus(Duration::from_secs(3600)),
        ..first.clone()
    };
    assert_eq!(store.commit(keep(&later(last))).await, Err(CommitError::Answered));
    assert_eq!(at(last).await, Some(first.sealed.clone()));
    store.commit(keep(&later(first.ends_at))).await.unwrap();
    assert_eq!(at(first.ends_at).await, Some(b"later".to_vec()));
    assert_eq!(store.answers().find(*made.digest().as_bytes(), NOW).await, Ok(None));
}

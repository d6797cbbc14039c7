//! What the old process and the new one say to each other, and what the silence of one means to the other.
//!
//! ```text
//! new                          old
//!  Ask           ------------>            the version, and the kind of the store
//!                <------------ Sockets    with their descriptors; or Refused
//!  with an embedded store:
//!   Prepared     ------------>            all but the file is ready; the old one drains, and closes the file
//!                <------------ Store      how the file was left
//!  Serving       ------------>            connections are accepted
//!                <------------ Yours      the old one ends; with Redis it begins to drain now
//! ```
//!
//! Whoever dies ends its side of the connection. Then:
//!
//! | moment | the new one is gone, or late | the old one is gone |
//! |---|---|---|
//! | before `Prepared` or `Serving` | the old one goes on; nothing was changed | before `Sockets` the new one starts as without it; afterwards with the sockets that it has |
//! | between `Prepared` and `Store` | the old one finishes its requests, and then begins anew, with its sockets | the new one opens the file, which is verified as after any crash |
//! | between `Store` and `Serving`, or before `Yours` is sent | the old one ends the new one, if that still lives, and begins anew; with Redis it goes on, or begins anew if it had begun to drain | the new one goes on |
//! | after `Yours` | the old one goes on draining: what happens to the new one happens to a running gateway | the new one goes on |

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::store::embedded::FileMark;

/// The version of these messages. Another one is refused: the gateway is then stopped and started.
pub(super) const VERSION: u32 = 1;
/// The longest message, in bytes.
pub(super) const LONGEST: usize = 4 << 10;
/// The most sockets that a gateway has.
pub(super) const SOCKETS: usize = 4;
/// How long each side may take for its next message, where it does not wait for the end of requests.
pub(super) const STEP: Duration = Duration::from_secs(30);

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "snake_case", deny_unknown_fields)]
pub(super) enum Message {
    Ask {
        version: u32,
        store: StoreKind,
    },
    /// The descriptors come with it, in this order.
    Sockets {
        sockets: Vec<Passed>,
    },
    Prepared,
    Store {
        file: Option<FileMark>,
    },
    Serving,
    Yours,
    Refused {
        why: String,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum StoreKind {
    Embedded,
    Redis,
}

/// A socket that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::app) struct Passed {
    /// Which listener it belongs to.
    pub(in crate::app) name: String,
    /// Whether a service manager keeps it open.
    pub(in crate::app) is_kept: bool,
}

/// The moment of the old process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    Begun,
    Offered(StoreKind),
    Draining,
    Closed,
    Over,
}

/// What the old process learns of the new one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum News {
    Said(Message),
    /// It has died, or said what does not belong here.
    Gone,
    Late,
    /// The old one's own requests have ended, and its file is closed.
    Drained,
}

/// What the old process does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    Offer,
    Refuse(&'static str),
    /// Drain, and keep the sockets.
    Drain,
    /// Tell how the file was left.
    PassStore,
    /// The sockets are the new one's.
    Yield,
    /// Nothing was changed.
    GoOn,
    /// Begin anew with the sockets. `end_other`: the new one may still live and have the file.
    Resume {
        end_other: bool,
    },
}

impl Moment {
    /// The step that follows from the news. Every pair has one.
    pub(super) fn next(self, news: &News, own: StoreKind) -> (Self, Act) {
        use Message::{Ask, Prepared, Serving};
        match (self, news) {
            (Self::Begun, News::Said(Ask { version, .. })) if *version != VERSION => {
                (Self::Over, Act::Refuse("it speaks another version: stop it and start the new one"))
            }
            (Self::Begun, News::Said(Ask { store, .. })) if *store != own => {
                (Self::Over, Act::Refuse("it has another kind of store: stop it and start the new one"))
            }
            (Self::Begun, News::Said(Ask { store, .. })) => (Self::Offered(*store), Act::Offer),
            (Self::Offered(StoreKind::Embedded), News::Said(Prepared)) => (Self::Draining, Act::Drain),
            (Self::Offered(StoreKind::Redis), News::Said(Serving)) => (Self::Over, Act::Yield),
            (Self::Offered(_), News::Late) => (Self::Over, Act::Refuse("it has waited too long")),
            (Self::Begun | Self::Offered(_), _) => (Self::Over, Act::GoOn),
            (Self::Draining, News::Drained) => (Self::Closed, Act::PassStore),
            (Self::Draining, _) => (Self::Over, Act::Resume { end_other: false }),
            (Self::Closed, News::Said(Serving)) => (Self::Over, Act::Yield),
            (Self::Closed, _) => (Self::Over, Act::Resume { end_other: true }),
            (Self::Over, _) => (Self::Over, Act::GoOn),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ASK: Message = Message::Ask { version: VERSION, store: StoreKind::Embedded };

    fn said(message: Message) -> News {
        News::Said(message)
    }

    fn run(own: StoreKind, news: &[News]) -> Vec<Act> {
        let mut moment = Moment::Begun;
        let step = |news: &News| {
            let (next, act) = moment.next(news, own);
            moment = next;
            act
        };
        news.iter().map(step).collect()
    }

    #[test]
    fn a_file_passes_when_the_old_process_has_closed_it() {
        let news = [said(ASK), said(Message::Prepared), News::Drained, said(Message::Serving)];
        assert_eq!(run(StoreKind::Embedded, &news), [Act::Offer, Act::Drain, Act::PassStore, Act::Yield]);
    }

    #[test]
    fn on_redis_the_old_process_goes_when_the_new_one_serves() {
        let ask = Message::Ask { version: VERSION, store: StoreKind::Redis };
        let news = [said(ask), said(Message::Serving)];
        assert_eq!(run(StoreKind::Redis, &news), [Act::Offer, Act::Yield]);
    }

    #[test]
    fn a_new_process_that_dies_before_the_drain_changes_nothing() {
        for news in [vec![News::Gone], vec![said(ASK), News::Gone]] {
            assert_eq!(run(StoreKind::Embedded, &news).last(), Some(&Act::GoOn));
        }
        let late = run(StoreKind::Embedded, &[said(ASK), News::Late]);
        assert!(matches!(late[1], Act::Refuse(_)));
    }

    #[test]
    fn a_new_process_that_dies_later_has_the_old_one_begin_anew() {
        let drained = [said(ASK), said(Message::Prepared), News::Drained];
        for (ended, end_other) in [(News::Gone, true), (News::Late, true), (said(Message::Prepared), true)] {
            let mut news = drained.to_vec();
            news.push(ended);
            assert_eq!(run(StoreKind::Embedded, &news).last(), Some(&Act::Resume { end_other }));
        }
        let gone = run(StoreKind::Embedded, &[said(ASK), said(Message::Prepared), News::Gone]);
        assert_eq!(gone.last(), Some(&Act::Resume { end_other: false }));
    }

    #[test]
    fn what_comes_out_of_order_is_no_step_forward() {
        for message in [Message::Serving, Message::Prepared, Message::Yours] {
            assert_eq!(run(StoreKind::Embedded, &[said(message)]), [Act::GoOn]);
        }
        let early = run(StoreKind::Embedded, &[said(ASK), said(Message::Serving)]);
        assert_eq!(early[1], Act::GoOn, "the file was not passed");
    }

    #[test]
    fn another_version_and_another_store_are_refused() {
        let other = Message::Ask { version: VERSION + 1, store: StoreKind::Embedded };
        assert!(matches!(run(StoreKind::Embedded, &[said(other)])[0], Act::Refuse(_)));
        assert!(matches!(run(StoreKind::Redis, &[said(ASK)])[0], Act::Refuse(_)));
    }
}

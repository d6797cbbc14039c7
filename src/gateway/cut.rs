//! The order to a request in flight that it must end.

use std::cell::{Cell, Ref, RefCell};
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::vocabulary::rejection::Rejection;

/// The order to a request that it must end. On HTTP/1.1 the requests of one connection use it in turn; on HTTP/2 each
/// stream has its own.
#[derive(Clone, Debug, Default)]
pub struct Cut(Rc<CutState>);

#[derive(Debug, Default)]
struct CutState {
    why: RefCell<Option<Rejection>>,
    /// Whether the answer has begun. Before that the request can still be refused.
    answered: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Cut {
    /// Whether an answer that has begun must end at once.
    #[must_use]
    pub fn is_due(&self) -> bool {
        self.0.answered.get() && self.0.why.borrow().is_some()
    }

    /// Waits until the answer must end.
    pub(super) async fn due(&self) {
        poll_fn(|cx| {
            self.remember(cx);
            if self.is_due() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Runs the future that leads to an answer, unless the request must end before there is one. The future has
    /// kilobytes, so it is not moved.
    pub(super) async fn or_refused<T>(
        &self,
        mut answering: Pin<&mut impl Future<Output = Result<T, Rejection>>>,
    ) -> Result<T, Rejection> {
        poll_fn(|cx| {
            if let Some(why) = self.0.why.borrow_mut().take() {
                return Poll::Ready(Err(why));
            }
            let polled = answering.as_mut().poll(cx);
            if polled.is_pending() {
                self.remember(cx);
            }
            polled
        })
        .await
    }

    pub(super) fn begin(&self) {
        self.0.answered.set(false);
        self.0.why.take();
    }

    pub(super) fn note_answered(&self) {
        self.0.answered.set(true);
    }

    /// Why the answer was cut, if it was.
    pub(super) fn why(&self) -> Option<Ref<'_, Rejection>> {
        Ref::filter_map(self.0.why.borrow(), Option::as_ref).ok().filter(|_| self.0.answered.get())
    }

    /// Whether the answer was cut because it lasted for too long.
    pub(super) fn is_overdue(&self) -> bool {
        self.why().is_some_and(|why| *why == Rejection::Overdue)
    }

    pub(super) fn order(&self, why: Rejection) {
        self.0.why.replace(Some(why));
        if let Some(waker) = &*self.0.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    fn remember(&self, cx: &Context<'_>) {
        // All that watches one cut runs in one task, whose waker stays the same.
        let mut waker = self.0.waker.borrow_mut();
        if waker.is_none() {
            *waker = Some(cx.waker().clone());
        }
    }
}

//! Whether the caller of a change still waits for it. A new key for somebody who has left is of no use to anybody: such
//! a change is not begun. One that takes rights away has no watched caller, and always runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use super::error::LifecycleError;

const WAITS: u8 = 0;
const BEGUN: u8 = 1;
const LEFT: u8 = 2;

/// The caller of a change, as far as the change must know of it.
#[derive(Clone, Debug, Default)]
pub struct Presence(Option<Arc<AtomicU8>>);

/// The caller's end of its [`Presence`].
#[derive(Debug)]
pub struct Waiting(Arc<AtomicU8>);

impl Presence {
    /// A caller that is not watched: what it wants is carried out in any case.
    #[must_use]
    pub const fn unwatched() -> Self {
        Self(None)
    }

    /// A caller that waits now.
    #[must_use]
    pub fn watched() -> (Self, Waiting) {
        let state = Arc::new(AtomicU8::new(WAITS));
        (Self(Some(Arc::clone(&state))), Waiting(state))
    }

    /// Begins the change: from now on it is carried out to its end.
    ///
    /// # Errors
    /// [`LifecycleError::CallerLeft`] if the caller has left before.
    pub(super) fn begin(&self) -> Result<(), LifecycleError> {
        let Some(state) = &self.0 else { return Ok(()) };
        match state.compare_exchange(WAITS, BEGUN, Ordering::AcqRel, Ordering::Acquire) {
            Ok(_) | Err(BEGUN) => Ok(()),
            Err(_) => Err(LifecycleError::CallerLeft),
        }
    }
}

impl Waiting {
    /// The caller leaves. Returns whether the change has not begun, and never will.
    #[must_use]
    pub fn leave(&self) -> bool {
        self.0.compare_exchange(WAITS, LEFT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_begins_only_before_its_caller_leaves() {
        let (presence, waiting) = Presence::watched();
        assert!(presence.begin().is_ok() && presence.begin().is_ok());
        assert!(!waiting.leave(), "it has begun");
        let (presence, waiting) = Presence::watched();
        assert!(waiting.leave());
        assert!(matches!(presence.begin(), Err(LifecycleError::CallerLeft)));
        assert!(Presence::unwatched().begin().is_ok());
    }
}

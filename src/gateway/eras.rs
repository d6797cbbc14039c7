//! Which requests had begun before the end of the process did.

use std::cell::Cell;

/// The number of open requests of one worker: of those that began before it was told that the process ends, and of those
/// that came later.
#[derive(Debug, Default)]
pub(super) struct Eras {
    now: Cell<Era>,
    open: [Cell<usize>; 2],
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) enum Era {
    #[default]
    Before,
    Last,
}

impl Eras {
    /// Counts a request in.
    pub(super) fn enter(&self) -> Era {
        let era = self.now.get();
        let open = self.of(era);
        open.set(open.get() + 1);
        era
    }

    /// Counts it out.
    pub(super) fn leave(&self, era: Era) {
        let open = self.of(era);
        open.set(open.get().saturating_sub(1));
    }

    pub(super) fn begin_last(&self) {
        self.now.set(Era::Last);
    }

    pub(super) fn has_open_from_before(&self) -> bool {
        self.of(Era::Before).get() > 0
    }

    const fn of(&self, era: Era) -> &Cell<usize> {
        &self.open[era as usize]
    }
}

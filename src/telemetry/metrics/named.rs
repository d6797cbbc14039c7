//! Cells by names: of routes and of upstreams. A thread has its own; a scrape gathers those of all threads.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

/// The cells of one thread by their names. It is locked when a policy is loaded and at a scrape, never by a request.
#[derive(Debug)]
pub(super) struct Named<T>(Mutex<BTreeMap<Box<str>, Arc<T>>>);

/// The cells of all threads by their names.
pub(super) type Gathered<T> = BTreeMap<Box<str>, Vec<Arc<T>>>;

impl<T> Named<T> {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// The cells of this name. They are made if there are none.
    pub(super) fn find_or_make(&self, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(name.into()).or_insert_with(|| Arc::new(make())))
    }

    pub(super) fn gather<'t>(threads: impl Iterator<Item = &'t Self>) -> Gathered<T>
    where
        T: 't,
    {
        let mut gathered = Gathered::new();
        for thread in threads {
            for (name, cells) in &*thread.0.lock().unwrap_or_else(PoisonError::into_inner) {
                gathered.entry(name.clone()).or_default().push(Arc::clone(cells));
            }
        }
        gathered
    }
}

//! The whole way of a request, in one thread: what a client sends goes through the real connection code and all stages to
//! upstreams that record it. What was authorised must be what was forwarded.
//!
//! An input is a [`script`] that people can read: what a client sends, over HTTP/1.1 or HTTP/2, and where it pauses. What must
//! hold is said without keygate's own parsers: [`http1`] reads bytes on its own, [`policy`] reads the rules and the paths on its
//! own, and [`verdict`] compares. [`mutate`] knows the grammar of scripts and of both protocols.

mod http1;
mod identity;
mod mutate;
mod policy;
mod script;
mod upstream;
mod verdict;
mod world;

use std::cell::RefCell;

pub(crate) use mutate::{Random, generate, mutate};
pub(crate) use world::World;

/// Checks one script in the world of this thread, which is never taken apart.
pub(crate) fn holds(script: &[u8]) {
    thread_local! {
        static WORLD: &'static RefCell<World> = Box::leak(Box::new(RefCell::new(World::start())));
    }
    let outcome = WORLD.with(|world| world.borrow_mut().check(script));
    if let Err(why) = outcome {
        panic!("{why}");
    }
}

//! Many requests: at a given rate, or as many as possible.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::setpriority_process;

use super::client::{Call, Wire};

/// Gives this thread alone the lowest priority (Linux).
const LEAST: i32 = 19;

/// The result of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Outcome {
    /// The number of the request.
    pub(crate) number: usize,
    pub(crate) status: u16,
    /// The time from the moment at which it was due to the end of its answer.
    pub(crate) took: Duration,
}

/// Sends `call(0)`, `call(1)`, … at `rate` a second for `span`, over `connections`.
pub(crate) fn at_rate(
    address: SocketAddr,
    rate: u32,
    span: Duration,
    connections: usize,
    call: impl Fn(usize) -> Call + Sync,
) -> Vec<Outcome> {
    over(address, connections, |connection, wire, begun, outcomes| {
        for number in (connection..).step_by(connections) {
            let due = Duration::from_secs_f64(number as f64 / f64::from(rate));
            if due >= span {
                return;
            }
            thread::sleep(due.saturating_sub(begun.elapsed()));
            let status = wire.call(&call(number)).expect("an answer").status;
            outcomes.push(Outcome { number, status, took: begun.elapsed() - due });
        }
    })
}

/// Sends one after another on each of `connections` for `span`, at the lowest priority: on a machine of its own, the
/// sender would not compete with the gateway for processors.
pub(crate) fn at_will(
    address: SocketAddr,
    span: Duration,
    connections: usize,
    call: impl Fn(usize) -> Call + Sync,
) -> Vec<Outcome> {
    over(address, connections, |connection, wire, begun, outcomes| {
        setpriority_process(None, LEAST).unwrap();
        for number in (connection..).step_by(connections) {
            let sent = Instant::now();
            if sent - begun >= span {
                return;
            }
            let status = wire.call(&call(number)).expect("an answer").status;
            outcomes.push(Outcome { number, status, took: sent.elapsed() });
        }
    })
}

/// Sends `call(0)` to `call(count - 1)`, each once, over `connections`: on each one after another, at once. Returns the
/// time of all of them too.
pub(crate) fn once_each(
    address: SocketAddr,
    count: usize,
    connections: usize,
    call: impl Fn(usize) -> Call + Sync,
) -> (Vec<Outcome>, Duration) {
    let all = Mutex::new(Duration::ZERO);
    let outcomes = over(address, connections, |connection, wire, begun, outcomes| {
        for number in (connection..count).step_by(connections) {
            let sent = Instant::now();
            let status = wire.call(&call(number)).expect("an answer").status;
            outcomes.push(Outcome { number, status, took: sent.elapsed() });
        }
        let mut all = all.lock().unwrap();
        *all = begun.elapsed().max(*all);
    });
    (outcomes, all.into_inner().unwrap())
}

/// The time begins when all connections are open.
fn over(
    address: SocketAddr,
    connections: usize,
    each: impl Fn(usize, &mut Wire, Instant, &mut Vec<Outcome>) + Sync,
) -> Vec<Outcome> {
    let all = Mutex::new(Vec::new());
    let wires: Vec<Wire> = (0..connections).map(|_| Wire::connect(address)).collect();
    let begun = Instant::now();
    thread::scope(|scope| {
        for (connection, mut wire) in wires.into_iter().enumerate() {
            let (each, all) = (&each, &all);
            scope.spawn(move || {
                let mut outcomes = Vec::new();
                each(connection, &mut wire, begun, &mut outcomes);
                all.lock().unwrap().append(&mut outcomes);
            });
        }
    });
    all.into_inner().unwrap()
}

/// The quantile of their times; zero if there were none.
pub(crate) fn percentile(outcomes: &[Outcome], percent: f64) -> Duration {
    let mut took: Vec<Duration> = outcomes.iter().map(|outcome| outcome.took).collect();
    took.sort_unstable();
    let at = (took.len().max(1) - 1) as f64 * percent / 100.0;
    took.get(at as usize).copied().unwrap_or_default()
}

/// The number of answers with this status.
pub(crate) fn with_status(outcomes: &[Outcome], status: u16) -> usize {
    outcomes.iter().filter(|outcome| outcome.status == status).count()
}

/// The number of answers with each status.
pub(crate) fn by_status(outcomes: &[Outcome]) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        *counts.entry(outcome.status).or_default() += 1;
    }
    counts
}

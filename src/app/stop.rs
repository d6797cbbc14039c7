//! How a gateway ends: it drains, then gives up its lease, writes what it knows, and closes.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError, channel};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::App;
use super::control::BLOCKED_AT_MOST;
use super::inherited::Inherited;
use super::signals::{Asked, Signals, end};
use super::store::take_leave;
use super::take_over::Handing;
use crate::downstream::listener::Waiting;
use crate::downstream::worker::{DrainSettings, Worker};
use crate::lifecycle::Act;
use crate::operators::Running;
use crate::operators::admin::{Passed, local_operator};
use crate::telemetry::{Notice, flush_log, reopen_log};

/// How often it is looked whether the end has come.
const LOOK: Duration = Duration::from_millis(10);
/// How long streams may take that began while clients were told to leave, where connections wait for the next process.
const LAST_WORDS: Duration = Duration::from_millis(250);

const STOPPING: &str = "finishing the requests under way; a second signal ends them";
const HANDING_OVER: &str = "the new process takes over: finishing the requests under way; a signal ends them";

impl App {
    /// Serves until SIGTERM or SIGINT, or until a new process takes over, then drains. A second signal ends it at once.
    /// SIGHUP reloads, SIGUSR1 opens the files of the log again.
    pub fn run_until_signalled(mut self, mut signals: Signals) -> Ended {
        let handle = self.control.handle().clone();
        let handing = loop {
            match handle.block_on(signals.next(self.hand_over.as_mut())) {
                // A refusal has been logged.
                Asked::Reload(read) => drop(self.reload(*read)),
                Asked::Reopen => self.reopen_log(),
                Asked::End => break None,
                Asked::HandOver(handing) => break Some(*handing),
            }
        };
        if let Some(handing) = &handing {
            self.record_take_over(handing);
        }
        // The duplicates of the sockets are closed, or are the new process's.
        self.hand_over = None;
        let fate = self.fate(handing.as_ref());
        if fate == Fate::Closed {
            self.readiness.stop();
        }
        if handing.is_some() {
            self.admin_socket.iter().for_each(Passed::note);
        }
        match &handing {
            None => Notice::Stopping.log(STOPPING),
            Some(_) => Notice::HandOver.log(HANDING_OVER),
        }
        let hurried = hurry(&handle, signals);
        let mut is_taken = true;
        if let Some(handing) = handing.as_ref().filter(|_| fate == Fate::Served) {
            handle.block_on(self.leave_to_the_new_one());
            is_taken = handing.confirm();
        }
        let last = self.leave(fate, &hurried);
        self.stop(fate, last, &hurried);
        let left = handing.and_then(|handing| match fate {
            Fate::Kept => handing.pass_store(),
            Fate::Served | Fate::Closed => (!is_taken).then(|| handing.resume(false)),
        });
        let ended = left.map_or(Ended::Stopped, Ended::ToBeginAnew);
        Notice::Stopped.log("the gateway has ended");
        flush_log();
        ended
    }

    /// Says in the operators' trail who takes over. A gateway that changes no keys has only its log for it.
    fn record_take_over(&self, handing: &Handing) {
        let (Some(lifecycle), Ok((uid, pid))) = (&self.lifecycle, handing.asked_by()) else { return };
        let (origin, act) =
            (local_operator("", uid), Act::TakeOverBegun { from: std::process::id(), to: pid });
        self.control.handle().block_on(lifecycle.record_act(&origin, act));
    }

    fn fate(&self, handing: Option<&Handing>) -> Fate {
        match handing {
            Some(handing) if handing.is_served() => Fate::Served,
            Some(_) => Fate::Kept,
            None if self.accepting.is_kept() => Fate::Kept,
            None => Fate::Closed,
        }
    }

    /// The new process accepts: what comes from now on is its own.
    async fn leave_to_the_new_one(&mut self) {
        self.accepting.stop(Waiting::Left).await;
        stop_all(std::mem::take(&mut self.operators)).await;
    }

    /// After another program has given the files of the log other names.
    fn reopen_log(&self) {
        reopen_log();
        self.records.reopen();
    }

    /// Tells clients that their connections end, and serves on: for the delay, and where the socket is kept open until what
    /// had begun has ended too, at most as long as streams may take. Returns how long the rest may take.
    #[expect(clippy::disallowed_methods, reason = "no test sets the time at which a process ends")]
    fn leave(&self, fate: Fate, hurried: &Receiver<()>) -> Last {
        let DrainSettings { delay, timeout } = self.drain;
        let (ended, all_ended) = channel();
        self.workers.iter().for_each(|worker| worker.leave(ended.clone()));
        drop(ended);
        if fate != Fate::Kept {
            let at_once = hurried.recv_timeout(delay).is_ok();
            return if at_once { Last::of(Duration::ZERO) } else { Last::of(timeout) };
        }
        let (begun, of_streams) = (Instant::now(), DrainSettings::of_streams(timeout));
        loop {
            if hurried.recv_timeout(LOOK).is_ok() {
                return Last::of(Duration::ZERO);
            }
            let have_ended = matches!(all_ended.try_recv(), Err(TryRecvError::Disconnected));
            let waited = begun.elapsed();
            if waited >= delay && have_ended || waited >= delay + of_streams {
                return Last { timeout: timeout - of_streams, streams: LAST_WORDS.min(of_streams) };
            }
        }
    }

    /// Accepts no more connections, gives the requests under way up to `timeout`, and ends.
    pub fn drain(self, timeout: Duration) {
        // The sender is kept, so that nothing hurries the end.
        let (_hurry, hurried) = channel();
        self.stop(Fate::Closed, Last::of(timeout), &hurried);
    }

    #[expect(clippy::disallowed_methods, reason = "no test sets the time at which a process ends")]
    fn stop(self, fate: Fate, last: Last, hurried: &Receiver<()>) {
        let Self {
            control,
            mut accepting,
            hand_over,
            workers,
            records,
            operators,
            lifecycle,
            store,
            readiness,
            ..
        } = self;
        readiness.stop();
        drop(hand_over);
        let waiting = if fate == Fate::Closed { Waiting::Taken } else { Waiting::Left };
        control.handle().block_on(accepting.stop(waiting));
        drop(accepting);
        let mut workers = Arc::into_inner(workers).unwrap_or_default();
        workers.iter().for_each(|worker| worker.drain(last.streams));
        let until = Instant::now() + last.timeout;
        while !workers.iter().all(Worker::is_finished) && Instant::now() < until {
            if hurried.recv_timeout(LOOK).is_ok() {
                break;
            }
        }
        workers.drain(..).for_each(Worker::stop);
        records.finish();
        // They show the drain to its end. The lease is given up after them, so that the changes that they made hold it; a
        // change that takes longer than they may take to stop goes on without it.
        control.handle().block_on(stop_all(operators));
        control.handle().block_on(take_leave(&*store, lifecycle.as_deref()));
        lifecycle.iter().for_each(|lifecycle| lifecycle.export_all_heads());
        drop((lifecycle, store));
        control.stop();
    }
}

/// Tells of the second signal. The others are still watched, and have no effect.
fn hurry(handle: &Handle, signals: Signals) -> Receiver<()> {
    let (hurry, hurried) = channel();
    let Signals { mut terminate, mut interrupt, reload, reopen } = signals;
    let watched = (reload.map(|(hangup, _)| hangup), reopen);
    handle.spawn(async move {
        let _watched = watched;
        end(&mut terminate, &mut interrupt).await;
        let _ = hurry.send(());
    });
    hurried
}

/// How a gateway ended.
#[derive(Debug)]
pub enum Ended {
    Stopped,
    /// It has handed over, and the new process did not come to serve: it is to begin anew with these sockets.
    ToBeginAnew(Inherited),
}

/// What becomes of the public socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Closed,
    /// Connections wait in it for the next process.
    Kept,
    /// The next process accepts them already.
    Served,
}

/// How long what is open may take once no more connections are accepted.
#[derive(Clone, Copy, Debug)]
struct Last {
    timeout: Duration,
    streams: Duration,
}

impl Last {
    fn of(timeout: Duration) -> Self {
        Self { timeout, streams: DrainSettings::of_streams(timeout) }
    }
}

/// Stops the servers side by side.
async fn stop_all(servers: Vec<Running>) {
    let mut stopping = JoinSet::new();
    for server in servers {
        stopping.spawn(server.stop(BLOCKED_AT_MOST));
    }
    stopping.join_all().await;
}

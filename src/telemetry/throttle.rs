//! A limit on the lines of the log that a stranger can cause, or that an outage multiplies.
//!
//! Such a line names its [`Event`], and where events have subjects of the configuration (an upstream, a listener), that
//! too: one hostile upstream must not hide what is logged of another. Of one event and subject at most
//! [five](AT_ONCE) lines are written within [ten seconds](WINDOW), all threads together. The others are withheld and
//! counted, and the thread that writes lines tells how many there were when the time is over:
//! `and 18995 more like this in the last 10 s: …`. Metrics count them exactly.
//!
//! A line that somebody must act on by its content (an audit head, a key whose revocation is lost) is no such event: what
//! causes it is bounded where it comes from.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::log::log;
use crate::vocabulary::text::escaped;

/// Lines of one event and subject that are written within [`WINDOW`].
const AT_ONCE: u32 = 5;
const WINDOW: Duration = Duration::from_secs(10);
/// The most subjects of one event that are counted apart; further ones share one count. They come from the
/// configuration, so only an extraordinary one has more.
const SUBJECTS: usize = 64;

macro_rules! events {
    ($($(#[$doc:meta])* $name:ident = $label:literal $words:literal,)*) => {
        /// What a line of the log tells, where strangers or an outage can cause many such lines: a closed list.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $name,)*
        }

        impl Event {
            pub const ALL: [Self; [$($label),*].len()] = [$(Self::$name),*];

            /// The label in metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            /// What happened, for the line about those that were withheld.
            const fn described(self) -> &'static str {
                match self { $(Self::$name => $words),* }
            }
        }
    };
}

events! {
    /// The store does not answer lookups of keys.
    LookupsFail = "lookups_fail" "keys cannot be looked up",
    /// The store did not carry an operation of the API for keys out.
    OperationUnavailable = "operation_unavailable" "an operation could not be carried out",
    /// Something is wrong here, and an operation of the API for keys failed of it.
    OperationFailed = "operation_failed" "an operation failed",
    /// A change is in no replica of Redis.
    NotReplicated = "not_replicated" "a change has reached no replica of Redis",
    /// Redis answers and takes no changes, or takes them again.
    StoreDoubted = "store_doubted" "Redis takes no changes, or takes them again",
    /// The file of the embedded store fails.
    StoreFile = "store_file" "the file of the store failed",
    /// The link by which a gateway hears of changes.
    EventLink = "event_link" "the event link is down",
    /// The store has lost a revocation.
    RevocationLost = "revocation_lost" "the store has lost the revocation of a key",
    /// The store has an older record than this gateway remembers.
    ChangeLost = "change_lost" "the store has lost the last change of a key or an organisation",
    TrailNotCompared = "trail_not_compared" "records cannot be compared with an audit trail",
    TrailNotTrimmed = "trail_not_trimmed" "an audit trail cannot be trimmed",
    /// All connections that there may be are there.
    ConnectionsFull = "connections_full" "refusing connections: server.max_connections is reached",
    /// A client has all connections that it may have.
    ClientFull = "client_full" "refusing connections: a client has server.max_connections_per_client",
    /// A listener's socket fails.
    CannotAccept = "cannot_accept" "connections cannot be accepted",
    /// A client asks too much of an HTTP/2 connection.
    ConnectionCut = "connection_cut" "cutting an HTTP/2 connection",
    /// A fault of keygate's own, which a connection could repeat.
    StreamsMixedUp = "streams_mixed_up" "HTTP/2: requests and streams did not take turns",
    /// An endpoint cannot be connected to.
    UpstreamUnreachable = "upstream_unreachable" "an upstream cannot be reached",
    /// An endpoint leaves requests unanswered.
    UpstreamSilent = "upstream_silent" "an upstream left requests without an answer",
    UpstreamBrokeOff = "upstream_broke_off" "an upstream broke off before it answered",
    UpstreamInvalidAnswer = "upstream_invalid_answer" "an upstream gave an answer that cannot be passed on",
    UpstreamBrokenBody = "upstream_broken_body" "an upstream broke off in the middle of an answer",
    /// The receiver of news of organisations does not take them.
    NewsNotDelivered = "news_not_delivered" "news could not be delivered",
    /// Somebody without a valid token at the admin API.
    AdminStranger = "admin_stranger" "the admin API refused a command: no valid token",
    /// An operator whose token is not good for the command.
    AdminLacking = "admin_lacking" "the admin API refused a command: the token is not good for it",
    /// The file of tokens cannot be read.
    AdminTokens = "admin_tokens" "admin.tokens_file cannot be read",
    CommandFailed = "command_failed" "an operator's command failed",
    MetricsFailed = "metrics_failed" "the metrics cannot be written",
    /// Standard output takes no records of requests.
    RecordsNotWritten = "records_not_written" "records of requests cannot be written",
}

impl Event {
    /// Logs a line about this event, unless there were too many a moment ago. Says whether it did.
    pub fn log(self, now: Instant, line: impl FnOnce() -> String) -> bool {
        self.log_of("", now, line)
    }

    /// The same about a subject, which must come from the configuration: each has lines of its own.
    pub fn log_of(self, subject: &str, now: Instant, line: impl FnOnce() -> String) -> bool {
        let is_admitted = throttles().admit(self, subject, now);
        if is_admitted {
            // What a client or a server says can be in it, and one event is one line.
            log(&escaped(&line()));
        }
        is_admitted
    }
}

/// How many lines of each event were withheld since the process began.
#[must_use]
pub fn withheld_lines() -> Vec<(&'static str, u64)> {
    let throttles = throttles();
    Event::ALL.into_iter().map(|event| (event.as_str(), throttles.0[event as usize].withheld)).collect()
}

/// The lines about those that were withheld in the windows that are over, and when the next window will be.
pub(super) fn tell_withheld(now: Instant) -> (Vec<String>, Option<Instant>) {
    let mut throttles = throttles();
    (throttles.tell(|window| window.is_over(now), now), throttles.next_end())
}

/// The same of all windows, because the process ends.
pub(super) fn tell_all_withheld(now: Instant) -> Vec<String> {
    throttles().tell(|_| true, now)
}

fn throttles() -> MutexGuard<'static, Throttles> {
    static ALL: LazyLock<Mutex<Throttles>> = LazyLock::new(Mutex::default);
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counts of all events.
#[derive(Debug, Default)]
struct Throttles([OfEvent; Event::ALL.len()]);

#[derive(Debug, Default)]
struct OfEvent {
    /// By their subjects. One is forgotten when it was told of.
    windows: HashMap<Box<str>, Window>,
    /// Since the process began.
    withheld: u64,
}

#[derive(Debug)]
struct Window {
    began: Instant,
    written: u32,
    withheld: u64,
    /// Since when the withheld ones were not told of: before `began` if nobody had time to tell.
    untold_since: Instant,
}

impl Window {
    const fn new(now: Instant) -> Self {
        Self { began: now, written: 0, withheld: 0, untold_since: now }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.began) >= WINDOW
    }
}

impl Throttles {
    /// Whether a line may be written. Otherwise it is counted.
    fn admit(&mut self, event: Event, subject: &str, now: Instant) -> bool {
        let OfEvent { windows, withheld } = &mut self.0[event as usize];
        let subject = if windows.len() < SUBJECTS || windows.contains_key(subject) { subject } else { "" };
        let window = match windows.get_mut(subject) {
            Some(window) => window,
            None => windows.entry(subject.into()).or_insert_with(|| Window::new(now)),
        };
        if window.is_over(now) {
            (window.began, window.written) = (now, 0);
        }
        if window.written < AT_ONCE {
            window.written += 1;
            return true;
        }
        window.withheld += 1;
        *withheld += 1;
        false
    }

    /// Lines about what was withheld in these windows, which are forgotten.
    fn tell(&mut self, is_due: impl Fn(&Window) -> bool, now: Instant) -> Vec<String> {
        let mut lines = Vec::new();
        for (event, OfEvent { windows, .. }) in Event::ALL.into_iter().zip(&mut self.0) {
            for (subject, window) in windows.extract_if(|_, window| is_due(window)) {
                let Window { withheld, untold_since, .. } = window;
                if withheld > 0 {
                    let seconds = now.saturating_duration_since(untold_since).as_secs().max(1);
                    let of = if subject.is_empty() { String::new() } else { format!(" ({subject})") };
                    lines.push(format!(
                        "and {withheld} more like this in the last {seconds} s: {}{of}",
                        event.described()
                    ));
                }
            }
        }
        lines
    }

    /// When the first window is over.
    fn next_end(&self) -> Option<Instant> {
        let windows = self.0.iter().flat_map(|of| of.windows.values());
        windows.map(|window| window.began).min().map(|began| began + WINDOW)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::Clock;

    const FAILS: Event = Event::OperationUnavailable;

    fn admitted(throttles: &mut Throttles, count: usize, subject: &str, now: Instant) -> usize {
        (0..count).filter(|_| throttles.admit(FAILS, subject, now)).count()
    }

    #[test]
    fn the_first_lines_are_written_at_once_and_the_others_are_counted_and_told_when_the_time_is_over() {
        let (mut throttles, start) = (Throttles::default(), Clock::system().mono());
        let told = |throttles: &mut Throttles, now| throttles.tell(|window| window.is_over(now), now);
        assert_eq!(admitted(&mut throttles, 19_000, "", start), 5);
        let late = start + WINDOW - Duration::from_millis(1);
        assert_eq!(admitted(&mut throttles, 1000, "", late), 0);
        assert_eq!((told(&mut throttles, late), throttles.next_end()), (Vec::new(), Some(start + WINDOW)));
        let line = "and 19995 more like this in the last 10 s: an operation could not be carried out";
        assert_eq!(told(&mut throttles, start + WINDOW), [line]);
        assert_eq!((told(&mut throttles, start + WINDOW), throttles.next_end()), (Vec::new(), None));
        assert_eq!(throttles.0[FAILS as usize].withheld, 19_995);
        assert_eq!(admitted(&mut throttles, 5, "", start + WINDOW), 5, "again, and nothing is withheld");
        assert_eq!(told(&mut throttles, start + WINDOW * 2), Vec::<String>::new());
    }

    #[test]
    fn what_nobody_had_time_to_tell_is_told_with_the_time_that_it_took() {
        let (mut throttles, start) = (Throttles::default(), Clock::system().mono());
        assert_eq!(admitted(&mut throttles, 7, "", start), 5);
        assert_eq!(admitted(&mut throttles, 8, "", start + WINDOW * 2), 5);
        let line = "and 5 more like this in the last 25 s: an operation could not be carried out";
        assert_eq!(throttles.tell(|_| true, start + Duration::from_secs(25)), [line]);
    }

    #[test]
    fn events_and_subjects_have_lines_of_their_own_up_to_a_number() {
        let (mut throttles, now) = (Throttles::default(), Clock::system().mono());
        assert_eq!(admitted(&mut throttles, 100, "a", now), 5);
        assert_eq!(admitted(&mut throttles, 100, "b", now), 5);
        assert!(throttles.admit(Event::OperationFailed, "a", now));
        let others: usize = (0..1000).map(|n| admitted(&mut throttles, 1, &format!("{n}"), now)).sum();
        assert_eq!(others, SUBJECTS - 2 + 5, "those without a place share one");
        assert_eq!(throttles.0[FAILS as usize].windows.len(), SUBJECTS + 1);
        let lines = throttles.tell(|_| true, now);
        assert!(lines.iter().any(|line| line.ends_with("carried out (a)")), "{lines:?}");
    }

    #[test]
    fn labels_are_words_and_no_two_events_have_the_same() {
        let labels: std::collections::HashSet<_> = Event::ALL.iter().map(|event| event.as_str()).collect();
        assert_eq!(labels.len(), Event::ALL.len());
        assert!(labels.iter().all(|label| label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
    }
}

//! A limit on the lines of the log that a stranger can cause, or that an outage multiplies.
//!
//! Such a line names its [`Event`], and where events have subjects of the configuration (an upstream, a listener), that
//! too: one hostile upstream must not hide what is logged of another. All threads count together.
//!
//! # Events that repeat
//! Of one event and subject at most five lines are written within ten seconds. The others are withheld and counted, and the
//! thread that writes lines tells how many there were when the time is over:
//! `and 18995 more like this in the last 10 s: …`. While it goes on, one line and one count are written each minute.
//!
//! # States that flap
//! Where an event is the beginning of a state, such as a link that is down, three lines are written within ten minutes. The
//! fourth says that the state flaps, and from then on only a count is written each ten minutes, until the state has not
//! begun again for ten minutes.
//!
//! Metrics count all of them exactly. A line that somebody must act on by its content (an audit head, a key whose
//! revocation is lost) is a [`Notice`]: what causes it is bounded where it comes from.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::event::{Event, Level, Notice, Recurrence};
use super::log::{Line, write};
use crate::vocabulary::text::{escaped, escaped_lines};

/// The most subjects of one event that are counted apart; further ones share one count. They come from the
/// configuration, so only an extraordinary one has more.
const SUBJECTS: usize = 64;

/// How many lines are written in how much time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Allowance {
    lines: u32,
    time: Duration,
}

impl Recurrence {
    /// The allowance of the first window, or of the next ones while it goes on.
    const fn allowance(self, goes_on: bool) -> Allowance {
        let (lines, seconds) = match (self, goes_on) {
            (Self::Repeats, false) => (5, 10),
            (Self::Repeats, true) => (1, 60),
            (Self::Flaps, false) => (3, 600),
            (Self::Flaps, true) => (0, 600),
        };
        Allowance { lines, time: Duration::from_secs(seconds) }
    }
}

impl Event {
    /// Logs a line about this event, unless there were too many a moment ago. Says whether it did.
    pub fn log(self, now: Instant, line: impl FnOnce() -> String) -> bool {
        self.log_of("", now, line)
    }

    /// The same about a subject, which must come from the configuration: each has lines of its own.
    pub fn log_of(self, subject: &str, now: Instant, line: impl FnOnce() -> String) -> bool {
        let admission = throttles().admit(self, subject, now);
        match admission {
            Admission::Written => {
                // What a client or a server says can be in it, and one event is one line.
                let _ = write(self.line(escaped(&line()).into_owned(), 0));
                true
            }
            Admission::Flaps(line) => {
                let _ = write(self.line(line, 0));
                false
            }
            Admission::Withheld => false,
        }
    }

    fn line(self, message: String, withheld: u64) -> Line {
        Line { level: self.level(), event: self.as_str(), message, withheld }
    }
}

impl Notice {
    /// Logs a line about this. It never waits: where the queue to the writer is full, the line is dropped and counted.
    /// Characters that deceive a reader are escaped.
    pub fn log(self, message: &str) {
        let _ = self.try_log(message);
    }

    /// The same; says whether the line found a place in the queue.
    #[must_use]
    pub fn try_log(self, message: &str) -> bool {
        let message = escaped_lines(message).into_owned();
        write(Line { level: self.level(), event: self.as_str(), message, withheld: 0 })
    }
}

/// How often each event came since the process began, and how many of its lines were withheld.
#[must_use]
pub fn events_so_far() -> Vec<Occurrences> {
    let throttles = throttles();
    let of = |event: Event| {
        let OfEvent { all, withheld, .. } = throttles.0[event as usize];
        Occurrences { event: event.as_str(), all, withheld }
    };
    Event::ALL.into_iter().map(of).collect()
}

/// How often one event came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Occurrences {
    pub event: &'static str,
    pub all: u64,
    pub withheld: u64,
}

/// The lines about those that were withheld in the windows that are over, and when the next window will be.
pub(super) fn tell_withheld(now: Instant) -> (Vec<Line>, Option<Instant>) {
    let mut throttles = throttles();
    (throttles.tell(now), throttles.next_end())
}

/// The same of all windows, because the process ends.
pub(super) fn tell_all_withheld(now: Instant) -> Vec<Line> {
    throttles().tell_all(now)
}

fn throttles() -> MutexGuard<'static, Throttles> {
    static ALL: LazyLock<Mutex<Throttles>> = LazyLock::new(Mutex::default);
    ALL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The counts of all events.
#[derive(Debug)]
struct Throttles([OfEvent; Event::ALL.len()]);

impl Default for Throttles {
    fn default() -> Self {
        Self(std::array::from_fn(|_| OfEvent::default()))
    }
}

#[derive(Debug, Default)]
struct OfEvent {
    /// By their subjects. One is forgotten when nothing more has come.
    windows: HashMap<Box<str>, Window>,
    /// Since the process began.
    all: u64,
    withheld: u64,
}

/// What becomes of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Admission {
    Written,
    Withheld,
    /// It is withheld, and this is written in its place.
    Flaps(String),
}

#[derive(Debug)]
struct Window {
    began: Instant,
    allowance: Allowance,
    written: u32,
    withheld: u64,
    /// Since when the withheld ones were not told of: before `began` if nobody had time to tell.
    untold_since: Instant,
    /// Whether it was said that the state flaps.
    flaps: bool,
}

impl Window {
    const fn new(now: Instant, allowance: Allowance) -> Self {
        Self { began: now, allowance, written: 0, withheld: 0, untold_since: now, flaps: false }
    }

    fn end(&self) -> Instant {
        self.began + self.allowance.time
    }

    /// The line about what was withheld, or about the end of the flapping, if there is one to write. A window in which
    /// lines were withheld goes on with the next one.
    fn tell(&mut self, event: Event, subject: &str, now: Instant) -> Option<Line> {
        let of = if subject.is_empty() { String::new() } else { format!(" ({subject})") };
        let (what, seconds) =
            (event.described(), now.saturating_duration_since(self.untold_since).as_secs().max(1));
        let withheld = self.withheld;
        if withheld > 0 {
            let next = Self { flaps: self.flaps, ..Self::new(now, event.recurrence().allowance(true)) };
            *self = next;
            return Some(event.line(
                format!("and {withheld} more like this in the last {seconds} s: {what}{of}"),
                withheld,
            ));
        }
        let held = format!("this has not come again for {seconds} s, so each time is told again: {what}{of}");
        self.flaps.then(|| Line { level: Level::Info, ..event.line(held, 0) })
    }
}

impl Throttles {
    /// Counts an event, and decides whether its line may be written.
    fn admit(&mut self, event: Event, subject: &str, now: Instant) -> Admission {
        let OfEvent { windows, all, withheld } = &mut self.0[event as usize];
        *all += 1;
        let first = event.recurrence().allowance(false);
        let subject = if windows.len() < SUBJECTS || windows.contains_key(subject) { subject } else { "" };
        let window = match windows.get_mut(subject) {
            Some(window) => window,
            None => windows.entry(subject.into()).or_insert_with(|| Window::new(now, first)),
        };
        if now >= window.end() {
            // The writer has not come by yet; it tells what was withheld.
            (window.began, window.written) = (now, 0);
        }
        if window.written < window.allowance.lines {
            window.written += 1;
            return Admission::Written;
        }
        if event.recurrence() == Recurrence::Flaps && !window.flaps {
            window.flaps = true;
            let times = window.written + 1;
            let of = if subject.is_empty() { String::new() } else { format!(" ({subject})") };
            let seconds = now.saturating_duration_since(window.began).as_secs().max(1);
            return Admission::Flaps(format!(
                "flapping: {times} times in {seconds} s: {}{of}; from now on only a count is written, until it has not come for \
                 {} s",
                event.described(),
                window.allowance.time.as_secs()
            ));
        }
        *withheld += 1;
        window.withheld += 1;
        Admission::Withheld
    }

    /// Lines about the windows that are over. Those in which nothing was withheld are forgotten.
    fn tell(&mut self, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        for (event, OfEvent { windows, .. }) in Event::ALL.into_iter().zip(&mut self.0) {
            windows.retain(|subject, window| {
                let is_over = now >= window.end();
                let goes_on = !is_over || window.withheld > 0;
                if is_over {
                    lines.extend(window.tell(event, subject, now));
                }
                goes_on
            });
        }
        lines
    }

    /// Lines about what was withheld in all windows.
    fn tell_all(&mut self, now: Instant) -> Vec<Line> {
        let mut lines = Vec::new();
        for (event, OfEvent { windows, .. }) in Event::ALL.into_iter().zip(&mut self.0) {
            let withheld = windows.iter_mut().filter(|(_, window)| window.withheld > 0);
            lines.extend(withheld.filter_map(|(subject, window)| window.tell(event, subject, now)));
        }
        lines
    }

    /// When the first window is over.
    fn next_end(&self) -> Option<Instant> {
        self.0.iter().flat_map(|of| of.windows.values()).map(Window::end).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::clock::Clock;

    const FAILS: Event = Event::OperationUnavailable;
    const LINK: Event = Event::EventLink;
    const WINDOW: Duration = Duration::from_secs(10);
    const MINUTE: Duration = Duration::from_secs(60);

    fn admitted(throttles: &mut Throttles, count: usize, subject: &str, now: Instant) -> usize {
        (0..count).filter(|_| throttles.admit(FAILS, subject, now) == Admission::Written).count()
    }

    fn told(throttles: &mut Throttles, now: Instant) -> Vec<String> {
        throttles.tell(now).into_iter().map(|line| line.message).collect()
    }

    #[test]
    fn the_first_lines_are_written_at_once_and_the_others_are_counted_and_told_when_the_time_is_over() {
        let (mut throttles, start) = (Throttles::default(), Clock::system().mono());
        assert_eq!(admitted(&mut throttles, 19_000, "", start), 5);
        let late = start + WINDOW - Duration::from_millis(1);
        assert_eq!(admitted(&mut throttles, 1000, "", late), 0);
        assert_eq!((told(&mut throttles, late), throttles.next_end()), (Vec::new(), Some(start + WINDOW)));
        let line = "and 19995 more like this in the last 10 s: an operation could not be carried out";
        assert_eq!(told(&mut throttles, start + WINDOW), [line]);
        let OfEvent { all, withheld, .. } = throttles.0[FAILS as usize];
        assert_eq!((all, withheld), (20_000, 19_995));
    }

    #[test]
    fn what_goes_on_is_one_line_and_a_count_each_minute_and_what_has_ended_begins_anew() {
        let (mut throttles, start) = (Throttles::default(), Clock::system().mono());
        admitted(&mut throttles, 100, "", start);
        assert_eq!(told(&mut throttles, start + WINDOW).len(), 1);
        let mut now = start + WINDOW;
        for _ in 0..3 {
            assert_eq!(admitted(&mut throttles, 100, "", now), 1);
            now += MINUTE;
            let line = "and 99 more like this in the last 60 s: an operation could not be carried out";
            assert_eq!(told(&mut throttles, now), [line]);
        }
        assert_eq!(told(&mut throttles, now + MINUTE), Vec::<String>::new(), "nothing has come");
        assert_eq!(throttles.next_end(), None);
        assert_eq!(admitted(&mut throttles, 5, "", now + MINUTE), 5);
    }

    #[test]
    fn a_state_that_begins_for_the_fourth_time_flaps_until_it_has_held_for_ten_minutes() {
        let (mut throttles, start) = (Throttles::default(), Clock::system().mono());
        let second = Duration::from_secs(1);
        for n in 0..3 {
            assert_eq!(throttles.admit(LINK, "", start + second * n), Admission::Written);
        }
        let Admission::Flaps(line) = throttles.admit(LINK, "", start + second * 3) else { panic!() };
        assert!(line.starts_with("flapping: 4 times in 3 s: the event link is down; "), "{line}");
        for n in 4..50 {
            assert_eq!(throttles.admit(LINK, "", start + second * n), Admission::Withheld);
        }
        let first = start + MINUTE * 10;
        let line = "and 46 more like this in the last 600 s: the event link is down";
        assert_eq!(told(&mut throttles, first), [line]);
        assert_eq!(throttles.admit(LINK, "", first), Admission::Withheld);
        let second = first + MINUTE * 10;
        assert_eq!(told(&mut throttles, second).len(), 1);
        let held = "this has not come again for 600 s, so each time is told again: the event link is down";
        assert_eq!(told(&mut throttles, second + MINUTE * 10), [held]);
        assert_eq!(throttles.admit(LINK, "", second + MINUTE * 10), Admission::Written);
    }

    #[test]
    fn what_nobody_had_time_to_tell_is_told_with_the_time_that_it_took_and_at_the_end_all_is() {
        let (mut throttles, start) = (Throttles::default(), Clock::system().mono());
        assert_eq!(admitted(&mut throttles, 7, "", start), 5);
        assert_eq!(admitted(&mut throttles, 8, "", start + WINDOW * 2), 5);
        let lines = throttles.tell_all(start + Duration::from_secs(25));
        assert_eq!(lines.len(), 1);
        assert_eq!(
            lines[0].message,
            "and 5 more like this in the last 25 s: an operation could not be carried out"
        );
        assert_eq!((lines[0].withheld, lines[0].event), (5, "operation_unavailable"));
    }

    #[test]
    fn events_and_subjects_have_lines_of_their_own_up_to_a_number() {
        let (mut throttles, now) = (Throttles::default(), Clock::system().mono());
        assert_eq!(admitted(&mut throttles, 100, "a", now), 5);
        assert_eq!(admitted(&mut throttles, 100, "b", now), 5);
        assert_eq!(throttles.admit(Event::OperationFailed, "a", now), Admission::Written);
        let others: usize = (0..1000).map(|n| admitted(&mut throttles, 1, &format!("{n}"), now)).sum();
        assert_eq!(others, SUBJECTS - 2 + 5, "those without a place share one");
        assert_eq!(throttles.0[FAILS as usize].windows.len(), SUBJECTS + 1);
        let lines = throttles.tell_all(now);
        assert!(lines.iter().any(|line| line.message.ends_with("carried out (a)")), "{lines:?}");
    }
}

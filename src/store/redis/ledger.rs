//! The state of the store as this process knows it: its identity, and the events that have been applied here.
//!
//! Events come from the stream, and, earlier, from the mutations of this process. Each is applied once, in the order
//! of the numbers. An event that comes early waits for those before it. If they do not come, or differ from the
//! events that were applied, the sinks are told that they may have missed something.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::scripts::Meta;
use crate::store::events::{EventSink, Seq, Subject};
use crate::telemetry::Notice;
use crate::vocabulary::clock::{Clock, Drift, Reading, UnixMillis};
use crate::vocabulary::key::record::RecordFormat;

/// How long a mutation waits for the events before its own. They come from the stream.
const GAP_PATIENCE: Duration = Duration::from_millis(250);
/// The most events that wait for earlier ones: more than a burst of mutations causes.
const EARLY: usize = 4096;
/// Marks of applied events that are kept, to detect another event with the same number.
const RECENT: usize = 4096;
/// The longest round trip after which the time of Redis is believed.
const ROUND_TRIP: Duration = Duration::from_secs(1);
pub(super) const SCHEMA: &str = "1";
/// In the place of the schema while a backup is being restored.
const RESTORING: &str = "restoring";

/// The identity of a store: random, drawn when the store is made. A store that lost its data gets another.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Incarnation(Arc<str>);

impl Incarnation {
    pub(super) fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self(draw_hex()?.into()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Random text of an event. It tells the event from another of the same number, in a store that lost its last events
/// and went on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mark(Arc<str>);

impl Mark {
    pub(super) fn draw() -> Result<Self, getrandom::Error> {
        Ok(Self(draw_hex()?.into()))
    }

    pub(super) fn from_text(text: String) -> Self {
        Self(text.into())
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

fn draw_hex() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)?;
    Ok(format!("{:032x}", u128::from_be_bytes(bytes)))
}

#[derive(Clone, Debug)]
pub(super) struct Event {
    pub(super) seq: Seq,
    pub(super) mark: Mark,
    pub(super) subjects: Vec<Subject>,
    /// When it was written, if Redis told.
    pub(super) written: Option<RedisTime>,
}

/// A moment on the clock of Redis, in microseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct RedisTime(u64);

impl RedisTime {
    pub(super) fn parse(text: &str) -> Option<Self> {
        text.parse().ok().map(Self)
    }
}

/// The time of Redis at a moment here. With it, delays are measured by the clock of Redis alone.
#[derive(Clone, Copy)]
struct RedisReading {
    here: Instant,
    there: RedisTime,
    /// The first reading. Events written before it are not timed.
    first: RedisTime,
}

impl RedisReading {
    /// How long ago this was; `None` if it was before the first reading.
    fn since(&self, written: RedisTime, now: Instant) -> Option<Duration> {
        let there = Duration::from_micros(self.there.0) + now.saturating_duration_since(self.here);
        (written >= self.first).then(|| there.saturating_sub(Duration::from_micros(written.0)))
    }
}

/// The last event applied here, to compare with Redis.
#[derive(Clone)]
pub(super) struct Position {
    pub(super) known: Option<Incarnation>,
    pub(super) last: Seq,
    /// `None` if the last event was never seen.
    pub(super) mark: Option<Mark>,
}

/// Why the content of a Redis is not our store.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stranger {
    /// There is no store.
    Empty,
    /// There is no store, and there was one.
    Emptied {
        known: String,
    },
    Another {
        known: String,
        found: String,
    },
    NewerSchema {
        found: String,
    },
    /// It holds records that this gateway, which has not joined yet, could not keep.
    NewerFormat {
        found: RecordFormat,
        kept: RecordFormat,
    },
    /// It is ours, and lacks events that were applied.
    Behind {
        known: Seq,
        found: Seq,
    },
}

impl fmt::Display for Stranger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str(
                "there is no store yet: make the first key with `keygate keys create`, or an empty store with \
                 `keygate store accept`",
            ),
            Self::Emptied { known } => write!(
                f,
                "the store is gone (it was {known}): restore it, or run `keygate store accept` to go on without its \
                 keys"
            ),
            Self::Another { known, found } => write!(
                f,
                "this is another store ({found}, not {known}): bring the right one back, or run `keygate store \
                 accept` to go on with this one"
            ),
            Self::NewerSchema { found } if found == RESTORING => f.write_str(
                "a backup is being restored into it: run `keygate store restore` to its end, or empty the store",
            ),
            Self::NewerSchema { found } => write!(
                f,
                "the store was written by a newer keygate (schema {found}, this one knows {SCHEMA}): run that version"
            ),
            Self::NewerFormat { found, kept } => write!(
                f,
                "the store holds records of format {found}, and this keygate keeps formats up to {kept}: run the version \
                 that wrote them, or a newer one"
            ),
            Self::Behind { known, found } => {
                write!(f, "the store has event {found} for its last, {known} was known: it lost what came last")
            }
        }
    }
}

#[derive(Default)]
pub(super) struct Ledger {
    state: Mutex<State>,
    /// The number of the last event applied; tasks wait for it.
    reached: watch::Sender<Seq>,
    clock: Clock,
    /// The highest format of records that this process can keep.
    keeps: RecordFormat,
}

#[derive(Default)]
struct State {
    known: Option<Incarnation>,
    last: Seq,
    /// The marks of the events up to `last` that were seen without a gap.
    recent: VecDeque<Mark>,
    early: BTreeMap<Seq, Event>,
    time: Option<RedisReading>,
    /// How the machine's clocks stood to each other when the store last said that no event is missing.
    drift: Option<Drift>,
    sinks: Vec<Arc<dyn EventSink>>,
}

impl Ledger {
    pub(super) fn new(keeps: RecordFormat, clock: Clock) -> Self {
        Self { keeps, clock, ..Self::default() }
    }

    /// Adds a sink, and tells whether it is the first.
    pub(super) fn subscribe(&self, sink: Arc<dyn EventSink>) -> bool {
        let mut state = self.lock();
        sink.reset(state.last);
        state.sinks.push(sink);
        state.sinks.len() == 1
    }

    /// Whether events are followed.
    pub(super) fn is_followed(&self) -> bool {
        !self.lock().sinks.is_empty()
    }

    pub(super) fn position(&self) -> Position {
        let state = self.lock();
        Position { known: state.known.clone(), last: state.last, mark: state.recent.back().cloned() }
    }

    /// Tells of every event that was applied or skipped.
    pub(super) fn reached(&self) -> watch::Receiver<Seq> {
        self.reached.subscribe()
    }

    /// Checks that the answer comes from the known store. The first store seen becomes the known one, if this process
    /// can keep its records. It stays known if its format rises later.
    pub(super) fn recognise(&self, meta: &Meta, at_least: Seq) -> Result<Incarnation, Stranger> {
        let mut state = self.lock();
        let known = || state.known.as_ref().map(|known| known.as_str().to_owned());
        let Some(found) = &meta.incarnation else {
            return Err(known().map_or(Stranger::Empty, |known| Stranger::Emptied { known }));
        };
        if let Some(known) = known().filter(|known| known != found) {
            return Err(Stranger::Another { known, found: found.clone() });
        }
        if meta.schema.as_deref() != Some(SCHEMA) {
            return Err(Stranger::NewerSchema { found: meta.schema.clone().unwrap_or_default() });
        }
        let event = meta.event.unwrap_or_default();
        if event < at_least {
            return Err(Stranger::Behind { known: at_least, found: event });
        }
        if state.known.is_none() && meta.format > self.keeps {
            return Err(Stranger::NewerFormat { found: meta.format, kept: self.keeps });
        }
        Ok(state.known.get_or_insert_with(|| Incarnation(found.as_str().into())).clone())
    }

    /// Makes another store the known one, as the operator wants it. Nothing cached from the store before may be used.
    pub(super) fn adopt(&self, found: &str, event: Seq) {
        let mut state = self.lock();
        if state.known.as_ref().is_none_or(|known| known.as_str() != found) {
            state.known = Some(Incarnation(found.into()));
            state.early.clear();
            self.restart(&mut state, event, None);
        }
    }

    /// Tells the sinks that they may have missed events up to `last`, and goes on from there.
    pub(super) fn jump(&self, store: &Incarnation, last: Seq, mark: Option<Mark>) {
        let mut state = self.lock();
        if state.known.as_ref() == Some(store) {
            self.restart(&mut state, last, mark);
        }
    }

    /// The mark of the last event, learnt afterwards.
    pub(super) fn note_mark(&self, last: Seq, mark: Mark) {
        let mut state = self.lock();
        if state.last == last && state.recent.is_empty() {
            state.recent.push_back(mark);
        }
    }

    /// Notes the time of Redis, which was asked and answered at these moments. The clock of this process follows it; the error
    /// is at most half of the time between the two.
    pub(super) fn note_time(&self, asked: Instant, answered: Instant, there: RedisTime) {
        let mut state = self.lock();
        let first = state.time.map_or(there, |reading| reading.first);
        let here = asked + answered.saturating_duration_since(asked) / 2;
        state.time = Some(RedisReading { here, there, first });
        if answered.saturating_duration_since(asked) <= ROUND_TRIP {
            self.clock.follow_remote(UnixMillis(there.0 / 1000), here);
        }
    }

    /// At this moment all events of the store had been applied here. If the machine was paused, or its date set, since the last
    /// such moment, everything cached is looked up again first: nobody can tell how long this process has heard nothing.
    pub(super) fn assure(&self, at: Reading) {
        let now = self.clock.reading();
        if now.drift.has_jumped_since(at.drift) {
            return; // The next heartbeat tells more.
        }
        let mut state = self.lock();
        let before = state.drift.replace(at.drift);
        if before.is_some_and(|before| at.drift.has_jumped_since(before)) {
            Notice::MachinePaused.log(
                "this machine was paused, or its date was set: every key is looked up again; routes with on_partition = \"refuse\" \
                 let none in until now",
            );
            let last = state.last;
            state.sinks.iter().for_each(|sink| sink.reset(last));
        }
        let age = now.mono.saturating_duration_since(at.mono);
        state.sinks.iter().for_each(|sink| sink.assure(Some(age)));
    }

    /// The server that answers may not be the master; it last proved to be at this moment. `None`: it is the master.
    pub(super) fn suspect(&self, since: Option<Instant>) {
        let age = since.map(|since| self.clock.mono().saturating_duration_since(since));
        self.lock().sinks.iter().for_each(|sink| sink.suspect(age));
    }

    /// An event from the stream.
    pub(super) fn follow(&self, store: &Incarnation, event: Event) {
        let mut state = self.lock();
        if state.known.as_ref() == Some(store) {
            self.enter(&mut state, event);
        }
    }

    /// An event of this process's own mutation. When this returns, the event is applied, or the sinks were told that
    /// they may have missed events.
    pub(super) async fn apply_own(&self, store: &Incarnation, event: Event) {
        let (seq, mark) = (event.seq, event.mark.clone());
        let mut reached = self.reached.subscribe();
        {
            let mut state = self.lock();
            if state.sinks.is_empty() || state.known.as_ref() != Some(store) {
                return;
            }
            if state.contradicts(seq, &mark) {
                // The store gave a number twice: it has lost the event that was applied under it.
                return self.restart(&mut state, seq, Some(mark));
            }
            self.enter(&mut state, event);
        }
        if timeout(GAP_PATIENCE, reached.wait_for(|last| *last >= seq)).await.is_err() {
            self.jump(store, seq, Some(mark));
        }
    }

    fn enter(&self, state: &mut State, event: Event) {
        if event.seq > state.last {
            state.early.insert(event.seq, event);
        }
        state.apply_early(&self.clock);
        if state.early.len() > EARLY {
            let newest = state.early.last_key_value().map(|(seq, event)| (*seq, event.mark.clone()));
            if let Some((seq, mark)) = newest {
                self.restart(state, seq, Some(mark));
            }
        }
        self.reached.send_replace(state.last);
    }

    fn restart(&self, state: &mut State, last: Seq, mark: Option<Mark>) {
        state.last = last;
        state.recent = mark.into_iter().collect();
        state.early.retain(|seq, _| *seq > last);
        for sink in &state.sinks {
            sink.reset(last);
        }
        state.apply_early(&self.clock);
        self.reached.send_replace(state.last);
    }

    /// A poisoned lock means that a sink panicked, which is a bug. Then one event may be counted and not applied, in
    /// a process that has lost a thread.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn apply_early(&mut self, clock: &Clock) {
        while let Some(event) = self.early.remove(&(self.last + 1)) {
            for sink in &self.sinks {
                sink.apply(event.seq, &event.subjects);
            }
            let lag = event.written.zip(self.time).and_then(|(at, time)| time.since(at, clock.mono()));
            if let Some(lag) = lag {
                self.sinks.iter().for_each(|sink| sink.note_lag(lag));
            }
            self.last = event.seq;
            self.recent.push_back(event.mark);
            if self.recent.len() > RECENT {
                self.recent.pop_front();
            }
        }
    }

    /// Whether another event was applied under this number. Numbers before a reset are never contradicted.
    fn contradicts(&self, seq: Seq, mark: &Mark) -> bool {
        let back = self.last.checked_sub(seq).and_then(|back| usize::try_from(back).ok());
        let place = back.and_then(|back| self.recent.len().checked_sub(back + 1));
        place.and_then(|place| self.recent.get(place)).is_some_and(|applied| applied != mark)
    }
}

impl fmt::Debug for Ledger {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.lock();
        f.debug_struct("Ledger").field("last", &state.last).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::id::OrgId;

    #[derive(Debug, PartialEq)]
    enum Told {
        Reset(Seq),
        Applied(Seq),
        Lag(Duration),
    }

    #[derive(Clone, Default)]
    struct Heard(Arc<Mutex<Vec<Told>>>);

    impl EventSink for Heard {
        fn apply(&self, seq: Seq, _: &[Subject]) {
            self.0.lock().unwrap().push(Told::Applied(seq));
        }
        fn reset(&self, seq: Seq) {
            self.0.lock().unwrap().push(Told::Reset(seq));
        }
        fn note_lag(&self, lag: Duration) {
            self.0.lock().unwrap().push(Told::Lag(lag));
        }
    }

    impl Heard {
        fn take(&self) -> Vec<Told> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn meta(incarnation: &str, event: Seq) -> Meta {
        Meta {
            incarnation: Some(incarnation.to_owned()),
            schema: Some(SCHEMA.to_owned()),
            event: Some(event),
            format: RecordFormat::FIRST,
        }
    }

    fn event(seq: Seq, mark: &str) -> Event {
        let subjects = vec![Subject::Org(OrgId::from_bytes([1; 16]))];
        Event { seq, mark: Mark::from_text(mark.to_owned()), subjects, written: None }
    }

    fn followed() -> (Ledger, Incarnation, Heard) {
        let (ledger, heard) = (Ledger::default(), Heard::default());
        let store = ledger.recognise(&meta("a", 0), 0).unwrap();
        assert!(ledger.subscribe(Arc::new(heard.clone())));
        assert_eq!(heard.take(), [Told::Reset(0)]);
        (ledger, store, heard)
    }

    #[test]
    fn events_are_applied_once_and_in_order_on_whichever_way_they_come() {
        let (ledger, store, heard) = followed();
        for seq in [2, 3, 1, 1, 2, 4, 3] {
            ledger.follow(&store, event(seq, "m"));
        }
        assert_eq!(heard.take(), [Told::Applied(1), Told::Applied(2), Told::Applied(3), Told::Applied(4)]);
    }

    #[tokio::test]
    async fn a_mutation_whose_predecessors_do_not_come_puts_everything_in_doubt() {
        let (ledger, store, heard) = followed();
        ledger.apply_own(&store, event(3, "own")).await;
        assert_eq!(heard.take(), [Told::Reset(3)]);
        ledger.follow(&store, event(2, "late"));
        ledger.follow(&store, event(3, "own"));
        ledger.follow(&store, event(4, "next"));
        assert_eq!(heard.take(), [Told::Applied(4)]);
    }

    #[tokio::test]
    async fn a_mutation_waits_for_its_predecessors() {
        let (ledger, store, heard) = followed();
        let predecessor = async {
            tokio::task::yield_now().await;
            ledger.follow(&store, event(1, "other"));
        };
        tokio::join!(ledger.apply_own(&store, event(2, "own")), predecessor);
        assert_eq!(heard.take(), [Told::Applied(1), Told::Applied(2)]);
        ledger.apply_own(&store, event(2, "own")).await;
        assert_eq!(heard.take(), [], "the stream was faster than the answer");
    }

    #[tokio::test]
    async fn a_number_given_twice_puts_everything_in_doubt() {
        let (ledger, store, heard) = followed();
        ledger.follow(&store, event(1, "lost"));
        ledger.apply_own(&store, event(1, "own")).await;
        assert_eq!(heard.take(), [Told::Applied(1), Told::Reset(1)]);
    }

    #[test]
    fn an_event_is_timed_on_the_clock_of_redis_from_when_that_was_first_read() {
        let (mut ledger, store, heard) = followed();
        let (clock, shift) = Clock::shifted();
        ledger.clock = clock.clone();
        let written = |seq, at| Event { written: Some(RedisTime(at)), ..event(seq, "m") };
        ledger.follow(&store, written(1, 5_000));
        let asked = clock.mono();
        ledger.note_time(asked, asked + Duration::from_millis(2), RedisTime(1_000_000));
        ledger.follow(&store, written(2, 999_999));
        assert_eq!(heard.take(), [Told::Applied(1), Told::Applied(2)], "from before anybody followed");
        shift.advance(Duration::from_secs(3));
        ledger.follow(&store, written(3, 2_000_000));
        let told = heard.take();
        let [Told::Applied(3), Told::Lag(lag)] = told[..] else { panic!("{told:?}") };
        let expected = Duration::from_millis(1_999);
        assert!((expected..expected + Duration::from_secs(1)).contains(&lag), "{lag:?}");
        ledger.follow(&store, written(4, 900_000_000));
        assert_eq!(heard.take(), [Told::Applied(4), Told::Lag(Duration::ZERO)], "Redis' clock was set back");
    }

    #[test]
    fn what_waits_is_bounded() {
        let (ledger, store, heard) = followed();
        for seq in 2..=EARLY as u64 + 2 {
            ledger.follow(&store, event(seq, "m"));
        }
        assert_eq!(heard.take(), [Told::Reset(EARLY as u64 + 2)]);
    }

    #[test]
    fn the_first_store_seen_is_ours_and_no_other_until_it_is_accepted() {
        let (ledger, store, heard) = followed();
        let nothing = Meta::default();
        assert_eq!(ledger.recognise(&nothing, 0).err(), Some(Stranger::Emptied { known: "a".to_owned() }));
        let another = Stranger::Another { known: "a".to_owned(), found: "b".to_owned() };
        assert_eq!(ledger.recognise(&meta("b", 9), 0).err(), Some(another));
        assert_eq!(ledger.recognise(&meta("a", 1), 2).err(), Some(Stranger::Behind { known: 2, found: 1 }));
        ledger.follow(&store, event(1, "m"));
        ledger.adopt("b", 9);
        assert!(ledger.recognise(&meta("b", 9), 9).is_ok());
        ledger.follow(&store, event(2, "of the old store"));
        assert_eq!(heard.take(), [Told::Applied(1), Told::Reset(9)]);
        assert_eq!(Ledger::default().recognise(&nothing, 0).err(), Some(Stranger::Empty));
        let newer = Meta { schema: Some("2".to_owned()), ..meta("b", 9) };
        assert!(matches!(ledger.recognise(&newer, 0).err(), Some(Stranger::NewerSchema { .. })));
    }

    #[test]
    fn a_store_of_a_newer_format_is_not_joined_and_one_that_became_so_is_not_left() {
        let newer = |event| Meta { format: RecordFormat::new(3), ..meta("a", event) };
        let fresh = Ledger::new(RecordFormat::OPEN, Clock::default());
        let refusal = Stranger::NewerFormat { found: RecordFormat::new(3), kept: RecordFormat::OPEN };
        assert_eq!(fresh.recognise(&newer(0), 0).err(), Some(refusal));
        assert!(fresh.recognise(&meta("a", 0), 0).is_ok());
        assert!(fresh.recognise(&newer(1), 0).is_ok());
        assert!(Ledger::new(RecordFormat::new(3), Clock::default()).recognise(&newer(1), 0).is_ok());
    }
}

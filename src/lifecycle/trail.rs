//! The lifecycle's hand on the audit trail: every change is committed here together with its event, signs of
//! trouble are gathered, old events trimmed, ends of trails exported to the log, whole trails verified.
//!
//! An event follows the last one of its trail, so two changes to one organisation cannot be committed on the
//! same end: the second is decided anew. Within a process they take turns, so that this happens only between
//! gateways.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::sync::{MutexGuard, mpsc};

use super::propagation::follow_changes;
use super::view::{EventView, view_event};
use super::{By, Lifecycle, LifecycleError, TRIES};
use crate::audit::{Actor, Break, Ends, Entry, Event, Kind, Link, Trail};
use crate::clock::UnixMillis;
use crate::id::{EventId, KeyId, OrgId};
use crate::store::events::Seq;
use crate::store::keeper::Acceptance;
use crate::store::side::{Admission, Quota};
use crate::store::{CommitError, Committed, Mutation, StoreFault};
use crate::telemetry;

/// How long events are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionSettings {
    pub retention: Duration,
}

impl Default for RetentionSettings {
    fn default() -> Self {
        Self { retention: Duration::from_secs(400 * 24 * 60 * 60) }
    }
}

/// Trails whose changes wait for each other without need: few, and none of them long.
const TURNS: usize = 64;
/// Entries read at once.
const PAGE: usize = 256;
/// Entries looked through for one page of a filtered list.
const LOOKED_THROUGH: usize = 4096;
/// Signs of trouble that may wait to be written.
const TROUBLES: usize = 1024;
/// How often the ends of trails are exported.
const EXPORT: Duration = Duration::from_secs(60);
/// How often use of keys is written down.
const USAGE: Duration = Duration::from_secs(60);
/// How often old events are looked for.
const TRIM: Duration = Duration::from_secs(24 * 60 * 60);
/// Organisations looked through at once, and the rest in between: trimming is in no hurry.
const TRIM_PAGE: usize = 64;

/// Whose turn it is to change a trail.
#[derive(Debug)]
pub(super) struct Turns([tokio::sync::Mutex<()>; TURNS]);

impl Default for Turns {
    fn default() -> Self {
        Self(std::array::from_fn(|_| tokio::sync::Mutex::default()))
    }
}

/// What an event says beside who and when.
#[derive(Debug)]
pub(super) struct Draft {
    kind: Kind,
    target: Option<String>,
    before: Option<Value>,
    after: Option<Value>,
}

impl Draft {
    pub(super) fn new(kind: Kind, key: KeyId) -> Self {
        Self { kind, target: Some(key.to_string()), before: None, after: None }
    }

    pub(super) fn of_org(kind: Kind, org: OrgId) -> Self {
        Self { kind, target: Some(org.to_string()), before: None, after: None }
    }

    pub(super) const fn about(kind: Kind, target: String) -> Self {
        Self { kind, target: Some(target), before: None, after: None }
    }

    pub(super) const fn bare(kind: Kind) -> Self {
        Self { kind, target: None, before: None, after: None }
    }

    /// A change of a key: those of its properties that are different.
    pub(super) fn change(kind: Kind, key: KeyId, before: &Value, after: &Value) -> Self {
        Self::new(kind, key).difference(before, after)
    }

    pub(super) fn before(self, before: Value) -> Self {
        Self { before: Some(before), ..self }
    }

    pub(super) fn after(self, after: Value) -> Self {
        Self { after: Some(after), ..self }
    }

    pub(super) fn difference(self, before: &Value, after: &Value) -> Self {
        let only = |one: &Value, other: &Value| {
            let fields = one.as_object().into_iter().flatten();
            let different = fields.filter(|(name, value)| other.get(name) != Some(value));
            different.map(|(name, value)| (name.clone(), value.clone())).collect::<Map<_, _>>()
        };
        self.before(only(before, after).into()).after(only(after, before).into())
    }
}

/// A change to one trail's organisation, while it is being made.
pub(super) struct Turn<'l> {
    lifecycle: &'l Lifecycle,
    trail: Trail,
    by: &'l By,
    tries: usize,
    _held: MutexGuard<'l, ()>,
}

/// What a commit came to, apart from faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    Done {
        /// The number of the event that the caches were told of, where the change took a right away.
        event: Option<Seq>,
    },
    /// Something moved, or was answered before: decide anew.
    Again,
    Missing,
    EmailTaken,
}

impl Turn<'_> {
    /// The moment of the next decision.
    pub(super) fn next(&mut self) -> Result<UnixMillis, LifecycleError> {
        self.tries = self.tries.checked_sub(1).ok_or(LifecycleError::Contended(self.trail))?;
        Ok(self.lifecycle.now())
    }

    /// Commits a change together with its event.
    pub(super) async fn commit(
        &self,
        mut mutation: Mutation,
        draft: Draft,
    ) -> Result<Settled, LifecycleError> {
        let Self { lifecycle, trail, by, .. } = self;
        let Ends { head, .. } = lifecycle.store.trails().ends(*trail).await?;
        let at = lifecycle.now();
        let event = Event {
            id: lifecycle.draw(|ids| EventId::draw(ids, at)),
            kind: draft.kind,
            at,
            actor: by.actor(),
            address: by.address,
            request: by.request,
            target: draft.target,
            before: draft.before,
            after: draft.after,
        };
        // Made of strings, numbers and JSON, so nothing in it can fail to be written.
        let text = serde_json::to_vec(&event).map_err(StoreFault::failed)?;
        let append = lifecycle.settings.chain.extend(*trail, head, text);
        let link = append.entry.link;
        mutation.audit = Some(append);
        match lifecycle.store.commit(mutation).await {
            Ok(Committed { event }) => {
                lifecycle.heads.note(*trail, link);
                Ok(Settled::Done { event })
            }
            Err(CommitError::Conflict | CommitError::Answered) => Ok(Settled::Again),
            Err(CommitError::Missing) => Ok(Settled::Missing),
            Err(CommitError::EmailTaken) => Ok(Settled::EmailTaken),
            Err(CommitError::Exists) => Err(LifecycleError::Collision),
            Err(CommitError::Fault(fault)) => Err(fault.into()),
        }
    }
}

/// The ends of trails that moved since they were last exported.
#[derive(Debug, Default)]
pub(super) struct Heads(Mutex<BTreeMap<Trail, Link>>);

impl Heads {
    fn note(&self, trail: Trail, link: Link) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(trail, link);
    }

    /// Unless it has moved on since.
    fn put_back(&self, trail: Trail, link: Link) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(trail).or_insert(link);
    }

    fn take(&self) -> BTreeMap<Trail, Link> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// A sign of trouble, to be written down when there is time.
#[derive(Clone, Debug)]
pub struct TroubleSeen {
    pub trail: Trail,
    pub kind: Kind,
    pub by: By,
    pub target: Option<String>,
    pub seen: Value,
}

/// Where signs of trouble are told: a bounded queue. What finds it full is counted and dropped, because trouble
/// often comes in floods.
#[derive(Clone, Debug)]
pub struct Trouble {
    queue: mpsc::Sender<TroubleSeen>,
    waiting: Arc<Mutex<Option<mpsc::Receiver<TroubleSeen>>>>,
    dropped: Arc<AtomicU64>,
}

impl Default for Trouble {
    fn default() -> Self {
        let (queue, waiting) = mpsc::channel(TROUBLES);
        Self { queue, waiting: Arc::new(Mutex::new(Some(waiting))), dropped: Arc::default() }
    }
}

impl Trouble {
    pub fn report(&self, seen: TroubleSeen) {
        if self.queue.try_send(seen).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many were dropped so far.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// Which events are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventFilter {
    pub kind: Option<Kind>,
    /// From this moment on.
    pub from: Option<UnixMillis>,
    /// Before this moment.
    pub until: Option<UnixMillis>,
}

/// Some events, newest first.
#[derive(Clone, Debug)]
pub struct EventPage {
    pub events: Vec<EventView>,
    /// Where the next page begins: below this number. `None` where there is nothing more.
    pub next: Option<u64>,
}

/// What is wrong with a trail.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The event's number.
    pub number: u64,
    pub text: String,
}

/// What verifying a trail came to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub trail: Trail,
    pub ends: Ends,
    /// Whether the chain has a key. One without shows damage, and forgery only against exported heads.
    pub keyed: bool,
    /// How many events were checked.
    pub checked: u64,
    /// Empty for a trail that is whole.
    pub findings: Vec<Finding>,
}

impl Lifecycle {
    /// Waits for its turn to change what `trail` tells of.
    pub(super) async fn turn<'l>(&'l self, trail: Trail, by: &'l By) -> Turn<'l> {
        let bytes = trail.to_bytes();
        // The last bytes of an identifier are random.
        let place = usize::from(bytes[15]) % TURNS;
        Turn { lifecycle: self, trail, by, tries: TRIES, _held: self.turns.0[place].lock().await }
    }

    /// Writes an event that tells of no change to a record.
    pub(super) async fn record(
        &self,
        trail: Trail,
        by: &By,
        draft: impl Fn() -> Draft,
    ) -> Result<(), LifecycleError> {
        let mut turn = self.turn(trail, by).await;
        loop {
            turn.next()?;
            if matches!(turn.commit(Mutation::default(), draft()).await?, Settled::Done { .. }) {
                return Ok(());
            }
        }
    }

    /// At most `limit` events of a trail, newest first, with numbers below `before`.
    ///
    /// # Errors
    /// When the store cannot answer, or holds what is no event.
    pub async fn events(
        &self,
        trail: Trail,
        filter: EventFilter,
        mut before: Option<u64>,
        limit: usize,
    ) -> Result<EventPage, LifecycleError> {
        let mut events = Vec::new();
        let mut looked_at = 0;
        loop {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let last = page.len() < PAGE;
            for entry in page {
                let event = parse(&entry)?;
                // Times do not run backwards but by as much as two gateways' clocks differ, so a page may hold
                // what is older than one that is too old.
                let wanted = filter.kind.is_none_or(|kind| kind == event.kind)
                    && filter.from.is_none_or(|from| event.at >= from)
                    && filter.until.is_none_or(|until| event.at < until);
                if wanted && events.len() == limit {
                    return Ok(EventPage { events, next: before });
                }
                before = Some(entry.link.number);
                if wanted {
                    events.push(view_event(entry.link.number, event));
                }
            }
            looked_at += PAGE;
            if last || looked_at >= LOOKED_THROUGH {
                return Ok(EventPage { events, next: before.filter(|_| !last) });
            }
        }
    }

    /// The events of a trail with numbers above `after`, oldest first, at most about `limit`; and the number to
    /// go on after, or `None` at the end.
    ///
    /// # Errors
    /// As [`Lifecycle::events`].
    pub async fn events_after(
        &self,
        trail: Trail,
        after: u64,
        limit: usize,
    ) -> Result<EventPage, LifecycleError> {
        let Ends { checkpoint, head } = self.store.trails().ends(trail).await?;
        let start = after.max(checkpoint.number);
        if start >= head.number {
            return Ok(EventPage { events: Vec::new(), next: None });
        }
        let through = start.saturating_add(u64::try_from(limit).unwrap_or(u64::MAX)).min(head.number);
        let entries = self.store.trails().entries(trail, Some(through + 1), limit).await?;
        let wanted = entries.iter().rev().filter(|entry| entry.link.number > start);
        let events = wanted.map(|entry| Ok(view_event(entry.link.number, parse(entry)?)));
        let events = events.collect::<Result<_, LifecycleError>>()?;
        Ok(EventPage { events, next: Some(through).filter(|through| *through < head.number) })
    }

    /// The newest event of this kind about a target, as far back as one page of a list looks.
    pub(super) async fn last_event(
        &self,
        trail: Trail,
        kind: Kind,
        target: &str,
    ) -> Result<Option<Event>, LifecycleError> {
        let mut before = None;
        for _ in 0..LOOKED_THROUGH / PAGE {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let Some(oldest) = page.last() else { return Ok(None) };
            before = Some(oldest.link.number);
            for entry in &page {
                let event = parse(entry)?;
                if event.kind == kind && event.target.as_deref() == Some(target) {
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }

    /// Takes the store as it is for the right one, and says so in the operator's trail.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn accept_store(&self, by: &By) -> Result<Acceptance, LifecycleError> {
        let acceptance = self.keeper().accept().await?;
        if acceptance.changed {
            let accepted = || Draft::bare(Kind::StoreAccepted).after(json!({ "store": acceptance.store }));
            self.record(Trail::Operator, by, accepted).await?;
        }
        Ok(acceptance)
    }

    /// Checks a whole trail against its key, its ends and the heads that were exported earlier.
    ///
    /// # Errors
    /// When the store cannot answer. What is wrong with the trail is in the verdict.
    pub async fn verify_trail(&self, trail: Trail, exported: &[Link]) -> Result<Verdict, LifecycleError> {
        let ends = self.store.trails().ends(trail).await?;
        let mut exported: HashMap<u64, Link> = exported.iter().map(|link| (link.number, *link)).collect();
        let mut findings = Vec::new();
        let mut note = |number, text: String| findings.push(Finding { number, text });
        let (mut checked, mut newer) = (0, None::<Entry>);
        let mut trimmed_through = 0;
        // What is added meanwhile is not part of what was promised when this began.
        let mut before = Some(ends.head.number + 1);
        loop {
            let page = self.store.trails().entries(trail, before, PAGE).await?;
            let last = page.len() < PAGE;
            for entry in page {
                before = Some(entry.link.number);
                match &newer {
                    None if entry.link != ends.head => {
                        note(ends.head.number, "is the end of the trail and is missing".to_owned());
                    }
                    Some(newer) => self.check_after(trail, &entry.link, newer, &mut note),
                    None => {}
                }
                if let Some(known) = exported.remove(&entry.link.number).filter(|known| *known != entry.link)
                {
                    note(known.number, "is not the one whose head was exported".to_owned());
                }
                trimmed_through = trimmed_through.max(trimmed(&entry));
                checked += 1;
                newer = Some(entry);
            }
            if last {
                break;
            }
        }
        let checkpoint = self.checkpoint_below(trail, ends.checkpoint, newer.as_ref()).await?;
        match &newer {
            Some(oldest) => self.check_after(trail, &checkpoint, oldest, &mut note),
            None if ends.head != ends.checkpoint => {
                note(ends.head.number, "is the end of the trail and is missing".to_owned());
            }
            None => {}
        }
        if exported.get(&checkpoint.number).is_some_and(|known| *known != checkpoint) {
            note(checkpoint.number, "is not the one whose head was exported".to_owned());
        }
        if checkpoint.number > trimmed_through {
            note(checkpoint.number, "and those before were removed, and no event says so".to_owned());
        }
        exported.retain(|number, _| *number > ends.head.number);
        for number in exported.into_keys() {
            note(number, "was exported to the log and is missing: the trail was cut off".to_owned());
        }
        findings.sort_by_key(|finding| finding.number);
        let ends = Ends { checkpoint, ..ends };
        Ok(Verdict { trail, ends, keyed: self.settings.chain.has_key(), checked, findings })
    }

    /// The checkpoint that the oldest entry should follow: as it was, or as it is now, since old entries may have
    /// been trimmed meanwhile.
    async fn checkpoint_below(
        &self,
        trail: Trail,
        before: Link,
        oldest: Option<&Entry>,
    ) -> Result<Link, LifecycleError> {
        if oldest.is_none_or(|oldest| oldest.link.number == before.number + 1) {
            return Ok(before);
        }
        Ok(self.store.trails().ends(trail).await?.checkpoint)
    }

    fn check_after(&self, trail: Trail, older: &Link, newer: &Entry, note: &mut impl FnMut(u64, String)) {
        let number = newer.link.number;
        match self.settings.chain.check(trail, older, newer) {
            Ok(()) => {}
            Err(Break::Missing) => note(number.saturating_sub(1), Break::Missing.to_string()),
            // Either of the two: the MAC covers both.
            Err(Break::Altered) => note(number, Break::Altered.to_string()),
        }
    }

    /// Removes the events of a trail that are older than `retention`, and says so in the trail first. Tells how
    /// many.
    ///
    /// # Errors
    /// When the store cannot answer; nothing, or all that is old, was removed then.
    pub async fn trim_trail(&self, trail: Trail, retention: Duration) -> Result<u64, LifecycleError> {
        let cutoff =
            UnixMillis(self.now().0.saturating_sub(u64::try_from(retention.as_millis()).unwrap_or(u64::MAX)));
        let Ends { checkpoint, head } = self.store.trails().ends(trail).await?;
        // The last number that is old, between one that is and one that is not.
        let (mut old, mut young) = (checkpoint.number, head.number + 1);
        while young - old > 1 {
            // The oldest first: mostly it is not old, and one look is enough.
            let middle = if old == checkpoint.number { old + 1 } else { old + (young - old) / 2 };
            let entry = self.store.trails().entries(trail, Some(middle + 1), 1).await?.pop();
            match entry.map(|entry| parse(&entry)).transpose()? {
                Some(event) if event.at >= cutoff => young = middle,
                _ => old = middle,
            }
        }
        if old == checkpoint.number {
            return Ok(0);
        }
        self.record(trail, &By::gateway(), || {
            Draft::bare(Kind::AuditTrimmed).after(json!({ "through": old }))
        })
        .await?;
        Ok(self.store.trails().trim(trail, old).await?)
    }

    /// What is done beside the requests, for as long as somebody else holds the lifecycle: signs of trouble are
    /// written down, ends of trails exported, old events trimmed.
    pub async fn attend(lifecycle: Weak<Self>, retention: RetentionSettings) {
        let Some(waiting) = lifecycle.upgrade().and_then(|lifecycle| lifecycle.troubles.take()) else {
            return;
        };
        let Some(changes) = lifecycle.upgrade().and_then(|lifecycle| lifecycle.following.take()) else {
            return;
        };
        tokio::join!(
            follow_changes(lifecycle.clone(), changes),
            write_troubles(lifecycle.clone(), waiting),
            export_heads(lifecycle.clone()),
            write_usage(lifecycle.clone()),
            trim_trails(lifecycle, retention.retention),
        );
    }

    /// Writes the ends of the trails that moved to the log; tells whether all are in its queue. What has no place
    /// there waits for the next time.
    fn export_heads(&self) -> bool {
        let mut moved = self.heads.take().into_iter();
        let full = moved.find(|(trail, head)| !telemetry::try_log(&format!("audit head {trail} {head}")));
        let all = full.is_none();
        full.into_iter().chain(moved).for_each(|(trail, head)| self.heads.put_back(trail, head));
        all
    }

    /// Writes the ends of all trails that moved to the log, for as long as somebody reads it. Blocks.
    pub fn export_all_heads(&self) {
        while !self.export_heads() && telemetry::flush_log() {}
    }
}

impl Lifecycle {
    /// Whether this is the first such sign of trouble about the target for an hour, at any gateway.
    async fn is_first_within_the_hour(&self, kind: Kind, target: Option<&str>) -> bool {
        let name = format!("{kind}:{}", target.unwrap_or_default());
        let once = Quota { name, limit: 1, window: Duration::from_secs(60 * 60) };
        self.store.side().admit(vec![once], self.now()).await == Ok(Admission::Admitted)
    }
}

impl Trouble {
    fn take(&self) -> Option<mpsc::Receiver<TroubleSeen>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

async fn write_troubles(lifecycle: Weak<Lifecycle>, mut waiting: mpsc::Receiver<TroubleSeen>) {
    while let Some(TroubleSeen { trail, kind, by, target, seen }) = waiting.recv().await {
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        if kind == Kind::KeyInBrowser && !lifecycle.is_first_within_the_hour(kind, target.as_deref()).await {
            continue;
        }
        let draft = || Draft { kind, target: target.clone(), before: None, after: Some(seen.clone()) };
        if lifecycle.record(trail, &by, draft).await.is_err() {
            // The store is away, which is logged where it is noticed; trouble has no place to wait for it.
            lifecycle.troubles.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn write_usage(lifecycle: Weak<Lifecycle>) {
    loop {
        tokio::time::sleep(USAGE).await;
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        // An outage is logged where it is noticed; what was not written waits for the next time.
        let _ = lifecycle.write_usage().await;
    }
}

async fn export_heads(lifecycle: Weak<Lifecycle>) {
    loop {
        tokio::time::sleep(EXPORT).await;
        let Some(lifecycle) = lifecycle.upgrade() else { return };
        lifecycle.export_heads();
    }
}

async fn trim_trails(lifecycle: Weak<Lifecycle>, retention: Duration) {
    // At once too: a gateway that is started every day would never come to it.
    loop {
        let mut after = None;
        loop {
            let Some(lifecycle) = lifecycle.upgrade() else { return };
            let Ok(orgs) = lifecycle.list_orgs(after, TRIM_PAGE).await else {
                // The store is away, which is logged where it is noticed.
                drop(lifecycle);
                tokio::time::sleep(EXPORT).await;
                continue;
            };
            after = orgs.last().map(|org| org.id);
            let operator = Some(Trail::Operator).filter(|_| after.is_none());
            for trail in orgs.iter().map(|org| Trail::Org(org.id)).chain(operator) {
                if let Err(error) = lifecycle.trim_trail(trail, retention).await {
                    telemetry::log(&format!("cannot trim the audit trail of {trail}: {error}"));
                }
            }
            if after.is_none() {
                break;
            }
        }
        tokio::time::sleep(TRIM).await;
    }
}

fn parse(entry: &Entry) -> Result<Event, LifecycleError> {
    let unreadable = |error| StoreFault::failed(format_args!("audit event {}: {error}", entry.link.number));
    Ok(serde_json::from_slice(&entry.text).map_err(unreadable)?)
}

/// Up to where an event says that the trail was trimmed.
fn trimmed(entry: &Entry) -> u64 {
    let event =
        parse(entry).ok().filter(|event| event.kind == Kind::AuditTrimmed && event.actor == Actor::Gateway);
    event.and_then(|event| event.after?.get("through")?.as_u64()).unwrap_or(0)
}

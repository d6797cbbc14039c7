//! The whole store, told as it is at one moment, although changes go on.
//!
//! Redis gives no snapshot to its clients. But every change of a record has an audit record in the same script, and a trail
//! only grows. So the ends of all trails are read first, then everything else, page by page, and whatever the trails tell since
//! is read again, round after round, until little is left. Then one script, which is one moment, compares the ends of all
//! trails with those that are known, and tells what has come, with the records that it tells of. Together with what was read
//! before, this is the store as it was in that script.
//!
//! Two numbers show what has no audit record yet: how many organisations and how many keys there are. If they are not as
//! expected, as in the middle of an import, the lists are read again, and the round is repeated.
//!
//! **Cost.** The last script reads the ends of all trails, and Redis answers nobody else meanwhile: some 60 ms for 100,000
//! organisations, by estimate. All others read pages.

use std::collections::btree_map::Entry as Vacancy;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;

use super::Inner;
use super::reads::NEWEST;
use super::scripts::{Call, Reply};
use crate::store::StoreFault;
use crate::store::keeper::Place;
use crate::store::whole::{Head, Piece, Pieces, given_up};
use crate::vocabulary::audit::{AuditRecord, Ends, Entry, Link, Trail};
use crate::vocabulary::id::{KeyId, OrgId};

/// Records and ends per script. It bounds how long the script blocks others.
const PAGE: usize = 256;
/// Ids per script.
const IDS: usize = 4096;
/// Entries of a trail per step.
const ENTRIES: u64 = 256;
/// Trails that are copied at the same time.
const TRAILS: usize = 16;
/// Organisations in one argument of the last script.
const IN_ONE_TEXT: usize = 1024;
/// The most new entries that the last script tells.
const TOLD_AT_ONCE: usize = 512;
/// The most organisations: the last script reads the end of each trail.
const ORGS_AT_MOST: usize = 1 << 17;
/// Rounds before it is given up, and the pause after the first few.
const ROUNDS: u32 = 200;
const ROUNDS_WITHOUT_PAUSE: u32 = 8;
const PAUSE: Duration = Duration::from_millis(50);
/// How long one script may take, and how often it is tried.
const PATIENCE: Duration = Duration::from_secs(5);
const TRIES: u32 = 20;

/// What was read so far.
struct Copy {
    inner: Arc<Inner>,
    out: Pieces,
    keys: BTreeSet<KeyId>,
    /// The ends of each trail up to which everything is known: all records that it tells of, and its entries.
    trails: BTreeMap<Trail, Ends>,
    /// Records that were read again.
    newer: HashMap<Place, Vec<u8>>,
}

/// The answer of the last script.
struct Moment {
    head: Head,
    orgs: usize,
    keys: usize,
    is_whole: bool,
    trails: Vec<(Trail, Ends, Vec<Entry>)>,
    records: Vec<(Place, Vec<u8>)>,
}

impl Inner {
    pub(super) async fn dump(self: Arc<Self>, out: Pieces) -> Result<Head, StoreFault> {
        let (trails, newer) = (BTreeMap::new(), HashMap::new());
        Copy { inner: self, out, keys: BTreeSet::new(), trails, newer }.run().await
    }

    /// Calls a script that reads, again and again: a page that comes late must not end a backup.
    async fn read_patiently(&self, call: &Call<'_>) -> Result<Reply, StoreFault> {
        let mut tries = 0;
        loop {
            let asked = self.commands.run(call, PATIENCE.max(self.settings.command_timeout)).await;
            match asked {
                Ok(reply) => {
                    self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
                    return Ok(reply);
                }
                Err(fault) if tries == TRIES => return Err(fault),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
            tries += 1;
        }
    }

    async fn ids(&self, index: &str) -> Result<Vec<String>, StoreFault> {
        let (mut ids, mut from) = (Vec::new(), NEWEST.to_owned());
        loop {
            let call = Call::new(&self.scripts.ids, [self.names.meta(), index.to_owned()]);
            let mut reply = self.read_patiently(&call.arg(&*from).arg(IDS.to_string())).await?;
            let before = ids.len();
            while !reply.is_empty() {
                ids.extend(reply.text().map_err(|error| self.fault(error))?);
            }
            match ids.last() {
                Some(last) if ids.len() - before == IDS => from = format!("({last}"),
                _ => return Ok(ids),
            }
        }
    }

    /// The values of these names, in their order.
    async fn values(&self, names: Vec<String>) -> Result<Vec<Option<Vec<u8>>>, StoreFault> {
        let mut values = Vec::with_capacity(names.len());
        for names in names.chunks(PAGE) {
            let places = std::iter::once(self.names.meta()).chain(names.iter().cloned());
            let mut reply = self.read_patiently(&Call::new(&self.scripts.read, places)).await?;
            for _ in names {
                values.push(reply.bytes().map_err(|error| self.fault(error))?);
            }
        }
        Ok(values)
    }

    fn name_of(&self, place: Place) -> String {
        match place {
            Place::Org(org) => self.names.org(org),
            Place::Key(key) => self.names.key(key),
        }
    }

    fn parse_ends(&self, bytes: Option<&[u8]>) -> Result<Ends, StoreFault> {
        let unreadable = || self.fault("the ends of an audit trail do not read");
        bytes.map_or(Ok(Ends::default()), |bytes| Ends::from_bytes(bytes).ok_or_else(unreadable))
    }

    /// The entries of a trail with the next numbers above `done`, oldest first, up to `head`.
    async fn entries_after(&self, trail: Trail, done: u64, head: u64) -> Result<Vec<Entry>, StoreFault> {
        let through = (done + ENTRIES).min(head);
        let mut tries = 0;
        loop {
            match self.entries(trail, Some(through + 1), ENTRIES as usize).await {
                Ok(mut entries) => {
                    entries.retain(|entry| entry.link.number > done);
                    entries.reverse();
                    return Ok(entries);
                }
                Err(fault) if tries == TRIES => return Err(fault),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
            tries += 1;
        }
    }
}

impl Copy {
    async fn run(mut self) -> Result<Head, StoreFault> {
        let before = self.moment().await?.head;
        let orgs = self.orgs().await?;
        // Before any record: whatever changes from here on shows in its trail.
        self.trails =
            self.ends(std::iter::once(Trail::Operator).chain(orgs.iter().copied().map(Trail::Org))).await?;
        let seen = self.trails.clone();
        let keys = self.inner.ids(&self.inner.names.keys()).await?;
        self.keys = keys.iter().filter_map(|id| KeyId::parse(id).ok()).collect();
        self.tell_records(orgs.iter().copied().map(Place::Org).collect()).await?;
        self.tell_records(self.keys.iter().copied().map(Place::Key).collect()).await?;
        self.tell_news(&orgs).await?;
        let from = seen.into_iter().map(|(trail, seen)| (trail, Ends::default(), seen)).collect();
        let mut changed = self.copy_trails(from).await?;
        self.tell(vec![Piece::Newer]).await?;
        for round in 0..ROUNDS {
            self.read_again(changed).await?;
            changed = self.catch_up().await?;
            if changed.len() > TOLD_AT_ONCE / 4 {
                continue;
            }
            self.read_again(std::mem::take(&mut changed)).await?;
            let moment = self.moment().await?;
            if moment.head.peppers != before.peppers {
                return Err(self.inner.fault("the pepper was changed during the backup: run it again"));
            }
            if self.fits(&moment) {
                return self.finish(moment).await;
            }
            self.look_for_new(&moment).await?;
            if round > ROUNDS_WITHOUT_PAUSE {
                tokio::time::sleep(PAUSE).await;
            }
        }
        Err(self.inner.fault(
            "there are too many changes, or an import runs: the backup finds no moment; run it again when that has ended",
        ))
    }

    /// Whether what was read, and what the moment tells, is all that there is.
    fn fits(&self, moment: &Moment) -> bool {
        let is_new = |place: &Place| matches!(place, Place::Key(key) if !self.keys.contains(key));
        let new: BTreeSet<KeyId> = moment
            .records
            .iter()
            .filter(|(place, _)| is_new(place))
            .filter_map(|(place, _)| if let Place::Key(key) = place { Some(*key) } else { None })
            .collect();
        moment.is_whole && moment.orgs + 1 == self.trails.len() && moment.keys == self.keys.len() + new.len()
    }

    async fn finish(mut self, moment: Moment) -> Result<Head, StoreFault> {
        // A key that goes while this runs is told as a key and with its stones: it goes again.
        for stones in self.inner.all_stones().await? {
            self.tell(stones.into_iter().map(Piece::Gone).collect()).await?;
        }
        for (trail, ends, entries) in moment.trails {
            self.tell(vec![Piece::Entries { trail, ends, entries }]).await?;
        }
        self.newer.extend(moment.records);
        let newer = std::mem::take(&mut self.newer);
        let pieces: Vec<Piece> = newer.into_iter().map(|(of, sealed)| Piece::Record { of, sealed }).collect();
        for pieces in pieces.chunks(PAGE) {
            self.tell(pieces.to_vec()).await?;
        }
        Ok(moment.head)
    }

    async fn tell(&self, pieces: Vec<Piece>) -> Result<(), StoreFault> {
        if pieces.is_empty() { Ok(()) } else { self.out.send(pieces).await.map_err(given_up) }
    }

    async fn orgs(&self) -> Result<Vec<OrgId>, StoreFault> {
        let ids = self.inner.ids(&self.inner.names.orgs()).await?;
        if ids.len() > ORGS_AT_MOST {
            return Err(self.inner.fault(format_args!(
                "there are more than {ORGS_AT_MOST} organisations, which is the most that a backup of a Redis store can have"
            )));
        }
        Ok(ids.iter().filter_map(|id| OrgId::parse(id).ok()).collect())
    }

    async fn ends(&self, trails: impl Iterator<Item = Trail>) -> Result<BTreeMap<Trail, Ends>, StoreFault> {
        let trails: Vec<Trail> = trails.collect();
        let names = trails.iter().map(|trail| self.inner.names.ends(*trail)).collect();
        let values = self.inner.values(names).await?;
        let parsed = trails
            .into_iter()
            .zip(values)
            .map(|(trail, ends)| Ok((trail, self.inner.parse_ends(ends.as_deref())?)));
        parsed.collect()
    }

    /// Tells records, and when keys were used.
    async fn tell_records(&self, places: Vec<Place>) -> Result<(), StoreFault> {
        for places in places.chunks(PAGE) {
            let records = self.records(places).await?;
            let keys: Vec<KeyId> = places
                .iter()
                .filter_map(|place| if let Place::Key(key) = place { Some(*key) } else { None })
                .collect();
            let mut pieces: Vec<Piece> =
                records.into_iter().map(|(of, sealed)| Piece::Record { of, sealed }).collect();
            pieces.extend(self.used(&keys).await?);
            self.tell(pieces).await?;
        }
        Ok(())
    }

    async fn records(&self, places: &[Place]) -> Result<Vec<(Place, Vec<u8>)>, StoreFault> {
        let names = places.iter().map(|place| self.inner.name_of(*place)).collect();
        let values = self.inner.values(names).await?;
        Ok(places.iter().zip(values).filter_map(|(place, bytes)| Some((*place, bytes?))).collect())
    }

    async fn used(&self, keys: &[KeyId]) -> Result<Vec<Piece>, StoreFault> {
        let (inner, mut pieces) = (&self.inner, Vec::new());
        if keys.is_empty() {
            return Ok(pieces);
        }
        let call = Call::new(&inner.scripts.usage, [inner.names.meta(), inner.names.used()]);
        let call = keys.iter().fold(call, |call, key| call.arg(key.to_string()));
        let mut reply = inner.read_patiently(&call).await?;
        for key in keys {
            let text = reply.text().map_err(|error| inner.fault(error))?;
            pieces.extend(text.map(|usage| Piece::Used { key: *key, usage }));
        }
        Ok(pieces)
    }

    /// News without a proof are not ours to keep.
    async fn tell_news(&self, orgs: &[OrgId]) -> Result<(), StoreFault> {
        for orgs in orgs.chunks(PAGE) {
            let written = self.inner.written_news(orgs).await?;
            let ours =
                written.into_iter().flatten().filter(|(news, _)| self.inner.judge_news(news).is_some());
            self.tell(ours.map(|(news, due)| news.into_piece(due)).collect()).await?;
        }
        Ok(())
    }

    /// Copies trails, each from some ends on, and returns what they tell of behind other ends. Notes how far they are known.
    async fn copy_trails(&mut self, from: Vec<(Trail, Ends, Ends)>) -> Result<BTreeSet<Place>, StoreFault> {
        let (mut copying, mut changed) = (JoinSet::new(), BTreeSet::new());
        let mut from = from.into_iter();
        loop {
            while copying.len() < TRAILS
                && let Some((trail, known, seen)) = from.next()
            {
                let (inner, out) = (Arc::clone(&self.inner), self.out.clone());
                copying.spawn(async move { copy_trail(&inner, &out, trail, (known, seen)).await });
            }
            let Some(copied) = copying.join_next().await else { return Ok(changed) };
            let (trail, ends, places) = copied.map_err(StoreFault::failed)??;
            self.trails.insert(trail, ends);
            changed.extend(places);
        }
    }

    /// Copies what the trails tell since, and returns what they tell of.
    async fn catch_up(&mut self) -> Result<BTreeSet<Place>, StoreFault> {
        let now = self.ends(self.trails.keys().copied()).await?;
        let went_on = |(trail, known): (&Trail, &Ends)| {
            let is_same = now.get(trail).is_some_and(|now| now.head == known.head);
            (!is_same).then_some((*trail, *known, *known))
        };
        let from = self.trails.iter().filter_map(went_on).collect();
        self.copy_trails(from).await
    }

    async fn read_again(&mut self, places: BTreeSet<Place>) -> Result<(), StoreFault> {
        let places: Vec<Place> = places.into_iter().collect();
        let records = self.records(&places).await?;
        let orgs: Vec<OrgId> = records
            .iter()
            .filter_map(|(place, _)| if let Place::Org(org) = place { Some(*org) } else { None })
            .collect();
        self.keys.extend(
            records.iter().filter_map(
                |(place, _)| {
                    if let Place::Key(key) = place { Some(*key) } else { None }
                },
            ),
        );
        self.newer.extend(records);
        self.tell_news(&orgs).await
    }

    /// Organisations and keys that came without an audit record in a trail that is known.
    async fn look_for_new(&mut self, moment: &Moment) -> Result<(), StoreFault> {
        let mut new = BTreeSet::new();
        if moment.orgs + 1 != self.trails.len() {
            for org in self.orgs().await? {
                if let Vacancy::Vacant(trail) = self.trails.entry(Trail::Org(org)) {
                    trail.insert(Ends::default());
                    new.insert(Place::Org(org));
                }
            }
        }
        if moment.keys != self.keys.len() {
            let ids = self.inner.ids(&self.inner.names.keys()).await?;
            let keys: BTreeSet<KeyId> = ids.iter().filter_map(|id| KeyId::parse(id).ok()).collect();
            // Those that are not there any more have gone.
            self.keys.retain(|key| keys.contains(key));
            new.extend(keys.difference(&self.keys).copied().map(Place::Key));
        }
        self.read_again(new).await
    }

    async fn moment(&self) -> Result<Moment, StoreFault> {
        let (inner, names) = (&self.inner, &self.inner.names);
        let operators = self.trails.get(&Trail::Operator).copied().unwrap_or_default();
        let mut call = Call::new(&inner.scripts.moment, [names.meta(), names.orgs(), names.keys()])
            .arg(names.with(""))
            .arg(TOLD_AT_ONCE.to_string())
            .arg(operators.to_bytes());
        let orgs: Vec<(Trail, Ends)> = self
            .trails
            .iter()
            .filter(|(trail, _)| **trail != Trail::Operator)
            .map(|(of, ends)| (*of, *ends))
            .collect();
        for part in orgs.chunks(IN_ONE_TEXT) {
            let mut text = Vec::with_capacity(part.len() * 110);
            for (trail, ends) in part {
                text.extend_from_slice(trail.to_string().as_bytes());
                text.extend_from_slice(&ends.to_bytes());
            }
            call = call.arg(text);
        }
        let mut reply = inner.read_patiently(&call).await?;
        self.read_moment(&mut reply)
    }

    fn read_moment(&self, reply: &mut Reply) -> Result<Moment, StoreFault> {
        let fault = |error| self.inner.fault(error);
        let unreadable = || self.inner.fault("the state of the store does not read");
        let (prefixes, peppers) = (reply.text().map_err(fault)?, reply.text().map_err(fault)?);
        let count = |text: Option<String>| text.and_then(|text| text.parse().ok()).ok_or_else(unreadable);
        let (orgs, keys) = (count(reply.text().map_err(fault)?)?, count(reply.text().map_err(fault)?)?);
        let is_whole = reply.text().map_err(fault)?.as_deref() == Some("whole");
        let incarnation = reply.meta.incarnation.clone().ok_or_else(unreadable)?;
        let (event, format) = (reply.meta.event.unwrap_or_default(), reply.meta.format);
        let head = Head { incarnation, event, format, prefixes, peppers };
        let (mut trails, mut records) = (Vec::new(), Vec::new());
        while !reply.is_empty() {
            let part = reply.text().map_err(fault)?.unwrap_or_default();
            let name = reply.text().map_err(fault)?.unwrap_or_default();
            match &*part {
                "trail" => {
                    let ends = self.inner.parse_ends(reply.bytes().map_err(fault)?.as_deref())?;
                    trails.push((Trail::parse(&name).map_err(|_| unreadable())?, ends, Vec::new()));
                }
                "entry" => {
                    let (mac, text) = (reply.bytes().map_err(fault)?, reply.bytes().map_err(fault)?);
                    let number = name.strip_suffix("-0").and_then(|number| number.parse().ok());
                    let mac = mac.and_then(|mac| mac.try_into().ok());
                    let (Some(number), Some(mac), Some((_, _, entries))) = (number, mac, trails.last_mut())
                    else {
                        return Err(unreadable());
                    };
                    entries.push(Entry { link: Link { number, mac }, text: text.unwrap_or_default() });
                }
                _ => {
                    let bytes = reply.bytes().map_err(fault)?;
                    records.extend(place_of(&name).zip(bytes));
                }
            }
        }
        Ok(Moment { head, orgs, keys, is_whole, trails, records })
    }
}

/// Copies a trail behind `known`. Returns how far it is known now, and what it tells of behind `seen`.
async fn copy_trail(
    inner: &Inner,
    out: &Pieces,
    trail: Trail,
    (known, seen): (Ends, Ends),
) -> Result<(Trail, Ends, BTreeSet<Place>), StoreFault> {
    let ends = |bytes: Vec<Option<Vec<u8>>>| inner.parse_ends(bytes.first().and_then(Option::as_deref));
    let name = inner.names.ends(trail);
    let now = ends(inner.values(vec![name.clone()]).await?)?;
    let (mut done, mut changed) = (known.head.number.max(now.checkpoint.number), BTreeSet::new());
    while done < now.head.number {
        let entries = inner.entries_after(trail, done, now.head.number).await?;
        done = (done + ENTRIES).min(now.head.number);
        let news = entries.iter().filter(|entry| entry.link.number > seen.head.number);
        changed.extend(news.filter_map(|entry| {
            let record: AuditRecord = serde_json::from_slice(&entry.text).ok()?;
            place_of(record.target.as_deref()?)
        }));
        out.send(vec![Piece::Entries { trail, ends: now, entries }]).await.map_err(given_up)?;
    }
    // Entries that were trimmed while they were copied may be missing: the copy begins behind them.
    let after = ends(inner.values(vec![name]).await?)?;
    let copied = Ends { checkpoint: after.checkpoint, head: now.head };
    if copied != Ends::default() {
        out.send(vec![Piece::Entries { trail, ends: copied, entries: Vec::new() }])
            .await
            .map_err(given_up)?;
    }
    Ok((trail, copied, changed))
}

fn place_of(target: &str) -> Option<Place> {
    KeyId::parse(target).map(Place::Key).or_else(|_| OrgId::parse(target).map(Place::Org)).ok()
}

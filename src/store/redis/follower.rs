//! Follows the stream of events, on a connection of its own, for as long as the store lives.
//!
//! A blocking read returns as soon as there is an event. But it does not notice that the store was emptied, and it
//! skips trimmed events silently. So the numbers must have no gap, and once a second the last event seen must still
//! be there, unchanged, in the same store.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{RedisError, Value};
use tokio::time::timeout;

use super::ledger::{Event, Incarnation, Mark, Position, RedisTime};
use super::scripts::{Call, bytes, unexpected};
use super::topology::Connected;
use super::{Inner, LinkState, Renewal, memory, memory_file, peppers, tenure};
use crate::store::events::{Seq, Subject, decode};
use crate::store::{LEASE, StoreFault};
use crate::telemetry::{self, Notice};
use crate::vocabulary::clock::Reading;
use crate::vocabulary::key::proof::ProofOf;

/// How often the last event seen is checked.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// Events per read.
const BATCH: usize = 512;
/// The most missed events that are applied one by one. After more, everything cached is looked up again.
const BACKLOG: Seq = 4096;
/// The first wait before connecting again; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(50);
/// The longest. A Redis that is back is noticed within this time.
const LAST_WAIT: Duration = Duration::from_millis(500);

pub(super) async fn run(inner: Arc<Inner>) {
    tokio::join!(keep_following(&inner), confirm(&inner), memory::listen(&inner), memory_file::keep(&inner));
}

async fn keep_following(inner: &Inner) {
    let mut wait = FIRST_WAIT;
    loop {
        let Err(fault) = follow(inner).await;
        let down = LinkState::Down(fault.to_string().into());
        let before = inner.set_link_state(down.clone());
        if before != down {
            let line = || format!("the event link is down: {fault}");
            let is_told = telemetry::Event::EventLink.log(inner.clock.mono(), line);
            inner.is_link_untold.store(!is_told, Ordering::Relaxed);
        }
        if before == LinkState::Up {
            wait = FIRST_WAIT;
        }
        // If another task finds a master, there is no need to wait longer.
        let _ = tokio::join!(timeout(wait, inner.connector.changed()), tenure::question(inner));
        wait = LAST_WAIT.min(wait * 2);
    }
}

/// Connects and follows, until this fails or another server is the master.
async fn follow(inner: &Inner) -> Result<Infallible, StoreFault> {
    let Connected { connection, node } = inner.connector.connect().await?;
    tokio::select! {
        followed = follow_on(inner, connection) => followed,
        fault = inner.connector.replaced(&node) => Err(fault),
    }
}

/// The link is up once the first check has succeeded.
async fn follow_on(inner: &Inner, mut connection: MultiplexedConnection) -> Result<Infallible, StoreFault> {
    loop {
        let Verified { store, event, asked, renewed } = verify(inner, &mut connection).await?;
        let mut word = Some((asked, renewed));
        if inner.set_link_state(LinkState::Up) != LinkState::Up {
            let place = inner.connector.whereabouts();
            if !inner.is_link_untold.swap(false, Ordering::Relaxed) {
                let name = &inner.gateway;
                Notice::EventLinkUp
                    .log(&format!("Redis at {place}, store {store}; this is the gateway {name}"));
            }
            warn_of_eviction(inner, &mut connection).await?;
        }
        let until = inner.clock.now().mono + HEARTBEAT;
        loop {
            let left = until.saturating_duration_since(inner.clock.now().mono);
            if left < Duration::from_millis(1) {
                break;
            }
            // The check vouches for the link only when every event up to it is applied here: events may still be on
            // their way.
            if inner.ledger.position().last >= event
                && let Some((asked, renewed)) = word.take()
            {
                inner.ledger.assure(asked);
                renewed.into_iter().for_each(|renewed| tenure::confirm(inner, renewed));
            }
            read(inner, &mut connection, &store, left).await?;
        }
    }
}

/// The result of a check of the store.
struct Verified {
    store: Incarnation,
    /// The number of its last event.
    event: Seq,
    /// When the check began.
    asked: Reading,
    /// When the renewal of the lease was sent; `None` if it was not renewed.
    renewed: Option<Instant>,
}

/// Checks that this is our store and that it still has the events that were applied, and renews the lease. The
/// renewal is a write, which an old master refuses when it is cut off from its replicas.
async fn verify(inner: &Inner, connection: &mut MultiplexedConnection) -> Result<Verified, StoreFault> {
    let Position { known, last, mark } = inner.ledger.position();
    let call =
        Call::new(&inner.scripts.watch, [inner.names.meta(), inner.names.events()]).arg(last.to_string());
    let asked = inner.clock.reading();
    let answer = timeout(inner.settings.command_timeout, call.send(connection)).await;
    let answered = inner.clock.mono();
    let mut reply = answer.map_err(|_| StoreFault::TimedOut)?.map_err(|error| inner.fault(error))?;
    let replaces = reply.text().map_err(|error| inner.fault(error))?.unwrap_or_default();
    let found = reply.text().map_err(|error| inner.fault(error))?.map(Mark::from_text);
    let time = reply.text().map_err(|error| inner.fault(error))?;
    if let Some(time) = time.and_then(|time| RedisTime::parse(&time)) {
        inner.ledger.note_time(asked.mono, answered, time);
    }
    let prefixes = reply.text().map_err(|error| inner.fault(error))?;
    let row = reply.text().map_err(|error| inner.fault(error))?;
    let older = reply.text().map_err(|error| inner.fault(error))?;
    let event = reply.meta.event.unwrap_or_default();
    let can_keep = reply.meta.format <= inner.sealer.keeps();
    if let (true, Some(known), Some(incarnation)) = (can_keep, &known, &reply.meta.incarnation)
        && known.as_str() != incarnation
        && replaces.split(' ').any(|replaced| replaced == known.as_str())
    {
        Notice::StoreAccepted.log(&format!("the store {incarnation} was accepted in the place of {known}"));
        inner.ledger.adopt(incarnation, event);
    }
    let store = inner.ledger.recognise(&reply.meta, 0).map_err(|stranger| inner.fault(stranger))?;
    inner.note_prefixes(prefixes.as_deref());
    if !can_keep && !inner.is_outdated.swap(true, Ordering::Relaxed) {
        Notice::StoreOutdated.log(&StoreFault::outdated(reply.meta.format, inner.sealer.keeps()).to_string());
    }
    if known.as_ref().is_some_and(|known| *known != store) {
        // The answers so far concern the store before, not the one that has just been adopted.
        return Ok(Verified { store, event: Seq::MAX, asked, renewed: None });
    }
    // Before there is a lease: changes must not wait for a gateway that cannot read them.
    peppers::settle(inner, connection, row.as_deref()).await?;
    inner.hear_acceptance(older.as_deref());
    if inner.link_state() != LinkState::Up {
        // Everything may have to be looked up again soon; the breakers must not refuse those lookups.
        [&inner.lookups, &inner.commands].into_iter().for_each(|link| link.forgive());
    }
    match (mark, found) {
        _ if event < last => lose(inner, &store, event, last),
        (Some(seen), found) if found.as_ref() != Some(&seen) => lose(inner, &store, event, last),
        (None, Some(found)) => inner.ledger.note_mark(last, found),
        _ if event - last > BACKLOG => inner.ledger.jump(&store, event, None),
        _ => {}
    }
    let renewed = renew(inner, connection).await?;
    count_replicas(inner, connection).await?;
    Ok(Verified { store, event, asked, renewed })
}

/// Renews the lease, with the number of the last applied event. Returns when the call was sent; `None` if the lease
/// was given up.
async fn renew(inner: &Inner, connection: &mut MultiplexedConnection) -> Result<Option<Instant>, StoreFault> {
    let left = inner.left.lock().await;
    if *left {
        return Ok(None);
    }
    let names = &inner.names;
    let announcing = inner.announcing();
    let call = Call::new(&inner.scripts.renew, inner.places_of_lease())
        .arg(&*inner.gateway)
        .arg(inner.ledger.position().last.to_string())
        .arg(LEASE.as_millis().to_string())
        .arg(names.leases())
        .arg(inner.sealer.keeps().to_string())
        .arg(&*announcing)
        .arg(inner.sealer.peppers().checks())
        .arg(inner.lets_in_for().as_millis().to_string());
    let asked = inner.clock.mono();
    let answer = timeout(inner.settings.command_timeout, call.send(connection)).await;
    let mut reply = answer.map_err(|_| StoreFault::TimedOut)?.map_err(|error| inner.fault(error))?;
    let mut number = || -> Result<Option<usize>, StoreFault> {
        Ok(reply.text().map_err(|error| inner.fault(error))?.and_then(|text| text.parse().ok()))
    };
    let (leases, lapsed) = (number()?.unwrap_or(1), number()?.unwrap_or(0));
    inner.note_announced(announcing);
    inner.note_lease(Some(Renewal { asked, leases, lapsed }));
    Ok(Some(asked))
}

/// Counts the replicas: if there are any, a revocation must reach one before it counts as durable.
async fn count_replicas(inner: &Inner, connection: &mut MultiplexedConnection) -> Result<(), StoreFault> {
    let mut command = ::redis::cmd("INFO");
    command.arg("replication");
    let answer = timeout(inner.settings.command_timeout, command.query_async::<String>(connection)).await;
    // Without the right to ask, there is no waiting for replicas.
    let info = answer.map_err(|_| StoreFault::TimedOut)?.unwrap_or_default();
    let count = info.lines().find_map(|line| line.strip_prefix("connected_slaves:"));
    let count = count.and_then(|count| count.trim_end().parse().ok()).unwrap_or(0);
    inner.replicas.store(count, Ordering::Relaxed);
    Ok(())
}

/// Confirms applied events in the lease, wherever they came from: those of this process arrive before the stream has
/// them. One call at a time, so that many events at once cost few calls.
async fn confirm(inner: &Inner) {
    let mut reached = inner.ledger.reached();
    let mut told = None;
    while reached.changed().await.is_ok() {
        let Position { last, mark: Some(mark), .. } = inner.ledger.position() else { continue };
        let news = (last, mark);
        if told.as_ref() == Some(&news) {
            continue;
        }
        let (last, mark) = &*told.insert(news);
        let names = &inner.names;
        let places = [names.lease(&inner.gateway), names.lease_serves(&inner.gateway)];
        let call = Call::new(&inner.scripts.confirm, places)
            .arg(last.to_string())
            .arg(mark.as_str())
            .arg(names.events());
        // If it fails, the next heartbeat tells it.
        let _ = inner.commands.run(&call, inner.settings.command_timeout).await;
    }
}

/// The store has lost events: what they said is unknown.
fn lose(inner: &Inner, store: &Incarnation, event: Seq, last: Seq) {
    Notice::EventsLost.log(&format!(
        "Redis at {} lost events: {last} was applied here and is not there any more; every key is looked up again",
        inner.connector.whereabouts()
    ));
    inner.ledger.jump(store, event, None);
}

/// A Redis that evicts entries makes known keys unknown, and nothing shows it.
async fn warn_of_eviction(inner: &Inner, connection: &mut MultiplexedConnection) -> Result<(), StoreFault> {
    let mut command = ::redis::cmd("INFO");
    command.arg("memory");
    let answer = timeout(inner.settings.command_timeout, command.query_async::<String>(connection)).await;
    // Without the right to ask, there is no warning.
    let Ok(info) = answer.map_err(|_| StoreFault::TimedOut)? else { return Ok(()) };
    let policy = info.lines().find_map(|line| line.strip_prefix("maxmemory_policy:"));
    if let Some(policy) = policy.filter(|policy| policy.starts_with("allkeys")) {
        Notice::StoreEvicts.log(&format!(
            "Redis at {} throws keys away when its memory is full ({policy}), which turns API keys into unknown ones: \
             set its maxmemory-policy to noeviction",
            inner.connector.whereabouts()
        ));
    }
    Ok(())
}

/// Waits for events and applies them.
async fn read(
    inner: &Inner,
    connection: &mut MultiplexedConnection,
    store: &Incarnation,
    patience: Duration,
) -> Result<(), StoreFault> {
    let last = inner.ledger.position().last;
    let block = u64::try_from(patience.as_millis()).unwrap_or(1).max(1);
    let mut command = ::redis::cmd("XREAD");
    command.arg("COUNT").arg(BATCH).arg("BLOCK").arg(block);
    command.arg("STREAMS").arg(inner.names.events()).arg(format!("{last}-0"));
    let answer = timeout(patience + inner.settings.command_timeout, command.query_async(connection)).await;
    let answer: Value = answer.map_err(|_| StoreFault::TimedOut)?.map_err(|error| inner.fault(error))?;
    let entries = entries(answer).map_err(|error| inner.fault(error))?;
    let mut expected = last + 1;
    for entry in entries {
        let (seq, event) = parse(inner, entry).map_err(|error| inner.fault(error))?;
        match event {
            Some(event) if seq == expected => inner.ledger.follow(store, event),
            // Some events were trimmed before they were read, or this one is of a kind that only a newer keygate
            // knows.
            _ => inner.ledger.jump(store, seq, None),
        }
        expected = seq + 1;
    }
    Ok(())
}

/// The entries of the stream; none if the read timed out.
fn entries(answer: Value) -> Result<Vec<Value>, RedisError> {
    let mut streams = match answer {
        Value::Nil => return Ok(Vec::new()),
        Value::Array(streams) => streams,
        _ => return Err(unexpected()),
    };
    match streams.pop() {
        Some(Value::Array(mut stream)) => match stream.pop() {
            Some(Value::Array(entries)) => Ok(entries),
            _ => Err(unexpected()),
        },
        _ => Err(unexpected()),
    }
}

/// The number of an entry, and its event; `None` for an event that cannot be read.
///
/// An event without a proof, which an older gateway has written or somebody else, has everything looked up again that it
/// names. That a secret is revoked for ever is believed with a proof only, or when the key's record says so.
fn parse(inner: &Inner, entry: Value) -> Result<(Seq, Option<Event>), RedisError> {
    let Value::Array(entry) = entry else { return Err(unexpected()) };
    let [id, Value::Array(fields)] = <[Value; 2]>::try_from(entry).map_err(|_| unexpected())? else {
        return Err(unexpected());
    };
    let id = String::from_utf8(bytes(id)?).map_err(|_| unexpected())?;
    let seq = id.split('-').next().and_then(|seq| seq.parse().ok()).ok_or_else(unexpected)?;
    let (mut subjects, mut mark, mut written) = (Vec::new(), None, None);
    let mut proof = Vec::new();
    let mut fields = fields.into_iter();
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match &bytes(name)?[..] {
            b"subjects" => subjects = bytes(value)?,
            b"proof" => proof = bytes(value)?,
            b"mark" => mark = String::from_utf8(bytes(value)?).ok().map(Mark::from_text),
            b"written" => written = str::from_utf8(&bytes(value)?).ok().and_then(RedisTime::parse),
            _ => {}
        }
    }
    let Some((mark, named)) = mark.zip(decode(&subjects)) else { return Ok((seq, None)) };
    let proven = inner.sealer.check_proof(ProofOf::Event, &[mark.as_str().as_bytes(), &subjects], &proof);
    let subjects = if proven.is_some() { named } else { named.into_iter().map(unproven).collect() };
    Ok((seq, Some(Event { seq, mark, subjects, written })))
}

const fn unproven(subject: Subject) -> Subject {
    match subject {
        Subject::Revoked(digest) => Subject::Digest(digest),
        Subject::Digest(_) | Subject::Org(_) | Subject::Key(_) => subject,
    }
}

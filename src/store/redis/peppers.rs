//! Which pepper belongs to the store: learning it, writing it down for a store that does not say, and the change to a new
//! one.
//!
//! The word of the store comes with every lookup, so that *absent* is said only of digests under the right pepper. A script
//! that writes what was sealed here refuses, if that was done under another word. So no gateway writes under a pepper that
//! another one does not know, and none goes on with one that was replaced.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use ::redis::RedisError;
use ::redis::aio::MultiplexedConnection;
use tokio::time::timeout;

use super::Inner;
use super::reads::NEWEST;
use super::scripts::{Call, Reply};
use crate::store::StoreFault;
use crate::telemetry::Notice;
use crate::vocabulary::key::pepper::Check;
use crate::vocabulary::key::record::{BadRecord, KeyRecord, OrgRecord, RecordFormat, Stored, open_under};
use crate::vocabulary::key::{Misfit, Pepper, Peppers};

/// After so many heartbeats an older word counts: the store has lost its last changes, or it was overtaken by another answer.
const OLDER_WORDS: usize = 2;

/// What a store without a word about its pepper shows.
enum Shown {
    /// The word that fits it.
    Row(String),
    /// The user may not look.
    Hidden,
}

impl Inner {
    /// Takes the word of the store. Returns whether it says something new.
    pub(super) fn learn(&self, row: Option<&str>) -> Result<bool, StoreFault> {
        let Some(row) = row else { return Ok(false) };
        self.sealer.peppers().learn(row).map_err(|misfit| self.fault(misfit))
    }

    /// A record of the store has opened.
    pub(super) fn note_fit(&self) {
        // Mostly it is set already, and reading costs other threads nothing.
        if !self.has_opened.load(Ordering::Relaxed) {
            self.has_opened.store(true, Ordering::Relaxed);
        }
    }

    pub(super) fn is_fit(&self) -> bool {
        self.sealer.peppers().are_learnt() || self.has_opened.load(Ordering::Relaxed)
    }

    /// Whether the pepper is known to be that of the store, so that what is not found under it does not exist.
    pub(super) async fn check_fit(&self) -> Result<(), StoreFault> {
        if self.is_fit() {
            return Ok(());
        }
        // Where events are followed, the next heartbeat finds out.
        if !self.ledger.is_followed()
            && let Shown::Row(_) = self.show().await?
        {
            self.note_fit();
            return Ok(());
        }
        Err(self
            .fault("the store does not say which pepper belongs to it, and none of its records was read yet"))
    }

    pub(super) async fn misfit(&self) -> Result<Option<Misfit>, StoreFault> {
        let call = Call::new(&self.scripts.watch, [self.names.meta(), self.names.events()]).arg("0");
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        if reply.meta.incarnation.is_none() {
            return Ok(None);
        }
        let row = word_of(&mut reply).map_err(|error| self.fault(error))?;
        match row {
            Some(row) => Ok(self.sealer.peppers().learn(&row).err()),
            None if self.is_fit() => Ok(None),
            None => match self.newest_record().await? {
                Some(record) => Ok(record.row(self.sealer.peppers()).err()),
                None => Ok(None),
            },
        }
    }

    /// The word that fits a store without one.
    async fn show(&self) -> Result<Shown, StoreFault> {
        let record = self.newest_record().await?;
        self.word_for(record.as_ref())
    }

    async fn newest_record(&self) -> Result<Option<Record>, StoreFault> {
        for kind in KINDS {
            let mut reply = self.commands.run(&self.newest_of(kind), self.settings.command_timeout).await?;
            if let Some(record) = kind.read(&mut reply).map_err(|error| self.fault(error))? {
                return Ok(Some(record));
            }
        }
        Ok(None)
    }

    fn newest_of(&self, kind: Kind) -> Call<'_> {
        let (index, records) = match kind {
            Kind::Key => (self.names.keys(), self.names.with("id:")),
            Kind::Org => (self.names.orgs(), self.names.with("org:")),
        };
        Call::new(&self.scripts.list, [self.names.meta(), index]).arg(records).arg(NEWEST).arg("1")
    }

    fn word_for(&self, record: Option<&Record>) -> Result<Shown, StoreFault> {
        let peppers = self.sealer.peppers();
        let row = match record {
            Some(record) => record.row(peppers).map_err(|misfit| self.fault(misfit))?,
            None => peppers.first_row().map_err(|error| self.fault(error))?,
        };
        Ok(Shown::Row(row))
    }

    /// The call that writes the word down, if the known one still stands. With `needs`, every gateway that holds a lease must
    /// announce the pepper with this check value.
    pub(super) fn write_word(&self, row: &str, needs: Option<&Check>) -> Call<'_> {
        self.writing(&self.scripts.peppers, [self.names.gateways()])
            .arg(self.sealer.peppers().row().unwrap_or_default())
            .arg(row)
            .arg(needs.map_or("", Check::as_str))
            .arg(RecordFormat::PEPPERS.to_string())
            .arg(self.names.leases())
    }
}

/// On every heartbeat: learns the word of the store, or gives it one, and proposes the first pepper of the configuration if
/// another one is in force.
pub(super) async fn settle(
    inner: &Inner,
    connection: &mut MultiplexedConnection,
    row: Option<&str>,
) -> Result<(), StoreFault> {
    let peppers = inner.sealer.peppers();
    match row {
        Some(row) if peppers.is_older(row) => {
            if inner.older_words.fetch_add(1, Ordering::Relaxed) + 1 >= OLDER_WORDS {
                peppers.learn_anyway(row).map_err(|misfit| inner.fault(misfit))?;
            }
            return Ok(());
        }
        Some(row) => {
            inner.older_words.store(0, Ordering::Relaxed);
            inner.learn(Some(row))?;
        }
        None => return give_word(inner, connection).await,
    }
    match peppers.next_row() {
        Ok(Some((next, check))) if inner.may_write_peppers.load(Ordering::Relaxed) => {
            propose(inner, connection, &next, &check).await
        }
        Ok(_) => Ok(()),
        Err(full) => Err(inner.fault(full)),
    }
}

/// Writes a word for a store of an older release. Such a store opens under the pepper, or this fails.
async fn give_word(inner: &Inner, connection: &mut MultiplexedConnection) -> Result<(), StoreFault> {
    let known = inner.sealer.peppers().row();
    let row = match known {
        // It stood there, and the store has lost it again.
        Some(row) => row,
        None => match look(inner, connection).await? {
            Shown::Row(row) => row,
            Shown::Hidden => {
                // The first key that is found shows it. Until then no key is called unknown.
                inner.may_look.store(false, Ordering::Relaxed);
                return Ok(());
            }
        },
    };
    inner.note_fit();
    if !inner.may_write_peppers.load(Ordering::Relaxed) {
        return Ok(());
    }
    let call = inner
        .writing(&inner.scripts.peppers, [inner.names.gateways()])
        .arg("")
        .arg(&*row)
        .arg("")
        .arg(RecordFormat::PEPPERS.to_string())
        .arg(inner.names.leases());
    match send(inner, connection, &call).await? {
        Some(mut reply) => match reply.text().map_err(|error| inner.fault(error))?.as_deref() {
            Some("done") => inner.learn(Some(&row)).map(drop),
            Some("peppers") => {
                inner.learn(reply.text().map_err(|error| inner.fault(error))?.as_deref()).map(drop)
            }
            // The next heartbeat sees what is there.
            _ => Ok(()),
        },
        None => Ok(()),
    }
}

async fn look(inner: &Inner, connection: &mut MultiplexedConnection) -> Result<Shown, StoreFault> {
    for kind in KINDS {
        let Some(mut reply) = send(inner, connection, &inner.newest_of(kind)).await? else {
            return Ok(Shown::Hidden);
        };
        if let Some(record) = kind.read(&mut reply).map_err(|error| inner.fault(error))? {
            return inner.word_for(Some(&record));
        }
    }
    inner.word_for(None)
}

async fn propose(
    inner: &Inner,
    connection: &mut MultiplexedConnection,
    next: &str,
    check: &Check,
) -> Result<(), StoreFault> {
    let Some(mut reply) = send(inner, connection, &inner.write_word(next, Some(check))).await? else {
        return Ok(());
    };
    let mut text = || reply.text().map_err(|error| inner.fault(error));
    match text()?.as_deref() {
        Some("done") => {
            inner.learn(Some(next))?;
            Notice::PepperInForce.log(&format!(
                "the new pepper (check value {check}) is in force: `keygate store reseal` moves what is under the one before"
            ));
        }
        Some("waits") => {
            let gateway = text()?.unwrap_or_default();
            let mut told = inner.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
            if *told != gateway {
                Notice::PepperWaits.log(&format!(
                    "the new pepper (check value {check}) waits for the gateway {gateway}, which does not have it: restart \
                     that with both files in keys.pepper_files"
                ));
                *told = gateway;
            }
        }
        // Another gateway was faster: the next heartbeat sees its word.
        _ => {}
    }
    Ok(())
}

/// `None` if the user may not run this.
async fn send(
    inner: &Inner,
    connection: &mut MultiplexedConnection,
    call: &Call<'_>,
) -> Result<Option<Reply>, StoreFault> {
    let answer = timeout(inner.settings.command_timeout, call.send(connection)).await;
    match answer.map_err(|_| StoreFault::TimedOut)? {
        Ok(reply) => Ok(Some(reply)),
        Err(error) if error.code() == Some("NOPERM") => {
            if !call.reads_only() {
                inner.may_write_peppers.store(false, Ordering::Relaxed);
            }
            Ok(None)
        }
        Err(error) => Err(inner.fault(error)),
    }
}

/// The word in the answer of the script that watches.
fn word_of(reply: &mut Reply) -> Result<Option<String>, RedisError> {
    let (_, _, _, _) = (reply.text()?, reply.text()?, reply.text()?, reply.text()?);
    reply.text()
}

/// The kinds of records, in the order in which they are asked.
const KINDS: [Kind; 2] = [Kind::Key, Kind::Org];

#[derive(Clone, Copy)]
enum Kind {
    Key,
    Org,
}

impl Kind {
    fn read(self, reply: &mut Reply) -> Result<Option<Record>, RedisError> {
        let (_, bytes) = (reply.text()?, reply.bytes()?);
        Ok(bytes.map(|bytes| Record { kind: self, bytes }))
    }
}

/// A record by which a store without a word is judged.
struct Record {
    kind: Kind,
    bytes: Vec<u8>,
}

impl Record {
    fn row(&self, peppers: &Peppers) -> Result<String, Misfit> {
        peppers.row_by_record(|pepper| match self.kind {
            Kind::Key => opens::<KeyRecord>(pepper, &self.bytes),
            Kind::Org => opens::<OrgRecord>(pepper, &self.bytes),
        })
    }
}

/// A record that is bad in another way says nothing of the pepper.
fn opens<T: Stored>(pepper: Option<&Pepper>, bytes: &[u8]) -> bool {
    !matches!(open_under::<T>(pepper, bytes), Err(BadRecord::Seal))
}

//! Carries commands out, through the lifecycle of keys and the keeper of the store.

use std::fmt;
use std::time::Duration;

use base64::prelude::{BASE64_STANDARD, Engine as _};

use super::order::{AuditCommand, Command, KeyCommand, OrgCommand, StoreCommand, UpstreamCommand};
use super::reply::{Reach, Reply, Secret};
use crate::lifecycle::{
    BackupPart, Changed, FoundKeys, KeyView, Lifecycle, LifecycleError, Made, NewKey, OrgPage, Origin, Owned,
    Principal, UnreadableView, view_org,
};
use crate::store::StoreFault;
use crate::store::keeper::Place;
use crate::store::unreadable::Unreadable;
use crate::vocabulary::key::Prefixes;
use crate::vocabulary::key::record::KeyRecord;

/// The longest wait of one command for the gateways. Whoever waits longer asks again.
const REACHED_WITHIN: Duration = Duration::from_secs(2);

/// The most entries of a list in one reply, however many are asked for.
const MOST: usize = 1000;

/// Carries a command out for an operator. A failure is a reply too.
pub async fn execute(lifecycle: &Lifecycle, origin: &Origin, command: Command) -> Reply {
    let reply = match command {
        Command::Orgs(command) => on_orgs(lifecycle, origin, command).await,
        Command::Keys(command) => on_keys(lifecycle, origin, command).await,
        Command::Audit(command) => on_audit(lifecycle, origin, command).await,
        Command::Store(command) => on_store(lifecycle, origin, command).await,
        Command::Upstreams(UpstreamCommand::Status) => {
            return Reply::Failed {
                message: "no gateway runs here, and only a running one knows the state of upstreams"
                    .to_owned(),
            };
        }
    };
    reply.unwrap_or_else(|error| Reply::Failed { message: explain(&error) })
}

/// Why a command failed, and what helps against a record that cannot be read.
fn explain(error: &LifecycleError) -> String {
    match error {
        LifecycleError::Store(StoreFault::Unreadable { place: Place::Key(key), .. }) => {
            format!(
                "{error}; it opens nothing, and `keygate keys revoke {key}` takes its rights away for ever"
            )
        }
        LifecycleError::Store(StoreFault::Unreadable { place: Place::Org(_), .. }) => {
            format!("{error}; none of its keys is let in, and each of them can be revoked")
        }
        error => error.to_string(),
    }
}

async fn on_orgs(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: OrgCommand,
) -> Result<Reply, LifecycleError> {
    let Changed { record, propagation } = match command {
        OrgCommand::List { after, limit } => {
            let OrgPage { orgs, unreadable } = lifecycle.find_orgs(origin, after, limit.min(MOST)).await?;
            let orgs = orgs.iter().map(view_org).collect();
            return Ok(Reply::Orgs { orgs, unreadable: view(&unreadable) });
        }
        OrgCommand::Create { name } => unpropagated(lifecycle.create_org(origin, &name).await?),
        OrgCommand::Show { id } => unpropagated(lifecycle.org(id).await?),
        OrgCommand::Suspend { id } => lifecycle.suspend_org(origin, id).await?,
        OrgCommand::Resume { id } => lifecycle.resume_org(origin, id).await?,
        OrgCommand::Verify { id } => lifecycle.verify_org(origin, id).await?,
        OrgCommand::Rename { id, name } => lifecycle.rename_org(origin, id, &name).await?,
    };
    Ok(Reply::Org { org: view_org(&record), reach: propagation.map(Reach::from) })
}

const fn unpropagated<T>(record: T) -> Changed<T> {
    Changed { record, propagation: None }
}

async fn on_keys(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: KeyCommand,
) -> Result<Reply, LifecycleError> {
    let changed = match command {
        KeyCommand::Show { id } => {
            let record = lifecycle.key(origin, id).await?;
            let propagation = lifecycle.last_propagation(record.org, id).await?;
            Changed { record, propagation }
        }
        KeyCommand::Update { id, patch } => lifecycle.update_key(origin, id, &patch).await?,
        KeyCommand::Disable { id } => lifecycle.disable_key(origin, id).await?,
        KeyCommand::Enable { id } => lifecycle.enable_key(origin, id).await?,
        KeyCommand::Revoke { id, descendants: None } => lifecycle.revoke_key(origin, id).await?,
        KeyCommand::Revoke { id, descendants: Some(expected) } => {
            lifecycle.revoke_with_descendants(origin, id, expected).await?
        }
        KeyCommand::Reach { event, within_ms } => {
            let within = Duration::from_millis(within_ms).min(REACHED_WITHIN);
            let propagation = lifecycle.propagation_of(event, within).await?;
            return Ok(Reply::Reach { reach: propagation.into() });
        }
        KeyCommand::Descendants { id } => {
            return Ok(Reply::Descendants { count: lifecycle.count_descendants(origin, id).await? });
        }
        KeyCommand::Check(new) => return check(lifecycle, &new),
        KeyCommand::Create(new) => return Ok(show_made(lifecycle, lifecycle.create_key(origin, new).await?)),
        KeyCommand::Rotate { id, overlap_seconds } => {
            let overlap = Duration::from_secs(overlap_seconds);
            return Ok(show_made(lifecycle, lifecycle.rotate_key(origin, id, overlap).await?));
        }
        KeyCommand::List { filter, after, limit } => {
            let found = lifecycle.find_keys(origin, &filter, after, limit.min(MOST)).await?;
            let organizations = lifecycle.names_of_orgs(&found.keys).await?;
            let FoundKeys { keys, unreadable, next } = found;
            return Ok(Reply::Keys { keys, next, organizations, unreadable: view(&unreadable) });
        }
        KeyCommand::Find { sha256 } => {
            let Some(Owned { key, opens }) = lifecycle.find_secret(origin, *sha256.as_bytes()).await? else {
                return Ok(Reply::KeyNotFound);
            };
            return Ok(Reply::KeyFound { key: lifecycle.view_used(&key).await?, opens });
        }
        KeyCommand::Shapes => {
            let (list, checksum_required) = (lifecycle.prefixes(), lifecycle.requires_checksum());
            let prefixes = list.accepted().cloned().collect();
            return Ok(Reply::KeyShapes { prefixes, checksum_required });
        }
        KeyCommand::Import { keys, rehearsal } => {
            let outcomes = lifecycle.import_keys(origin, keys, rehearsal).await?;
            return Ok(Reply::Imported { outcomes, checksum_required: lifecycle.requires_checksum() });
        }
        KeyCommand::Export { org, after, limit } => {
            let (keys, lost, has_more) = lifecycle.export_keys(origin, org, after, limit.min(MOST)).await?;
            return Ok(Reply::ExportedKeys { keys, has_more, unreadable: view(&lost) });
        }
    };
    show_changed(lifecycle, changed).await
}

async fn show_changed(lifecycle: &Lifecycle, changed: Changed<KeyRecord>) -> Result<Reply, LifecycleError> {
    let Changed { record, propagation } = changed;
    let shown = propagation.as_ref().map(ToString::to_string);
    let key = KeyView { propagation: shown, ..lifecycle.view_used(&record).await? };
    Ok(Reply::Key { key, reach: propagation.map(Reach::from) })
}

fn check(lifecycle: &Lifecycle, new: &NewKey) -> Result<Reply, LifecycleError> {
    let mistakes = lifecycle.mistakes_in_new(new);
    if mistakes.is_empty() { Ok(Reply::NoMistakes) } else { Err(LifecycleError::Invalid(mistakes)) }
}

async fn on_audit(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: AuditCommand,
) -> Result<Reply, LifecycleError> {
    let page = match command {
        AuditCommand::List { trail, filter, before, limit } => {
            lifecycle.audit_records(trail, filter, before, limit.min(MOST)).await?
        }
        AuditCommand::Export { trail, filter, after, limit } => {
            lifecycle.audit_records_after(trail, filter, after, limit.min(MOST)).await?
        }
        AuditCommand::Verify { trail, exported } => {
            return Ok(Reply::Verdict(lifecycle.verify_trail(trail, &exported).await?));
        }
        AuditCommand::Trim { trail } => {
            return Ok(Reply::Trimmed { trimmed: lifecycle.trim_trail_at_once(origin, trail).await? });
        }
    };
    Ok(Reply::AuditRecords { records: page.records, next: page.next })
}

async fn on_store(
    lifecycle: &Lifecycle,
    origin: &Origin,
    command: StoreCommand,
) -> Result<Reply, LifecycleError> {
    let keeper = lifecycle.keeper();
    Ok(match command {
        // An operator of some organisations makes no store for all.
        StoreCommand::Begin if matches!(origin.principal, Principal::OperatorOf(..)) => {
            Reply::StoreBegun { made: false }
        }
        StoreCommand::Begin => Reply::StoreBegun { made: keeper.begin().await? },
        StoreCommand::Status => Reply::StoreStatus { status: keeper.status().await },
        StoreCommand::Accept => {
            Reply::StoreAccepted { acceptance: lifecycle.accept_store(origin, false).await? }
        }
        StoreCommand::AcceptOlder => {
            Reply::StoreAccepted { acceptance: lifecycle.accept_store(origin, true).await? }
        }
        StoreCommand::AcceptPrefix { prefix } => {
            show_prefixes(&lifecycle.accept_prefix(origin, &prefix).await?)
        }
        StoreCommand::RemovePrefix { prefix } => {
            show_prefixes(&lifecycle.remove_prefix(origin, &prefix).await?)
        }
        StoreCommand::Reseal { after } => {
            Reply::StoreResealed { done: lifecycle.reseal(origin, after).await? }
        }
        StoreCommand::FinishReseal => {
            lifecycle.finish_reseal(origin).await?;
            Reply::ResealFinished
        }
        StoreCommand::Compact => Reply::StoreCompacted { done: lifecycle.compact(origin).await? },
        StoreCommand::BeginBackup => Reply::BackupBegun { id: lifecycle.begin_backup(origin).await? },
        StoreCommand::NextOfBackup { id } => {
            let BackupPart { bytes, done } = lifecycle.next_of_backup(id).await?;
            Reply::BackupPart { bytes: BASE64_STANDARD.encode(&bytes), done }
        }
    })
}

fn view<I: fmt::Display>(unreadable: &[Unreadable<I>]) -> Vec<UnreadableView> {
    unreadable.iter().map(UnreadableView::of).collect()
}

fn show_prefixes(prefixes: &Prefixes) -> Reply {
    Reply::Prefixes { accepted: prefixes.accepted().cloned().collect() }
}

fn show_made(lifecycle: &Lifecycle, Made { key, secret, propagation }: Made) -> Reply {
    let secret = Secret::new(secret.expose().to_owned());
    let shown = propagation.as_ref().map(ToString::to_string);
    let key = KeyView { propagation: shown, ..lifecycle.view_key(&key, None) };
    Reply::NewKey { key, secret, reach: propagation.map(Reach::from) }
}

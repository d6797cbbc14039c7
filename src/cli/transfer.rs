//! `keygate keys import` and `keygate keys export`: keys as lines of JSON. Keys are handled in batches, so that a file
//! of any length needs little memory.

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::Outcome;
use super::operator::{Begun, Failure, Session, unexpected};
use super::org_name::OrgName;
use super::shape::{Reading, Scheme, Shapes};
use crate::lifecycle::{Imported, ImportedKey, Marks, MovedKey, Rehearsal};
use crate::operators::admin::{Command, KeyCommand, Reply};
use crate::secret_file;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::scope::Scope;

/// Keys per batch. A batch costs one sync to the disk, so large batches cost little per key.
const BATCH: usize = 4000;
/// Batches in progress: while the store works on one, the next is read.
const UNDER_WAY: usize = 2;
/// The number of keys that one request for an export returns.
const PAGE: usize = 1000;
/// A batch ends when its lines reach this length, in bytes.
const BATCH_LEN: usize = 4 << 20;
/// The longest line that is read, in bytes. A key with all its fields is much shorter.
const LINE_LEN: usize = 64 << 10;
/// Some editors begin a UTF-8 file with it.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line is one key:
  {\"sha256\": \"…\", \"name\": \"…\", \"environment\": \"live\", \"scopes\": [\"jobs:read\"]}

sha256 is the SHA-256 of the whole key, in hexadecimal digits. Optional fields are organization_id, id, last_four, created_at, \
expires_at, disabled_at, revoked_at, owner, note, allowed_addresses and old_secret. A key that is already present and identical is \
skipped, so an interrupted import can be run again.

A key opens something only if it looks like this: an accepted prefix (keys.prefix of the configuration, or one that `keygate store \
accept-prefix` has added), _live_sk_ or _test_sk_, then 32 letters and digits and keygate's checksum of 6. With \
keys.accept_without_checksum = true, 16 to 128 letters and digits without a checksum are enough. A hash does not show what its key looks \
like, so say it with --scheme: fh for keys that another keygate has made, fh:no-checksum for others. The import stops before it begins if \
such keys would be refused.

With --secrets each line is a secret, or an object with `secret` in the place of sha256. Each secret is looked at, and refused if it could \
open nothing. Only its hash leaves this command.

Exit code: 0 if every key was imported or already present, 1 if any was refused, or if keys of this scheme would be.

Examples:
  keygate keys import keys.jsonl --dry-run
  keygate keys import keys.jsonl --scheme fh
  keygate keys import --secrets old-keys.txt --scopes jobs:read
  keygate keys import keys.jsonl --org org_01J9ZQ6T5N8XKD3V4WPYB7C2HM
  zcat keys.jsonl.gz | keygate keys import -")]
pub(super) struct Import {
    /// The file with the keys, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// The organisation of the keys that have no organization_id, by its id or its name
    #[arg(long, value_name = "ORG", value_parser = OrgName::parse)]
    org: Option<OrgName>,
    /// What the imported keys look like: their prefix, and :no-checksum if keygate has not made them
    #[arg(long, value_name = "PREFIX[:no-checksum]", value_parser = Scheme::parse)]
    scheme: Option<Scheme>,
    /// The file has the secrets themselves; it must have mode 0600
    #[arg(long)]
    secrets: bool,
    /// The scopes of the keys whose lines name none, separated by commas
    #[arg(long, value_name = "SCOPES", value_delimiter = ',', value_parser = Scope::parse, requires = "secrets")]
    scopes: Option<Vec<Scope>>,
    /// Begin at this line; the first line is 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    from_line: u64,
    /// Change nothing, and show what an import would do
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without a pepper, any keygate can import the lines. With a pepper, the lines have `digest` \
     instead of `sha256`, and only a keygate with the same pepper can import them. The time of a key's last use is \
     not exported."
)]
pub(super) struct Export {
    /// Only keys of this organisation, by its id or its name
    #[arg(long, value_name = "ORG", value_parser = OrgName::parse)]
    org: Option<OrgName>,
}

/// The results of an import so far.
#[derive(Debug, Default, serde::Serialize)]
struct Tally {
    imported: u64,
    present: u64,
    refused: u64,
    /// Of the imported and present ones, those that could be used now; if their shape is not known: if it is accepted.
    usable: u64,
    /// The others, by what keeps them from it.
    unusable: BTreeMap<String, u64>,
    /// Whether every key has a shape that is accepted.
    shape_known: bool,
    /// The last line that was read.
    last_line: u64,
}

/// Keys that wait to be imported, with the numbers of their lines.
#[derive(Default)]
struct Batch {
    numbers: Vec<u64>,
    keys: Vec<MovedKey>,
    len: usize,
}

pub(super) async fn import(args: Import, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let shape_known = args.scheme.is_some() || args.secrets;
    let shapes = if shape_known { Some(Shapes::ask(session).await?) } else { None };
    if let Some((scheme, shapes)) = args.scheme.as_ref().zip(shapes.as_ref()) {
        shapes.check(scheme)?;
    }
    let secrets = shapes.filter(|_| args.secrets);
    let org = id_of(args.org.as_ref(), session).await?;
    let reading = Reading { org, scheme: args.scheme, secrets, scopes: args.scopes };
    let mut lines = Lines { input: open(&args.file, args.secrets)?, number: 0 };
    let mut import = Importing { rehearsal: args.dry_run.then(Rehearsal::default), ..Importing::default() };
    import.tally.shape_known = shape_known;
    let mut batch = Batch::default();
    while let Some((number, line)) = lines.next()? {
        import.tally.last_line = number;
        if number < args.from_line {
            continue;
        }
        match line.and_then(|line| reading.parse(&line)) {
            Ok(None) => {}
            Ok(Some((key, len))) => {
                batch.numbers.push(number);
                batch.keys.push(key);
                batch.len += len;
            }
            Err(reason) => import.refuse(number, &reason, session),
        }
        if batch.keys.len() == BATCH || batch.len >= BATCH_LEN {
            import.hand_over(std::mem::take(&mut batch), session).await?;
        }
    }
    import.hand_over(batch, session).await?;
    import.finish(0, session).await?;
    session.show_progress("");
    if import.checksum_required && !shape_known {
        session.remark(
            "keys.accept_without_checksum is false: imported keys without keygate's checksum are refused when they \
                 are used",
        );
    }
    summarise(&import.tally, args.dry_run, session)?;
    Ok(if import.tally.refused == 0 { Outcome::Done } else { Outcome::Refused })
}

async fn id_of(org: Option<&OrgName>, session: &mut Session<'_>) -> Result<Option<OrgId>, Failure> {
    match org {
        Some(org) => org.id(session).await.map(Some),
        None => Ok(None),
    }
}

fn open(path: &Path, has_secrets: bool) -> Result<Box<dyn BufRead>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    if has_secrets {
        let file = secret_file::open("--secrets", path).map_err(|error| error.to_string())?;
        return Ok(Box::new(BufReader::with_capacity(1 << 16, file)));
    }
    let file = File::open(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    Ok(Box::new(BufReader::with_capacity(1 << 16, file)))
}

/// The lines of a file, one at a time.
struct Lines {
    input: Box<dyn BufRead>,
    number: u64,
}

impl Lines {
    /// The next line and its number; an error in its place if it is too long.
    #[expect(
        clippy::type_complexity,
        reason = "two different reasons for having no line: the end of the file, and a \
         bad line"
    )]
    fn next(&mut self) -> Result<Option<(u64, Result<Vec<u8>, String>)>, Failure> {
        let failed = |error| format!("cannot read the line after line {}: {error}", self.number);
        let mut line = Vec::new();
        let most = LINE_LEN as u64 + 1;
        let read = (&mut self.input).take(most).read_until(b'\n', &mut line).map_err(failed)?;
        if read == 0 {
            return Ok(None);
        }
        let too_long = line.len() > LINE_LEN && !line.ends_with(b"\n");
        if too_long {
            self.input.skip_until(b'\n').map_err(failed)?;
        }
        self.number += 1;
        if self.number == 1 && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        let line = if too_long { Err(format!("the line is longer than {LINE_LEN} bytes")) } else { Ok(line) };
        Ok(Some((self.number, line)))
    }
}

/// An import in progress.
#[derive(Default)]
struct Importing {
    /// With `--dry-run`: the keys of the lines so far.
    rehearsal: Option<Rehearsal>,
    tally: Tally,
    /// Whether the gateway accepts only keys with a checksum.
    checksum_required: bool,
    /// Batches in the order of their lines.
    under_way: VecDeque<UnderWay>,
}

/// A batch that is being imported.
struct UnderWay {
    numbers: Vec<u64>,
    /// The marks of its keys in a rehearsal; empty in a real import.
    marks: Vec<Marks>,
    begun: Begun,
}

impl Importing {
    /// Begins to import a batch; waits first if too many are in progress.
    async fn hand_over(&mut self, batch: Batch, session: &mut Session<'_>) -> Result<(), Failure> {
        let Batch { numbers, keys, .. } = batch;
        if keys.is_empty() {
            return Ok(());
        }
        self.finish(UNDER_WAY - 1, session).await?;
        let rehearsal = self.rehearsal.as_ref();
        let marks = rehearsal.map_or_else(Vec::new, |of| keys.iter().map(|key| of.marks(key)).collect());
        let command = KeyCommand::Import { keys, rehearsal: rehearsal.is_some() };
        self.under_way.push_back(UnderWay { numbers, marks, begun: session.begin(Command::Keys(command)) });
        Ok(())
    }

    /// Waits until at most `left` batches are in progress.
    async fn finish(&mut self, left: usize, session: &mut Session<'_>) -> Result<(), Failure> {
        while self.under_way.len() > left {
            let Some(UnderWay { numbers, marks, begun }) = self.under_way.pop_front() else { break };
            let reply = begun.finish().await.map_err(|failure| stopped_at(&numbers, failure))?;
            let Reply::Imported { outcomes, checksum_required } = reply else { return Err(unexpected()) };
            self.checksum_required |= checksum_required;
            let mut marks = marks.into_iter();
            for (number, ImportedKey { outcome, unusable }) in numbers.iter().zip(outcomes) {
                match self.among_lines(*number, marks.next(), outcome) {
                    Imported::New => self.tally.imported += 1,
                    Imported::Present => self.tally.present += 1,
                    Imported::Refused { reason } => {
                        self.refuse(*number, &reason, session);
                        continue;
                    }
                }
                match unusable {
                    Some(reason) => *self.tally.unusable.entry(reason).or_default() += 1,
                    None => self.tally.usable += 1,
                }
            }
            let Tally { imported, present, refused, .. } = self.tally;
            session.show_progress(&format!(
                "{imported} keys imported, {present} already present, {refused} refused"
            ));
        }
        Ok(())
    }

    /// The outcome of a line in a rehearsal. The store does not have the earlier lines, so they are compared here.
    fn among_lines(&mut self, number: u64, marks: Option<Marks>, outcome: Imported) -> Imported {
        match (outcome, &mut self.rehearsal, marks) {
            (Imported::New, Some(rehearsal), Some(marks)) => rehearsal.judge(number, marks),
            (outcome, ..) => outcome,
        }
    }

    fn refuse(&mut self, number: u64, reason: &str, session: &mut Session<'_>) {
        self.tally.refused += 1;
        session.show_progress("");
        session.remark(&format!("line {number}: {reason}"));
    }
}

/// Adds the line at which to continue: some keys of this batch and of later ones may be present.
fn stopped_at(numbers: &[u64], failure: Failure) -> Failure {
    let Some(first) = numbers.first() else { return failure };
    match failure {
        Failure::Told(message) => Failure::Told(format!(
            "{message}; all lines before line {first} are done: run the import again with --from-line {first}"
        )),
        other @ (Failure::Usage(_) | Failure::Output(_)) => other,
    }
}

fn summarise(tally: &Tally, rehearsal: bool, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(tally);
    }
    let Tally { imported, present, refused, usable, unusable, shape_known, .. } = tally;
    let moved = if rehearsal { "would be imported" } else { "imported" };
    session.print_line(&format!("{imported} {moved}, {present} already present, {refused} refused"))?;
    let all = imported + present;
    if all == 0 {
        return Ok(());
    }
    let others: String = unusable.iter().map(|(reason, count)| format!(", {count} {reason}")).collect();
    if *shape_known {
        session.print_line(&format!("{usable} of {all} could be used as things stand{others}"))?;
    } else {
        writeln!(
            session.out,
            "at most {usable} of {all} could be used as things stand{others}; a hash does not show what its key looks like: \
             say it with --scheme"
        )?;
    }
    Ok(())
}

pub(super) async fn export(args: &Export, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let org = id_of(args.org.as_ref(), session).await?;
    let mut after: Option<KeyId> = None;
    let (mut count, mut peppered, mut missing) = (0_usize, false, 0_usize);
    loop {
        let command = KeyCommand::Export { org, after, limit: PAGE };
        let reply = session.ask(Command::Keys(command)).await?;
        let Reply::ExportedKeys { keys, has_more, unreadable } = reply else { return Err(unexpected()) };
        for key in &unreadable {
            session.remark(&format!("{} is missing here: its record cannot be read: {}", key.id, key.reason));
        }
        missing += unreadable.len();
        for key in &keys {
            session.print_json(key)?;
            peppered |= key.digest.is_some();
        }
        count += keys.len();
        after = keys.last().and_then(|key| key.id).or(after);
        if !has_more {
            break;
        }
    }
    if peppered {
        session.remark("a pepper is set, so these lines can only be imported with the same pepper");
    }
    session.remark(&format!("{count} keys exported"));
    if missing > 0 {
        return Err(format!(
            "{missing} keys are missing in this export, because their records cannot be read"
        )
        .into());
    }
    Ok(Outcome::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &'static str) -> Lines {
        Lines { input: Box::new(BufReader::with_capacity(16, text.as_bytes())), number: 0 }
    }

    #[test]
    fn a_line_that_is_too_long_is_skipped_and_the_next_is_read() {
        let text = format!("a\n{}\nb", "x".repeat(LINE_LEN + 1)).leak();
        let mut lines = lines(text);
        assert_eq!(lines.next().unwrap(), Some((1, Ok(b"a\n".to_vec()))));
        assert!(matches!(lines.next().unwrap(), Some((2, Err(reason))) if reason.contains("longer")));
        assert_eq!(lines.next().unwrap(), Some((3, Ok(b"b".to_vec()))));
        assert_eq!(lines.next().unwrap(), None);
    }

    #[test]
    fn a_byte_order_mark_is_not_part_of_the_first_line() {
        let mut lines = lines("\u{feff}{}\r\n\u{feff}{}");
        let (_, first) = lines.next().unwrap().unwrap();
        assert_eq!(first, Ok(b"{}\r\n".to_vec()));
        let (_, second) = lines.next().unwrap().unwrap();
        assert!(second.unwrap().starts_with("\u{feff}".as_bytes()));
    }
}

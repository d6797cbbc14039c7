//! `keygate keys import` and `keygate keys export`: keys as lines of JSON, many at a time, none of them all at
//! once.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use super::Outcome;
use super::operator::{Begun, Failure, Session, unexpected};
use crate::lifecycle::{Imported, Marks, MovedKey, Rehearsal};
use crate::operators::admin::{Command, KeyCommand, Reply};
use crate::vocabulary::id::{KeyId, OrgId};

/// Keys that are handed over at once: what costs once for each batch, a sync to the disk, costs little for each key.
const BATCH: usize = 4000;
/// Batches under way: while the store works on one, the next is read.
const UNDER_WAY: usize = 2;
/// Keys that are asked for at once.
const PAGE: usize = 1000;
/// Text of lines that is handed over at once, at most, with one more line; bytes.
const BATCH_LEN: usize = 4 << 20;
/// The longest line that is read; bytes. A key with all that it may have is much shorter.
const LINE_LEN: usize = 64 << 10;
/// What some editors begin a file of UTF-8 with.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Each line is one key:
  {\"sha256\": \"…\", \"name\": \"…\", \"environment\": \"live\", \"scopes\": [\"jobs:read\"]}

sha256 is the SHA-256 of the whole key in hexadecimal digits. A line may also have organization_id, id, last_four, \
created_at, expires_at, disabled_at, revoked_at, owner, note, allowed_addresses and old_secret. What is there already and the \
same is left alone, so an import that was interrupted can simply be run again.

Exit code: 0 if every line was moved in or there already, 1 if any was not.

Examples:
  keygate keys import keys.jsonl --dry-run
  keygate keys import keys.jsonl --org org_01J9ZQ6T5N8XKD3V4WPYB7C2HM
  zcat keys.jsonl.gz | keygate keys import -")]
pub(super) struct Import {
    /// The file, or - for standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Whose keys those are that do not say it
    #[arg(long, value_name = "ORG_ID", value_parser = OrgId::parse)]
    org: Option<OrgId>,
    /// Go on from this line, the first being 1
    #[arg(long, value_name = "N", default_value_t = 1)]
    from_line: u64,
    /// Change nothing, and say what would happen
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "\
Without a pepper the lines fit any keygate. With one they carry `digest` in place of `sha256` and fit only where the same \
pepper is set. When keys were used is not part of them.")]
pub(super) struct Export {
    /// Only keys of this organisation
    #[arg(long, value_name = "ORG_ID", value_parser = OrgId::parse)]
    org: Option<OrgId>,
}

/// What an import has come to so far.
#[derive(Debug, Default, serde::Serialize)]
struct Tally {
    imported: u64,
    present: u64,
    refused: u64,
    /// The last line that was read.
    last_line: u64,
}

/// Lines that wait to be handed over, with their numbers.
#[derive(Default)]
struct Batch {
    numbers: Vec<u64>,
    keys: Vec<MovedKey>,
    len: usize,
}

pub(super) async fn import(args: Import, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let mut lines = Lines { input: open(&args.file)?, number: 0 };
    let mut import = Importing { rehearsal: args.dry_run.then(Rehearsal::default), ..Importing::default() };
    let mut batch = Batch::default();
    while let Some((number, line)) = lines.next()? {
        import.tally.last_line = number;
        if number < args.from_line {
            continue;
        }
        match line.and_then(|line| parse(&line, args.org)) {
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
    if import.checksum_required {
        session.remark(
            "keys.accept_without_checksum is false: of these keys, those work that keygate or something like it made; those \
             without its checksum are refused",
        );
    }
    summarise(&import.tally, args.dry_run, session)?;
    Ok(if import.tally.refused == 0 { Outcome::Done } else { Outcome::Refused })
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, Failure> {
    if path.as_os_str() == "-" {
        return Ok(Box::new(BufReader::new(io::stdin())));
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
    /// The next line and its number; what is wrong with one that is too long.
    #[expect(clippy::type_complexity, reason = "the end of the file and a bad line are both no line")]
    fn next(&mut self) -> Result<Option<(u64, Result<Vec<u8>, String>)>, Failure> {
        let failed = |error| format!("cannot read on after line {}: {error}", self.number);
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
        let line = if too_long { Err(format!("is longer than {LINE_LEN} bytes")) } else { Ok(line) };
        Ok(Some((self.number, line)))
    }
}

/// The key on a line and the line's length; `None` for an empty line.
fn parse(line: &[u8], org: Option<OrgId>) -> Result<Option<(MovedKey, usize)>, String> {
    let line = line.trim_ascii();
    if line.is_empty() {
        return Ok(None);
    }
    if !line.starts_with(b"{") {
        return Err("is not a JSON object; a line is {\"sha256\": …}".to_owned());
    }
    let mut key: MovedKey = serde_json::from_slice(line).map_err(|error| {
        // It counts lines within what it was given, which is one.
        let text = error.to_string();
        let text = text.split(" at line 1").next().unwrap_or_default();
        format!("{text}, at column {}", error.column())
    })?;
    key.organization_id = key.organization_id.or(org);
    Ok(Some((key, line.len())))
}

/// An import on its way.
#[derive(Default)]
struct Importing {
    /// Where nothing is to be changed: the lines so far.
    rehearsal: Option<Rehearsal>,
    tally: Tally,
    /// Whether keys need a checksum to work.
    checksum_required: bool,
    /// Batches in the order of their lines.
    under_way: VecDeque<UnderWay>,
}

/// A batch that was handed over.
struct UnderWay {
    numbers: Vec<u64>,
    /// What a rehearsal knows of its keys; nothing in earnest.
    marks: Vec<Marks>,
    begun: Begun,
}

impl Importing {
    /// Has a batch moved in, once there is a place for it.
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

    /// Waits until no more than so many are under way.
    async fn finish(&mut self, left: usize, session: &mut Session<'_>) -> Result<(), Failure> {
        while self.under_way.len() > left {
            let Some(UnderWay { numbers, marks, begun }) = self.under_way.pop_front() else { break };
            let reply = begun.finish().await.map_err(|failure| stopped_at(&numbers, failure))?;
            let Reply::Imported { outcomes, checksum_required } = reply else { return Err(unexpected()) };
            self.checksum_required |= checksum_required;
            let mut marks = marks.into_iter();
            for (number, outcome) in numbers.iter().zip(outcomes) {
                match self.among_lines(*number, marks.next(), outcome) {
                    Imported::New => self.tally.imported += 1,
                    Imported::Present => self.tally.present += 1,
                    Imported::Refused { reason } => self.refuse(*number, &reason, session),
                }
            }
            let Tally { imported, present, refused, .. } = self.tally;
            session.show_progress(&format!(
                "{imported} keys moved in, {present} there already, {refused} refused"
            ));
        }
        Ok(())
    }

    /// What becomes of a line in view of those before it, where the store cannot tell.
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

/// Says where to go on. Of this batch and those after it, some keys may be there.
fn stopped_at(numbers: &[u64], failure: Failure) -> Failure {
    let Some(first) = numbers.first() else { return failure };
    match failure {
        Failure::Told(message) => Failure::Told(format!(
            "{message}; nothing is sure from line {first} on: run it again, with --from-line {first} to save time"
        )),
        gone @ Failure::Output(_) => gone,
    }
}

fn summarise(tally: &Tally, rehearsal: bool, session: &mut Session<'_>) -> Result<(), Failure> {
    if session.json {
        return session.print_json(tally);
    }
    let Tally { imported, present, refused, .. } = tally;
    let moved = if rehearsal { "would be moved in" } else { "moved in" };
    Ok(writeln!(session.out, "{imported} {moved}, {present} there already, {refused} refused")?)
}

pub(super) async fn export(args: &Export, session: &mut Session<'_>) -> Result<Outcome, Failure> {
    let mut after: Option<KeyId> = None;
    let (mut count, mut peppered) = (0_usize, false);
    loop {
        let command = KeyCommand::Export { org: args.org, after, limit: PAGE };
        let Reply::ExportedKeys { keys, has_more } = session.ask(Command::Keys(command)).await? else {
            return Err(unexpected());
        };
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
        session.remark("there is a pepper, so these lines can only be imported where the same pepper is set");
    }
    session.remark(&format!("{count} keys"));
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
    fn a_byte_order_mark_is_no_part_of_the_first_line() {
        let mut lines = lines("\u{feff}{}\r\n\u{feff}{}");
        let (_, first) = lines.next().unwrap().unwrap();
        assert_eq!(first, Ok(b"{}\r\n".to_vec()));
        let (_, second) = lines.next().unwrap().unwrap();
        assert!(parse(&second.unwrap(), None).unwrap_err().contains("not a JSON object"));
    }

    #[test]
    fn what_is_wrong_with_a_line_is_said_without_the_secret_that_may_be_in_it() {
        let secret = "fh_live_sk_0123456789abcdef";
        let sha256 = "\"sha256\":\"".to_owned() + &"a5".repeat(32) + "\"";
        let rest = "\"name\":\"n\",\"environment\":\"live\",\"scopes\":[\"jobs:read\"]";
        let said = |line: String| parse(line.as_bytes(), None).unwrap_err();
        assert!(
            said(format!("{{{sha256}}}")).starts_with("missing field `name`"),
            "{}",
            said(format!("{{{sha256}}}"))
        );
        assert!(said(format!("{{{sha256},{rest},\"scope\":1}}")).contains("unknown field `scope`"));
        assert!(said("{".to_owned()).contains("column"));
        for odd in ["[]", "1", "\"x\"", "null", "sha256,name"] {
            assert!(said(odd.to_owned()).contains("not a JSON object"), "{odd}");
        }
        let plain = said(format!("{{\"sha256\":\"{secret}\",{rest}}}"));
        assert!(plain.contains("64 hexadecimal digits") && !plain.contains(secret), "{plain}");
        assert_eq!(parse(b" \n", None), Ok(None));
        let org = OrgId::from_bytes([1; 16]);
        let (key, _) = parse(format!("{{{sha256},{rest}}}").as_bytes(), Some(org)).unwrap().unwrap();
        assert_eq!(key.organization_id, Some(org));
    }
}

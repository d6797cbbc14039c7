//! The bytes of a backup.
//!
//! | what | bytes |
//! |--|--|
//! | first line | `keygate backup 1`, then when it was begun, the id of the store, and the check value of the pepper that it takes, or `none`; for people |
//! | parts | a letter, the length of the content (4 bytes big-endian), the content |
//! | last part | `Z`: the SHA-256 of everything before it, and with a pepper a [proof](crate::vocabulary::key::proof) of that |
//!
//! | part | content |
//! |--|--|
//! | `O`, `K` | id (16 bytes) and sealed record of an organisation, of a key |
//! | `U` | id of a key, text of its use |
//! | `N` | id of an organisation, when its news are due (8 bytes), the news |
//! | `E`, `S` | [stone](crate::vocabulary::key::gone) of a key, of a secret: its id or digest, and the rest |
//! | `T` | trail (16 bytes), its ends (80), entries: number (8), MAC (32), length of the text (4), text |
//! | `+` | nothing: what follows is newer |
//! | `H` | what the store said of itself at the moment of the backup, as JSON |
//!
//! There is no secret in it, and no pepper: as in the store, digests, and older peppers encrypted under the one in force.

use std::io::Read;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use crate::store::keeper::Place;
use crate::store::whole::{Head, Piece};
use crate::vocabulary::audit::{Ends, Entry, Link, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::gone::{Gone, Stone};
use crate::vocabulary::key::proof::ProofOf;
use crate::vocabulary::key::record::{RecordFormat, Sealer};

/// What every backup begins with.
const MAGIC: &str = "keygate backup 1 ";
/// The most bytes of the first line.
const LINE: usize = 512;
/// The most bytes of a part. A piece has at most 256 audit records.
const PART: usize = 64 << 20;
const HASH: usize = 32;

/// The last words about a store, in a backup.
#[derive(Serialize, Deserialize)]
struct HeadPart {
    incarnation: String,
    event: u64,
    format: RecordFormat,
    prefixes: Option<String>,
    peppers: Option<String>,
}

/// Puts pieces into bytes.
#[derive(Debug)]
pub(super) struct Writer {
    bytes: Vec<u8>,
    hash: Sha256,
}

impl Writer {
    pub(super) fn begin(at: UnixMillis, store: &str, pepper: Option<&str>) -> Self {
        let mut writer = Self { bytes: Vec::new(), hash: Sha256::new() };
        let line = format!("{MAGIC}{at} {store} {}\n", pepper.unwrap_or("none"));
        writer.bytes.extend_from_slice(line.as_bytes());
        writer
    }

    pub(super) const fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes so far, which come no second time.
    pub(super) fn take(&mut self) -> Vec<u8> {
        self.hash.update(&self.bytes);
        std::mem::take(&mut self.bytes)
    }

    pub(super) fn piece(&mut self, piece: &Piece) {
        match piece {
            Piece::Record { of: Place::Org(id), sealed } => self.part(b'O', &[&id.to_bytes(), sealed]),
            Piece::Record { of: Place::Key(id), sealed } => self.part(b'K', &[&id.to_bytes(), sealed]),
            Piece::Used { key, usage } => self.part(b'U', &[&key.to_bytes(), usage.as_bytes()]),
            Piece::News { org, due, body } => {
                self.part(b'N', &[&org.to_bytes(), &due.0.to_be_bytes(), body]);
            }
            Piece::Entries { trail, ends, entries } => {
                let mut content = Vec::new();
                for Entry { link, text } in entries {
                    content.extend_from_slice(&link.to_bytes());
                    content.extend_from_slice(&length(text.len()));
                    content.extend_from_slice(text);
                }
                self.part(b'T', &[&trail.to_bytes(), &ends.to_bytes(), &content]);
            }
            Piece::Gone(stone) => {
                let kind = if matches!(stone.of, Gone::Key(_)) { b'E' } else { b'S' };
                self.part(kind, &[&stone.of.to_bytes(), &stone.to_bytes()]);
            }
            Piece::Newer => self.part(b'+', &[]),
        }
    }

    /// The end, under the seal of the store.
    pub(super) fn finish(&mut self, head: Head, sealer: &Sealer) -> serde_json::Result<Vec<u8>> {
        let Head { incarnation, event, format, prefixes, peppers } = head;
        let head = serde_json::to_vec(&HeadPart { incarnation, event, format, prefixes, peppers })?;
        self.part(b'H', &[&head]);
        let mut bytes = self.take();
        let hash = self.hash.clone().finalize();
        let proof = sealer.prove(ProofOf::Backup, &[&hash]).unwrap_or_default();
        self.part(b'Z', &[&hash, &proof]);
        bytes.append(&mut self.bytes);
        Ok(bytes)
    }

    fn part(&mut self, kind: u8, contents: &[&[u8]]) {
        self.bytes.push(kind);
        self.bytes.extend_from_slice(&length(contents.iter().map(|content| content.len()).sum()));
        contents.iter().for_each(|content| self.bytes.extend_from_slice(content));
    }
}

/// A record or a text of a trail is far shorter than this can say.
fn length(bytes: usize) -> [u8; 4] {
    u32::try_from(bytes).unwrap_or(u32::MAX).to_be_bytes()
}

/// Why a file is no backup that can be restored.
#[derive(Debug, Error)]
pub enum BadBackup {
    #[error("it cannot be read: {0}")]
    Io(#[from] std::io::Error),
    #[error("it is no backup that keygate has made")]
    Foreign,
    #[error("it is cut short, or was not written to its end")]
    Short,
    #[error("its content is not what was written: the file is damaged or was changed")]
    Changed,
    #[error("it is not proven under the pepper of its store: somebody has changed it, or made it elsewhere")]
    Unproven,
}

/// A part of a backup.
#[derive(Debug)]
pub(super) enum Part {
    Piece(Piece),
    Head(Head),
    /// The hash of everything before, and its proof.
    End {
        hash: Vec<u8>,
        proof: Vec<u8>,
    },
}

/// Reads the parts of a backup, in their order.
pub(super) struct Reader<R> {
    input: R,
    hash: Sha256,
    /// The first line, without its end.
    pub(super) line: String,
}

impl<R: Read> Reader<R> {
    pub(super) fn begin(input: R) -> Result<Self, BadBackup> {
        let mut reader = Self { input, hash: Sha256::new(), line: String::new() };
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            if line.len() == LINE {
                return Err(BadBackup::Foreign);
            }
            let mut byte = [0];
            reader.read(&mut byte).map_err(|_| BadBackup::Foreign)?;
            line.extend_from_slice(&byte);
        }
        line.pop();
        reader.line = String::from_utf8(line).map_err(|_| BadBackup::Foreign)?;
        if reader.line.starts_with(MAGIC) { Ok(reader) } else { Err(BadBackup::Foreign) }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), BadBackup> {
        self.input.read_exact(bytes).map_err(|error| match error.kind() {
            std::io::ErrorKind::UnexpectedEof => BadBackup::Short,
            _ => error.into(),
        })?;
        self.hash.update(bytes);
        Ok(())
    }

    /// The next part. What comes after the end does not belong to the backup.
    pub(super) fn next(&mut self) -> Result<Part, BadBackup> {
        let before = self.hash.clone();
        let mut head = [0; 5];
        self.read(&mut head)?;
        let [kind, length @ ..] = head;
        let length = u32::from_be_bytes(length) as usize;
        if length > PART {
            return Err(BadBackup::Changed);
        }
        let mut content = vec![0; length];
        self.read(&mut content)?;
        if kind != b'Z' {
            return parse(kind, &content).ok_or(BadBackup::Changed);
        }
        let (hash, proof) = content.split_at_checked(HASH).ok_or(BadBackup::Changed)?;
        if before.finalize()[..] != *hash || self.input.read(&mut [0])? > 0 {
            return Err(BadBackup::Changed);
        }
        Ok(Part::End { hash: hash.to_vec(), proof: proof.to_vec() })
    }
}

fn parse(kind: u8, content: &[u8]) -> Option<Part> {
    if kind == b'H' {
        let head: HeadPart = serde_json::from_slice(content).ok()?;
        let HeadPart { incarnation, event, format, prefixes, peppers } = head;
        return Some(Part::Head(Head { incarnation, event, format, prefixes, peppers }));
    }
    if kind == b'+' {
        return content.is_empty().then_some(Part::Piece(Piece::Newer));
    }
    let (id, rest) = content.split_first_chunk::<16>()?;
    Some(Part::Piece(match kind {
        b'O' => Piece::Record { of: Place::Org(OrgId::from_bytes(*id)), sealed: rest.to_vec() },
        b'K' => Piece::Record { of: Place::Key(KeyId::from_bytes(*id)), sealed: rest.to_vec() },
        b'U' => Piece::Used { key: KeyId::from_bytes(*id), usage: String::from_utf8(rest.to_vec()).ok()? },
        b'N' => {
            let (due, body) = rest.split_first_chunk()?;
            let due = UnixMillis(u64::from_be_bytes(*due));
            Piece::News { org: OrgId::from_bytes(*id), due, body: body.to_vec() }
        }
        b'E' => Piece::Gone(Stone::from_bytes(Gone::from_bytes(id)?, rest)?),
        b'S' => {
            let (digest, rest) = content.split_first_chunk::<32>()?;
            Piece::Gone(Stone::from_bytes(Gone::from_bytes(digest)?, rest)?)
        }
        b'T' => {
            let trail = if *id == Trail::Operator.to_bytes() {
                Trail::Operator
            } else {
                Trail::Org(OrgId::from_bytes(*id))
            };
            let (ends, rest) = rest.split_at_checked(Ends::LEN)?;
            Piece::Entries { trail, ends: Ends::from_bytes(ends)?, entries: parse_entries(rest)? }
        }
        _ => return None,
    }))
}

fn parse_entries(mut bytes: &[u8]) -> Option<Vec<Entry>> {
    let mut entries = Vec::new();
    while !bytes.is_empty() {
        let (link, rest) = bytes.split_at_checked(Link::LEN)?;
        let (length, rest) = rest.split_first_chunk()?;
        let (text, rest) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
        entries.push(Entry { link: Link::from_bytes(link)?, text: text.to_vec() });
        bytes = rest;
    }
    Some(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::key::{Digest, Pepper};

    fn pieces() -> Vec<Piece> {
        let (org, key) = (OrgId::from_bytes([1; 16]), KeyId::from_bytes([2; 16]));
        let link = |number| Link { number, mac: [number as u8; 32] };
        let entry = |number| Entry { link: link(number), text: vec![b'x'; number as usize] };
        vec![
            Piece::Record { of: Place::Org(org), sealed: vec![1, 2, 3] },
            Piece::Record { of: Place::Key(key), sealed: Vec::new() },
            Piece::Used { key, usage: "17 jobs:read".to_owned() },
            Piece::News { org, due: UnixMillis(9), body: b"{}".to_vec() },
            Piece::Gone(Stone { of: Gone::Key(key), maker: Some(key), proof: [3; Stone::PROOF] }),
            Piece::Gone(Stone {
                of: Gone::Secret(Digest::from_bytes([4; 32])),
                maker: None,
                proof: [5; Stone::PROOF],
            }),
            Piece::Entries {
                trail: Trail::Org(org),
                ends: Ends { checkpoint: link(3), head: link(5) },
                entries: vec![entry(4), entry(5)],
            },
            Piece::Entries { trail: Trail::Operator, ends: Ends::default(), entries: Vec::new() },
            Piece::Newer,
        ]
    }

    fn head() -> Head {
        let (prefixes, peppers) = (Some("fh".to_owned()), None);
        Head { incarnation: "ab".repeat(16), event: 7, format: RecordFormat::OPEN, prefixes, peppers }
    }

    fn written() -> Vec<u8> {
        let sealer = Sealer::new(Some(Pepper::new(vec![1; 32]).unwrap()));
        let mut writer = Writer::begin(UnixMillis(1_790_000_000_000), "ab", None);
        let mut bytes = writer.take();
        pieces().iter().for_each(|piece| writer.piece(piece));
        bytes.extend(writer.finish(head(), &sealer).unwrap());
        bytes
    }

    fn read(bytes: &[u8]) -> Result<(Vec<Piece>, Head), BadBackup> {
        let (mut reader, mut read, mut told) = (Reader::begin(bytes)?, Vec::new(), None);
        loop {
            match reader.next()? {
                Part::Piece(piece) => read.push(piece),
                Part::Head(head) => told = Some(head),
                Part::End { .. } => return Ok((read, told.unwrap())),
            }
        }
    }

    #[test]
    fn what_was_written_is_read() {
        assert_eq!(read(&written()).unwrap(), (pieces(), head()));
    }

    #[test]
    fn every_byte_and_every_end_counts() {
        let bytes = written();
        for at in 0..bytes.len() {
            assert!(read(&bytes[..at]).is_err(), "cut at {at}");
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            // The proof behind the hash is judged with the pepper.
            if at < bytes.len() - 32 {
                assert!(read(&changed).is_err(), "changed at {at}");
            }
        }
        assert!(read(&[&bytes[..], b"more"].concat()).is_err());
    }
}

//! Follows the fields of header lists (HPACK, RFC 7541, section 6), only to know which lists put something into the table of
//! the connection: h2 keeps what was read for as long as an entry of the table lives.

use std::collections::VecDeque;

/// The most entries that a table of 4,096 bytes can have: an entry counts 32 bytes and its octets (RFC 7541, section 4.1).
const ENTRIES: u32 = 4096 / 33;
/// What one list with an entry can keep from being freed beside four times its own length, in bytes: the piece of 8 KiB that it
/// was read in, and 4 KiB of decoded strings (h2 0.4, `hpack::Decoder::decode_literal`).
const OF_ONE_LIST: usize = 12 << 10;

/// Where in a list the next byte stands.
#[derive(Clone, Copy, Debug, Default)]
enum At {
    /// At the beginning of a field, or of one of its strings.
    #[default]
    Beginning,
    /// Within a number: its value so far, how far it is shifted, and what it is for.
    Number(usize, u32, Meaning),
}

#[derive(Clone, Copy, Debug)]
enum Meaning {
    /// An entry of a table, or a size of the table.
    Whole,
    /// The name of a field whose value follows; zero: the name follows, too.
    Name,
    Length,
}

/// Reads the fields of one list.
#[derive(Debug, Default)]
struct Fields {
    at: At,
    strings_left: u8,
    skip: usize,
    /// How many of them enter the table.
    entering: u32,
}

impl Fields {
    fn pass(&mut self, mut bytes: &[u8]) {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            let Some((byte, rest)) = bytes.split_first() else { return };
            bytes = rest;
            match self.at {
                At::Beginning => self.begin(*byte),
                At::Number(value, shift, meaning) => {
                    let value = value.saturating_add(usize::from(byte & 0x7f) << shift.min(28));
                    self.at = At::Number(value, shift + 7, meaning);
                    if byte & 0x80 == 0 {
                        self.end(value, meaning);
                    }
                }
            }
        }
    }

    fn begin(&mut self, byte: u8) {
        let (mask, meaning) = match byte {
            _ if self.strings_left > 0 => (0x7f, Meaning::Length),
            0x80.. => (0x7f, Meaning::Whole),
            0x40.. => {
                self.entering += 1;
                (0x3f, Meaning::Name)
            }
            0x20.. => (0x1f, Meaning::Whole),
            _ => (0x0f, Meaning::Name),
        };
        let value = byte & mask;
        if value == mask {
            self.at = At::Number(value.into(), 0, meaning);
        } else {
            self.end(value.into(), meaning);
        }
    }

    const fn end(&mut self, value: usize, meaning: Meaning) {
        self.at = At::Beginning;
        match meaning {
            Meaning::Whole => {}
            Meaning::Name => self.strings_left = if value == 0 { 2 } else { 1 },
            Meaning::Length => {
                self.strings_left -= 1;
                self.skip = value;
            }
        }
    }
}

/// What the table keeps from being freed.
#[derive(Debug, Default)]
pub(super) struct Table {
    fields: Fields,
    /// The bytes of the list that is being read.
    length: usize,
    /// The lists whose entries can still be there, the oldest first.
    lists: VecDeque<List>,
    entries: u32,
    of_lists: usize,
}

#[derive(Debug)]
struct List {
    begins: u64,
    entries: u32,
    keeps: usize,
}

impl Table {
    /// A part of a list has come.
    pub(super) fn pass(&mut self, part: &[u8]) {
        self.length += part.len();
        self.fields.pass(part);
    }

    /// The list has ended, when so many bytes of the connection had been read.
    pub(super) fn end_list(&mut self, read: u64) {
        let Fields { entering, .. } = std::mem::take(&mut self.fields);
        let length = std::mem::take(&mut self.length);
        if entering == 0 {
            return;
        }
        let list = List { begins: read - length as u64, entries: entering, keeps: OF_ONE_LIST + 4 * length };
        self.entries = self.entries.saturating_add(entering);
        self.of_lists += list.keeps;
        self.lists.push_back(list);
        // The table drops its oldest entries first.
        while let Some(oldest) = self.lists.front()
            && self.entries - oldest.entries >= ENTRIES
        {
            self.entries -= oldest.entries;
            self.of_lists -= oldest.keeps;
            self.lists.pop_front();
        }
    }

    /// At most so many bytes, when so many of the connection have been read: no more than what one list can keep for each, nor
    /// than six times what has come since the oldest (half of each piece can be unused, and decoded strings take up to four
    /// times their length).
    pub(super) fn bytes(&self, read: u64) -> usize {
        let Some(oldest) = self.lists.front() else { return 0 };
        let since = usize::try_from(read.saturating_sub(oldest.begins)).unwrap_or(usize::MAX);
        self.of_lists.min(since.saturating_mul(6).saturating_add(OF_ONE_LIST))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `:method: GET`, `:path` as a literal that enters the table, a name and a value of their own that do, a literal that does
    /// not, an update of the table's size, and a long value.
    fn list() -> Vec<u8> {
        let long = [&[0x0f, 0x01, 0x7f, 0x49][..], &[0x40; 200]].concat();
        [&[0x3f, 0xe1, 0x1f, 0x82, 0x44, 2, b'/', b'a', 0x40, 1, b'@', 0][..], &[0, 1, b'n', 1, 0xff], &long]
            .concat()
    }

    #[test]
    fn entries_are_counted_in_parts_of_any_size() {
        let list = list();
        for step in [1, 2, 3, 7, 50, 1000] {
            let mut fields = Fields::default();
            list.chunks(step).for_each(|part| fields.pass(part));
            assert_eq!((fields.entering, fields.skip, fields.strings_left), (2, 0, 0), "in steps of {step}");
        }
    }

    #[test]
    fn lists_without_an_entry_keep_nothing_and_old_entries_are_forgotten() {
        let mut table = Table::default();
        table.pass(&[0x82, 0x84]);
        table.end_list(2);
        assert_eq!(table.bytes(1 << 30), 0);
        let mut read = 2;
        for n in 1..=10_000_usize {
            read += 20_000;
            table.pass(&[0x44, 1, b'/']);
            table.end_list(read);
            let lists = n.min(ENTRIES as usize);
            assert!(table.bytes(read) <= lists * (OF_ONE_LIST + 12), "{n}");
        }
        assert!(table.bytes(read) > 1 << 20, "far apart, each keeps what it was read in");
        for _ in 0..ENTRIES {
            read += 50;
            table.pass(&[0x44, 1, b'/']);
            table.end_list(read);
        }
        assert!(table.bytes(read) < 64 << 10, "close together, they share it: {}", table.bytes(read));
    }
}

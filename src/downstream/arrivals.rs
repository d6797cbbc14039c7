//! Follows the frames that a client sends over HTTP/2, for what they make [held](super::held).

use super::held::Held;

/// The bytes before the first frame (RFC 9113, section 3.4).
const PREFACE: usize = 24;
/// The length of a frame's head (RFC 9113, section 4.1).
const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// How far the frames have come.
#[derive(Debug)]
pub(super) struct Arrivals {
    head: [u8; HEAD],
    /// The bytes of the head that have come.
    seen: usize,
    /// The bytes that are still to come before the next head.
    skip: usize,
}

impl Default for Arrivals {
    fn default() -> Self {
        Self { head: [0; HEAD], seen: 0, skip: PREFACE }
    }
}

impl Arrivals {
    /// Bytes have come: what they hold is noted.
    pub(super) fn pass(&mut self, mut bytes: &[u8], held: &Held) {
        held.note_read(bytes.len());
        while !bytes.is_empty() {
            if self.skip > 0 {
                let n = self.skip.min(bytes.len());
                self.skip -= n;
                bytes = &bytes[n..];
                continue;
            }
            let n = (HEAD - self.seen).min(bytes.len());
            self.head[self.seen..self.seen + n].copy_from_slice(&bytes[..n]);
            self.seen += n;
            bytes = &bytes[n..];
            if self.seen == HEAD {
                self.seen = 0;
                self.note(held);
            }
        }
    }

    fn note(&mut self, held: &Held) {
        let [long, middle, short, kind, flags, ..] = self.head;
        self.skip = usize::from(long) << 16 | usize::from(middle) << 8 | usize::from(short);
        match kind {
            DATA => held.note_data_frame(),
            HEADERS | CONTINUATION => held.note_list(flags & END_HEADERS != 0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::super::held::Owner;
    use super::*;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        // A payload that looks like frames itself.
        [&[0, 0, length, kind, flags, 0, 0, 0, 1][..], &vec![0; usize::from(length)]].concat()
    }

    #[test]
    fn frames_are_followed_in_parts_of_any_size() {
        let preface = [0; PREFACE];
        let list = [frame(HEADERS, 0, 9), frame(CONTINUATION, 0, 200)].concat();
        let sent = [&preface[..], &frame(DATA, 0, 100), &frame(7, 0, 50), &frame(DATA, 0, 0), &list].concat();
        for step in [1, 2, 7, 30, 1000] {
            let held = Held::new(Owner::Proxy(0), &Rc::default());
            let mut arrivals = Arrivals::default();
            let request = held.open();
            let before = held.bytes();
            sent.chunks(step).for_each(|part| arrivals.pass(part, &held));
            let in_list = held.bytes() - before;
            assert!(in_list > 512 << 10, "in steps of {step}: {in_list}");
            arrivals.pass(&frame(CONTINUATION, END_HEADERS, 1), &held);
            let read = sent.len() + 10;
            // Once for the table, once for what two DATA frames can keep.
            assert_eq!(held.bytes() - before, 2 * read, "in steps of {step}");
            drop(request);
        }
    }
}

//! Follows the frames that a client sends over HTTP/2, for what they make h2 [hold](super::ledger).

use super::frames::{END_HEADERS, Frame, HEAD, PREFACE, SETTINGS};
use super::ledger::Arrived;

/// How far the frames have come.
#[derive(Debug)]
pub(super) struct Arrivals {
    head: [u8; HEAD],
    /// The bytes of the head that have come.
    seen: usize,
    frame: Frame,
    /// The bytes of the payload that are still to come, and how many of these come before or behind fields.
    left: usize,
    before: usize,
    behind: usize,
    is_pad_due: bool,
    /// A setting, and how much of it has come.
    setting: ([u8; SETTING], usize),
}

/// The length of a setting (RFC 9113, section 6.5.1).
const SETTING: usize = 6;

impl Default for Arrivals {
    fn default() -> Self {
        let (head, frame) = ([0; HEAD], Frame::default());
        let (before, behind, is_pad_due, setting) = (0, 0, false, ([0; SETTING], 0));
        Self { head, seen: 0, frame, left: PREFACE, before, behind, is_pad_due, setting }
    }
}

impl Arrivals {
    /// Bytes have come. Returns how many h2 may have before the budget is asked again.
    pub(super) fn pass(&mut self, bytes: &[u8], arrived: &mut Arrived<'_>) -> usize {
        let mut given = 0;
        while given < bytes.len() {
            if self.left == 0 {
                if self.seen == 0 && arrived.is_enough() {
                    break;
                }
                let n = (HEAD - self.seen).min(bytes.len() - given);
                self.head[self.seen..self.seen + n].copy_from_slice(&bytes[given..given + n]);
                self.seen += n;
                given += n;
                if self.seen < HEAD {
                    arrived.note_bytes(n);
                    break;
                }
                self.begin(arrived);
                arrived.note_bytes(n);
            } else {
                let n = self.left.min(bytes.len() - given);
                arrived.note_bytes(n);
                self.pass_payload(&bytes[given..given + n], arrived);
                given += n;
            }
            if self.left == 0 && self.ends_list() && arrived.end_list(self.frame.stream) {
                break;
            }
        }
        given
    }

    fn begin(&mut self, arrived: &mut Arrived<'_>) {
        self.seen = 0;
        self.frame = Frame::parse(&self.head);
        self.left = self.frame.length;
        (self.before, self.behind) = (self.frame.of_priority(), 0);
        self.is_pad_due = self.frame.is_padded();
        self.setting.1 = 0;
        arrived.note_frame(self.frame);
    }

    fn pass_payload(&mut self, mut part: &[u8], arrived: &mut Arrived<'_>) {
        self.left -= part.len();
        if self.frame.kind == SETTINGS {
            self.pass_settings(part, arrived);
        }
        if !self.frame.is_of_list() {
            return;
        }
        if self.is_pad_due
            && let Some((pad, rest)) = part.split_first()
        {
            (self.behind, self.is_pad_due) = (usize::from(*pad), false);
            part = rest;
        }
        let before = self.before.min(part.len());
        self.before -= before;
        part = &part[before..];
        // What is left behind this part takes of the padding first.
        let padding = self.behind.saturating_sub(self.left).min(part.len());
        arrived.note_fields(&part[..part.len() - padding]);
    }

    fn pass_settings(&mut self, part: &[u8], arrived: &mut Arrived<'_>) {
        let (setting, seen) = &mut self.setting;
        for byte in part {
            setting[*seen] = *byte;
            *seen = (*seen + 1) % SETTING;
            if *seen == 0 {
                let [n1, n2, v1, v2, v3, v4] = *setting;
                arrived.note_setting(u16::from_be_bytes([n1, n2]), u32::from_be_bytes([v1, v2, v3, v4]));
            }
        }
    }

    const fn ends_list(&self) -> bool {
        self.seen == 0 && self.frame.is_of_list() && self.frame.has(END_HEADERS)
    }
}

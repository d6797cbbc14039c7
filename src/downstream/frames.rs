//! The heads of HTTP/2 frames (RFC 9113, sections 4.1 and 6), as far as keygate reads them itself.

/// The bytes before the first frame of a client (RFC 9113, section 3.4).
pub(super) const PREFACE: usize = 24;
/// The length of a frame's head.
pub(super) const HEAD: usize = 9;

pub(super) const DATA: u8 = 0;
pub(super) const HEADERS: u8 = 1;
pub(super) const RST_STREAM: u8 = 3;
pub(super) const SETTINGS: u8 = 4;
pub(super) const GOAWAY: u8 = 7;
pub(super) const CONTINUATION: u8 = 9;

pub(super) const END_STREAM: u8 = 1;
pub(super) const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;

/// The head of a frame.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Frame {
    /// The length of what follows, in bytes.
    pub(super) length: usize,
    pub(super) kind: u8,
    pub(super) flags: u8,
    pub(super) stream: u32,
}

impl Frame {
    pub(super) const fn parse(head: &[u8; HEAD]) -> Self {
        let [long, middle, short, kind, flags, s1, s2, s3, s4] = *head;
        let length = u32::from_be_bytes([0, long, middle, short]) as usize;
        let stream = u32::from_be_bytes([s1, s2, s3, s4]) & 0x7fff_ffff;
        Self { length, kind, flags, stream }
    }

    pub(super) const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// Whether it is a part of a header list.
    pub(super) const fn is_of_list(&self) -> bool {
        matches!(self.kind, HEADERS | CONTINUATION)
    }

    /// Whether nothing follows in its stream from the same side.
    pub(super) const fn ends_stream(&self) -> bool {
        match self.kind {
            DATA | HEADERS => self.has(END_STREAM),
            RST_STREAM => true,
            _ => false,
        }
    }

    /// Whether its first byte says how many of its last bytes are padding.
    pub(super) const fn is_padded(&self) -> bool {
        matches!(self.kind, DATA | HEADERS) && self.has(PADDED)
    }

    /// The bytes of a priority before the fields.
    pub(super) const fn of_priority(&self) -> usize {
        if self.kind == HEADERS && self.has(PRIORITY) { 5 } else { 0 }
    }
}

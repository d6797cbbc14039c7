//! The frames of one direction of a WebSocket (RFC 6455, section 5.2): where one ends, and the Close frame that keygate
//! puts there.

/// Follows the frames of one direction, to know where one ends. It checks nothing.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; 14],
    /// How many bytes of the head have come.
    seen: usize,
    /// How many bytes of the payload are still to come.
    payload: u64,
    /// Whether a Close frame, which is the last one, has come.
    closed: bool,
}

impl Frames {
    pub(super) fn pass(&mut self, mut bytes: &[u8]) {
        while let Some((first, rest)) = bytes.split_first() {
            if self.payload > 0 {
                let n = usize::try_from(self.payload).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.payload -= n as u64;
                bytes = &bytes[n..];
                continue;
            }
            self.head[self.seen] = *first;
            self.seen += 1;
            bytes = rest;
            if let Some(payload) = self.whole_head() {
                self.closed |= self.head[0] & 0x0f == 8;
                self.payload = payload;
                self.seen = 0;
            }
        }
    }

    /// The length of the payload, once the head has come.
    fn whole_head(&self) -> Option<u64> {
        let [_, second, rest @ ..] = &self.head;
        let short = u64::from(second & 0x7f);
        let extended = match short {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let mask = if second & 0x80 == 0 { 0 } else { 4 };
        if self.seen < 2 + extended + mask {
            return None;
        }
        let long = rest[..extended].iter().fold(0, |length, byte| length << 8 | u64::from(*byte));
        Some(if extended == 0 { short } else { long })
    }

    /// Whether another frame may come next.
    pub(super) const fn may_follow(&self) -> bool {
        self.is_between() && !self.closed
    }

    /// Whether a frame has ended, and no other has begun.
    const fn is_between(&self) -> bool {
        self.seen == 0 && self.payload == 0
    }

    /// Whether a whole Close frame has come. Nothing follows it.
    pub(super) const fn is_closed(&self) -> bool {
        self.closed && self.is_between()
    }

    /// How many bytes can come without passing the end of the frame.
    pub(super) fn rest(&self) -> usize {
        usize::try_from(self.payload).unwrap_or(usize::MAX).max(1)
    }
}

/// Why a tunnel is closed (RFC 6455, section 7.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum CloseCode {
    /// The server is going down.
    GoingAway = 1001,
    /// The key may no longer do what it does.
    PolicyViolation = 1008,
}

impl CloseCode {
    /// A Close frame from a server.
    pub(super) const fn of_server(self) -> [u8; 4] {
        let [high, low] = (self as u16).to_be_bytes();
        [CLOSE, 2, high, low]
    }

    /// A Close frame from a client, whose payload is masked.
    pub(super) const fn of_client(self, mask: [u8; 4]) -> [u8; 8] {
        let [high, low] = (self as u16).to_be_bytes();
        [CLOSE, MASKED | 2, mask[0], mask[1], mask[2], mask[3], high ^ mask[0], low ^ mask[1]]
    }
}

/// A whole message, and a Close.
const CLOSE: u8 = 0x88;
const MASKED: u8 = 0x80;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_followed_in_parts_of_any_size() {
        let masked = [&[0x81, 0x83, 9, 9, 9, 9][..], b"abc"].concat();
        let long = [&[0x82, 126, 1, 0][..], &[0; 256]].concat();
        let longest = [&[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0][..], &[0; 65_536]].concat();
        let frames = [vec![0x89, 0], masked, vec![0x01, 1, b'x'], long, longest];
        let said = frames.concat();
        for step in [1, 2, 3, 7, 300, 100_000] {
            let (mut followed, mut ends, mut at) = (Frames::default(), Vec::new(), 0);
            for part in said.chunks(step) {
                followed.pass(part);
                at += part.len();
                if followed.may_follow() {
                    ends.push(at);
                }
            }
            let expected = frames.iter().scan(0, |end, frame| {
                *end += frame.len();
                Some(*end)
            });
            let reached = expected.filter(|end| end % step == 0 || *end == said.len()).collect::<Vec<_>>();
            assert_eq!(ends, reached, "in steps of {step}");
        }
    }

    #[test]
    fn nothing_follows_a_close_frame() {
        for close in [&CloseCode::GoingAway.of_server()[..], &CloseCode::GoingAway.of_client([1, 2, 3, 4])] {
            let mut frames = Frames::default();
            let (last, before) = close.split_last().unwrap();
            frames.pass(before);
            assert!(!frames.may_follow() && !frames.is_closed());
            frames.pass(&[*last]);
            assert!(!frames.may_follow() && frames.is_closed());
        }
        assert_eq!(CloseCode::PolicyViolation.of_server(), [0x88, 2, 0x03, 0xf0]);
        assert_eq!(CloseCode::GoingAway.of_client([0xff; 4])[6..], [!0x03, !0xe9]);
    }
}

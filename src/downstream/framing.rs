//! Where each message on an HTTP/1 connection begins and ends: a head, its body, the next head.
//!
//! hyper parses the messages, and says too little about them: it cuts a `#fragment` off, does not say which
//! character it refused, takes a bare LF for a part of a trailer, and does not tell half a head in its buffer from
//! no head. So the stream beneath hyper hands it one piece at a time, either of a head or of a body, and knows by
//! this module where each piece ends. Nothing is judged here that hyper judges too.

use memchr::memchr;

/// The place in the messages of a connection.
#[derive(Debug)]
pub(super) struct Framing {
    piece: Piece,
    /// The request line of the head that is being read, without its LF. No longer than the largest head that hyper
    /// takes.
    line: Vec<u8>,
    /// Whether what was handed over last was taken for one head, or several, unread; see [`Framing::take_unread`].
    is_unread: bool,
}

/// A request line that was longer than this gives its memory back once it was used, in bytes.
const KEPT_LINE: usize = 256;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Piece {
    Head(Head),
    /// A whole head was handed over. The parser says what follows it.
    Parsing,
    /// So many bytes of a body are left.
    Length(u64),
    Chunked(Chunked),
    /// The body has an octet where its framing has no place for it.
    Broken,
    /// The next bytes are not HTTP/1, or their place is not known.
    Opaque,
}

/// The place in a head. Lines end with LF, as httparse takes them; hyper refuses what only looks like a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Head {
    /// Before the request line, where blank lines may be.
    Before,
    RequestLine,
    LineStart,
    /// Behind a CR that begins a line.
    LineCr,
    Line,
}

/// The place in a chunked body (RFC 9112, section 7.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Chunked {
    /// Before a size, or in it.
    Size(Option<u64>),
    /// Behind a size: blanks and extensions, to the end of the line.
    Extension(u64),
    /// Behind the CR of a line with a size.
    SizeCr(u64),
    Data(u64),
    DataEnd,
    DataCr,
    /// At the beginning of a trailer line, or of the empty line that ends the body.
    TrailerStart,
    Trailer,
    TrailerCr,
    EndCr,
}

/// The words of a head about the body that follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Follows {
    /// A body of this many bytes; none if it is 0.
    Length(u64),
    Chunked,
}

impl Framing {
    pub(super) const fn new() -> Self {
        Self { piece: Piece::Head(Head::Before), line: Vec::new(), is_unread: false }
    }

    /// How many of these bytes, which have come next, belong to the piece that is being read. Fewer than there are
    /// only where a piece ends; 0 only if the body is broken.
    pub(super) fn take(&mut self, bytes: &[u8]) -> usize {
        match self.piece {
            Piece::Head(head) => self.take_head(head, bytes),
            // hyper wants more of what was a whole head.
            Piece::Parsing => {
                self.piece = Piece::Opaque;
                bytes.len()
            }
            Piece::Length(left) => {
                let taken = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                self.piece = after(left - taken as u64);
                taken
            }
            Piece::Chunked(at) => self.take_chunked(at, bytes),
            Piece::Broken => 0,
            Piece::Opaque => bytes.len(),
        }
    }

    /// The parser has understood the head that was handed over last.
    pub(super) fn parsed(&mut self, follows: Follows) {
        self.piece = match (self.piece, follows) {
            // There may be another head behind this one.
            (Piece::Parsing | Piece::Head(Head::Before), Follows::Length(0)) if self.is_unread => {
                Piece::Head(Head::Before)
            }
            (Piece::Parsing, Follows::Length(length)) if !self.is_unread => after(length),
            (Piece::Parsing, Follows::Chunked) if !self.is_unread => Piece::Chunked(Chunked::Size(None)),
            _ => Piece::Opaque,
        };
        self.line.clear();
        if self.line.capacity() > KEPT_LINE {
            self.line = Vec::new();
        }
    }

    /// Whether nobody knows where the next message begins.
    pub(super) fn is_lost(&self) -> bool {
        self.piece == Piece::Opaque
    }

    /// The next bytes are not HTTP/1 any more.
    pub(super) fn give_up(&mut self) {
        self.piece = Piece::Opaque;
    }

    /// Whether a head was begun that the parser has not understood.
    pub(super) fn is_in_head(&self) -> bool {
        match self.piece {
            Piece::Head(head) => head != Head::Before,
            Piece::Parsing => true,
            Piece::Length(_) | Piece::Chunked(_) | Piece::Broken | Piece::Opaque => false,
        }
    }

    /// The request line of the head that is being read, as far as it has come. Empty if it was not read.
    pub(super) fn request_line(&self) -> &[u8] {
        &self.line
    }

    /// Whether the target of the head that was handed over last has a `#`. RFC 9112, section 3.2, has no place for one.
    pub(super) fn has_fragment(&self) -> bool {
        if self.is_unread || memchr(b'#', &self.line).is_none() {
            return false;
        }
        // A method may have one too.
        let target = memchr(b' ', &self.line).map_or(&self.line[..], |blank| &self.line[blank..]);
        memchr(b'#', target).is_some()
    }

    /// Takes all of these bytes, which begin a head, if they look like one request, or several, without a body; tells
    /// whether it has. Most bytes that come are one such head, and to search for its end would cost four times as much
    /// (some 500 instructions). If there are several, only the first has its request line kept. None has a fragment. If
    /// one has a body after all, its place is lost.
    fn take_unread(&mut self, bytes: &[u8]) -> bool {
        if !((bytes.starts_with(b"GET ") || bytes.starts_with(b"HEAD ")) && bytes.ends_with(b"\r\n\r\n")) {
            return false;
        }
        // The second is the end of a chunked body, which no head has.
        if memchr(b'#', bytes).is_some() || bytes.ends_with(b"\n0\r\n\r\n") {
            return false;
        }
        let Some(end) = memchr(b'\n', bytes) else { return false };
        self.line.clear();
        self.line.extend_from_slice(&bytes[..end]);
        self.piece = Piece::Parsing;
        self.is_unread = true;
        true
    }

    fn take_head(&mut self, mut head: Head, bytes: &[u8]) -> usize {
        self.is_unread = false;
        if head == Head::Before && self.take_unread(bytes) {
            return bytes.len();
        }
        let mut at = 0;
        if head == Head::Before {
            at = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(bytes.len());
            if at == bytes.len() {
                return at;
            }
            self.line.clear();
            head = Head::RequestLine;
        }
        if head == Head::RequestLine {
            let rest = &bytes[at..];
            let end = memchr(b'\n', rest);
            self.line.extend_from_slice(&rest[..end.unwrap_or(rest.len())]);
            let Some(end) = end else {
                self.piece = Piece::Head(Head::RequestLine);
                return bytes.len();
            };
            at += end + 1;
            head = Head::LineStart;
        }
        while let Some(byte) = bytes.get(at) {
            match (head, byte) {
                (Head::LineStart | Head::LineCr, b'\n') => {
                    self.piece = Piece::Parsing;
                    return at + 1;
                }
                (Head::LineStart, b'\r') => {
                    head = Head::LineCr;
                    at += 1;
                }
                _ => match memchr(b'\n', &bytes[at..]) {
                    Some(end) => {
                        head = Head::LineStart;
                        at += end + 1;
                    }
                    None => {
                        head = Head::Line;
                        break;
                    }
                },
            }
        }
        self.piece = Piece::Head(head);
        bytes.len()
    }

    fn take_chunked(&mut self, mut at: Chunked, bytes: &[u8]) -> usize {
        let mut taken = 0;
        while let Some(byte) = bytes.get(taken) {
            if let Chunked::Data(left) = at {
                let data = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len() - taken);
                taken += data;
                at = match left - data as u64 {
                    0 => Chunked::DataEnd,
                    left => Chunked::Data(left),
                };
                continue;
            }
            if (at, byte) == (Chunked::EndCr, &b'\n') {
                self.piece = Piece::Head(Head::Before);
                return taken + 1;
            }
            let Some(next) = at.next(*byte) else {
                self.piece = Piece::Broken;
                return taken;
            };
            at = next;
            taken += 1;
        }
        self.piece = Piece::Chunked(at);
        taken
    }
}

/// The next piece while so many bytes of a body are left.
const fn after(left: u64) -> Piece {
    match left {
        0 => Piece::Head(Head::Before),
        left => Piece::Length(left),
    }
}

impl Chunked {
    /// The place behind this octet of the framing; `None` where it has no such place. A CR or an LF is only ever a part
    /// of a CRLF.
    fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Size(size), b'0'..=b'9' | b'a'..=b'f' | b'A'..=b'F') => {
                let digit = u64::from(char::from(byte).to_digit(16)?);
                let size = size.unwrap_or(0);
                Some(Self::Size(Some(size.checked_mul(16)? + digit)))
            }
            (Self::Size(Some(size)), b'\r') | (Self::Extension(size), b'\r') => Some(Self::SizeCr(size)),
            (Self::Size(Some(size)), b' ' | b'\t' | b';') => Some(Self::Extension(size)),
            (Self::Extension(size), byte) if byte != b'\n' => Some(Self::Extension(size)),
            (Self::SizeCr(0), b'\n') => Some(Self::TrailerStart),
            (Self::SizeCr(size), b'\n') => Some(Self::Data(size)),
            (Self::DataEnd, b'\r') => Some(Self::DataCr),
            (Self::DataCr, b'\n') => Some(Self::Size(None)),
            (Self::TrailerStart, b'\r') => Some(Self::EndCr),
            (Self::Trailer, b'\r') => Some(Self::TrailerCr),
            (Self::TrailerCr, b'\n') => Some(Self::TrailerStart),
            (Self::TrailerStart | Self::Trailer, byte) if byte != b'\n' => Some(Self::Trailer),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Hands the bytes over in parts of this length, and returns the pieces: each head by its request line, each body
    /// by its bytes. `follows` says what comes behind each head.
    fn pieces(bytes: &[u8], length: usize, follows: &[Follows]) -> Vec<String> {
        let (mut framing, mut follows) = (Framing::new(), follows.iter());
        let mut pieces: Vec<String> = Vec::new();
        let mut fresh = true;
        for mut part in bytes.chunks(length) {
            while !part.is_empty() {
                let taken = framing.take(part);
                if taken == 0 {
                    assert_eq!(framing.piece, Piece::Broken);
                    pieces.push("BROKEN".to_owned());
                    return pieces;
                }
                if fresh {
                    pieces.push(String::new());
                }
                let piece = pieces.last_mut().unwrap();
                piece.push_str(std::str::from_utf8(&part[..taken]).unwrap());
                part = &part[taken..];
                fresh = false;
                if framing.piece == Piece::Parsing {
                    *piece = String::from_utf8(framing.request_line().to_vec()).unwrap();
                    framing.parsed(*follows.next().unwrap());
                    fresh = true;
                } else if framing.piece == Piece::Head(Head::Before) {
                    fresh = true;
                }
            }
        }
        pieces
    }

    const NOTHING: Follows = Follows::Length(0);

    #[test]
    fn heads_and_bodies_are_told_apart_however_they_are_cut() {
        let bytes = b"GET /a HTTP/1.1\r\nhost: #\r\n\r\nPOST /b HTTP/1.1\r\nx: \n\r\nabc\r\n\r\n\nPUT /c HTTP/1.1\n\n\
            2;x=y\r\n\r\n\r\nA \r\n0123456789\r\n0\r\na: b\r\n\r\nGET /d HTTP/1.1\r\n\r\n";
        let follows = [NOTHING, Follows::Length(5), Follows::Chunked, NOTHING];
        for length in 1..=bytes.len() {
            let pieces = pieces(bytes, length, &follows);
            let whole: Vec<&str> =
                pieces.iter().map(String::as_str).filter(|piece| !piece.trim().is_empty()).collect();
            let expected = [
                "GET /a HTTP/1.1\r",
                "POST /b HTTP/1.1\r",
                "abc\r\n",
                "PUT /c HTTP/1.1",
                "2;x=y\r\n\r\n\r\nA \r\n0123456789\r\n0\r\na: b\r\n\r\n",
                "GET /d HTTP/1.1\r",
            ];
            assert_eq!(whole, expected, "in parts of {length}");
        }
    }

    #[test]
    fn a_chunked_body_breaks_at_the_first_octet_that_has_no_place() {
        for (body, good) in [
            ("0\n", "0"),
            ("\r\n", ""),
            ("g\r\n", ""),
            ("2\nhi", "2"),
            ("2;a\nhi", "2;a"),
            ("2\r\nhi\n", "2\r\nhi"),
            ("2\r\nhix", "2\r\nhi"),
            ("0\r\n\n", "0\r\n"),
            ("0\r\nx: y\n", "0\r\nx: y"),
            ("0\r\nx: y\r\n\n", "0\r\nx: y\r\n"),
            ("0\r\nx\ry", "0\r\nx\r"),
            ("fffffffffffffffff\r\n", "ffffffffffffffff"),
        ] {
            let head = "POST / HTTP/1.1\r\n\r\n";
            let bytes = format!("{head}{body} and more");
            for length in [1, 2, bytes.len()] {
                let mut pieces = pieces(bytes.as_bytes(), length, &[Follows::Chunked]);
                assert_eq!(pieces.pop().as_deref(), Some("BROKEN"), "{body:?}");
                assert_eq!(pieces[1..].concat(), good, "{body:?}");
            }
        }
    }

    #[test]
    fn only_the_number_sign_of_a_target_is_a_fragment() {
        for (line, expected) in [
            ("GET /a HTTP/1.1", false),
            ("GET /a#b HTTP/1.1", true),
            ("G#T /a HTTP/1.1", false),
            ("G#T /a?# HTTP/1.1", true),
        ] {
            let mut framing = Framing::new();
            framing.take(format!("{line}\r\nx: #\r\n\r\n").as_bytes());
            assert_eq!(framing.has_fragment(), expected, "{line}");
        }
    }

    #[test]
    fn a_place_that_is_not_known_changes_nothing() {
        let mut framing = Framing::new();
        assert_eq!(framing.take(b"GET / HTTP/1.1\r\n\r\nrest"), 18);
        assert_eq!(
            framing.take(b"the parser wants more\r\n\r\nof it"),
            30,
            "of a head that it found incomplete"
        );
        framing.parsed(Follows::Length(2));
        assert_eq!(framing.take(b"longer than that"), 16);
        assert!(!framing.is_in_head());
    }

    #[test]
    fn heads_without_a_body_are_taken_at_once() {
        let one = "GET /a HTTP/1.1\r\nhost: h\r\n\r\n";
        let two = format!("{one}HEAD /b HTTP/1.1\r\nhost: h\r\n\r\n");
        for (bytes, heads) in [(one, 1), (&two, 2)] {
            let mut framing = Framing::new();
            assert_eq!(framing.take(bytes.as_bytes()), bytes.len());
            assert_eq!(framing.request_line(), b"GET /a HTTP/1.1\r");
            for _ in 0..heads {
                assert!(!framing.has_fragment());
                framing.parsed(NOTHING);
                assert_eq!(framing.request_line(), b"", "of the next head");
            }
            assert_eq!(framing.take(b"POST /c HTTP/1.1\r\n\r\nrest"), 20);
            framing.parsed(Follows::Length(4));
            assert_eq!(framing.take(b"restGET"), 4);
            assert!(!framing.is_lost());
        }
        let mut framing = Framing::new();
        assert_eq!(framing.take(two.replace("/b", "/b#c").as_bytes()), one.len(), "one at a time");
        let mut framing = Framing::new();
        assert_eq!(framing.take(format!("{one}2\r\nhi\r\n0\r\n\r\n").as_bytes()), one.len());
        framing.parsed(Follows::Chunked);
        assert!(!framing.is_lost());
        let mut framing = Framing::new();
        framing.take(format!("{one}2\r\nhi\r\n0\r\nx: y\r\n\r\n").as_bytes());
        framing.parsed(Follows::Chunked);
        assert!(framing.is_lost(), "a part of its body has gone by unread");
    }
}

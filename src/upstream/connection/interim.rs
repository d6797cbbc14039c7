//! Interim answers (1xx, RFC 9110, section 15.2), counted in the bytes of a connection: hyper reads over any number of them. Of
//! those with the status 103 (RFC 8297) the links are read.

use std::fmt;
use std::io;

use http::HeaderValue;

/// The most interim answers before one answer. Servers send one or two: 100, and 103 with what a page needs.
pub(super) const MOST: u8 = 16;

/// The longest head of a 103 whose links are read, in bytes.
const HINT: usize = 4 << 10;

/// How every status line begins, up to its status.
const START: &[u8] = b"HTTP/1.x ";

/// The interim answers that have come since a request was sent.
#[derive(Debug)]
pub(super) struct Interims {
    count: u8,
    place: Place,
    /// What has come of the head of a 103, behind its status.
    hint: Vec<u8>,
}

/// The place in the bytes that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// In the status line, after this many of its bytes.
    Status(usize),
    /// In the status `1`, or `10`.
    Digits { is_ten: bool },
    /// In the head of an interim answer; whether its line is empty so far, and whether its status is 103.
    Head { is_empty: bool, is_hint: bool },
    /// An answer that is no interim one has begun, or something else than HTTP.
    Over,
}

impl Interims {
    pub(super) const fn new() -> Self {
        Self { count: 0, place: Place::Status(0), hint: Vec::new() }
    }

    /// A request, or the next part of one, is being sent.
    pub(super) fn ask(&mut self) {
        // Between two parts of a request the count goes on: 103s without end may come to an upload too.
        if self.place == Place::Over {
            *self = Self::new();
        }
    }

    /// Bytes have come. `hear` gets the links of each 103.
    ///
    /// # Errors
    /// [`TooMany`].
    pub(super) fn see(&mut self, bytes: &[u8], mut hear: impl FnMut(Vec<HeaderValue>)) -> io::Result<()> {
        match (self.place, bytes) {
            (Place::Over, _) => return Ok(()),
            // What comes nearly always.
            (Place::Status(0), [b'H', _, _, _, _, _, _, _, _, b'2'..=b'5', ..]) => self.place = Place::Over,
            _ => {}
        }
        for byte in bytes {
            self.place = match self.place {
                Place::Over => return Ok(()),
                // Blank lines before a status line are read over.
                Place::Status(0) if matches!(byte, b'\r' | b'\n') => Place::Status(0),
                Place::Status(at) if at == START.len() => match byte {
                    b'1' => Place::Digits { is_ten: false },
                    _ => Place::Over,
                },
                Place::Status(at) if START[at] == *byte || START[at] == b'x' => Place::Status(at + 1),
                Place::Status(_) => Place::Over,
                Place::Digits { is_ten: false } if *byte == b'0' => Place::Digits { is_ten: true },
                // After a 101 the connection speaks something else.
                Place::Digits { is_ten: true } if *byte == b'1' => Place::Over,
                Place::Digits { is_ten } => Place::Head { is_empty: false, is_hint: is_ten && *byte == b'3' },
                Place::Head { is_empty: true, .. } if *byte == b'\n' => {
                    self.count += 1;
                    if self.count > MOST {
                        self.place = Place::Over;
                        return Err(io::Error::other(TooMany));
                    }
                    let links = links(&std::mem::take(&mut self.hint));
                    if !links.is_empty() {
                        hear(links);
                    }
                    Place::Status(0)
                }
                Place::Head { is_empty, is_hint } => {
                    if is_hint && self.hint.len() <= HINT {
                        self.hint.push(*byte);
                    }
                    Place::Head { is_empty: *byte == b'\n' || is_empty && *byte == b'\r', is_hint }
                }
            };
        }
        Ok(())
    }
}

/// The values of the fields `Link` of a head, from behind its status on. None where it is too long, or has a line that continues
/// another.
fn links(head: &[u8]) -> Vec<HeaderValue> {
    let lines = || head.split(|byte| *byte == b'\n').skip(1).map(<[u8]>::trim_ascii_end);
    if head.len() > HINT || lines().any(|line| matches!(line, [b' ' | b'\t', ..])) {
        return Vec::new();
    }
    let value = |line: &[u8]| {
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        let is_link = name.eq_ignore_ascii_case(b"link");
        HeaderValue::from_bytes(value.trim_ascii()).ok().filter(|_| is_link)
    };
    lines().filter_map(value).collect()
}

/// More interim answers came than [`MOST`].
#[derive(Debug)]
pub(super) struct TooMany;

impl fmt::Display for TooMany {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it has more than {MOST} interim answers (1xx) before its own status")
    }
}

impl std::error::Error for TooMany {}

#[cfg(test)]
mod tests {
    use super::*;

    const HINT: &str = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";

    /// How many of these pieces are taken, of all that are given.
    fn taken<'p>(interims: &mut Interims, pieces: impl Iterator<Item = &'p [u8]>) -> usize {
        pieces.take_while(|piece| interims.see(piece, drop).is_ok()).count()
    }

    #[test]
    fn sixteen_interim_answers_are_taken_and_no_more_however_they_are_cut() {
        let hints = HINT.repeat(20);
        for size in 1..=hints.len() {
            let taken = taken(&mut Interims::new(), hints.as_bytes().chunks(size));
            assert_eq!(taken, (HINT.len() * (usize::from(MOST) + 1) - 1) / size, "{size}");
        }
        for other in
            ["\r\n\nHTTP/1.0 100 Continue\r\n\r\n", "HTTP/1.1 199\n\n", "HTTP/1.1 110 a\r\nb: c\n\r\n"]
        {
            let taken = taken(&mut Interims::new(), std::iter::repeat_n(other.as_bytes(), 20));
            assert_eq!(taken, usize::from(MOST), "{other:?}");
        }
    }

    #[test]
    fn what_comes_after_the_beginning_of_an_answer_is_not_counted() {
        for first in
            ["HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 101 Switching\r\n\r\n", "SSH-2.0", "HTTP/1.1 099\r\n\r\n"]
        {
            for size in 1..=first.len() {
                let mut interims = Interims::new();
                let hints = HINT.repeat(20);
                let pieces = first.as_bytes().chunks(size).chain(hints.as_bytes().chunks(7));
                assert_eq!(taken(&mut interims, pieces.clone()), pieces.count(), "{first:?}, {size}");
            }
        }
    }

    #[test]
    fn each_request_has_a_count_of_its_own_and_each_part_of_one_has_the_same() {
        let mut interims = Interims::new();
        for _ in 0..5 {
            interims.ask();
            for _ in 0..MOST {
                interims.ask();
                interims.see(HINT.as_bytes(), drop).unwrap();
            }
            interims.see(b"HTTP/1.1 200 OK\r\n\r\n", drop).unwrap();
        }
    }

    /// The links that are heard when this comes in pieces of any size.
    fn heard(said: &str) -> Vec<Vec<String>> {
        let heard: Vec<Vec<Vec<String>>> = (1..=said.len())
            .map(|size| {
                let (mut interims, mut heard) = (Interims::new(), Vec::new());
                let mut hear = |links: Vec<HeaderValue>| {
                    heard.push(links.iter().map(|link| link.to_str().unwrap().to_owned()).collect());
                };
                said.as_bytes().chunks(size).for_each(|piece| interims.see(piece, &mut hear).unwrap());
                heard
            })
            .collect();
        assert!(heard.iter().all(|one| *one == heard[0]), "{heard:?}");
        heard.into_iter().next().unwrap()
    }

    #[test]
    fn of_a_103_the_links_are_heard_and_of_others_nothing() {
        assert_eq!(heard(HINT), [["</a>"]]);
        let more = "HTTP/1.1 103 Early Hints\r\nserver: x\r\nLink:  </a>; rel=preload \r\nset-cookie: a=b\r\nlink:</b>\r\n\r\n";
        assert_eq!(heard(&more.repeat(2)), vec![["</a>; rel=preload", "</b>"]; 2]);
        assert_eq!(heard(&format!("{HINT}HTTP/1.1 200 OK\r\nlink: </c>\r\n\r\n")), [["</a>"]]);
        for nothing in [
            "HTTP/1.1 102 Processing\r\nlink: </a>\r\n\r\n",
            "HTTP/1.1 113 No\r\nlink: </a>\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </a>,\r\n </b>\r\n\r\n",
            "HTTP/1.1 103 Early Hints\r\nlink: </\x01a>\r\n\r\n",
        ] {
            assert!(heard(nothing).is_empty(), "{nothing:?}");
        }
        let long = format!("HTTP/1.1 103 Early Hints\r\nlink: </{}>\r\n\r\n", "a".repeat(super::HINT));
        let mut interims = Interims::new();
        interims.see(long.as_bytes(), |links| panic!("{links:?}")).unwrap();
        interims.see(HINT.as_bytes(), |links| assert_eq!(links, ["</a>"])).unwrap();
    }
}

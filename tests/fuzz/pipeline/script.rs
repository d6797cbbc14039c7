//! Scripts: what a client sends, in a notation that people can read and that mutations keep valid.
//!
//! ```text
//! http/1.1
//! POST /v1/things HTTP/1.1
//! host: h
//! authorization: Bearer {writer}
//! content-length: 5
//!
//! hel\|lo\
//! ```
//!
//! Each line is sent with CRLF. A `\` at its end leaves the CRLF out; `\r`, `\n`, `\t`, `\\` and `\x00` are octets, `\*9x` is
//! nine `x`, and `\|` is a pause in which the gateway does what it can. `{writer}` is the secret of a key, `{writer.id}` its id,
//! `{org}` the organisation. After `http/2` each line is a frame, with what belongs to it in the lines below it, which begin with a
//! blank:
//!
//! ```text
//! http/2
//! headers 1
//!  :method POST
//!  :scheme http
//!  :authority h
//!  :path /v1/things
//!  authorization Bearer {writer}
//! data 1 end
//!  hello
//! ```
//!
//! `headers STREAM [end] [split N] [pad N] [prio]`, `data STREAM [end] [pad N]`, `rst STREAM CODE`, `window STREAM N`, `settings
//! [NAME=VALUE]…`, `ping`, `goaway`, `prio STREAM`, `frame KIND FLAGS STREAM`, `raw`, and `pause`.

use std::collections::BTreeMap;

use super::http1::Field;
use super::identity::Keys;

/// A script that was read.
#[derive(Debug, Default)]
pub(crate) struct Script {
    /// The bytes, with a pause between two pieces.
    pub(crate) pieces: Vec<Vec<u8>>,
    /// Over HTTP/2 the requests, by their streams.
    pub(crate) streams: Option<BTreeMap<u32, Stream>>,
    /// The lines of the script as octets, without the frames around them.
    pub(crate) said: Vec<u8>,
    /// Whether there are frames that the streams do not tell of.
    pub(crate) is_opaque: bool,
    /// Whether the client says how much it takes, so that answers may wait for it.
    pub(crate) holds_back: bool,
}

/// A request over HTTP/2.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) fields: Vec<Field>,
    pub(crate) body: Vec<u8>,
    pub(crate) has_ended: bool,
    pub(crate) was_reset: bool,
}

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most bytes that are sent; the rest of a script is left out.
const LONGEST: usize = 128 << 10;
const MOST_PIECES: usize = 64;

impl Script {
    pub(crate) fn read(text: &[u8], keys: &Keys) -> Self {
        let mut lines: Vec<&[u8]> = text.split(|byte| *byte == b'\n').collect();
        // What stands behind the last end of a line is no line.
        if lines.last().is_some_and(|last| last.is_empty()) {
            lines.pop();
        }
        let first = lines.first().copied().unwrap_or_default();
        let mut script = Self::default();
        script.pieces.push(Vec::new());
        if first.starts_with(b"http/2") {
            script.streams = Some(BTreeMap::new());
            script.push(PREFACE);
            if !first.ends_with(b"bare") {
                script.frame(SETTINGS, 0, 0, &[]);
            }
            script.frames(&lines[1..], keys);
        } else {
            let has_name = first == b"http/1.1";
            for line in &lines[usize::from(has_name)..] {
                let (octets, ends) = unescape(line, keys);
                script.said.extend(octets.iter().flatten());
                script.said.push(b'\n');
                for (n, part) in octets.into_iter().enumerate() {
                    if n > 0 {
                        script.pause();
                    }
                    script.push(&part);
                }
                if ends {
                    script.push(b"\r\n");
                }
            }
        }
        script
    }

    pub(crate) fn bytes(&self) -> Vec<u8> {
        self.pieces.concat()
    }

    fn push(&mut self, octets: &[u8]) {
        let sent: usize = self.pieces.iter().map(Vec::len).sum();
        if let Some(last) = self.pieces.last_mut() {
            if sent + octets.len() > LONGEST {
                self.is_opaque = true;
                return;
            }
            last.extend_from_slice(octets);
        }
    }

    fn pause(&mut self) {
        if self.pieces.len() < MOST_PIECES {
            self.pieces.push(Vec::new());
        }
    }

    fn frames(&mut self, lines: &[&[u8]], keys: &Keys) {
        let mut lines = lines.iter().peekable();
        while let Some(line) = lines.next() {
            let mut below = Vec::new();
            while let Some(line) = lines.next_if(|line| line.starts_with(b" ")) {
                below.push(unescape(&line[1..], keys).0.concat());
                self.said.extend(below.last().into_iter().flatten());
                self.said.push(b'\n');
            }
            let line = String::from_utf8_lossy(line);
            let words: Vec<&str> = line.split_ascii_whitespace().collect();
            let number = |at: usize| words.get(at).and_then(|word| word.parse::<u32>().ok()).unwrap_or(0);
            let option = |name| words.iter().position(|word| *word == name);
            let ends = option("end").is_some();
            let pad = option("pad").map(|at| number(at + 1) as u8);
            match words.first().copied().unwrap_or_default() {
                "headers" => {
                    let split = option("split").map(|at| number(at + 1) as usize);
                    self.headers(
                        number(1),
                        &below,
                        ends,
                        Shape { split, pad, prio: option("prio").is_some() },
                    );
                }
                "data" => self.data(number(1), &below.concat(), ends, pad),
                "rst" => {
                    self.stream(number(1)).was_reset = true;
                    self.frame(RESET, 0, number(1), &number(2).to_be_bytes());
                }
                "window" => self.frame(WINDOW_UPDATE, 0, number(1), &number(2).to_be_bytes()),
                "settings" => {
                    let pair = |word: &&str| {
                        let (name, value) = word.split_once('=')?;
                        Some((name.parse::<u16>().ok()?, value.parse::<u32>().ok()?))
                    };
                    let pairs = words.iter().filter_map(pair);
                    let payload = pairs
                        .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat());
                    let payload: Vec<u8> = payload.collect();
                    self.holds_back |= !payload.is_empty();
                    self.frame(SETTINGS, 0, 0, &payload);
                }
                "ping" => self.frame(PING, 0, 0, b"12345678"),
                "goaway" => self.frame(GOAWAY, 0, 0, &[0; 8]),
                "prio" => self.frame(PRIORITY, 0, number(1), &[0, 0, 0, 0, 7]),
                "pause" => self.pause(),
                "frame" => {
                    self.is_opaque = true;
                    self.frame(number(1) as u8, number(2) as u8, number(3), &below.concat());
                }
                "raw" => {
                    self.is_opaque = true;
                    self.push(&below.concat());
                }
                _ => {}
            }
        }
    }

    fn stream(&mut self, number: u32) -> &mut Stream {
        self.streams.get_or_insert_default().entry(number).or_default()
    }

    fn headers(&mut self, number: u32, lines: &[Vec<u8>], ends: bool, shape: Shape) {
        let (block, fields) = header_block(lines);
        match fields {
            Some(fields) if self.stream(number).fields.is_empty() => {
                let stream = self.stream(number);
                // Bytes before the head belong to no request.
                stream.body.clear();
                stream.fields = fields;
                stream.has_ended = ends;
            }
            Some(_) => self.stream(number).has_ended |= ends,
            None => self.is_opaque = true,
        }
        let (mut flags, mut payload) = (u8::from(ends), Vec::new());
        if let Some(pad) = shape.pad {
            flags |= 8;
            payload.push(pad);
        }
        if shape.prio {
            flags |= 0x20;
            payload.extend_from_slice(&[0, 0, 0, 0, 7]);
        }
        let (now, later) = block.split_at(shape.split.unwrap_or(block.len()).min(block.len()));
        payload.extend_from_slice(now);
        payload.extend(std::iter::repeat_n(0, usize::from(shape.pad.unwrap_or(0))));
        if shape.split.is_none() {
            self.frame(HEADERS, flags | END_HEADERS, number, &payload);
            return;
        }
        self.frame(HEADERS, flags, number, &payload);
        let (first, last) = later.split_at(later.len() / 2);
        self.frame(CONTINUATION, 0, number, first);
        self.frame(CONTINUATION, END_HEADERS, number, last);
    }

    fn data(&mut self, number: u32, octets: &[u8], ends: bool, pad: Option<u8>) {
        let stream = self.stream(number);
        if !stream.has_ended {
            stream.body.extend_from_slice(octets);
            stream.has_ended = ends;
        }
        let mut payload = Vec::new();
        payload.extend(pad);
        payload.extend_from_slice(octets);
        payload.extend(std::iter::repeat_n(0, usize::from(pad.unwrap_or(0))));
        self.frame(DATA, u8::from(ends) | if pad.is_some() { 8 } else { 0 }, number, &payload);
    }

    fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        let length = (payload.len() as u32).to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags];
        bytes.extend_from_slice(&stream.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.push(&bytes);
    }
}

/// How a header block lies in its frames.
#[derive(Clone, Copy)]
struct Shape {
    split: Option<usize>,
    pad: Option<u8>,
    prio: bool,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
pub(crate) const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// The entries of HPACK's static table that scripts name (RFC 7541, appendix A).
const STATIC: [(u8, &str, &str); 6] = [
    (2, ":method", "GET"),
    (3, ":method", "POST"),
    (4, ":path", "/"),
    (6, ":scheme", "http"),
    (7, ":scheme", "https"),
    (16, "accept-encoding", "gzip, deflate"),
];

/// A header block, and its fields if they are known. A line is `name value`, with a `+` before it if the decoder must keep
/// the field and a `!` if it must never; or `@N`, an entry of the table.
fn header_block(lines: &[Vec<u8>]) -> (Vec<u8>, Option<Vec<Field>>) {
    let (mut block, mut fields, mut is_known) = (Vec::new(), Vec::new(), true);
    for line in lines {
        if let Some(number) = line.strip_prefix(b"@") {
            let number = String::from_utf8_lossy(number).parse::<u8>().unwrap_or(0) & 0x7f;
            block.push(0x80 | number);
            match STATIC.iter().find(|(at, ..)| *at == number) {
                Some((_, name, value)) => fields.push((name.as_bytes().to_vec(), value.as_bytes().to_vec())),
                None => is_known = false,
            }
            continue;
        }
        let (kind, line) = match line.split_first() {
            Some((b'+', line)) => (0x40, line),
            Some((b'!', line)) => (0x10, line),
            _ => (0, &line[..]),
        };
        let blank = line.iter().position(|byte| *byte == b' ').unwrap_or(line.len());
        let (name, value) = (&line[..blank], line.get(blank + 1..).unwrap_or_default());
        block.push(kind);
        for text in [name, value] {
            length_of(text.len(), &mut block);
            block.extend_from_slice(text);
        }
        fields.push((name.to_vec(), value.to_vec()));
    }
    (block, is_known.then_some(fields))
}

/// A length as HPACK writes it (RFC 7541, section 5.1), with a prefix of seven bits.
fn length_of(length: usize, into: &mut Vec<u8>) {
    if length < 127 {
        into.push(length as u8);
        return;
    }
    into.push(127);
    let mut rest = length - 127;
    while rest >= 128 {
        into.push((rest % 128) as u8 | 128);
        rest /= 128;
    }
    into.push(rest as u8);
}

/// The octets of a line, in parts with a pause between them, and whether the line has its end.
fn unescape(line: &[u8], keys: &Keys) -> (Vec<Vec<u8>>, bool) {
    let (line, ends) = match line {
        [.., b'\\', b'\\'] => (line, true),
        [line @ .., b'\\'] => (line, false),
        _ => (line, true),
    };
    let mut parts = vec![Vec::new()];
    let mut rest = line;
    while let Some((byte, after)) = rest.split_first() {
        let (octets, used) = match (byte, after) {
            (b'\\', [b'|', ..]) => {
                parts.push(Vec::new());
                (Vec::new(), 2)
            }
            (b'\\', [b'*', ..]) => repeated(&after[1..]),
            (b'\\', [b'x', high, low, ..]) => {
                match u8::from_str_radix(&String::from_utf8_lossy(&[*high, *low]), 16) {
                    Ok(octet) => (vec![octet], 4),
                    Err(_) => (b"\\".to_vec(), 1),
                }
            }
            (b'\\', [b'r', ..]) => (b"\r".to_vec(), 2),
            (b'\\', [b'n', ..]) => (b"\n".to_vec(), 2),
            (b'\\', [b't', ..]) => (b"\t".to_vec(), 2),
            (b'\\', [b'\\', ..]) => (b"\\".to_vec(), 2),
            (b'{', _) => placeholder(after, keys),
            _ => (vec![*byte], 1),
        };
        if let Some(last) = parts.last_mut() {
            last.extend_from_slice(&octets);
        }
        rest = &rest[used.min(rest.len())..];
    }
    (parts, ends)
}

fn repeated(after: &[u8]) -> (Vec<u8>, usize) {
    let digits = after.iter().take_while(|byte| byte.is_ascii_digit()).count().min(5);
    let count = String::from_utf8_lossy(&after[..digits]).parse::<usize>().unwrap_or(0);
    let of = after.get(digits).copied();
    (of.map(|of| vec![of; count]).unwrap_or_default(), 2 + digits + usize::from(of.is_some()))
}

fn placeholder(after: &[u8], keys: &Keys) -> (Vec<u8>, usize) {
    let name =
        after.iter().position(|byte| *byte == b'}').and_then(|end| std::str::from_utf8(&after[..end]).ok());
    match name.and_then(|name| Some((name, keys.value(name)?))) {
        Some((name, value)) => (value.as_bytes().to_vec(), name.len() + 2),
        None => (b"{".to_vec(), 1),
    }
}

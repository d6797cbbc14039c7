//! A parser of HTTP/1.1 of our own, after RFC 9112. Of a client it takes what a server may take (section 2.2: a bare LF
//! for the end of a line of a head, blank lines before a head); of keygate it takes what the RFC writes and nothing else.

/// Whose bytes they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum From {
    Client,
    Keygate,
}

pub(crate) type Field = (Vec<u8>, Vec<u8>);

/// A request, or an answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Message {
    /// The words of the first line: method, target and version, or version and status.
    pub(crate) start: [String; 3],
    /// The names in lower case.
    pub(crate) fields: Vec<Field>,
    pub(crate) body: Vec<u8>,
    /// Names of fields behind the body.
    pub(crate) trailers: Vec<Vec<u8>>,
    pub(crate) is_complete: bool,
}

impl Message {
    pub(crate) fn values(&self, name: &str) -> Vec<&[u8]> {
        let of_name = self.fields.iter().filter(|(other, _)| other == name.as_bytes());
        of_name.map(|(_, value)| &value[..]).collect()
    }

    /// The value of a field that occurs once.
    pub(crate) fn value(&self, name: &str) -> Option<&[u8]> {
        match self.values(name)[..] {
            [value] => Some(value),
            _ => None,
        }
    }

    /// Whether `Connection` has this option.
    pub(crate) fn has_option(&self, option: &str) -> bool {
        self.options().iter().any(|other| other.eq_ignore_ascii_case(option.as_bytes()))
    }

    /// What `Connection` names.
    pub(crate) fn options(&self) -> Vec<&[u8]> {
        let values = self.values("connection");
        values
            .into_iter()
            .flat_map(|value| value.split(|byte| *byte == b','))
            .map(<[u8]>::trim_ascii)
            .collect()
    }
}

/// How far reading came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// At the end of the bytes, behind a whole message.
    End,
    /// Within a message, which is fine so far.
    Within,
    /// At something that has more readings than one, or none.
    Bad,
}

/// A part of a message that was read, or why it was not.
type Read<T> = Result<T, Stop>;

/// Reads messages from bytes.
#[derive(Debug)]
pub(crate) struct Reader<'b> {
    pub(crate) rest: &'b [u8],
    from: From,
}

impl<'b> Reader<'b> {
    pub(crate) const fn new(bytes: &'b [u8], from: From) -> Self {
        Self { rest: bytes, from }
    }

    /// All requests in the bytes, the last perhaps incomplete.
    pub(crate) fn requests(mut self) -> (Vec<Message>, Stop, &'b [u8]) {
        let mut requests = Vec::new();
        loop {
            self.skip_blank_lines();
            if self.rest.is_empty() {
                return (requests, Stop::End, self.rest);
            }
            let begin = self.rest;
            let mut request = match self.head(3).and_then(|head| check_request(&head).map(|()| head)) {
                Ok(request) => request,
                Err(stop) => return (requests, stop, begin),
            };
            let ended = self.body_of_request(&mut request);
            request.is_complete = ended.is_ok();
            requests.push(request);
            if let Err(stop) = ended {
                return (requests, stop, self.rest);
            }
        }
    }

    /// The next answer, which answers this method. Interim answers are passed over.
    pub(crate) fn answer(&mut self, is_head: bool) -> Read<Message> {
        loop {
            let mut answer = self.head(2)?;
            let status = answer.start[1].clone();
            if status.starts_with('1') {
                continue;
            }
            let codings = answer.values("transfer-encoding").concat();
            if is_head || status == "204" || status == "304" {
                answer.is_complete = true;
            } else if !codings.is_empty() {
                if codings != b"chunked" || !answer.values("content-length").is_empty() {
                    return Err(Stop::Bad);
                }
                self.chunked(&mut answer)?;
                answer.is_complete = true;
            } else if let Some(length) = length_of(&answer)? {
                self.octets(length, &mut answer.body)?;
                answer.is_complete = true;
            } else {
                // To the end of the connection.
                answer.body = self.rest.to_vec();
                self.rest = &[];
                answer.is_complete = true;
            }
            return Ok(answer);
        }
    }

    fn skip_blank_lines(&mut self) {
        while self.from == From::Client {
            let rest = self.rest.strip_prefix(b"\r\n").or_else(|| self.rest.strip_prefix(b"\n"));
            let Some(rest) = rest else { return };
            self.rest = rest;
        }
    }

    fn line(&mut self) -> Read<&'b [u8]> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or(Stop::Within)?;
        let line = &self.rest[..end];
        self.rest = &self.rest[end + 1..];
        let line = match line.strip_suffix(b"\r") {
            Some(line) => line,
            None if self.from == From::Client => line,
            None => return Err(Stop::Bad),
        };
        if line.iter().any(|byte| *byte != b'\t' && (*byte < b' ' || *byte == 0x7f)) {
            return Err(Stop::Bad);
        }
        Ok(line)
    }

    /// A head whose first line has at least so many words.
    fn head(&mut self, words: usize) -> Read<Message> {
        let line = String::from_utf8_lossy(self.line()?).into_owned();
        let mut start = line.splitn(3, ' ').map(str::to_owned);
        let start: [String; 3] = std::array::from_fn(|_| start.next().unwrap_or_default());
        if start[..words].iter().any(String::is_empty) {
            return Err(Stop::Bad);
        }
        Ok(Message { start, fields: self.fields()?, ..Message::default() })
    }

    fn fields(&mut self) -> Read<Vec<Field>> {
        let mut fields = Vec::new();
        loop {
            let line = self.line()?;
            if line.is_empty() {
                return Ok(fields);
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or(Stop::Bad)?;
            let (name, value) = (&line[..colon], &line[colon + 1..]);
            if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
                return Err(Stop::Bad);
            }
            fields.push((name.to_ascii_lowercase(), trim(value).to_vec()));
        }
    }

    fn body_of_request(&mut self, request: &mut Message) -> Read<()> {
        let codings: Vec<_> = request.values("transfer-encoding");
        if let Some(last) = codings.last() {
            let last = last.split(|byte| *byte == b',').next_back().unwrap_or_default();
            let is_only = codings.len() == 1 && codings[0].eq_ignore_ascii_case(b"chunked");
            // keygate says it in one way.
            let is_right =
                self.from == From::Client || is_only && request.values("content-length").is_empty();
            if !last.trim_ascii().eq_ignore_ascii_case(b"chunked")
                || request.start[2] != "HTTP/1.1"
                || !is_right
            {
                return Err(Stop::Bad);
            }
            return self.chunked(request);
        }
        // Beside a transfer coding a length says nothing (section 6.3).
        let length = length_of(request)?;
        self.octets(length.unwrap_or(0), &mut request.body)
    }

    fn octets(&mut self, length: usize, into: &mut Vec<u8>) -> Read<()> {
        let (octets, rest) = self.rest.split_at(length.min(self.rest.len()));
        into.extend_from_slice(octets);
        self.rest = rest;
        if octets.len() == length { Ok(()) } else { Err(Stop::Within) }
    }

    /// A line of a chunked body: it ends with CRLF, whoever sends it.
    fn chunk_line(&mut self) -> Read<&'b [u8]> {
        let end = self.rest.iter().position(|byte| *byte == b'\n').ok_or(Stop::Within)?;
        let line = self.rest[..end].strip_suffix(b"\r").ok_or(Stop::Bad)?;
        self.rest = &self.rest[end + 1..];
        if line.contains(&b'\r') { Err(Stop::Bad) } else { Ok(line) }
    }

    fn chunked(&mut self, message: &mut Message) -> Read<()> {
        loop {
            let line = self.chunk_line()?;
            let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
            let (size, extension) = line.split_at(digits);
            let size = std::str::from_utf8(size).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
            let has_extension = !extension.is_empty();
            let is_extension = matches!(extension.trim_ascii_start(), [] | [b';', ..]);
            if !is_extension || has_extension && self.from == From::Keygate {
                return Err(Stop::Bad);
            }
            match size.ok_or(Stop::Bad)? {
                0 => break,
                size => self.octets(size, &mut message.body)?,
            }
            match self.rest {
                [b'\r', b'\n', rest @ ..] => self.rest = rest,
                [] | [b'\r'] => return Err(Stop::Within),
                _ => return Err(Stop::Bad),
            }
        }
        loop {
            let line = self.chunk_line()?;
            if line.is_empty() {
                return Ok(());
            }
            let colon = line.iter().position(|byte| *byte == b':').ok_or(Stop::Bad)?;
            message.trailers.push(line[..colon].to_ascii_lowercase());
        }
    }
}

fn check_request(request: &Message) -> Read<()> {
    let [method, target, version] = &request.start;
    let is_method = method.bytes().all(is_token);
    let is_target = !target.contains(['\t', ' ']);
    if is_method && is_target && matches!(&**version, "HTTP/1.1" | "HTTP/1.0") {
        Ok(())
    } else {
        Err(Stop::Bad)
    }
}

/// The length that the fields give: all of them the same number, in digits alone.
fn length_of(message: &Message) -> Read<Option<usize>> {
    let mut length = None;
    for value in message.values("content-length") {
        let digits =
            std::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let parsed = digits.and_then(|digits| digits.parse::<usize>().ok()).ok_or(Stop::Bad)?;
        if length.is_some_and(|length| length != parsed) {
            return Err(Stop::Bad);
        }
        length = Some(parsed);
    }
    Ok(length)
}

fn trim(value: &[u8]) -> &[u8] {
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let begin = value.iter().position(|byte| !is_blank(byte)).unwrap_or(value.len());
    let end = value.iter().rposition(|byte| !is_blank(byte)).map_or(begin, |last| last + 1);
    &value[begin..end]
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

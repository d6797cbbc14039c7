//! What is wrong with an answer that cannot be read: the byte and its place, never a value.

/// What is wrong with the answer that begins like this, if that can be seen in it. Of what the upstream said it repeats one
/// byte, and the name of a field.
///
/// The grammar is that of RFC 9112, sections 4 and 5, as httparse takes it.
pub(super) fn flaw(bytes: &[u8]) -> Option<String> {
    let blank = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let mut head = Head { bytes, at: blank };
    head.version().or_else(|| head.status()).or_else(|| head.fields())
}

/// A head, read from its beginning to its first flaw.
struct Head<'h> {
    bytes: &'h [u8],
    at: usize,
}

impl Head<'_> {
    fn version(&mut self) -> Option<String> {
        if let Some(protocol) = foreign(&self.bytes[self.at..]) {
            return Some(format!("it begins like {protocol}"));
        }
        let wanted = b"HTTP/1.";
        let is_right = |n: usize, byte: u8| match wanted.get(n) {
            Some(wanted) => byte == *wanted,
            None => matches!(byte, b'0' | b'1'),
        };
        self.expect(wanted.len() + 1, is_right, "where HTTP/1.1 or HTTP/1.0 belongs")
    }

    fn status(&mut self) -> Option<String> {
        self.expect(1, |_, byte| byte == b' ', "where one blank belongs, behind the version")
            .or_else(|| {
                self.expect(3, |_, byte| byte.is_ascii_digit(), "where a digit of the status belongs")
            })
            .or_else(|| {
                let is_end = |_, byte| matches!(byte, b' ' | b'\r' | b'\n');
                self.expect(1, is_end, "where a blank or the line's end belongs, behind the status")
            })
            .or_else(|| {
                // Without a phrase, the line's end is behind the status.
                if matches!(self.bytes[..self.at].last(), Some(b'\r' | b'\n')) {
                    self.at -= 1;
                }
                self.line("in the reason phrase")
            })
    }

    fn fields(&mut self) -> Option<String> {
        for number in 1.. {
            let rest = self.bytes.get(self.at..)?;
            match rest.first()? {
                b'\r' | b'\n' => return None,
                b' ' | b'\t' => {
                    return Some(format!(
                        "byte {} is a blank where field {number} begins (a folded line)",
                        self.at
                    ));
                }
                _ => {}
            }
            let name = rest.iter().position(|byte| !is_token(*byte))?;
            if rest[name] != b':' || name == 0 {
                self.at += name;
                return Some(self.wrong(&format!("in the name of field {number}")));
            }
            let name = String::from_utf8_lossy(&rest[..name.min(SHOWN)]).into_owned();
            self.at += name.len() + 1;
            if let Some(flaw) = self.line(&format!("in the value of field {number}, `{name}`")) {
                return Some(flaw);
            }
        }
        None
    }

    /// Reads to the end of a line that is text; the flaw, if there is one.
    fn line(&mut self, place: &str) -> Option<String> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        self.at += rest.iter().take_while(|byte| is_text(**byte)).count();
        match (self.bytes.get(self.at)?, self.bytes.get(self.at + 1)) {
            (b'\n', _) => self.at += 1,
            (b'\r', Some(b'\n')) => self.at += 2,
            // The rest has not come.
            (b'\r', None) => self.at += 1,
            _ => return Some(self.wrong(place)),
        }
        None
    }

    /// Reads as many bytes as these; the flaw, if one of them is wrong.
    fn expect(&mut self, length: usize, is_right: impl Fn(usize, u8) -> bool, place: &str) -> Option<String> {
        for n in 0..length {
            if !is_right(n, *self.bytes.get(self.at)?) {
                return Some(self.wrong(place));
            }
            self.at += 1;
        }
        None
    }

    /// Says which byte is wrong.
    fn wrong(&self, place: &str) -> String {
        let (at, byte) = (self.at, self.bytes.get(self.at).copied().unwrap_or_default());
        if byte.is_ascii_graphic() {
            format!("byte {at} is 0x{byte:02x} ('{}') {place}", char::from(byte))
        } else {
            format!("byte {at} is 0x{byte:02x} {place}")
        }
    }
}

/// The length of a field's name that is shown.
const SHOWN: usize = 64;

/// The other protocol that begins with these bytes.
fn foreign(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [0x15 | 0x16, 0x03, ..] => Some("TLS: this port wants https"),
        // A SETTINGS frame on the stream 0, which begins each connection.
        [0, 0, _, 4, _, 0, 0, 0, 0, ..] => Some("HTTP/2 (RFC 9113), without being asked for it"),
        [b'S', b'S', b'H', b'-', ..] => Some("SSH"),
        _ => None,
    }
}

/// `tchar` of RFC 9110, section 5.6.2.
const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

/// A byte of a field's value or a reason phrase.
const fn is_text(byte: u8) -> bool {
    matches!(byte, b'\t' | b' '..=b'~' | 0x80..)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_byte_that_is_wrong_is_named_with_its_place() {
        for (answer, expected) in [
            (&b"SSH-2.0-OpenSSH_9\r\n"[..], "it begins like SSH"),
            (b"\x15\x03\x01\x00\x02", "it begins like TLS: this port wants https"),
            (b"\0\0\x12\x04\0\0\0\0\0", "it begins like HTTP/2 (RFC 9113), without being asked for it"),
            (b"ICY 200 OK\r\n", "byte 0 is 0x49 ('I') where HTTP/1.1 or HTTP/1.0 belongs"),
            (b"HTTP/2.0 200 OK\r\n", "byte 5 is 0x32 ('2') where HTTP/1.1 or HTTP/1.0 belongs"),
            (b"HTTP/1.1  200 OK\r\n", "byte 9 is 0x20 where a digit of the status belongs"),
            (b"HTTP/1.1 2x0 OK\r\n", "byte 10 is 0x78 ('x') where a digit of the status belongs"),
            (
                b"HTTP/1.1 2000 OK\r\n",
                "byte 12 is 0x30 ('0') where a blank or the line's end belongs, behind the status",
            ),
            (b"HTTP/1.1 200 O\0K\r\n", "byte 14 is 0x00 in the reason phrase"),
            (b"HTTP/1.1 200\r\na: b\r\nx y: secret\r\n", "byte 21 is 0x20 in the name of field 2"),
            (b"HTTP/1.1 200\na b: c\n", "byte 14 is 0x20 in the name of field 1"),
            (b"HTTP/1.1 200 OK\r\n: b\r\n", "byte 17 is 0x3a (':') in the name of field 1"),
            (b"HTTP/1.1 200 OK\r\nsecret\r\n", "byte 23 is 0x0d in the name of field 1"),
            (b"HTTP/1.1 200 OK\r\nx-a: sec\x01ret\r\n", "byte 25 is 0x01 in the value of field 1, `x-a`"),
            (b"HTTP/1.1 200 OK\r\nx-a: sec\rret\r\n", "byte 25 is 0x0d in the value of field 1, `x-a`"),
            (
                b"HTTP/1.1 200 OK\r\nx-a: b\r\n folded\r\n",
                "byte 25 is a blank where field 2 begins (a folded line)",
            ),
        ] {
            let said = flaw(answer);
            assert_eq!(said.as_deref(), Some(expected), "{}", String::from_utf8_lossy(answer));
        }
    }

    #[test]
    fn what_is_right_as_far_as_it_has_come_has_no_flaw() {
        let whole = b"HTTP/1.1 200 OK\r\nx-a: \xe9t\xe9\t1\r\nx-b:\r\ncontent-length: x\r\n\r\n\0 any body";
        for end in 0..whole.len() {
            assert_eq!(flaw(&whole[..end]), None, "{end}");
        }
        assert_eq!(flaw(b"HTTP/1.0 404\n\n"), None);
    }

    #[test]
    fn any_bytes_are_looked_at_without_a_panic() {
        let mut random = fastrand::Rng::with_seed(13);
        for _ in 0..20_000 {
            let length = random.usize(..40);
            let known = random.usize(..=20);
            let mut bytes = b"HTTP/1.1 200 OK\r\na: b"[..known].to_vec();
            bytes.extend(
                (0..length).map(|_| *random.choice(&[b'\r', b'\n', b' ', b':', b'a', 0, 200]).unwrap()),
            );
            let _ = flaw(&bytes);
        }
    }
}

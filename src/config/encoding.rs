//! The text of a file, also if it is not in UTF-8: editors write UTF-16, and Latin-1 or Windows-1252. The mistake is told
//! once, and the rest of the file is still checked.

/// A place in a text that is not in UTF-8, and what to do.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WrongEncoding {
    /// In bytes of the decoded text.
    pub(super) offset: usize,
    pub(super) text: String,
}

const MARK: &[u8] = b"\xEF\xBB\xBF";

pub(super) fn decode(bytes: &[u8]) -> (String, Option<WrongEncoding>) {
    if let Some(text) = utf16(bytes) {
        let wrong = "the file is in UTF-16; save it as UTF-8".to_owned();
        return (text, Some(WrongEncoding { offset: 0, text: wrong }));
    }
    let bytes = bytes.strip_prefix(MARK).unwrap_or(bytes);
    let (mut text, mut wrong) = (String::with_capacity(bytes.len()), None);
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        if let (Some(byte), None) = (chunk.invalid().first(), &wrong) {
            let advice = format!(
                "the byte 0x{byte:02X} is not UTF-8, so the file is probably in Latin-1 or Windows-1252; save it as UTF-8"
            );
            wrong = Some(WrongEncoding { offset: text.len(), text: advice });
        }
        text.extend(chunk.invalid().iter().map(|byte| char::from(*byte)));
    }
    (text, wrong)
}

/// The text, if it is in UTF-16: with a byte-order mark, or with a zero in the first character.
fn utf16(bytes: &[u8]) -> Option<String> {
    let read: fn([u8; 2]) -> u16 = match bytes {
        [0xFF, 0xFE, ..] => u16::from_le_bytes,
        [0xFE, 0xFF, ..] => u16::from_be_bytes,
        [1..=0xFF, 0, 1..=0xFF, 0, ..] => u16::from_le_bytes,
        [0, 1..=0xFF, 0, 1..=0xFF, ..] => u16::from_be_bytes,
        _ => return None,
    };
    let units = bytes.chunks_exact(2).map(|pair| read([pair[0], pair[1]]));
    let text: String =
        char::decode_utf16(units).map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    Some(text.trim_start_matches('\u{FEFF}').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_in_another_encoding_is_read_and_told() {
        let utf16 =
            |read: fn(u16) -> [u8; 2], text: &str| text.encode_utf16().flat_map(read).collect::<Vec<u8>>();
        for (bytes, text, told) in [
            (b"a = \"\xC3\xA9\"".to_vec(), "a = \"é\"", None),
            (b"\xEF\xBB\xBFa = 1".to_vec(), "a = 1", None),
            (Vec::new(), "", None),
            (b"a = \"\xE9\xE8\"".to_vec(), "a = \"éè\"", Some((5, "the byte 0xE9 is not UTF-8"))),
            (utf16(u16::to_le_bytes, "\u{FEFF}a = \"é\""), "a = \"é\"", Some((0, "UTF-16"))),
            (utf16(u16::to_be_bytes, "\u{FEFF}a = 1"), "a = 1", Some((0, "UTF-16"))),
            (utf16(u16::to_le_bytes, "a = 1"), "a = 1", Some((0, "UTF-16"))),
        ] {
            let (read, wrong) = decode(&bytes);
            assert_eq!(read, text);
            assert_eq!(wrong.as_ref().map(|wrong| wrong.offset), told.map(|(offset, _)| offset), "{wrong:?}");
            assert!(told.is_none_or(|(_, part)| wrong.unwrap().text.contains(part)));
        }
    }
}

//! An interim answer with the status 103 over HTTP/2, which keygate writes itself between two frames of h2: hyper's server has no way
//! to send one.
//!
//! Its fields are literals that enter no table (RFC 7541, section 6.2.2), so the tables of h2 and of the client stay what they
//! are to each other.

use http::HeaderValue;

use super::frames::{END_HEADERS, HEADERS};

/// The longest header block, in bytes: far below what every client takes in one frame, 16 KiB.
const BLOCK: usize = 6 << 10;
/// `:status` with the value 103: a literal with the name of entry 8 of the static table.
const STATUS: [u8; 5] = [0x08, 3, b'1', b'0', b'3'];
/// A literal with the name of entry 45, `link`, as an integer with a prefix of four bits.
const LINK: [u8; 2] = [0x0f, 45 - 15];

/// The frame with these links for this stream. `None` if it would be too long.
pub(super) fn frame(stream: u32, links: &[HeaderValue]) -> Option<Vec<u8>> {
    let mut block = STATUS.to_vec();
    for link in links {
        block.extend(LINK);
        push_length(&mut block, link.len());
        block.extend(link.as_bytes());
        if block.len() > BLOCK {
            return None;
        }
    }
    let [.., long, middle, short] = u32::try_from(block.len()).ok()?.to_be_bytes();
    let head = [long, middle, short, HEADERS, END_HEADERS];
    Some([&head[..], &stream.to_be_bytes(), &block].concat())
}

/// The length of a string that is not compressed: an integer with a prefix of seven bits (RFC 7541, sections 5.1 and 5.2).
fn push_length(block: &mut Vec<u8>, length: usize) {
    const PREFIX: usize = 0x7f;
    let Some(mut rest) = length.checked_sub(PREFIX) else { return block.push(length as u8) };
    block.push(PREFIX as u8);
    while rest >= 0x80 {
        block.push((rest % 0x80) as u8 | 0x80);
        rest /= 0x80;
    }
    block.push(rest as u8);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_integers_of_hpack() {
        for (length, bytes) in
            [(0, &[0][..]), (126, &[126]), (127, &[127, 0]), (254, &[127, 127]), (1337, &[127, 186, 9])]
        {
            let mut block = Vec::new();
            push_length(&mut block, length);
            assert_eq!(block, bytes, "{length}");
        }
    }

    #[test]
    fn a_frame_has_the_status_and_the_links() {
        let links = ["</a>", "</b>; rel=preload"].map(HeaderValue::from_static);
        let block = [&STATUS[..], &LINK, &[4], b"</a>", &LINK, &[17], b"</b>; rel=preload"].concat();
        let frame = frame(9, &links).unwrap();
        assert_eq!(frame, [&[0, 0, block.len() as u8, 1, 4, 0, 0, 0, 9][..], &block].concat());
        let long = HeaderValue::from_bytes(&[b'a'; BLOCK]).unwrap();
        assert_eq!(super::frame(1, &[long]), None);
    }
}

//! Characters that deceive the readers of a text: nobody sees them, or they change how the text around them is shown.
//!
//! A person decides by a name which key to revoke. So names, owners, notes and reasons have no such character, and where
//! a record has one that an older release took, people see its escape, as in `\u{202e}`.
//!
//! # What deceives
//! - Control characters, and the separators of lines and paragraphs.
//! - Everything that Unicode calls *default ignorable*: marks of direction, blanks of no width, tags, variation selectors,
//!   fillers, the soft hyphen. Among them is what has no meaning yet: it is invisible with every meaning.
//! - The blank pattern of Braille, which is as invisible and is no blank for [`str::trim`].
//! - Characters for private use and noncharacters: they mean something else on each machine.
//!
//! # What some writing needs
//! UAX #31 leaves default ignorable characters out of identifiers, and advises systems for natural names to take the two
//! joiners where they are seen. So they are taken there, and nowhere else:
//!
//! - Between two letters of Arabic script a ZERO WIDTH NON-JOINER, which Persian needs within words.
//! - Beside the virama of an Indic script both joiners: Sinhala cannot write the name of its country without.
//! - Between two emoji a ZERO WIDTH JOINER, as in 👩‍💻, and behind an emoji the selectors of its presentation, U+FE0E and
//!   U+FE0F (UTS #51): phones and desktops write them unasked.
//!
//! The flags of England, Scotland and Wales are spelt with tags and are refused: tags can spell any text that nobody sees.
//! What looks alike is not told apart: a name is no identifier, an id is.

use std::borrow::Cow;
use std::fmt::{self, Write as _};
use std::io;

use serde::Serialize;

/// A character that deceives, and where it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unseen {
    character: char,
    /// Its place among the characters; the first has 1.
    place: usize,
}

impl Unseen {
    /// The first one of a text.
    #[must_use]
    pub fn first_in(text: &str) -> Option<Self> {
        Self::first_except(text, |_| false)
    }

    /// The first one of a text of several lines.
    #[must_use]
    pub fn first_in_lines(text: &str) -> Option<Self> {
        Self::first_except(text, |character| character == '\n')
    }

    fn first_except(text: &str, is_excepted: impl Fn(char) -> bool) -> Option<Self> {
        let mut judged = judge(text).enumerate();
        let (at, (character, _)) = judged.find(|(_, (one, deceives))| *deceives && !is_excepted(*one))?;
        Some(Self { character, place: at + 1 })
    }

    /// The same, seen from `before` characters further ahead.
    #[must_use]
    pub const fn after(self, before: usize) -> Self {
        Self { place: self.place + before, ..self }
    }
}

/// What is wrong and what to do, as the end of a sentence about the text.
impl fmt::Display for Unseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.character {
            '\u{61C}' | '\u{200E}' | '\u{200F}' | '\u{202A}'..='\u{202E}' | '\u{2066}'..='\u{2069}' => {
                "it changes the direction of the text around it"
            }
            '\u{2028}' | '\u{2029}' => "it breaks the line",
            control if control.is_control() => "it is a control character",
            other if is_without_meaning(other) => "it means something else on each machine",
            _ => "nobody sees it there",
        };
        write!(f, "has U+{:04X} as character {}: {what}; leave it out", self.character as u32, self.place)
    }
}

/// Whether a character deceives where it stands alone.
#[must_use]
pub fn deceives(character: char) -> bool {
    deceives_between(None, character, None)
}

/// A text for one line of people's reading: what deceives is escaped, as in `\u{202e}`, and so is the end of a line.
#[must_use]
pub fn escaped(text: &str) -> Cow<'_, str> {
    escaped_except(text, |_| false)
}

/// The same for a text of several lines.
#[must_use]
pub fn escaped_lines(text: &str) -> Cow<'_, str> {
    escaped_except(text, |character| character == '\n')
}

fn escaped_except(text: &str, is_excepted: impl Fn(char) -> bool) -> Cow<'_, str> {
    if judge(text).all(|(character, deceives)| !deceives || is_excepted(character)) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for (character, deceives) in judge(text) {
        if deceives && !is_excepted(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    Cow::Owned(shown)
}

/// A part of a shown text without what deceives at its edges, where it was cut through an emoji of several characters.
#[must_use]
pub fn trimmed_to_seen(part: &str) -> String {
    judge(part).filter(|(_, deceives)| !deceives).map(|(character, _)| character).collect()
}

/// A value as JSON, in which what deceives is escaped, as in `\u202e`: a parser reads the text as it is.
///
/// # Errors
/// If the value has no form in JSON.
pub fn to_json(value: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
    let mut json = Vec::with_capacity(256);
    append_json(value, &mut json)?;
    Ok(json)
}

/// The same, behind what is in `json`.
///
/// # Errors
/// If the value has no form in JSON.
pub fn append_json(value: &impl Serialize, json: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    value.serialize(&mut serde_json::Serializer::with_formatter(json, Escaping))
}

/// Writes JSON without blanks, and without characters that deceive.
struct Escaping;

impl serde_json::ser::Formatter for Escaping {
    fn write_string_fragment<W: ?Sized + io::Write>(
        &mut self,
        writer: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if fragment.is_ascii() && !fragment.contains('\u{7F}') {
            return writer.write_all(fragment.as_bytes());
        }
        let mut text = String::with_capacity(fragment.len() + 16);
        for (character, deceives) in judge(fragment) {
            if deceives {
                for unit in character.encode_utf16(&mut [0; 2]) {
                    // A string takes everything.
                    let _ = write!(text, "\\u{unit:04x}");
                }
            } else {
                text.push(character);
            }
        }
        writer.write_all(text.as_bytes())
    }
}

/// The characters of a text, each with whether it deceives where it stands.
fn judge(text: &str) -> impl Iterator<Item = (char, bool)> {
    let mut rest = text.chars().peekable();
    let mut before = None;
    std::iter::from_fn(move || {
        let character = rest.next()?;
        let deceives = deceives_between(before, character, rest.peek().copied());
        // Nothing is taken because of a character that is not shown.
        before = Some(character).filter(|_| !deceives);
        Some((character, deceives))
    })
}

fn deceives_between(before: Option<char>, character: char, next: Option<char>) -> bool {
    match character {
        ' '..='~' => false,
        '\u{200C}' | '\u{200D}' => !joins(before, character, next),
        '\u{FE0E}' | '\u{FE0F}' => !selects(before, next),
        other => other.is_control() || is_ignorable(other) || is_without_meaning(other),
    }
}

/// Whether a joiner is seen between these two.
fn joins(before: Option<char>, joiner: char, next: Option<char>) -> bool {
    const JOINER: char = '\u{200D}';
    let is = |of: fn(char) -> bool, one: Option<char>| one.is_some_and(of);
    let is_letter = is(char::is_alphabetic, next);
    let in_emoji = joiner == JOINER && is(ends_emoji, before) && is(is_emoji, next);
    let in_arabic = joiner != JOINER && is(is_arabic, before) && is(is_arabic, next);
    let in_indic = is(is_virama, before) && (joiner == JOINER || is_letter);
    // Bengali writes ra so before a conjunct.
    let before_virama = joiner == JOINER && is(is_indic, before) && is(is_virama, next);
    in_emoji || in_arabic || in_indic || before_virama
}

/// Whether a selector of presentation is seen between these two.
fn selects(before: Option<char>, next: Option<char>) -> bool {
    match before {
        // A keycap.
        Some('#' | '*' | '0'..='9') => next == Some('\u{20E3}'),
        Some(other) => is_emoji(other),
        None => false,
    }
}

/// *Default_Ignorable_Code_Point* of Unicode 17, the separators of lines, interlinear annotations, and the blank of Braille.
const fn is_ignorable(character: char) -> bool {
    matches!(
        character,
        '\u{AD}'
            | '\u{34F}'
            | '\u{61C}'
            | '\u{115F}'..='\u{1160}'
            | '\u{17B4}'..='\u{17B5}'
            | '\u{180B}'..='\u{180F}'
            | '\u{200B}'..='\u{200F}'
            | '\u{2028}'..='\u{202E}'
            | '\u{2060}'..='\u{206F}'
            | '\u{2800}'
            | '\u{3164}'
            | '\u{FE00}'..='\u{FE0F}'
            | '\u{FEFF}'
            | '\u{FFA0}'
            | '\u{FFF0}'..='\u{FFFB}'
            | '\u{1BCA0}'..='\u{1BCA3}'
            | '\u{1D173}'..='\u{1D17A}'
            | '\u{E0000}'..='\u{E0FFF}'
    )
}

/// Characters for private use, and noncharacters.
const fn is_without_meaning(character: char) -> bool {
    matches!(character, '\u{E000}'..='\u{F8FF}' | '\u{FDD0}'..='\u{FDEF}' | '\u{F0000}'..='\u{10FFFF}')
        || character as u32 & 0xFFFE == 0xFFFE
}

/// The blocks with emoji. They also have symbols that are none: a joiner between two of these is the price of a short list.
const fn is_emoji(character: char) -> bool {
    matches!(
        character,
        '\u{A9}'
            | '\u{AE}'
            | '\u{203C}'
            | '\u{2049}'
            | '\u{2122}'
            | '\u{2139}'
            | '\u{2190}'..='\u{21FF}'
            | '\u{2300}'..='\u{23FF}'
            | '\u{24C2}'
            | '\u{25A0}'..='\u{27BF}'
            | '\u{2934}'..='\u{2935}'
            | '\u{2B00}'..='\u{2BFF}'
            | '\u{3030}'
            | '\u{303D}'
            | '\u{3297}'
            | '\u{3299}'
            | '\u{1F000}'..='\u{1FAFF}'
    )
}

/// Whether an emoji may end with it. A selector that was taken stands behind one.
const fn ends_emoji(character: char) -> bool {
    is_emoji(character) || character == '\u{FE0F}'
}

const fn is_arabic(character: char) -> bool {
    matches!(
        character,
        '\u{620}'..='\u{65F}' | '\u{66E}'..='\u{6D3}' | '\u{6EE}'..='\u{6FF}' | '\u{750}'..='\u{77F}' | '\u{8A0}'..='\u{8FF}'
    )
}

const fn is_indic(character: char) -> bool {
    matches!(character, '\u{900}'..='\u{DFF}')
}

const fn is_virama(character: char) -> bool {
    matches!(
        character,
        '\u{94D}'
            | '\u{9CD}'
            | '\u{A4D}'
            | '\u{ACD}'
            | '\u{B4D}'
            | '\u{BCD}'
            | '\u{C4D}'
            | '\u{CCD}'
            | '\u{D4D}'
            | '\u{DCA}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_that_nobody_sees_are_found_wherever_they_stand() {
        let ranges = [
            '\u{202A}'..='\u{202E}',
            '\u{2066}'..='\u{2069}',
            '\u{61C}'..='\u{61C}',
            '\u{200B}'..='\u{200F}',
            '\u{2060}'..='\u{206F}',
            '\u{FEFF}'..='\u{FEFF}',
            '\u{E0000}'..='\u{E007F}',
            '\u{E0100}'..='\u{E01EF}',
            '\u{FE00}'..='\u{FE0F}',
            '\0'..='\u{1F}',
            '\u{7F}'..='\u{9F}',
            '\u{2028}'..='\u{2029}',
            '\u{AD}'..='\u{AD}',
            '\u{3164}'..='\u{3164}',
            '\u{2800}'..='\u{2800}',
            '\u{E000}'..='\u{F8FF}',
            '\u{1FFFE}'..='\u{1FFFF}',
            '\u{10FFFD}'..='\u{10FFFF}',
        ];
        for character in ranges.into_iter().flatten() {
            for text in [format!("{character}"), format!("ab{character}"), format!("ab{character}cd")] {
                let place = text.chars().position(|one| one == character).unwrap() + 1;
                assert_eq!(Unseen::first_in(&text), Some(Unseen { character, place }), "{text:?}");
                assert_eq!(escaped(&text), text.replace(character, &character.escape_default().to_string()));
                let json = String::from_utf8(to_json(&text).unwrap()).unwrap();
                assert!(judge(&json).all(|(_, deceives)| !deceives), "{json}");
                assert_eq!(serde_json::from_str::<String>(&json).unwrap(), text);
            }
        }
    }

    #[test]
    fn joiners_and_selectors_are_taken_where_they_are_seen_and_nowhere_else() {
        for good in [
            "👩\u{200D}💻 Ada",
            "👩🏽\u{200D}💻",
            "❤\u{FE0F}\u{200D}🔥",
            "❤\u{FE0F} billing",
            "☎\u{FE0E}",
            "1\u{FE0F}\u{20E3}",
            "نامه\u{200C}ای",
            "می\u{200C}خواهم",
            "ශ\u{DCA}\u{200D}රී ලංකා",
            "क\u{94D}\u{200C}ष",
            "ন\u{9CD}\u{200D}",
            "র\u{200D}\u{9CD}যাব",
            "Grüße, наука, 東京, שלום, ไทย, e\u{301}",
            "a\u{A0}b\u{3000}c",
        ] {
            assert_eq!(Unseen::first_in(good), None, "{good:?}");
            assert!(matches!(escaped(good), Cow::Borrowed(_)), "{good:?}");
            assert_eq!(to_json(&good).unwrap(), serde_json::to_vec(good).unwrap());
        }
        for bad in [
            "a\u{200D}b",
            "👩\u{200D}",
            "👩\u{200D}\u{200D}💻",
            "a\u{200D}💻",
            "👩\u{200C}💻",
            "می\u{200C}",
            "می\u{200D}خواهم",
            "a\u{200C}می",
            "a\u{FE0F}",
            "1\u{FE0F}",
            "❤\u{FE0F}\u{FE0F}",
            "❤\u{FE01}",
            "क\u{94D}\u{200C}\u{200C}ष",
            "葛\u{E0100}",
            "🏴\u{E0067}\u{E0062}\u{E0065}\u{E006E}\u{E0067}\u{E007F}",
        ] {
            assert!(Unseen::first_in(bad).is_some(), "{bad:?}");
        }
    }

    #[test]
    fn the_message_names_the_character_its_place_and_what_to_do() {
        for (text, told) in [
            (
                "ab\u{202E}cd",
                "has U+202E as character 3: it changes the direction of the text around it; leave it out",
            ),
            ("\u{200B}", "has U+200B as character 1: nobody sees it there; leave it out"),
            ("a\u{E0041}", "has U+E0041 as character 2: nobody sees it there; leave it out"),
            ("a\u{1B}", "has U+001B as character 2: it is a control character; leave it out"),
            ("a\u{2028}", "has U+2028 as character 2: it breaks the line; leave it out"),
            ("\u{F8FF}", "has U+F8FF as character 1: it means something else on each machine; leave it out"),
        ] {
            assert_eq!(Unseen::first_in(text).unwrap().to_string(), told);
        }
        assert_eq!(Unseen::first_in("a\u{2028}").unwrap().after(2).place, 4);
    }

    #[test]
    fn the_end_of_a_line_deceives_only_where_a_text_has_one_line() {
        assert!(Unseen::first_in("a\nb").is_some());
        assert_eq!(Unseen::first_in_lines("a\nb"), None);
        assert!(Unseen::first_in_lines("a\r\nb").is_some());
        assert_eq!(escaped("a\nb\u{202E}"), "a\\nb\\u{202e}");
        assert_eq!(escaped_lines("a\nb\u{202E}"), "a\nb\\u{202e}");
    }
}

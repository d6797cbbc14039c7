//! Numbers of lines, for messages that name every wrong line of a file.

/// How many lines a message names. A file that is something else altogether has thousands.
const SHOWN: usize = 10;

/// `line 2`, `lines 2 and 5`, or the first ten and how many more there are. Lines count from 1.
#[must_use]
pub fn describe_lines(lines: &[usize]) -> String {
    let list = |lines: &[usize]| lines.iter().map(usize::to_string).collect::<Vec<_>>().join(", ");
    match lines {
        [line] => format!("line {line}"),
        [some @ .., last] if lines.len() <= SHOWN => format!("lines {} and {last}", list(some)),
        [..] => {
            let (shown, others) = lines.split_at(SHOWN.min(lines.len()));
            format!("lines {} and {} more", list(shown), others.len())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn up_to_ten_lines_are_named() {
        assert_eq!(describe_lines(&[3]), "line 3");
        assert_eq!(describe_lines(&[1, 3, 4]), "lines 1, 3 and 4");
        assert_eq!(describe_lines(&(1..=10).collect::<Vec<_>>()), "lines 1, 2, 3, 4, 5, 6, 7, 8, 9 and 10");
        assert_eq!(
            describe_lines(&(1..=12).collect::<Vec<_>>()),
            "lines 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 2 more"
        );
    }
}

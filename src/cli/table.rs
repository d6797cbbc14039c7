//! Tables for terminals: each row fits on one line, at any width, and shows every character of its cells.

use crate::vocabulary::text::{escaped, trimmed_to_seen};

/// A column. If the table is too narrow, the columns with the smallest `keep` are left out first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    title: &'static str,
    /// The smallest width at which the column is shown.
    least: usize,
    /// The largest width that its cells need. If it is more than `least`, cells are shortened before the column is left out.
    most: usize,
    keep: u8,
}

impl Column {
    /// A column of fixed width, whose cells are never shortened. As the last column, it takes the remaining room and is cut
    /// at the edge.
    pub(super) const fn new(title: &'static str, width: usize, keep: u8) -> Self {
        Self { title, least: width, most: width, keep }
    }

    /// A column whose cells lose their middle if they do not fit. An id begins with a time, so its end tells more.
    pub(super) const fn elastic(title: &'static str, least: usize, most: usize, keep: u8) -> Self {
        Self { title, least, most, keep }
    }

    const fn is_elastic(&self) -> bool {
        self.most > self.least
    }
}

const GAP: &str = "  ";
/// Columns with this `keep` or a larger one are essential: they are shortened rather than left out. Another column is
/// shown only if all columns with a larger `keep` have their full width beside it.
const ESSENTIAL: u8 = 5;

/// The columns that are shown.
#[derive(Debug)]
pub(super) struct Table {
    /// Their indices in `columns`, each with its width.
    shown: Vec<(usize, usize)>,
    columns: &'static [Column],
    width: Option<usize>,
}

impl Table {
    /// A table for a terminal of this width; `None` is for a file, where all columns have their full width.
    pub(super) fn new(columns: &'static [Column], width: Option<usize>) -> Self {
        let shown = match width {
            None => columns.iter().map(|column| column.most).enumerate().collect(),
            Some(width) => fit(columns, width),
        };
        Self { shown, columns, width }
    }

    pub(super) fn head(&self) -> String {
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        self.row(&titles)
    }

    pub(super) fn row(&self, cells: &[&str]) -> String {
        let mut line = String::new();
        let mut used = 0;
        for (place, (n, width)) in self.shown.iter().enumerate() {
            let (cell, column) = (escaped(cells.get(*n).copied().unwrap_or_default()), &self.columns[*n]);
            let last = place + 1 == self.shown.len();
            let cell = match self.width {
                Some(room) if last => cut(&cell, room.saturating_sub(used).max(*width)),
                Some(_) if column.is_elastic() => shorten(&cell, *width),
                _ => cell.into_owned(),
            };
            used += cell.chars().count().max(*width) + GAP.len();
            line += &format!("{cell:<width$}{GAP}");
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

/// The columns that fit into this width, each with its own width.
fn fit(columns: &[Column], width: usize) -> Vec<(usize, usize)> {
    let mut by_keep: Vec<usize> = (0..columns.len()).collect();
    by_keep.sort_by_key(|n| std::cmp::Reverse(columns[*n].keep));
    let (mut shown, mut least, mut most) = (Vec::new(), 0, 0);
    for n in by_keep {
        let column = &columns[n];
        let gap = if shown.is_empty() { 0 } else { GAP.len() };
        let beside = if column.keep >= ESSENTIAL { least } else { most };
        if beside + gap + column.least > width && !shown.is_empty() {
            break;
        }
        shown.push((n, column.least));
        (least, most) = (least + gap + column.least, most + gap + column.most);
    }
    // The remaining room goes first to the least important column, because it was shortened the most.
    let mut left = width.saturating_sub(least);
    for (n, granted) in shown.iter_mut().rev() {
        let more = left.min(columns[*n].most - *granted);
        *granted += more;
        left -= more;
    }
    shown.sort_unstable();
    shown
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    let cut: String = text.chars().take(width.saturating_sub(1)).chain(['…']).collect();
    trimmed_to_seen(&cut)
}

/// Shortens a text by leaving out its middle.
fn shorten(text: &str, width: usize) -> String {
    let len = text.chars().count();
    if len <= width {
        return text.to_owned();
    }
    let head = width.saturating_sub(1) / 2;
    let tail = width.saturating_sub(1) - head;
    let ends: String = text.chars().take(head).chain(['…']).chain(text.chars().skip(len - tail)).collect();
    trimmed_to_seen(&ends)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::vocabulary::text::Unseen;

    const COLUMNS: [Column; 3] =
        [Column::new("ID", 6, 9), Column::new("STATUS", 8, 1), Column::new("NAME", 4, 5)];

    #[test]
    fn columns_that_do_not_fit_are_left_out_and_only_the_last_is_cut() {
        let row = |width| Table::new(&COLUMNS, width).row(&["key_01", "active", "a long name"]);
        assert_eq!(row(None), "key_01  active    a long name\n");
        assert_eq!(row(Some(80)), "key_01  active    a long name\n");
        assert_eq!(row(Some(24)), "key_01  active    a lon…\n");
        assert_eq!(row(Some(20)), "key_01  a long name\n");
        assert_eq!(row(Some(14)), "key_01  a lon…\n");
        assert_eq!(row(Some(3)), "key_01\n", "an id is never cut");
        assert_eq!(Table::new(&COLUMNS, Some(20)).head(), "ID      NAME\n");
    }

    /// Texts of ordinary characters, of those that deceive, and of those that are taken only beside others.
    fn odd_text() -> impl Strategy<Value = String> {
        let pool: Vec<char> =
            "ab é…👩💻❤1ی\u{20E3}\u{94D}\u{DCA}\u{202E}\u{2066}\u{200B}\u{200C}\u{200D}\u{200F}\u{FE0E}\
             \u{FE0F}\u{E0041}\u{E0100}\u{AD}\u{FEFF}\u{2028}\u{85}\u{1B}\n\r\t\0\u{7F}\u{E000}\u{10FFFF}"
                .chars()
                .collect();
        let one = prop_oneof![4 => proptest::sample::select(pool), 1 => any::<char>()];
        proptest::collection::vec(one, 0..24).prop_map(String::from_iter)
    }

    proptest! {
        #[test]
        fn no_row_has_a_character_that_deceives(
            cells in proptest::collection::vec(odd_text(), 3),
            width in proptest::option::of(1_usize..60),
        ) {
            const ODD: [Column; 3] =
                [Column::elastic("ID", 3, 12, 9), Column::new("STATUS", 8, 6), Column::new("NAME", 4, 5)];
            let cells: Vec<&str> = cells.iter().map(String::as_str).collect();
            let row = Table::new(&ODD, width).row(&cells);
            let line = row.strip_suffix('\n').unwrap();
            prop_assert_eq!(Unseen::first_in(line), None, "{:?}", row);
        }
    }

    #[test]
    fn what_deceives_is_shown_as_its_escape() {
        let row = Table::new(&COLUMNS, Some(80)).row(&["key_01", "active", "a\u{202E}b\u{E0041}\nc"]);
        assert_eq!(row, "key_01  active    a\\u{202e}b\\u{e0041}\\nc\n");
        let row = |width| Table::new(&COLUMNS, Some(width)).row(&["key_01", "active", "ab👩\u{200D}💻cd"]);
        assert_eq!(row(30), "key_01  active    ab👩\u{200D}💻cd\n");
        assert_eq!(row(23), "key_01  active    ab👩…\n");
    }

    #[test]
    fn essential_columns_are_shortened_before_they_are_left_out() {
        const EVENTS: [Column; 4] = [
            Column::elastic("TYPE", 6, 9, 8),
            Column::elastic("BY", 6, 10, 6),
            Column::new("TARGET", 6, 7),
            Column::new("NOW", 3, 3),
        ];
        let row = |width| Table::new(&EVENTS, width).row(&["key.moved", "key_012345", "key_01", "a=b c=d"]);
        for (width, shown) in [
            (None, "key.moved  key_012345  key_01  a=b c=d\n"),
            (Some(40), "key.moved  key_012345  key_01  a=b c=d\n"),
            (Some(34), "key.moved  key_012345  key_01  a=…\n"),
            (Some(33), "key.moved  key_012345  key_01\n"),
            (Some(28), "key…oved  key_012345  key_01\n"),
            (Some(24), "ke…ved  key…2345  key_01\n"),
            (Some(22), "ke…ved  ke…345  key_01\n"),
            (Some(21), "key.moved  key_01\n"),
            (Some(14), "ke…ved  key_01\n"),
            (Some(10), "key.moved\n"),
        ] {
            assert_eq!(row(width), shown, "{width:?}");
        }
    }
}

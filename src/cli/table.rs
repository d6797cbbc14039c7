//! Tables for people: one line to a row, whatever the width of the terminal.

/// A column. `keep` orders them: where there is no room for all, those with the smallest go first.
#[derive(Clone, Copy, Debug)]
pub(super) struct Column {
    pub(super) title: &'static str,
    pub(super) width: usize,
    pub(super) keep: u8,
}

impl Column {
    pub(super) const fn new(title: &'static str, width: usize, keep: u8) -> Self {
        Self { title, width, keep }
    }
}

const GAP: &str = "  ";

/// The columns that are shown. The last one takes what room is left, and is cut there; no other is ever cut.
#[derive(Debug)]
pub(super) struct Table {
    shown: Vec<usize>,
    columns: &'static [Column],
    width: Option<usize>,
}

impl Table {
    /// For a terminal of this width, or for a file, where everything is shown.
    pub(super) fn new(columns: &'static [Column], width: Option<usize>) -> Self {
        let mut shown: Vec<usize> = (0..columns.len()).collect();
        let needed =
            |shown: &[usize]| shown.iter().map(|n| columns[*n].width + GAP.len()).sum::<usize>() - GAP.len();
        while width.is_some_and(|width| shown.len() > 1 && needed(&shown) > width) {
            let least = shown.iter().enumerate().min_by_key(|(_, n)| columns[**n].keep);
            let Some((place, _)) = least else { break };
            shown.remove(place);
        }
        Self { shown, columns, width }
    }

    pub(super) fn head(&self) -> String {
        let titles: Vec<&str> = self.columns.iter().map(|column| column.title).collect();
        self.row(&titles)
    }

    pub(super) fn row(&self, cells: &[&str]) -> String {
        let mut line = String::new();
        let mut used = 0;
        for (place, n) in self.shown.iter().enumerate() {
            let (cell, width) = (cells.get(*n).copied().unwrap_or_default(), self.columns[*n].width);
            let last = place + 1 == self.shown.len();
            match self.width {
                Some(room) if last => line += &cut(cell, room.saturating_sub(used).max(width)),
                _ if last => line += cell,
                _ => line += &format!("{cell:<width$}{GAP}"),
            }
            used += cell.chars().count().max(width) + GAP.len();
        }
        line.truncate(line.trim_end().len());
        line.push('\n');
        line
    }
}

fn cut(text: &str, width: usize) -> String {
    if text.chars().count() <= width {
        return text.to_owned();
    }
    text.chars().take(width.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: [Column; 3] =
        [Column::new("ID", 6, 9), Column::new("STATUS", 8, 1), Column::new("NAME", 4, 5)];

    #[test]
    fn what_does_not_fit_is_left_out_and_only_the_last_column_is_cut() {
        let row = |width| Table::new(&COLUMNS, width).row(&["key_01", "active", "a long name"]);
        assert_eq!(row(None), "key_01  active    a long name\n");
        assert_eq!(row(Some(80)), "key_01  active    a long name\n");
        assert_eq!(row(Some(24)), "key_01  active    a lon…\n");
        assert_eq!(row(Some(20)), "key_01  a long name\n");
        assert_eq!(row(Some(14)), "key_01  a lon…\n");
        assert_eq!(row(Some(3)), "key_01\n", "an id is never cut");
        assert_eq!(Table::new(&COLUMNS, Some(20)).head(), "ID      NAME\n");
    }
}

//! The files of secrets: of each there may be an older one beside the new one.

use std::path::{Path, PathBuf};

use super::section::Section;
use super::value::text;

/// A new pepper, and the one before.
pub(super) const PEPPERS_AT_MOST: usize = 2;
/// A new key, and those before.
pub(super) const KEYS_AT_MOST: usize = 16;

/// The files of a secret: one file under the name `one`, or a list under the name `many`, the newest first.
pub(super) fn secrets(
    section: &mut Section<'_>,
    one: &'static str,
    many: &'static str,
    (folder, most): (&Path, usize),
) -> Vec<PathBuf> {
    let single = section.optional(one, text);
    let list = section.filled(many, &format!("name the file of the secret, or set `{one}`"), text);
    if section.given(one) && section.given(many) {
        section.wrong(many, format!("`{one}` is also set; remove one of the two"));
    }
    if list.as_ref().is_some_and(|list| list.len() > most) {
        section.wrong(many, format!("at most {most} files: the new secret first, then those before"));
    }
    single
        .map(|file| vec![file])
        .or(list)
        .unwrap_or_default()
        .into_iter()
        .map(|file| folder.join(file))
        .collect()
}

//! The input of callers, checked: text, networks, scopes; new keys, patches, signups, keys that are moved in. Every
//! mistake is found, not just the first.

pub(super) mod fields;
pub(super) mod moved_key;
pub(super) mod new_key;
pub(super) mod patch;

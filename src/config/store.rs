//! `[store]`: which back end keeps the keys. What belongs to the other one is a mistake, not an idle remark.

use std::path::{Path, PathBuf};

use super::StoreSettings;
use super::section::Section;
use super::value::{DAY, INSTANT, choice, duration, flag, parsed, text};
use crate::store::{embedded, redis};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Embedded,
    Redis,
}

const KINDS: [(&str, Kind); 2] = [("embedded", Kind::Embedded), ("redis", Kind::Redis)];
/// The keys of one kind only.
const OF_EMBEDDED: [&str; 1] = ["path"];
const OF_REDIS: [&str; 8] = [
    "url",
    "username",
    "password_file",
    "cell",
    "connect_timeout",
    "lookup_timeout",
    "command_timeout",
    "allow_without_pepper",
];

/// `sealed` tells whether records carry a seal, that is, whether there is a pepper.
pub(super) fn read(section: &mut Section<'_>, folder: &Path, sealed: bool) -> Option<StoreSettings> {
    const ADVICE: &str = "say where keys are kept: kind = \"embedded\" for one file on this machine, \"redis\" for several \
                          gateways";
    let kind = section.required("kind", ADVICE, choice(&KINDS));
    let embedded = embedded(section, folder);
    let redis = redis(section, folder, kind == Some(Kind::Redis), sealed);
    match kind? {
        Kind::Embedded => {
            refuse(section, &OF_REDIS, "redis");
            Some(StoreSettings::Embedded(embedded))
        }
        Kind::Redis => {
            refuse(section, &OF_EMBEDDED, "embedded");
            redis.map(StoreSettings::Redis)
        }
    }
}

fn refuse(section: &Section<'_>, keys: &[&str], kind: &str) {
    for key in keys.iter().filter(|key| section.given(key)) {
        section.wrong(key, format!("belongs to kind = \"{kind}\"; leave it out"));
    }
}

fn embedded(section: &mut Section<'_>, folder: &Path) -> embedded::Settings {
    let default = embedded::Settings::default();
    let path = section.or("path", default.path, |value| text(value).map(PathBuf::from));
    embedded::Settings { path: folder.join(path) }
}

fn redis(section: &mut Section<'_>, folder: &Path, wanted: bool, sealed: bool) -> Option<redis::Settings> {
    // Not `parsed`, which shows the text: people put passwords into addresses.
    let address =
        section.optional("url", |value| redis::Address::parse(&text(value)?).map_err(str::to_owned));
    if wanted && !section.given("url") {
        section.missing("url", "say where Redis is: url = \"redis://127.0.0.1:6379\"");
    }
    let known = redis::Settings::default();
    let settings = redis::Settings {
        address: address.clone().unwrap_or(known.address),
        username: section.optional("username", text),
        password_file: section.optional("password_file", text).map(|path| folder.join(path)),
        cell: section.or("cell", known.cell, parsed(redis::Cell::parse)),
        connect_timeout: section.or("connect_timeout", known.connect_timeout, duration(INSTANT..=DAY)),
        lookup_timeout: section.or("lookup_timeout", known.lookup_timeout, duration(INSTANT..=DAY)),
        command_timeout: section.or("command_timeout", known.command_timeout, duration(INSTANT..=DAY)),
    };
    if wanted && settings.username.is_some() && !section.given("password_file") {
        section.missing("password_file", "name the file with the password of `username`");
    }
    let unsealed = section.or("allow_without_pepper", false, flag);
    if wanted && !sealed && !unsealed {
        section.lacks(
            "who can write to Redis could make keys; give keys.pepper_file, or say allow_without_pepper = true",
        );
    }
    address.map(|_| settings)
}

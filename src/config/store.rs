//! `[store]`: the back end that keeps the keys. A key of the other back end is a mistake.

use std::path::{Path, PathBuf};

use super::StoreSettings;
use super::file::Value;
use super::section::Section;
use super::value::{CENTURY, DAY, INSTANT, choice, duration, flag, parsed, text};
use crate::lifecycle::RetentionSettings;
use crate::store::redis::{Node, Place, Sentinels, TlsFiles};
use crate::store::{embedded, fence, redis};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Embedded,
    Redis,
}

const KINDS: [(&str, Kind); 2] = [("embedded", Kind::Embedded), ("redis", Kind::Redis)];
/// The keys that only one kind has.
const OF_EMBEDDED: [&str; 1] = ["path"];
const OF_REDIS: [&str; 14] = [
    "url",
    "sentinels",
    "master_name",
    "sentinel_username",
    "sentinel_password_file",
    "cluster",
    "username",
    "password_file",
    "cell",
    "memory_file",
    "connect_timeout",
    "lookup_timeout",
    "command_timeout",
    "allow_without_pepper",
];

impl StoreSettings {
    /// What the store keeps in memory at the most, and what the process remembers of the last changes in it, in bytes.
    #[must_use]
    pub const fn held(&self) -> u64 {
        let of_store = match self {
            Self::Embedded(_) => embedded::HELD_BYTES,
            Self::Redis(_) => redis::HELD_BYTES,
        };
        (of_store + fence::HELD_BYTES) as u64
    }
}

/// `sealed` tells whether records carry a seal: with a pepper they do. `retention` learns how long ended keys are kept.
pub(super) fn read(
    section: &mut Section<'_>,
    folder: &Path,
    sealed: bool,
    retention: &mut RetentionSettings,
) -> Option<StoreSettings> {
    const ADVICE: &str = "write kind = \"embedded\" for one file on this machine, or kind = \"redis\" for a store \
         that several gateways share";
    let kind = section.required("kind", ADVICE, choice(&KINDS));
    let embedded = embedded(section, folder);
    let redis = redis(section, folder, kind == Some(Kind::Redis), sealed);
    retention.keep_ended = section.or("keep_ended", retention.keep_ended, duration(DAY..=CENTURY));
    match kind? {
        Kind::Embedded => {
            refuse(section, &OF_REDIS, "redis");
            Some(StoreSettings::Embedded(embedded))
        }
        Kind::Redis => {
            refuse(section, &OF_EMBEDDED, "embedded");
            redis.map(|settings| StoreSettings::Redis(Box::new(settings)))
        }
    }
}

/// The store with the place of its memory: beside the socket, where no file is named.
pub(super) fn remembering(store: StoreSettings, socket: Option<&Path>) -> StoreSettings {
    let StoreSettings::Redis(mut redis) = store else { return store };
    redis.memory_file = redis.memory_file.or_else(|| {
        let mut path = socket?.as_os_str().to_owned();
        path.push(".memory");
        Some(path.into())
    });
    StoreSettings::Redis(redis)
}

fn refuse(section: &Section<'_>, keys: &[&str], kind: &str) {
    for key in keys.iter().filter(|key| section.given(key)) {
        section.wrong(key, format!("only valid with kind = \"{kind}\"; remove it"));
    }
}

fn embedded(section: &mut Section<'_>, folder: &Path) -> embedded::Settings {
    let default = embedded::Settings::default();
    let path = section.or("path", default.path, |value| text(value).map(PathBuf::from));
    embedded::Settings { path: folder.join(path) }
}

fn redis(section: &mut Section<'_>, folder: &Path, wanted: bool, sealed: bool) -> Option<redis::Settings> {
    let place = place(section, folder, wanted);
    let encrypted = matches!(&place, Some(Place::Fixed(address)) if address.encrypted());
    let tls = section.section("tls", |section| tls(section, folder, wanted, encrypted));
    if tls.is_some() && !encrypted && matches!(place, Some(Place::Fixed(_))) {
        section.wrong(
            "url",
            "redis:// means plain text, but store.tls is set; write rediss://, or remove store.tls",
        );
    }
    let known = redis::Settings::default();
    let settings = redis::Settings {
        tls,
        username: section.optional("username", text),
        password_file: section.optional("password_file", text).map(|path| folder.join(path)),
        cell: section.or("cell", known.cell, parsed(redis::Cell::parse)),
        memory_file: section.optional("memory_file", text).map(|path| folder.join(path)),
        connect_timeout: section.or("connect_timeout", known.connect_timeout, duration(INSTANT..=DAY)),
        lookup_timeout: section.or("lookup_timeout", known.lookup_timeout, duration(INSTANT..=DAY)),
        command_timeout: section.or("command_timeout", known.command_timeout, duration(INSTANT..=DAY)),
        place: place.clone().unwrap_or(known.place),
    };
    if wanted && settings.username.is_some() && !section.given("password_file") {
        section.missing("password_file", "name the file that holds the password of `username`");
    }
    let unsealed = section.or("allow_without_pepper", false, flag);
    if wanted && !sealed && !unsealed {
        section.lacks(
            "without a pepper, every client that can write to Redis can create keys; set keys.pepper_file, or \
                 allow_without_pepper = true",
        );
    }
    place.map(|_| settings)
}

/// The way to find Redis: exactly one of three.
fn place(section: &mut Section<'_>, folder: &Path, wanted: bool) -> Option<Place> {
    const WAYS: [&str; 3] = ["url", "sentinels", "cluster"];
    // Not `parsed`: it shows the text, and an address may contain a password.
    let url = section
        .optional("url", |value| redis::Address::parse(&text(value)?).map_err(|error| error.to_string()));
    let sentinels = section.filled("sentinels", "list the addresses of all sentinels", node);
    let cluster = section.filled("cluster", "list the addresses of some nodes", node);
    let of_sentinels = of_sentinels(section, folder, wanted);
    let given: Vec<&str> = WAYS.into_iter().filter(|way| section.given(way)).collect();
    match given[..] {
        [] if wanted => section.missing(
            "url",
            "name the Redis server: url = \"redis://127.0.0.1:6379\", or sentinels = […], or cluster = […]",
        ),
        [first, second, ..] => {
            section.wrong(second, format!("`{first}` is also set; remove one of the two"));
        }
        _ => {}
    }
    url.map(Place::Fixed).or(cluster.map(Place::Cluster)).or_else(|| {
        let (nodes, (master, username, password_file)) = (sentinels?, of_sentinels);
        Some(Place::Sentinel(Sentinels { nodes, master: master?, username, password_file }))
    })
}

/// The settings that belong to sentinels: the master's name, and the user and password file for them.
fn of_sentinels(
    section: &mut Section<'_>,
    folder: &Path,
    wanted: bool,
) -> (Option<String>, Option<String>, Option<PathBuf>) {
    let master = section.optional("master_name", text);
    let username = section.optional("sentinel_username", text);
    let password_file = section.optional("sentinel_password_file", text).map(|path| folder.join(path));
    if section.given("sentinels") {
        if wanted && !section.given("master_name") {
            section.missing(
                "master_name",
                "write the name of the master in the sentinels' configuration, as in \"mymaster\"",
            );
        }
        if wanted && username.is_some() && !section.given("sentinel_password_file") {
            section.missing(
                "sentinel_password_file",
                "name the file that holds the password of `sentinel_username`",
            );
        }
    } else if wanted {
        for key in ["master_name", "sentinel_username", "sentinel_password_file"] {
            if section.given(key) {
                section.wrong(key, "only valid with `sentinels`; remove it");
            }
        }
    }
    (master, username, password_file)
}

fn node(value: &Value) -> Result<Node, String> {
    Node::parse(&text(value)?).map_err(|error| error.to_string())
}

fn tls(section: &mut Section<'_>, folder: &Path, wanted: bool, encrypted: bool) -> Option<TlsFiles> {
    let [ca, cert, key] =
        ["ca", "cert", "key"].map(|key| section.optional(key, text).map(|path| folder.join(path)));
    if !wanted {
        refuse(section, &["ca", "cert", "key"], "redis");
        return None;
    }
    if section.given("cert") != section.given("key") {
        let (missing, there) = if section.given("key") { ("cert", "key") } else { ("key", "cert") };
        section.missing(
            missing,
            &format!("a client certificate needs `cert` and `key`; add it, or remove `{there}`"),
        );
    }
    if !section.given("ca") && (encrypted || section.given("cert") || section.given("key")) {
        section.missing(
            "ca",
            "name the PEM file of the certificate authorities that may sign Redis' certificate; the system's file is \
                 often /etc/ssl/certs/ca-certificates.crt",
        );
    }
    Some(TlsFiles { ca: ca?, client: cert.zip(key) })
}

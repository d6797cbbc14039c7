//! `[store]`: which back end keeps the keys. What belongs to the other one is a mistake, not an idle remark.

use std::path::{Path, PathBuf};

use super::StoreSettings;
use super::file::Value;
use super::section::Section;
use super::value::{DAY, INSTANT, choice, duration, flag, parsed, text};
use crate::store::redis::{Node, Place, Sentinels, TlsFiles};
use crate::store::{embedded, redis};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Embedded,
    Redis,
}

const KINDS: [(&str, Kind); 2] = [("embedded", Kind::Embedded), ("redis", Kind::Redis)];
/// The keys of one kind only.
const OF_EMBEDDED: [&str; 1] = ["path"];
const OF_REDIS: [&str; 13] = [
    "url",
    "sentinels",
    "master_name",
    "sentinel_username",
    "sentinel_password_file",
    "cluster",
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
            redis.map(|settings| StoreSettings::Redis(Box::new(settings)))
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
    let place = place(section, folder, wanted);
    let encrypted = matches!(&place, Some(Place::Fixed(address)) if address.encrypted());
    let tls = section.section("tls", |section| tls(section, folder, wanted, encrypted));
    if tls.is_some() && !encrypted && matches!(place, Some(Place::Fixed(_))) {
        section.wrong("url", "asks for no TLS, and store.tls is there; write rediss://");
    }
    let known = redis::Settings::default();
    let settings = redis::Settings {
        tls,
        username: section.optional("username", text),
        password_file: section.optional("password_file", text).map(|path| folder.join(path)),
        cell: section.or("cell", known.cell, parsed(redis::Cell::parse)),
        connect_timeout: section.or("connect_timeout", known.connect_timeout, duration(INSTANT..=DAY)),
        lookup_timeout: section.or("lookup_timeout", known.lookup_timeout, duration(INSTANT..=DAY)),
        command_timeout: section.or("command_timeout", known.command_timeout, duration(INSTANT..=DAY)),
        place: place.clone().unwrap_or(known.place),
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
    place.map(|_| settings)
}

/// How Redis is found: one of three ways.
fn place(section: &mut Section<'_>, folder: &Path, wanted: bool) -> Option<Place> {
    const WAYS: [&str; 3] = ["url", "sentinels", "cluster"];
    // Not `parsed`, which shows the text: people put passwords into addresses.
    let url = section
        .optional("url", |value| redis::Address::parse(&text(value)?).map_err(|error| error.to_string()));
    let sentinels = section.filled("sentinels", "name all of them", node);
    let cluster = section.filled("cluster", "name some of its nodes", node);
    let of_sentinels = of_sentinels(section, folder, wanted);
    let given: Vec<&str> = WAYS.into_iter().filter(|way| section.given(way)).collect();
    match given[..] {
        [] if wanted => section.missing(
            "url",
            "say where Redis is: url = \"redis://127.0.0.1:6379\", or sentinels = […], or cluster = […]",
        ),
        [first, second, ..] => {
            section.wrong(second, format!("stands beside `{first}`; Redis is found one way, so keep one"));
        }
        _ => {}
    }
    url.map(Place::Fixed).or(cluster.map(Place::Cluster)).or_else(|| {
        let (nodes, (master, username, password_file)) = (sentinels?, of_sentinels);
        Some(Place::Sentinel(Sentinels { nodes, master: master?, username, password_file }))
    })
}

/// What goes with sentinels: the master's name, and who we are to them.
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
                "write the name that the sentinels have for the master, as in \"mymaster\"",
            );
        }
        if wanted && username.is_some() && !section.given("sentinel_password_file") {
            section
                .missing("sentinel_password_file", "name the file with the password of `sentinel_username`");
        }
    } else if wanted {
        for key in ["master_name", "sentinel_username", "sentinel_password_file"] {
            if section.given(key) {
                section.wrong(key, "belongs to `sentinels`, which are not there; leave it out");
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
        section
            .missing(missing, &format!("a client certificate needs both; name it, or leave `{there}` out"));
    }
    if !section.given("ca") && (encrypted || section.given("cert") || section.given("key")) {
        section.missing(
            "ca",
            "name the PEM file with the authorities that Redis' certificate may be from; the system's own are in \
             /etc/ssl/certs/ca-certificates.crt or the like",
        );
    }
    Some(TlsFiles { ca: ca?, client: cert.zip(key) })
}

//! `[identity_headers]`: the names of the headers that tell the upstream whose request it is.

use http::HeaderName;
use ipnet::IpNet;

use super::section::Section;
use super::value::parsed;
use crate::gateway::headers;

/// Header names with a meaning in HTTP, folded. Setting or removing them on every request would break HTTP,
/// lose credentials or mislead the upstream.
const TAKEN: [&str; 32] = [
    "age",
    "allow",
    "authorization",
    "cache-control",
    "connection",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "from",
    "host",
    "idempotency-key",
    "keep-alive",
    "last-modified",
    "location",
    "max-forwards",
    "origin",
    "prefer",
    "range",
    "referer",
    "retry-after",
    "server",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
    "vary",
    "via",
    "www-authenticate",
];

/// Beginnings of such names, folded.
const TAKEN_FAMILIES: [&str; 10] = [
    "accept",
    "access-control-",
    "content-",
    "http2-",
    "if-",
    "proxy-",
    "sec-",
    "x-forwarded-",
    "x-ratelimit-",
    "x-real-ip",
];

pub(super) fn read(section: &mut Section<'_>, trusted_proxies: Vec<IpNet>) -> headers::Settings {
    let default = headers::Settings::default();
    let settings = headers::Settings {
        org_id: section.or("org_id", default.org_id, parsed(name)),
        environment: section.or("environment", default.environment, parsed(name)),
        key_id: section.or("key_id", default.key_id, parsed(name)),
        scopes: section.or("scopes", default.scopes, parsed(name)),
        request_id: section.or("request_id", default.request_id, parsed(name)),
        trusted_proxies,
        ..default
    };
    refuse_doubles(section, &settings);
    settings
}

pub(super) fn parse_name(text: &str) -> Result<HeaderName, String> {
    HeaderName::from_bytes(text.as_bytes()).map_err(|_| "write a header name, as in \"X-Org-Id\"".to_owned())
}

/// Whether a folded name has a meaning in HTTP.
pub(super) fn is_taken(folded: &str) -> bool {
    TAKEN.contains(&folded) || TAKEN_FAMILIES.iter().any(|family| folded.starts_with(family))
}

fn name(text: &str) -> Result<HeaderName, String> {
    let name = parse_name(text)?;
    if is_taken(&fold(&name)) {
        return Err("HTTP reserves this header; choose another name, as in \"X-Org-Id\"".to_owned());
    }
    Ok(name)
}

/// Refuses two names that an upstream could take for the same name.
fn refuse_doubles(section: &Section<'_>, settings: &headers::Settings) {
    let named = [
        ("org_id", &settings.org_id),
        ("environment", &settings.environment),
        ("key_id", &settings.key_id),
        ("scopes", &settings.scopes),
        ("request_id", &settings.request_id),
    ];
    for (n, (key, name)) in named.iter().enumerate() {
        if let Some(earlier) = named[..n].iter().find(|(_, earlier)| fold(earlier) == fold(name)) {
            // The file sets at least one of the two, because the defaults differ.
            let later = &(*key, *name);
            let ((key, name), (other, _)) =
                if section.given(key) { (later, earlier) } else { (earlier, later) };
            section.wrong(
                key,
                format!(
                    "an upstream could confuse the header {name} with that of `{other}`; choose names that differ in \
                         a letter or digit"
                ),
            );
        }
    }
}

/// The name as the most lenient upstream compares it: without case, and with all characters equal that are
/// neither letters nor digits.
fn fold(name: &HeaderName) -> String {
    name.as_str().chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect()
}

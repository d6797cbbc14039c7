//! `[request_headers]`: which fields of a client's request reach the upstream although upstreams believe them, and which
//! do not beside those.

use http::HeaderName;

use super::identity::{is_taken, parse_name};
use super::mistake::quoted;
use super::section::Section;
use super::value::parsed;
use crate::gateway::headers;
use crate::vocabulary::believed::{FAMILY, NAMES, Removed, fold};
use crate::vocabulary::spelling::nearest;

/// What keygate sets itself. Behind a trusted proxy it continues what that sends.
const SET: [&str; 3] = ["x-forwarded-for", "x-forwarded-host", "x-forwarded-proto"];

pub(super) fn read(section: &mut Section<'_>, settings: &mut headers::Settings) {
    let own =
        [&settings.org_id, &settings.environment, &settings.key_id, &settings.scopes, &settings.request_id]
            .map(folded);
    let kept = section.list("keep_from_trusted", parsed(|text: &str| kept(text, &own)));
    let strip = section.list("strip", parsed(stripped));
    let (kept, strip) = (kept.unwrap_or_default(), strip.unwrap_or_default());
    if let Some(both) = kept.iter().find(|kept| strip.iter().any(|strip| folded(strip) == folded(kept))) {
        section.wrong(
            "strip",
            format!("{both} is also in `keep_from_trusted`; remove it from one of the two lists"),
        );
    }
    if !kept.is_empty() && settings.trusted_proxies.is_empty() {
        section.warn(
            "keep_from_trusted",
            "without server.trusted_proxies no header is kept; name the proxies there",
        );
    }
    settings.keep_from_trusted = kept;
    settings.strip = strip;
}

fn kept(text: &str, own: &[String]) -> Result<HeaderName, String> {
    let name = parse_name(text)?;
    if SET.contains(&name.as_str()) || own.contains(&folded(&name)) {
        return Err("keygate itself sets this header, so it cannot be kept; remove it".to_owned());
    }
    let listed = |listed: &&str| match listed.strip_suffix('*') {
        Some(_) => name.as_str().strip_prefix(FAMILY).is_some_and(|rest| !rest.is_empty()),
        None => *listed == name.as_str(),
    };
    if NAMES.iter().any(listed) {
        return Ok(name);
    }
    let advice = match Removed::named(name.as_str()) {
        Some(_) => format!("write {}, with dashes: other spellings are never kept", quoted(&folded(&name))),
        None => match nearest(name.as_str(), NAMES) {
            Some(near) => format!("did you mean {}?", quoted(near)),
            None => {
                "a name that is not on the list passes anyway; `keygate check` prints the list".to_owned()
            }
        },
    };
    Err(format!("it is not on the list of headers that are removed; {advice}"))
}

fn stripped(text: &str) -> Result<HeaderName, String> {
    let name = parse_name(text)?;
    let is_listed = Removed::named(name.as_str()).is_some();
    if !is_listed && is_taken(&folded(&name)) {
        return Err("HTTP needs this header, so it cannot be removed from every request".to_owned());
    }
    Ok(name)
}

fn folded(name: &HeaderName) -> String {
    name.as_str().bytes().map(|byte| char::from(fold(byte))).collect()
}

//! `[upstreams.NAME]`: the servers that requests go to, for live keys and for test keys.

use std::time::Duration;

use super::file::Value;
use super::own::{Own, reached, reached_by_name};
use super::section::Section;
use super::value::{DAY, INSTANT, choice, duration, flag, text};
use crate::upstream::{Endpoint, HostField, Settings, Timeouts};

/// An upstream's name and settings. Routes may use the name even if the settings are wrong.
pub(super) struct Named {
    pub(super) name: Box<str>,
    pub(super) settings: Option<Settings>,
}

/// `own` are the gateway's listeners, which are no upstreams.
pub(super) fn read(name: &str, section: &mut Section<'_>, own: &[Own]) -> Named {
    let named = |settings| Named { name: name.into(), settings };
    let well_formed = (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-".contains(&b));
    if !well_formed {
        section.wrong("", "invalid name; write 1 to 64 characters from a-z 0-9 _ -");
    }
    let endpoints = endpoints(section, own);
    let hosts = [("client", HostField::Client), ("endpoint", HostField::Endpoint)];
    let host = section.or("host", HostField::default(), choice(&hosts));
    let timeouts = timeouts(section);
    let Some((live, test)) = endpoints else { return named(None) };
    named(Some(Settings { name: name.into(), live, test, host, timeouts }))
}

/// The endpoints for live keys and for test keys. The same for both only if the file says so.
fn endpoints(section: &mut Section<'_>, own: &[Own]) -> Option<(Vec<Endpoint>, Vec<Endpoint>)> {
    const EMPTY: &str = "list at least one endpoint, as in [\"http://127.0.0.1:9000\"]";
    let endpoint = |value: &Value| endpoint(value, own);
    let (live, live_is_right) = section.required_list("live", EMPTY, endpoint);
    let (test, test_is_right) = section.filled_in_part("test", EMPTY, endpoint);
    for (key, endpoints) in [("live", &live), ("test", &test)] {
        for endpoint in endpoints {
            // A warning, because another machine may give the name another meaning.
            if let Some(own) = reached_by_name(own, endpoint) {
                section.warn(
                    key,
                    format!(
                        "{endpoint} is this gateway itself ({own}) by the names that this machine has in /etc/hosts and for \
                         itself, so requests would come back to it; name the address of your API"
                    ),
                );
            }
        }
    }
    let shared = section.or("shared", false, flag);
    match (section.given("test"), shared) {
        (true, true) => {
            section.wrong(
                "shared",
                "true sends test keys to `live`, but `test` is also set; remove one of the two",
            );
            None
        }
        (false, true) => live_is_right.then(|| (live.clone(), live)),
        (false, false) => {
            section.missing(
                "test",
                "name the servers for test keys: test = [\"http://127.0.0.1:9001\"]; or write shared = true to send \
                     test keys to `live`",
            );
            None
        }
        (true, false) => {
            if let Some(both) = test.iter().find(|test| live.iter().any(|live| live.is_same_server(test))) {
                section.wrong(
                    "test",
                    format!(
                        "{both} is also in `live`, so test keys would reach a live server; use two servers, or \
                             remove `test` and write shared = true"
                    ),
                );
            }
            (live_is_right && test_is_right).then_some((live, test))
        }
    }
}

/// Never shows the text, because it could contain a password.
fn endpoint(value: &Value, own: &[Own]) -> Result<Endpoint, String> {
    let endpoint = Endpoint::parse(&text(value)?).map_err(|error| format!("invalid endpoint; {error}"))?;
    match reached(own, &endpoint) {
        Some(key) => Err(format!(
            "{endpoint} is this gateway itself ({key}), so requests would come back to it; name the address of your API"
        )),
        None => Ok(endpoint),
    }
}

fn timeouts(section: &mut Section<'_>) -> Timeouts {
    let default = Timeouts::default();
    Timeouts {
        connect: section.or("connect_timeout", default.connect, duration(INSTANT..=DAY)),
        answer: section.or("answer_timeout", default.answer, duration(INSTANT..=DAY)),
        idle: section.or("idle_timeout", default.idle, duration(Duration::ZERO..=DAY)),
        stream_idle: section.or("stream_idle_timeout", default.stream_idle, duration(INSTANT..=DAY)),
    }
}

//! `[outbox]`: who is told of new organisations, and the key of the signatures.

use std::path::Path;

use super::own::{Own, reached, reached_by_name};
use super::secrets::{PEPPERS_AT_MOST, secrets};
use super::section::Section;
use super::value::text;
use crate::operators::outbox::{Receiver, Settings};

/// `own` are the gateway's listeners, which receive no news.
pub(super) fn read(section: &mut Section<'_>, folder: &Path, own: &[Own]) -> Option<Settings> {
    let receiver = section.optional("url", |value| {
        let receiver = Receiver::parse(&text(value)?)
            .map_err(|error| format!("invalid address for notifications; {error}"))?;
        match reached(own, receiver.endpoint()) {
            Some(key) => {
                Err(format!("this is the gateway itself ({key}); name the service that is notified"))
            }
            None => Ok(receiver),
        }
    });
    // A warning, as for upstreams: another machine may give the name another meaning.
    if let Some(endpoint) = receiver.as_ref().map(Receiver::endpoint)
        && let Some(own) = reached_by_name(own, endpoint)
    {
        section.warn(
            "url",
            format!(
                "{endpoint} is this gateway itself ({own}) by the names that this machine has in /etc/hosts and for itself; \
                 name the service that is notified"
            ),
        );
    }
    let key_files = secrets(section, "key_file", "key_files", (folder, PEPPERS_AT_MOST));
    if section.given("url") && !section.given("key_file") && !section.given("key_files") {
        section.missing("key_file", "name the file that holds the key for the signatures");
    }
    let receiver = receiver.filter(|_| !key_files.is_empty())?;
    Some(Settings { receiver, key_files })
}

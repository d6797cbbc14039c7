//! `[admin]`: how operators reach a running gateway.

use std::net::SocketAddr;
use std::path::Path;

use super::own::{Own, taken};
use super::section::Section;
use super::server::{BEHIND_TLS, is_loopback, plaintext};
use super::value::{address_or_off, parsed, text};
use crate::operators::admin::{Host, RemoteSettings, Settings};

/// `own` are the gateway's other listeners.
pub(super) fn read(section: &mut Section<'_>, folder: &Path, own: &[Own]) -> Settings {
    let socket = section.optional("socket", text).map(|path| folder.join(path));
    let listen = section.or("listen", None, address_or_off);
    let tokens_file = section.optional("tokens_file", text).map(|path| folder.join(path));
    let allowed_hosts = section
        .filled("allowed_hosts", "list the host names that clients use", parsed(Host::parse))
        .unwrap_or_else(RemoteSettings::loopback_hosts);
    section.optional("plaintext", plaintext);
    let Some(listen) = listen else { return Settings { socket, remote: None } };
    if !section.given("tokens_file") {
        section.missing("tokens_file", "name the file of tokens; `keygate admin token` prints a line for it");
    }
    if !section.given("plaintext") && !is_loopback(listen) {
        section.wrong(
            "listen",
            format!(
                "{listen} is not a loopback address, so tokens and keys would cross the network in plain text; \
                     listen on loopback, or put a TLS terminator in front and set plaintext = {BEHIND_TLS:?}"
            ),
        );
    }
    refuse_taken(section, listen, own);
    let remote = tokens_file.map(|tokens_file| RemoteSettings { listen, tokens_file, allowed_hosts });
    Settings { socket, remote }
}

/// Reports an address that another listener of the gateway has.
pub(super) fn refuse_taken(section: &Section<'_>, listen: SocketAddr, own: &[Own]) {
    if let Some(key) = taken(own, listen) {
        section.wrong("listen", format!("{listen} is also the address of {key}; give each its own port"));
    }
}

//! `[server]` and `[limits]`: the public listener, its connections, and the size of a request.

use std::net::{IpAddr, SocketAddr};
use std::num::NonZeroUsize;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;

use super::file::Value;
use super::section::Section;
use super::value::{DAY, INSTANT, address, count, duration, parsed, size, text};
use crate::downstream::worker::DrainSettings;
use crate::downstream::{listener, tls, watchdog};
use crate::gateway;
use crate::policy::request;
use crate::vocabulary::memory_plan::{LEAST, MOST};

/// The only value of `plaintext`, so that nobody lets keys cross a network in plain text without having read it.
pub(super) const BEHIND_TLS: &str = "behind a TLS terminator";

pub(super) struct Server {
    pub(super) listener: listener::Settings,
    pub(super) watchdog: watchdog::Settings,
    pub(super) tls: tls::Settings,
    pub(super) trusted_proxies: Vec<IpNet>,
    pub(super) body_idle_timeout: Duration,
    pub(super) drain: DrainSettings,
}

pub(super) fn read(section: &mut Section<'_>, folder: &Path) -> Server {
    let gateway = gateway::Settings::default();
    let listener = listener(section);
    let watchdog = watchdog(section);
    let certificates = certificates(section, folder);
    section.optional("plaintext", plaintext);
    if !section.given("plaintext") && certificates.is_empty() && !is_loopback(listener.listen) {
        section.wrong(
            "listen",
            format!(
                "{} is not a loopback address, so keys would cross the network in plain text; set tls, or listen on \
                     loopback, or put a TLS terminator in front and set plaintext = {BEHIND_TLS:?}",
                listener.listen
            ),
        );
    }
    let trusted_proxies =
        section.list("trusted_proxies", parsed(network)).unwrap_or(gateway.headers.trusted_proxies);
    if section.given("plaintext") && trusted_proxies.is_empty() {
        section.warn(
            "plaintext",
            format!(
                "`trusted_proxies` does not name the TLS terminator, so every client has the terminator's address: \
                     all of them share {} connections, one turn where lookups wait, the signups of one network, and \
                     one place in address lists; set trusted_proxies = [\"…\"]",
                listener.max_connections_per_client
            ),
        );
    }
    Server {
        listener,
        watchdog,
        tls: tls::Settings { certificates: certificates.into_iter().flatten().collect() },
        trusted_proxies,
        body_idle_timeout: section.or(
            "body_idle_timeout",
            gateway.body_idle_timeout,
            duration(INSTANT..=DAY),
        ),
        drain: drain(section),
    }
}

/// The memory that can be planned with, in bytes.
const MEMORY: std::ops::RangeInclusive<u64> = LEAST..=MOST;

fn listener(section: &mut Section<'_>) -> listener::Settings {
    let default = listener::Settings::default();
    listener::Settings {
        listen: section.or("listen", default.listen, address),
        workers: section.optional("workers", count(1..=1024)).and_then(NonZeroUsize::new).or(default.workers),
        memory: section.optional("memory", size(MEMORY)).or(default.memory),
        max_connections: section.or("max_connections", default.max_connections, count(1..=10_000_000)),
        max_connections_per_client: section.or(
            "max_connections_per_client",
            default.max_connections_per_client,
            count(1..=10_000_000),
        ),
    }
}

/// One for each table; `None` where a mistake in it is reported.
fn certificates(section: &mut Section<'_>, folder: &Path) -> Vec<Option<tls::Files>> {
    section.repeated("tls", "cert", |section| {
        let certificate =
            section.required("cert", "name the PEM file with the certificate and its chain", text);
        let key = section.required("key", "name the PEM file with the certificate's private key", text);
        Some(tls::Files { certificate: folder.join(certificate?), key: folder.join(key?) })
    })
}

fn watchdog(section: &mut Section<'_>) -> watchdog::Settings {
    let default = watchdog::Settings::default();
    watchdog::Settings {
        handshake_timeout: section.or(
            "handshake_timeout",
            default.handshake_timeout,
            duration(INSTANT..=DAY),
        ),
        head_timeout: section.or("head_timeout", default.head_timeout, duration(INSTANT..=DAY)),
        idle_timeout: section.or("idle_timeout", default.idle_timeout, duration(INSTANT..=DAY)),
        write_timeout: section.or("write_timeout", default.write_timeout, duration(INSTANT..=DAY)),
    }
}

fn drain(section: &mut Section<'_>) -> DrainSettings {
    let default = DrainSettings::default();
    DrainSettings {
        delay: section.or("drain_delay", default.delay, duration(Duration::ZERO..=DAY)),
        timeout: section.or("drain_timeout", default.timeout, duration(Duration::ZERO..=DAY)),
    }
}

pub(super) fn plaintext(value: &Value) -> Result<(), String> {
    if text(value)? == BEHIND_TLS {
        Ok(())
    } else {
        Err(format!("expected {BEHIND_TLS:?}; write that if a TLS terminator is in front"))
    }
}

pub(super) fn is_loopback(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

fn network(text: &str) -> Result<IpNet, String> {
    const ADVICE: &str = "write a network or an address, as in \"10.0.0.0/8\" or \"192.0.2.7\"";
    let network: IpNet = match text.parse::<IpAddr>() {
        Ok(address) => address.into(),
        Err(_) => text.parse().map_err(|_| ADVICE.to_owned())?,
    };
    if network.prefix_len() == 0 {
        return Err(
            "it contains every address, so any client could claim any address; list only your proxies"
                .to_owned(),
        );
    }
    if network.trunc() != network {
        return Err(format!(
            "the address has bits after the prefix; write the network {}, or the address alone",
            network.trunc()
        ));
    }
    Ok(network)
}

pub(super) fn limits(section: &mut Section<'_>) -> request::Limits {
    let default = request::Limits::default();
    request::Limits {
        // hyper accepts targets of less than 64 KiB.
        target: section.or("target", default.target, size(256..=63 << 10)),
        head: section.or("head", default.head, size(1 << 10..=1 << 20)),
        fields: section.or("fields", default.fields, count(8..=10_000)),
        body: section.or("body", default.body, size(BODY)),
    }
}

/// The range of a body limit, in bytes. Zero is not in it, because it could be meant as "no limit".
pub(super) const BODY: std::ops::RangeInclusive<u64> = 1..=1 << 40;

//! The names of all keys in Redis.

use std::fmt;

use crate::vocabulary::audit::Trail;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::gone::Gone;
use crate::vocabulary::key::{Digest, Environment};

/// The names, which all begin with the hash tag.
pub(super) struct Names(String);

/// The prefix of a lease, before the name of its gateway.
const LEASE: &str = "gateway:";

impl Names {
    pub(super) fn new(cell: &super::Cell) -> Self {
        Self(format!("{{{cell}}}:"))
    }

    pub(super) fn with(&self, name: impl fmt::Display) -> String {
        format!("{}{name}", self.0)
    }

    /// The gateways that hold leases, or held them a while ago.
    pub(super) fn gateways(&self) -> String {
        self.with("gateways")
    }

    pub(super) fn lease(&self, gateway: &str) -> String {
        self.with(format_args!("{LEASE}{gateway}"))
    }

    /// The format of records that a gateway announces. It ends with the lease.
    pub(super) fn lease_format(&self, gateway: &str) -> String {
        self.with(format_args!("{LEASE}{gateway}:format"))
    }

    /// The prefixes that a gateway announces. They end with the lease.
    pub(super) fn lease_prefixes(&self, gateway: &str) -> String {
        self.with(format_args!("{LEASE}{gateway}:prefixes"))
    }

    /// The check values of the peppers that a gateway has. They end with the lease.
    pub(super) fn lease_peppers(&self, gateway: &str) -> String {
        self.with(format_args!("{LEASE}{gateway}:peppers"))
    }

    /// What a gateway may still do when its lease has lapsed.
    pub(super) fn lease_serves(&self, gateway: &str) -> String {
        self.with(format_args!("{LEASE}{gateway}:serves"))
    }

    /// The gateways that may let keys in, with a lease or after it has lapsed.
    pub(super) fn serving(&self) -> String {
        self.with("gateways:serving")
    }

    pub(super) fn leases(&self) -> String {
        self.with(LEASE)
    }

    pub(super) fn meta(&self) -> String {
        self.with("meta")
    }

    pub(super) fn events(&self) -> String {
        self.with("events")
    }

    pub(super) fn keys(&self) -> String {
        self.with("keys")
    }

    pub(super) fn orgs(&self) -> String {
        self.with("orgs")
    }

    pub(super) fn key(&self, id: KeyId) -> String {
        self.with(format_args!("id:{id}"))
    }

    pub(super) fn org(&self, id: OrgId) -> String {
        self.with(format_args!("org:{id}"))
    }

    pub(super) fn keys_of(&self, org: OrgId) -> String {
        self.with(format_args!("org:{org}:keys"))
    }

    /// The keys of an organisation in one environment.
    pub(super) fn keys_in(&self, org: OrgId, environment: Environment) -> String {
        self.with(format_args!("org:{org}:keys:{environment}"))
    }

    /// The keys of an organisation that are not revoked, by their ends.
    pub(super) fn live_keys(&self, org: OrgId) -> String {
        self.with(format_args!("org:{org}:live"))
    }

    /// Those of them that one key has made.
    pub(super) fn made_by(&self, org: OrgId, maker: KeyId) -> String {
        self.with(format_args!("org:{org}:made:{maker}"))
    }

    pub(super) fn digest(&self, digest: &Digest) -> String {
        self.hashed("k:", digest.as_bytes())
    }

    pub(super) fn email(&self, index: &[u8; 32]) -> String {
        self.hashed("email:", index)
    }

    pub(super) fn answer(&self, index: &[u8; 32]) -> String {
        self.hashed("idem:", index)
    }

    pub(super) fn entries(&self, trail: Trail) -> String {
        self.with(format_args!("audit:{trail}"))
    }

    pub(super) fn ends(&self, trail: Trail) -> String {
        self.with(format_args!("audit:{trail}:ends"))
    }

    /// Until when the day lasts in which entries were trimmed, and how many may still go. It ends with the day.
    pub(super) fn trimmed_today(&self, trail: Trail) -> String {
        self.with(format_args!("audit:{trail}:trimmed"))
    }

    pub(super) fn used(&self) -> String {
        self.with("used")
    }

    /// Where the stone for a name is, with those of other names that share it.
    pub(super) fn grave(&self, of: Gone) -> String {
        // The end of an id and all of a digest are drawn by chance.
        let (kind, number) = match of {
            Gone::Key(id) => ("key", u16::from_be_bytes([id.to_bytes()[14], id.to_bytes()[15]])),
            Gone::Secret(digest) => {
                ("secret", u16::from_be_bytes([digest.as_bytes()[0], digest.as_bytes()[1]]))
            }
        };
        self.graves(kind, number % Self::GRAVES)
    }

    /// The strings with stones: for each kind of name so many.
    pub(super) const GRAVES: u16 = 4096;

    pub(super) const GRAVES_OF_KEYS: &str = ":gone:key:";

    fn graves(&self, kind: &str, number: u16) -> String {
        self.with(format_args!("gone:{kind}:{number:03x}"))
    }

    pub(super) fn all_graves(&self) -> Vec<String> {
        let of = |kind| (0..Self::GRAVES).map(move |number| self.graves(kind, number));
        of("key").chain(of("secret")).collect()
    }

    /// Until when the day lasts in which keys went, and how many may still go. It ends with the day.
    pub(super) fn gone_today(&self) -> String {
        self.with("gone:today")
    }

    pub(super) fn news(&self) -> String {
        self.with("news")
    }

    pub(super) fn news_due(&self) -> String {
        self.with("news:due")
    }

    /// The proofs of news.
    pub(super) fn news_proofs(&self) -> String {
        self.with("news:proofs")
    }

    /// News without a proof, which wait until an operator accepts them.
    pub(super) fn news_held(&self) -> String {
        self.with("news:held")
    }

    pub(super) fn quota(&self, name: &str) -> String {
        self.with(format_args!("quota:{name}"))
    }

    fn hashed(&self, kind: &str, bytes: &[u8; 32]) -> String {
        let mut name = String::with_capacity(self.0.len() + kind.len() + 64);
        name.extend([&self.0, kind]);
        for byte in bytes {
            name.extend([byte >> 4, byte & 15].map(|n| char::from(b"0123456789abcdef"[usize::from(n)])));
        }
        name
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_has_one_hash_tag() {
        let names = Names::new(&super::super::Cell::default());
        assert_eq!(names.meta(), "{kg}:meta");
        assert_eq!(OrgId::LEN, 30, "where lookup.lua cuts a pointer in two");
        let digest = Digest::from_bytes([0xa5; 32]);
        assert_eq!(names.digest(&digest), format!("{{kg}}:k:{}", "a5".repeat(32)));
        assert_eq!(names.entries(Trail::Operator), "{kg}:audit:operator");
    }
}

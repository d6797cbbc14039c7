//! Names of header fields that upstreams believe, because only a proxy should know their values, or that make them act
//! on another path or method than the one that was judged. A client's are removed.

/// The closed list, in lower case and in alphabetical order. Behind a `*` stands the rest of a name.
pub const NAMES: [&str; 41] = [
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "forwarded",
    "proxy",
    "true-client-ip",
    "x-auth-request-*",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-envoy-external-address",
    "x-envoy-internal",
    "x-envoy-original-path",
    "x-forwarded-client-cert",
    "x-forwarded-email",
    "x-forwarded-for",
    "x-forwarded-groups",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-preferred-username",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-scheme",
    "x-forwarded-server",
    "x-forwarded-ssl",
    "x-forwarded-uri",
    "x-forwarded-user",
    "x-host",
    "x-http-method",
    "x-http-method-override",
    "x-method-override",
    "x-middleware-subrequest",
    "x-original-host",
    "x-original-method",
    "x-original-path",
    "x-original-uri",
    "x-original-url",
    "x-real-ip",
    "x-remote-user",
    "x-rewrite-url",
];

/// The beginning of the names of one family in the list.
pub const FAMILY: &str = "x-auth-request-";

/// A kind of removed fields: one name of the list, the names of identity, or those that the configuration adds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed(u8);

impl Removed {
    pub const COUNT: usize = NAMES.len() + 2;
    /// The names under which keygate tells the upstream whose request it is.
    pub const IDENTITY: Self = Self(NAMES.len() as u8);
    /// What the configuration adds.
    pub const ADDED: Self = Self(NAMES.len() as u8 + 1);

    /// The name of the list that a name is, in any spelling.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let folded = || name.bytes().map(fold);
        if is_of_family(name) {
            let at = NAMES.iter().position(|listed| listed.ends_with('*'));
            return at.and_then(Self::at);
        }
        NAMES.binary_search_by(|listed| listed.bytes().cmp(folded())).ok().and_then(Self::at)
    }

    fn at(number: usize) -> Option<Self> {
        u8::try_from(number).ok().map(Self)
    }

    pub fn all() -> impl Iterator<Item = Self> {
        (0..Self::COUNT).filter_map(Self::at)
    }

    /// Its number, less than [`Removed::COUNT`].
    #[must_use]
    pub const fn number(self) -> usize {
        self.0 as usize
    }

    /// The label of metrics.
    #[must_use]
    pub fn label(self) -> &'static str {
        let more = if self == Self::IDENTITY { "identity" } else { "added" };
        NAMES.get(self.number()).copied().unwrap_or(more)
    }
}

/// Whether a name, in any spelling, belongs to the family in the list.
#[must_use]
pub fn is_of_family(name: &str) -> bool {
    name.len() > FAMILY.len() && name.bytes().zip(FAMILY.bytes()).all(|(byte, own)| fold(byte) == own)
}

/// A byte of a name as the most lenient upstream compares it: without case, and with all characters equal that are
/// neither letters nor digits, since CGI and its heirs turn `X-Org_Id` and `x.org.id` into one variable.
#[must_use]
pub const fn fold(byte: u8) -> u8 {
    if byte.is_ascii_alphanumeric() { byte.to_ascii_lowercase() } else { b'-' }
}

/// A set of [`Removed`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RemovedSet(u64);

impl RemovedSet {
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    pub fn extend(&mut self, removed: Option<Removed>) {
        removed.into_iter().for_each(|removed| self.add(removed));
    }

    pub const fn add(&mut self, removed: Removed) {
        self.0 |= 1 << removed.0;
    }

    pub fn iter(self) -> impl Iterator<Item = Removed> {
        Removed::all().filter(move |removed| self.0 & 1 << removed.0 != 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_found_in_every_spelling_and_the_list_is_sorted() {
        assert!(NAMES.is_sorted());
        for name in NAMES {
            let name = name.replace('*', "user");
            for spelling in [name.clone(), name.replace('-', "_"), name.to_uppercase().replace('-', ".")] {
                let label = Removed::named(&spelling).map(Removed::label);
                assert!(
                    label.is_some_and(|label| name.starts_with(label.trim_end_matches('*'))),
                    "{spelling}"
                );
            }
        }
        for name in
            ["x-amzn-trace-id", "traceparent", "cf-ray", "x-auth-request", "x-auth-request-", "x-hosts", ""]
        {
            assert_eq!(Removed::named(name), None, "{name}");
        }
        let mut set = RemovedSet::default();
        assert!(set.is_empty());
        set.add(Removed::ADDED);
        set.add(Removed(0));
        assert_eq!(set.iter().map(Removed::label).collect::<Vec<_>>(), ["cf-connecting-ip", "added"]);
        const { assert!(Removed::COUNT <= 64) }
    }
}

//! The keys of the world, and the names of header fields that upstreams believe.

/// A key that clients may send.
#[derive(Debug)]
pub(crate) struct Key {
    /// Its name in scripts.
    pub(crate) name: &'static str,
    pub(crate) secret: String,
    pub(crate) id: String,
    pub(crate) is_live: bool,
    pub(crate) scopes: &'static [&'static str],
    /// Whether it opens anything.
    pub(crate) works: bool,
}

/// The keys, and the organisation that has them.
#[derive(Debug)]
pub(crate) struct Keys {
    pub(crate) keys: Vec<Key>,
    pub(crate) org: String,
}

impl Keys {
    pub(crate) fn with_id(&self, id: &[u8]) -> Option<&Key> {
        self.keys.iter().find(|key| key.id.as_bytes() == id)
    }

    /// The value of a name between braces in a script.
    pub(crate) fn value(&self, name: &str) -> Option<&str> {
        let key = |name: &str| self.keys.iter().find(|key| key.name == name);
        match name.strip_suffix(".id") {
            _ if name == "org" => Some(&self.org),
            Some(name) => key(name).map(|key| &*key.id),
            None => key(name).map(|key| &*key.secret),
        }
    }
}

/// The address of the client, a documentation address (RFC 5737).
pub(crate) const CLIENT: &str = "192.0.2.7";

/// A name as the most lenient upstream compares it.
pub(crate) fn fold(name: &[u8]) -> String {
    let fold =
        |byte: &u8| if byte.is_ascii_alphanumeric() { char::from(byte.to_ascii_lowercase()) } else { '-' };
    name.iter().map(fold).collect()
}

/// The names under which keygate itself tells the upstream something.
pub(crate) const IDENTITY: [&str; 4] = ["x-org-id", "x-environment", "x-key-id", "x-scopes"];
pub(crate) const OWN: [&str; 5] =
    ["host", "x-request-id", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"];

/// Names that mean something between two neighbours only.
pub(crate) const HOP_BY_HOP: [&str; 11] = [
    "connection",
    "expect",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// Names that upstreams believe, as SECURITY.md promises; a `*` stands for more.
const BELIEVED: [&str; 38] = [
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
    "x-forwarded-groups",
    "x-forwarded-method",
    "x-forwarded-path",
    "x-forwarded-port",
    "x-forwarded-preferred-username",
    "x-forwarded-prefix",
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

/// Whether a client's field of this name must not reach an upstream.
pub(crate) fn is_reserved(name: &[u8]) -> bool {
    let folded = fold(name);
    let is_listed = |listed: &str| match listed.strip_suffix('*') {
        Some(family) => folded.len() > family.len() && folded.starts_with(family),
        None => *listed == folded,
    };
    IDENTITY.contains(&&*folded)
        || OWN.contains(&&*folded)
        || HOP_BY_HOP.contains(&&*folded)
        || BELIEVED.iter().any(|listed| is_listed(listed))
}

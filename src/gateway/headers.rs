//! Which header fields cross the gateway: hop-by-hop first, identity last.

use http::HeaderName;
use ipnet::IpNet;

/// Names of the identity headers, and whose forwarding headers count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub org_id: HeaderName,
    pub environment: HeaderName,
    pub key_id: HeaderName,
    pub scopes: HeaderName,
    pub request_id: HeaderName,
    /// Peers whose X-Forwarded-For counts. Empty: nobody's does.
    pub trusted_proxies: Vec<IpNet>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            org_id: HeaderName::from_static("x-org-id"),
            environment: HeaderName::from_static("x-environment"),
            key_id: HeaderName::from_static("x-key-id"),
            scopes: HeaderName::from_static("x-scopes"),
            request_id: HeaderName::from_static("x-request-id"),
            trusted_proxies: Vec::new(),
        }
    }
}

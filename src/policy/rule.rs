//! One rule of the policy, and where it is written.

use std::fmt;
use std::sync::Arc;

use http::Method;

use super::access::Access;
use super::pattern::Pattern;
use super::target::Target;
use crate::vocabulary::browser_keys::BrowserKeys;
use crate::vocabulary::partition::OnPartition;
use crate::vocabulary::upstream::Terms;

/// One rule of the policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its name in the policy, in logs and metrics.
    pub id: Box<str>,
    pub place: RulePlace,
    pub methods: Vec<Method>,
    pub patterns: Vec<Pattern>,
    /// Whether a request with a path of this route and another method is denied, although a wider rule could take it.
    pub denies_other_methods: bool,
    pub access: Access,
    pub target: Target,
    /// Whether the upstream sees the client's Authorization field.
    pub forward_authorization: bool,
    /// Whether `%2F` and `%5C` may stand in a segment, as opaque data.
    pub encoded_slash: bool,
    /// Whether its upstream reads a path exactly as it is written. Else it may read it as other routers do; see
    /// [`foreign`](super::foreign).
    pub literal: bool,
    /// Whether a request may become a WebSocket.
    pub websocket: bool,
    /// Whether callers that speak gRPC-Web are refused in it.
    pub grpc_web: bool,
    /// How its requests are sent to the upstream.
    pub terms: Terms,
    /// The handling of its requests while the gateway is cut off from the store; `None` for the setting of all routes.
    pub on_partition: Option<OnPartition>,
    /// The handling of live keys that a browser sends on it; `None` for the setting of all routes.
    pub browser_keys: Option<BrowserKeys>,
    /// The largest body in bytes; `None` for the limit of all routes.
    pub body_limit: Option<u64>,
}

impl Route {
    /// The segment of `path` in the place of the pattern's first parameter. The patterns of a route that keygate
    /// serves have it in different places only where they differ in length.
    #[must_use]
    pub fn parameter<'p>(&self, path: &'p str) -> Option<&'p str> {
        self.patterns.iter().find_map(|pattern| pattern.parameter(path))
    }

    /// The number of the pattern that a path of this route falls under.
    #[must_use]
    pub fn template(&self, path: &str) -> usize {
        if self.patterns.len() == 1 {
            return 0;
        }
        let slashes = path.bytes().filter(|byte| *byte == b'/').count();
        let patterns = self.patterns.iter().enumerate();
        let mut possible = patterns.filter(|(_, pattern)| pattern.may_have(slashes));
        match (possible.next(), possible.next()) {
            // Mostly it is told by its length alone.
            (Some((number, _)), None) => number,
            _ => self.compare_templates(path),
        }
    }

    fn compare_templates(&self, path: &str) -> usize {
        let matching = self.patterns.iter().enumerate().filter(|(_, pattern)| pattern.matches(path));
        matching.min_by(|(_, one), (_, other)| one.compare(other)).map_or(0, |(number, _)| number)
    }

    /// Whether a request with this method is meant. HEAD is GET without the body, so it needs what GET needs (RFC
    /// 9110, section 9.3.2).
    #[must_use]
    pub fn takes(&self, method: &Method) -> bool {
        self.methods.contains(method) || *method == Method::HEAD && self.methods.contains(&Method::GET)
    }
}

/// Where a rule is written.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RulePlace {
    /// The policy file, as the configuration names it.
    pub file: Arc<str>,
    /// The line of the rule's `[[route]]`, from 1.
    pub line: usize,
}

impl fmt::Display for RulePlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

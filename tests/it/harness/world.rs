//! A gateway with a policy of the test's own, in front of an upstream that records what reaches it.

use super::client::Call;
use super::gateway::{Gateway, TestKey};
use super::upstream::Upstream;

pub(crate) struct World {
    pub(crate) live: Upstream,
    /// Its requests are not looked at.
    _test: Upstream,
    pub(crate) gateway: Gateway,
}

impl World {
    pub(crate) fn with(policy: &str) -> Self {
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let gateway = Gateway::builder().policy(policy).api(&live, &test).start();
        Self { live, _test: test, gateway }
    }

    /// The status of a request; its only trace at the upstream is the request that was sent.
    #[track_caller]
    pub(crate) fn status(&self, method: &str, target: &str, key: Option<&TestKey>) -> u16 {
        self.live.forget();
        let call = Call::new(method, target);
        let answer = self.gateway.fetch(&match key {
            Some(key) => call.key(&key.secret),
            None => call,
        });
        let seen: Vec<String> = self.live.seen().iter().map(|seen| seen.request_line().to_owned()).collect();
        let expected = format!("{method} {target} HTTP/1.1");
        assert_eq!(seen, if answer.status == 200 { vec![expected] } else { Vec::new() });
        answer.status
    }
}

//! keygate's own API, on either store. Every answer is checked against the description.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use keygate::config::FIRSTHAND_POLICY;
use keygate::operators::admin::{Grant, NewToken, Role, TokenName};
use keygate::store::keeper::LinkState;
use keygate::vocabulary::id::OrgId;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::client::{Answer, Call, fetch, fetch_over};
use super::description::assert_described;
use super::desk::write_secret;
use super::eventually;
use super::gateway::{Gateway, GatewayBuilder};
use super::redis::RedisServer;
use super::store::Valve;
use super::transport::Transport;
use super::upstream::Upstream;

pub(crate) const HOUR: Duration = Duration::from_secs(60 * 60);

/// The store of the keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kept {
    Embedded,
    /// With a pepper, as recommended.
    Redis,
}

/// Creates a test for each rule and each store; a rule is a function that takes [`Kept`].
macro_rules! on_both_stores {
    ($($rule:ident)*) => {
        mod embedded {
            $(#[test] fn $rule() { super::$rule($crate::harness::api::Kept::Embedded); })*
        }
        mod redis {
            $(#[test] fn $rule() { super::$rule($crate::harness::api::Kept::Redis); })*
        }
    };
}
pub(crate) use on_both_stores;

/// Tests name this host in their calls.
const ADMIN: &str = "[admin]\nlisten = \"127.0.0.1:0\"\ntokens_file = \"admin-tokens\"\n\
                     allowed_hosts = [\"api.example.com\"]\n";

/// The settings of an API.
pub(crate) struct ApiBuilder {
    kept: Kept,
    signup: String,
    settings: String,
    browser_keys: &'static str,
    keys: String,
    admin: bool,
    proxies: &'static str,
    valve: Option<Valve>,
}

impl ApiBuilder {
    /// Lines of `[signup]`, instead of a signup open to all.
    pub(crate) fn signup(mut self, toml: &str) -> Self {
        self.signup = toml.to_owned();
        self
    }

    /// Further sections of keygate.toml.
    pub(crate) fn settings(mut self, toml: &str) -> Self {
        self.settings = toml.to_owned();
        self
    }

    /// Lines of `[keys]`.
    pub(crate) fn keys(mut self, toml: &str) -> Self {
        self.keys = toml.to_owned();
        self
    }

    /// The test controls the store.
    pub(crate) fn valve(mut self, valve: &Valve) -> Self {
        self.valve = Some(valve.clone());
        self
    }

    /// The general handling of live keys that a browser sends.
    pub(crate) fn browser_keys(mut self, handling: &'static str) -> Self {
        self.browser_keys = handling;
        self
    }

    /// With the admin API over TCP; [`Api::token`] makes tokens.
    pub(crate) fn admin(mut self) -> Self {
        self.admin = true;
        self
    }

    /// No X-Forwarded-For is trusted.
    pub(crate) fn no_proxies(mut self) -> Self {
        self.proxies = "";
        self
    }

    #[track_caller]
    pub(crate) fn start(self) -> Api {
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let redis = (self.kept == Kept::Redis).then(RedisServer::start);
        let gateway = self.gateway(redis.as_ref(), &live, &test);
        let gateway = start(gateway);
        Api { gateway, live, test, redis }
    }

    fn gateway(&self, redis: Option<&RedisServer>, live: &Upstream, test: &Upstream) -> GatewayBuilder {
        let server = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 2\nmax_connections = 1000\n{}\n",
            self.proxies
        );
        let keys = format!("[keys]\nbrowser_keys = \"{}\"\n{}\n", self.browser_keys, self.keys);
        let store = redis.map_or_else(String::new, |redis| {
            format!(
                "pepper_file = \"pepper\"\n\
                 [store]\nkind = \"redis\"\nurl = \"{}\"\nconnect_timeout = \"10s\"\n\
                 lookup_timeout = \"10s\"\ncommand_timeout = \"10s\"\n[cache]\nlookup_timeout = \"10s\"\n",
                redis.url()
            )
        });
        let signup = format!("[signup]\n{}\n", self.signup);
        let admin = if self.admin { ADMIN } else { "" };
        // If the clock moves ahead by an hour, the gateway sees an hour without an answer from Redis, and routes that
        // refuse then would refuse; other tests cover that.
        let policy = FIRSTHAND_POLICY.replace("on_partition = \"refuse\"\n", "");
        let settings = [&*server, &signup, admin, &keys, &store, &self.settings].concat();
        let gateway = Gateway::builder().settings(&settings).policy(&policy).api(live, test);
        match &self.valve {
            Some(valve) => gateway.store(valve.fitted()),
            None => gateway,
        }
    }
}

#[track_caller]
fn start(gateway: GatewayBuilder) -> Gateway {
    let folder = TempDir::new().unwrap();
    let pepper = folder.path().join("pepper");
    fs::write(&pepper, "a pepper of the tests, with at least thirty-two bytes").unwrap();
    fs::set_permissions(&pepper, fs::Permissions::from_mode(0o600)).unwrap();
    write_secret(&folder.path().join("admin-tokens"), "# tokens\n");
    let gateway = gateway.start_in(folder);
    eventually("events arrive", || gateway.lifecycle().keeper().link_state() == LinkState::Up);
    gateway
}

/// A gateway with its own API, in front of upstreams that answer `live` and `test`.
pub(crate) struct Api {
    // First, so that it is dropped before its peers.
    pub(crate) gateway: Gateway,
    pub(crate) live: Upstream,
    pub(crate) test: Upstream,
    redis: Option<RedisServer>,
}

/// A key from an answer.
#[derive(Clone, Debug)]
pub(crate) struct ApiKey {
    pub(crate) id: String,
    pub(crate) secret: String,
}

impl ApiKey {
    #[track_caller]
    pub(crate) fn of(answer: &Answer) -> Self {
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let text = |name: &str| json[name].as_str().unwrap().to_owned();
        Self { id: text("id"), secret: text("secret") }
    }

    pub(crate) fn path(&self) -> String {
        format!("/v1/api_keys/{}", self.id)
    }
}

/// One of several concurrent callers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    transport: Transport,
}

impl Client {
    pub(crate) fn of(gateway: &Gateway) -> Self {
        Self { address: gateway.address(), transport: gateway.transport() }
    }

    #[track_caller]
    pub(crate) fn ask(self, call: &Call) -> Answer {
        let answer = fetch_over(self.address, self.transport, call);
        assert_described(call, &answer);
        answer
    }
}

/// The answers to concurrent calls to these gateways in turn.
pub(crate) fn at_once(clients: &[Client], calls: &[Call]) -> Vec<Answer> {
    let ready = Barrier::new(calls.len());
    let asking = |(client, call): (&Client, &Call)| {
        ready.wait();
        client.ask(call)
    };
    thread::scope(|scope| {
        let asking = &asking;
        let each = clients.iter().cycle().zip(calls);
        let asked: Vec<_> = each.map(|one| scope.spawn(move || asking(one))).collect();
        asked.into_iter().map(|asked| asked.join().unwrap()).collect()
    })
}

impl Api {
    pub(crate) fn builder(kept: Kept) -> ApiBuilder {
        ApiBuilder {
            kept,
            signup: "enabled = true\nper_network_and_hour = 1000\nper_day = 1000".to_owned(),
            settings: String::new(),
            browser_keys: "note",
            keys: String::new(),
            admin: false,
            proxies: "trusted_proxies = [\"127.0.0.1\"]",
            valve: None,
        }
    }

    #[track_caller]
    pub(crate) fn start(kept: Kept) -> Self {
        Self::builder(kept).start()
    }

    /// Sends a call, and checks its answer against the description.
    #[track_caller]
    pub(crate) fn ask(&self, call: &Call) -> Answer {
        self.client().ask(call)
    }

    pub(crate) fn client(&self) -> Client {
        Client::of(&self.gateway)
    }

    /// A new token for the admin API, good for these organisations, or for all.
    pub(crate) fn token(&self, role: Role, orgs: Option<&[&str]>) -> String {
        let orgs = orgs.map(|orgs| orgs.iter().map(|org| OrgId::parse(org).unwrap()).collect());
        let name = TokenName::parse(&format!("{role}-desk")).unwrap();
        let token = NewToken::draw(&name, &Grant { role, orgs }, self.gateway.now(), 100 * HOUR).unwrap();
        let file = self.gateway.folder().join("admin-tokens");
        let before = fs::read_to_string(&file).unwrap();
        write_secret(&file, &format!("{before}{}\n", token.line()));
        token.expose().to_owned()
    }

    /// The status and the reply of the admin API to a command.
    #[track_caller]
    pub(crate) fn order(&self, token: &str, command: &Value) -> (u16, Value) {
        let order = json!({ "operator": "ada", "command": command });
        let call = Call::post("/v1/command", order.to_string()).key(token);
        let answer = fetch(self.gateway.admin_address(), &call);
        (answer.status, answer.json())
    }

    /// Another gateway on the same Redis.
    #[track_caller]
    pub(crate) fn neighbour(&self) -> Gateway {
        self.neighbour_ahead(0)
    }

    /// The same, whose date is so many milliseconds ahead.
    #[track_caller]
    pub(crate) fn neighbour_ahead(&self, by: i64) -> Gateway {
        let beside = Self::builder(Kept::Redis).gateway(self.redis.as_ref(), &self.live, &self.test);
        start(beside.org(self.gateway.org).wall_ahead(by))
    }

    #[track_caller]
    pub(crate) fn get(&self, key: &str, target: &str) -> Answer {
        self.ask(&Call::get(target).key(key))
    }

    #[track_caller]
    pub(crate) fn post(&self, key: &str, target: &str, body: &Value) -> Answer {
        self.ask(&json_call("POST", target, body).key(key))
    }

    #[track_caller]
    pub(crate) fn patch(&self, key: &str, target: &str, body: &Value) -> Answer {
        self.ask(&json_call("PATCH", target, body).key(key))
    }

    /// Creates a key; this must succeed.
    #[track_caller]
    pub(crate) fn create(&self, key: &str, body: &Value) -> ApiKey {
        ApiKey::of(&self.post(key, "/v1/api_keys", body))
    }

    /// A new organisation's id, and the secret of its first key.
    #[track_caller]
    pub(crate) fn sign_up(&self, email: &str) -> (String, String) {
        let answer = self.ask(&sign_up(email));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let json = answer.json();
        let text = |name: &str| json[name].as_str().unwrap().to_owned();
        (text("organization_id"), text("api_key"))
    }

    /// Whether a request with the key reaches an upstream.
    #[track_caller]
    pub(crate) fn works(&self, key: &str) -> bool {
        match self.gateway.fetch(&Call::get("/v1/jobs").key(key)).status {
            200 | 403 => true,
            401 => false,
            other => panic!("{other}"),
        }
    }

    /// All keys that a caller can see, newest first.
    #[track_caller]
    pub(crate) fn keys(&self, key: &str) -> Vec<Value> {
        self.pages(key, "/v1/api_keys?limit=100")
    }

    /// All events that a caller can see, newest first.
    #[track_caller]
    pub(crate) fn events(&self, key: &str) -> Vec<Value> {
        let mut events = self.pages(key, "/v1/audit_events?limit=100");
        // With several gateways, the event about a change's propagation is written later.
        events.retain(|event| event["type"] != "change.propagated");
        events
    }

    /// Waits for this number of events of one type; some events are written later than the request.
    #[track_caller]
    pub(crate) fn events_of(&self, key: &str, kind: &str, count: usize) -> Vec<Value> {
        let mut events = Vec::new();
        eventually(&format!("there are {count} events {kind}"), || {
            events = self.pages(key, &format!("/v1/audit_events?limit=100&type={kind}"));
            events.len() >= count
        });
        assert_eq!(events.len(), count, "{events:#?}");
        events
    }

    /// A whole list, page by page; `target` has a query.
    #[track_caller]
    pub(crate) fn pages(&self, key: &str, target: &str) -> Vec<Value> {
        let mut all = Vec::new();
        let mut cursor = String::new();
        loop {
            let answer = self.get(key, &format!("{target}{cursor}"));
            assert_eq!(answer.status, 200, "{}", answer.text());
            let mut page = answer.json();
            all.append(page["data"].as_array_mut().unwrap());
            assert_eq!(page["has_more"], json!(page["next_cursor"].is_string()));
            match page["next_cursor"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return all,
            }
        }
    }
}

pub(crate) fn json_call(method: &str, target: &str, body: &Value) -> Call {
    let call = Call::post(target, body.to_string());
    Call { method: method.to_owned(), ..call }.field("content-type", "application/json")
}

pub(crate) fn sign_up(email: &str) -> Call {
    json_call("POST", "/v1/auth/signup", &json!({ "name": "Example", "email": email }))
}

/// The refusal's message and its `details`, as pairs; it has this status and type.
#[track_caller]
pub(crate) fn refused(answer: &Answer, status: u16, kind: &str) -> Vec<(String, String)> {
    assert_eq!(answer.status, status, "{}", answer.text());
    let json = answer.json();
    assert_eq!(json["error"]["type"], kind, "{json}");
    assert_eq!(json["error"]["request_id"].as_str(), answer.field("x-request-id"));
    let details = json["error"]["details"].as_array().cloned().unwrap_or_default();
    let text = |detail: &Value, name: &str| detail[name].as_str().unwrap().to_owned();
    details.iter().map(|detail| (text(detail, "field"), text(detail, "message"))).collect()
}

/// The names of the fields that were wrong.
#[track_caller]
pub(crate) fn wrong_fields(answer: &Answer) -> Vec<String> {
    let mut fields: Vec<String> =
        refused(answer, 400, "validation_error").into_iter().map(|(field, _)| field).collect();
    fields.sort();
    fields
}

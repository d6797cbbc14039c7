//! Random organisations, keys and operations, compared with a small model: every status equals the model's, no key
//! has a right that its creator did not have unless an operator gave it, and no key sees another organisation. Among the
//! operations are those of secrets that were rotated out, requests that are sent again, the end of a key with all its
//! descendants, and the orders of operators whose tokens have roles and organisations.

use std::collections::BTreeSet;

use keygate::lifecycle::Patch;
use keygate::operators::admin::Role;
use keygate::vocabulary::clock::UnixMillis;
use keygate::vocabulary::id::KeyId;
use keygate::vocabulary::key::scope::{Scope, ScopeSet};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use serde_json::{Value, json};

use crate::harness::api::{Api, ApiKey, HOUR, Kept, json_call, on_both_stores};
use crate::harness::{Answer, Call, operator};

on_both_stores! {
    no_way_leads_from_one_organisation_to_another_or_from_few_scopes_to_more
}

const CASES: u32 = 8;
const STEPS: usize = 60;
/// The scopes of new keys; the first keys of each organisation have all of them.
const SCOPES: [&str; 4] = ["keys:manage", "audit:read", "jobs:read", "jobs:write"];
/// Address lists, each within the previous one; the test's address is in all of them.
const PLACES: [&[&str]; 3] = [&[], &["127.0.0.0/8"], &["127.0.0.1/32"]];

/// One step; a number selects one of the keys that exist at that time.
#[derive(Clone, Debug)]
enum Step {
    Create {
        caller: usize,
        test: Option<bool>,
        scopes: Option<BTreeSet<&'static str>>,
        hours: Option<u8>,
        place: usize,
        named: bool,
    },
    Narrow {
        caller: usize,
        target: usize,
        scopes: BTreeSet<&'static str>,
    },
    Bind {
        caller: usize,
        target: usize,
        place: usize,
    },
    Rotate {
        caller: usize,
        target: usize,
        overlap: bool,
        named: bool,
    },
    /// One of the requests with an Idempotency-Key again, by the same secret; perhaps with another body.
    Again {
        request: usize,
        changed: bool,
    },
    /// Together with its descendants; `off` is what the expected number is too large by.
    RevokeAll {
        caller: usize,
        target: usize,
        off: usize,
    },
    Revoke {
        caller: usize,
        target: usize,
    },
    Get {
        caller: usize,
        target: usize,
    },
    List {
        caller: usize,
    },
    Audit {
        caller: usize,
    },
    Use {
        caller: usize,
    },
    /// By an operator with this role, bound to none, the first or the second organisation.
    Order {
        role: usize,
        bound: usize,
        command: usize,
        target: usize,
    },
    /// An operator gives a key these scopes and, with `hours`, an end so far from now, whatever it had before.
    Operate {
        target: usize,
        scopes: BTreeSet<&'static str>,
        hours: Option<u8>,
    },
    Wait,
}

/// The commands of operators among the steps, each with the role that it needs.
const COMMANDS: [(&str, Role); 11] = [
    ("show", Role::Read),
    ("descendants", Role::Read),
    ("list", Role::Read),
    ("list all", Role::Read),
    ("organisation", Role::Read),
    ("organisations", Role::Read),
    ("audit", Role::Read),
    ("create", Role::Keys),
    ("rotate", Role::Keys),
    ("export", Role::Keys),
    ("resume", Role::All),
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || any::<u16>().prop_map(usize::from);
    let scopes =
        || proptest::sample::subsequence(SCOPES.to_vec(), 1..=4).prop_map(|list| list.into_iter().collect());
    let place = 0..PLACES.len();
    let create = (
        key(),
        any::<Option<bool>>(),
        proptest::option::of(scopes()),
        proptest::option::of(1..5_u8),
        place.clone(),
        any::<bool>(),
    )
        .prop_map(|(caller, test, scopes, hours, place, named)| Step::Create {
            caller,
            test,
            scopes,
            hours,
            place,
            named,
        });
    let rotate = (key(), key(), any::<bool>(), any::<bool>());
    let rotate =
        rotate.prop_map(|(caller, target, overlap, named)| Step::Rotate { caller, target, overlap, named });
    let again = (key(), 0..4_u8).prop_map(|(request, n)| Step::Again { request, changed: n == 0 });
    let order = (0..Role::ALL.len(), 0..3_usize, 0..COMMANDS.len(), key());
    let order = order.prop_map(|(role, bound, command, target)| Step::Order { role, bound, command, target });
    let off = prop_oneof![2 => Just(0), 1 => 1..3_usize];
    let revoke_all =
        (key(), key(), off).prop_map(|(caller, target, off)| Step::RevokeAll { caller, target, off });
    let step = prop_oneof![
        6 => create,
        2 => (key(), key(), scopes()).prop_map(|(caller, target, scopes)| Step::Narrow { caller, target, scopes }),
        1 => (key(), key(), place).prop_map(|(caller, target, place)| Step::Bind { caller, target, place }),
        3 => rotate,
        4 => again,
        1 => revoke_all,
        2 => (key(), key()).prop_map(|(caller, target)| Step::Revoke { caller, target }),
        3 => (key(), key()).prop_map(|(caller, target)| Step::Get { caller, target }),
        2 => key().prop_map(|caller| Step::List { caller }),
        1 => key().prop_map(|caller| Step::Audit { caller }),
        3 => key().prop_map(|caller| Step::Use { caller }),
        5 => order,
        2 => (key(), scopes(), proptest::option::of(1..5_u8))
            .prop_map(|(target, scopes, hours)| Step::Operate { target, scopes, hours }),
        1 => Just(Step::Wait),
    ];
    proptest::collection::vec(step, STEPS / 2..STEPS)
}

/// A secret and its expiry.
#[derive(Clone, Debug)]
struct Secret {
    text: String,
    ends_at: Option<UnixMillis>,
}

#[derive(Clone, Debug)]
struct Key {
    id: String,
    org: String,
    test: bool,
    scopes: BTreeSet<String>,
    expires_at: Option<UnixMillis>,
    place: usize,
    revoked: bool,
    /// Newest first.
    secrets: Vec<Secret>,
    /// The key that made it, by its place.
    maker: Option<usize>,
}

/// A request that was carried out, with its answer.
#[derive(Clone, Debug)]
struct Answered {
    /// The caller's place and secret.
    caller: (usize, String),
    call: Call,
    answer: String,
    /// The place of the key whose secret is in the answer.
    about: usize,
    ends_at: UnixMillis,
}

impl Key {
    fn ended(&self, now: UnixMillis) -> bool {
        self.revoked || self.expires_at.is_some_and(|end| end <= now)
    }

    fn sees(&self, other: &Self) -> bool {
        self.org == other.org && (!self.test || other.test)
    }

    /// Whether it may hold the other's secret.
    fn covers(&self, other: &Self) -> bool {
        let outlived = match (self.expires_at, other.expires_at) {
            (None, _) => false,
            (Some(_), None) => true,
            (Some(own), Some(end)) => end > own,
        };
        self.id == other.id
            || self.scopes.is_superset(&other.scopes) && !outlived && other.place >= self.place
    }
}

struct Model<'a> {
    api: &'a Api,
    keys: Vec<Key>,
    answered: Vec<Answered>,
    /// By role, then by what they are bound to.
    tokens: Vec<[String; 3]>,
}

/// The caller: a key with one of its secrets.
struct Caller {
    place: usize,
    key: Key,
    secret: String,
    lives: bool,
    /// Whether the secret was rotated out.
    ending: bool,
}

impl Caller {
    /// Whether it may be given the secret of a key, or change it.
    fn may_hold(&self, key: &Key) -> bool {
        !self.ending && self.key.covers(key)
    }
}

impl Model<'_> {
    fn begin(api: &Api, case: u64) -> Model<'_> {
        let mut keys = Vec::new();
        for name in ["ada", "eve"] {
            let (org, secret) = api.sign_up(&format!("{name}{case}@example.com"));
            let own = api.get(&secret, "/v1/api_keys/self").json();
            keys.push(Key {
                id: own["id"].as_str().unwrap().to_owned(),
                org,
                test: false,
                scopes: names(&own["scopes"]),
                expires_at: None,
                place: 0,
                revoked: false,
                secrets: vec![Secret { text: secret, ends_at: None }],
                maker: None,
            });
        }
        let bound = [None, Some([&*keys[0].org]), Some([&*keys[1].org])];
        let tokens =
            Role::ALL.map(|role| bound.map(|orgs| api.token(role, orgs.as_ref().map(|orgs| &orgs[..]))));
        Model { api, tokens: tokens.into(), keys, answered: Vec::new() }
    }

    /// The caller for a number; an odd number uses the older secret if there is one.
    fn caller(&self, number: usize) -> Caller {
        let place = number / 2 % self.keys.len();
        let secrets = &self.keys[place].secrets;
        self.caller_with(place, secrets.get(number % 2).unwrap_or(&secrets[0]).text.clone())
    }

    /// A key with one of the secrets that it has or had.
    fn caller_with(&self, place: usize, text: String) -> Caller {
        let (key, now) = (self.keys[place].clone(), self.api.gateway.now());
        let secret = key.secrets.iter().find(|secret| secret.text == text);
        let end = secret.and_then(|secret| secret.ends_at);
        let lives = secret.is_some() && !key.ended(now) && end.is_none_or(|end| end > now);
        Caller { place, key, secret: text, lives, ending: end.is_some() }
    }

    /// The answers to callers without the right: 401 for an invalid key, 403 without the scope.
    fn barrier(caller: &Caller, scope: &str) -> Option<u16> {
        if !caller.lives {
            Some(401)
        } else if caller.key.scopes.contains(scope) {
            None
        } else {
            Some(403)
        }
    }

    fn ask(&self, caller: &Caller, method: &str, target: &str, body: Option<Value>) -> Answer {
        let call = match body {
            Some(body) => json_call(method, target, &body),
            None => Call::new(method, target),
        };
        self.api.ask(&call.key(&caller.secret))
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        match step {
            Step::Create { .. } => self.create(step),
            Step::Narrow { caller, target, scopes } => self.narrow(&self.caller(*caller), *target, scopes),
            Step::Bind { caller, target, place } => self.bind(&self.caller(*caller), *target, *place),
            Step::Rotate { caller, target, overlap, named } => {
                self.rotate(&self.caller(*caller), *target, *overlap, *named)
            }
            Step::Again { request, changed } => self.again(*request, *changed),
            Step::RevokeAll { caller, target, off } => self.revoke_all(&self.caller(*caller), *target, *off),
            Step::Revoke { caller, target } => self.revoke(&self.caller(*caller), *target),
            Step::Get { caller, target } => self.get(&self.caller(*caller), *target),
            Step::List { caller } => self.list(&self.caller(*caller)),
            Step::Audit { caller } => self.audit(&self.caller(*caller)),
            Step::Use { caller } => self.try_out(&self.caller(*caller)),
            Step::Order { role, bound, command, target } => self.order(*role, *bound, *command, *target),
            Step::Operate { target, scopes, hours } => self.operate(*target, scopes, *hours),
            Step::Wait => {
                self.api.gateway.advance(HOUR / 2);
                Ok(())
            }
        }
    }

    fn create(&mut self, step: &Step) -> Result<(), TestCaseError> {
        let Step::Create { caller, test, scopes, hours, place, named } = step else { unreachable!() };
        let (caller, place) = (&self.caller(*caller), *place);
        let own = &caller.key;
        let expires_at = hours.map(|hours| self.api.gateway.now().plus(HOUR * hours.into()));
        let mut body = json!({ "name": "a key", "allowed_addresses": PLACES[place] });
        let fields = body.as_object_mut().unwrap();
        fields.extend(test.map(|test| ("environment".to_owned(), json!(if test { "test" } else { "live" }))));
        fields.extend(scopes.as_ref().map(|scopes| ("scopes".to_owned(), json!(scopes))));
        fields.extend(expires_at.map(|end| ("expires_at".to_owned(), json!(end.to_string()))));
        let call = self.call(json_call("POST", "/v1/api_keys", &body), *named);
        let answer = self.api.ask(&call.clone().key(&caller.secret));
        let mut key = Key {
            id: String::new(),
            org: own.org.clone(),
            test: test.unwrap_or(own.test),
            scopes: scopes.as_ref().map_or_else(
                || own.scopes.clone(),
                |list| list.iter().map(|name| (*name).to_owned()).collect(),
            ),
            expires_at: expires_at.or(own.expires_at),
            place: if place == 0 { own.place } else { place },
            revoked: false,
            secrets: Vec::new(),
            maker: Some(caller.place),
        };
        let allowed = caller.may_hold(&key) && (key.test || !own.test);
        let expected = Self::barrier(caller, "keys:manage").unwrap_or(if allowed { 200 } else { 403 });
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            let ApiKey { id, secret } = ApiKey::of(&answer);
            key.id = id;
            key.secrets.push(Secret { text: secret, ends_at: None });
            check(&answer.json(), &key)?;
            self.keys.push(key);
            self.note(caller, call, &answer, self.keys.len() - 1);
        }
        Ok(())
    }

    /// The call, perhaps with a name under which its answer is kept.
    fn call(&self, call: Call, named: bool) -> Call {
        if named { call.field("idempotency-key", &format!("n{}", self.answered.len())) } else { call }
    }

    fn note(&mut self, caller: &Caller, call: Call, answer: &Answer, about: usize) {
        if call.fields.iter().any(|(name, _)| name == "idempotency-key") {
            let (caller, ends_at) =
                ((caller.place, caller.secret.clone()), self.api.gateway.now().plus(HOUR * 24));
            self.answered.push(Answered { caller, call, answer: answer.text(), about, ends_at });
        }
    }

    /// Only what the caller could get now is given again.
    fn again(&self, request: usize, changed: bool) -> Result<(), TestCaseError> {
        let now = self.api.gateway.now();
        let kept: Vec<_> = self.answered.iter().filter(|answered| answered.ends_at > now).collect();
        if kept.is_empty() {
            return Ok(());
        }
        let Answered { caller: (place, secret), call, answer: first, about, .. } = kept[request % kept.len()];
        let caller = self.caller_with(*place, secret.clone());
        let mut call = call.clone();
        if changed {
            call.body.push(b' ');
        }
        let answer = self.api.ask(&call.key(secret));
        let allowed = *about == *place || caller.may_hold(&self.keys[*about]);
        let expected = Self::barrier(&caller, "keys:manage").unwrap_or(match (changed, allowed) {
            (true, _) => 409,
            (false, true) => 200,
            (false, false) => 403,
        });
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            prop_assert_eq!(&answer.text(), first);
        } else {
            prop_assert!(!answer.text().contains("fh_live_sk_") && !answer.text().contains("fh_test_sk_"));
        }
        Ok(())
    }

    /// An operator reaches what the token is for: a command that names another organisation is forbidden, and one that
    /// names a key of another finds none.
    fn order(
        &mut self,
        role: usize,
        bound: usize,
        command: usize,
        target: usize,
    ) -> Result<(), TestCaseError> {
        let (role, (name, needs), target) = (Role::ALL[role], COMMANDS[command], target % self.keys.len());
        let token = &self.tokens[Role::ALL.iter().position(|known| *known == role).unwrap()][bound];
        let Key { id, org, .. } = &self.keys[target];
        let (status, reply) = self.api.order(token, &order(name, id, org));
        let allowed = role == Role::All || role == needs || needs == Role::Read;
        let own = bound.checked_sub(1).map(|place| self.keys[place].org.clone());
        let inside = own.as_ref().is_none_or(|own| own == org);
        let by_key = matches!(name, "show" | "descendants" | "rotate");
        let ended = name == "rotate" && self.keys[target].ended(self.api.gateway.now());
        let general = matches!(name, "list all" | "organisations");
        let expected = match (allowed, general || inside) {
            (false, _) => (403, true),
            (true, false) => (if by_key { 200 } else { 403 }, true),
            (true, true) => (200, ended),
        };
        prop_assert_eq!((status, reply["reply"] == "failed"), expected, "{} {} {}", role, name, reply);
        if expected.1 {
            prop_assert!(!reply.to_string().contains("fh_live_sk_"), "{}", reply);
            return Ok(());
        }
        // Nothing of another organisation is in any reply.
        if let Some(own) = own {
            let foreign = self.keys.iter().find(|key| key.org != own).unwrap().org.clone();
            prop_assert!(!reply.to_string().contains(&foreign), "{}", reply);
        }
        match name {
            "descendants" => prop_assert_eq!(&reply["count"], &json!(self.descendants(target).len())),
            "show" => check(&reply["key"], &self.keys[target])?,
            "rotate" => {
                let (secret, end) = (text(&reply["secret"]), self.api.gateway.now().plus(HOUR));
                let key = &mut self.keys[target];
                key.secrets.truncate(1);
                key.secrets[0].ends_at = Some(end);
                key.secrets.insert(0, Secret { text: secret, ends_at: None });
            }
            "create" => self.keys.push(Key {
                id: text(&reply["key"]["id"]),
                org: self.keys[target].org.clone(),
                test: false,
                scopes: ["jobs:read".to_owned()].into(),
                expires_at: None,
                place: 0,
                revoked: false,
                secrets: vec![Secret { text: text(&reply["secret"]), ends_at: None }],
                maker: None,
            }),
            _ => {}
        }
        Ok(())
    }

    /// The descendants of a key that are neither revoked nor expired.
    fn descendants(&self, target: usize) -> Vec<usize> {
        let descends = |mut place: usize| {
            while let Some(maker) = self.keys[place].maker {
                if maker == target {
                    return true;
                }
                place = maker;
            }
            false
        };
        let now = self.api.gateway.now();
        (0..self.keys.len()).filter(|place| !self.keys[*place].ended(now) && descends(*place)).collect()
    }

    fn revoke_all(&mut self, caller: &Caller, target: usize, off: usize) -> Result<(), TestCaseError> {
        let descendants = self.descendants(target % self.keys.len());
        let (target, expected) = self.on(caller, target, |_| if off == 0 { 204 } else { 409 });
        let query = format!("descendants=true&expected={}", descendants.len() + off);
        let answer = self.ask(caller, "DELETE", &format!("{}?{query}", self.path(target)), None);
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 409 {
            let told = format!(": {};", descendants.len());
            prop_assert!(answer.text().contains(&told), "{} {}", told, answer.text());
        }
        if answer.status == 204 {
            descendants.into_iter().chain([target]).for_each(|place| self.keys[place].revoked = true);
        }
        Ok(())
    }

    /// The refusal of an operation on a key by the general rules, if there is one.
    fn on(&self, caller: &Caller, target: usize, rule: impl FnOnce(&Key) -> u16) -> (usize, u16) {
        let target = target % self.keys.len();
        let key = &self.keys[target];
        let hidden = (!caller.key.sees(key)).then_some(404);
        let status = Self::barrier(caller, "keys:manage").or(hidden);
        (target, status.unwrap_or_else(|| rule(key)))
    }

    fn strength(&self, caller: &Caller, key: &Key) -> u16 {
        match (key.ended(self.api.gateway.now()), caller.may_hold(key)) {
            (true, _) => 409,
            (false, false) => 403,
            (false, true) => 200,
        }
    }

    fn narrow(
        &mut self,
        caller: &Caller,
        target: usize,
        scopes: &BTreeSet<&'static str>,
    ) -> Result<(), TestCaseError> {
        let wanted: BTreeSet<String> = scopes.iter().map(|name| (*name).to_owned()).collect();
        let (target, expected) = self.on(caller, target, |key| match self.strength(caller, key) {
            200 if !caller.key.scopes.is_superset(&wanted) => 403,
            200 if !key.scopes.is_superset(&wanted) => 400,
            status => status,
        });
        let answer = self.ask(caller, "PATCH", &self.path(target), Some(json!({ "scopes": scopes })));
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            self.keys[target].scopes = wanted;
            check(&answer.json(), &self.keys[target])?;
        }
        Ok(())
    }

    fn bind(&mut self, caller: &Caller, target: usize, place: usize) -> Result<(), TestCaseError> {
        let (target, expected) = self.on(caller, target, |key| match self.strength(caller, key) {
            200 if place < caller.key.place => 403,
            status => status,
        });
        let body = json!({ "allowed_addresses": PLACES[place] });
        let answer = self.ask(caller, "PATCH", &self.path(target), Some(body));
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            self.keys[target].place = place;
            check(&answer.json(), &self.keys[target])?;
        }
        Ok(())
    }

    fn operate(
        &mut self,
        target: usize,
        scopes: &BTreeSet<&'static str>,
        hours: Option<u8>,
    ) -> Result<(), TestCaseError> {
        let gateway = &self.api.gateway;
        let (now, target) = (gateway.now(), target % self.keys.len());
        let end = hours.map(|hours| now.plus(HOUR * hours.into()));
        let key = &mut self.keys[target];
        let wanted: ScopeSet = scopes.iter().map(|name| Scope::parse(name).unwrap()).collect();
        let patch = Patch { scopes: Some(wanted), expires_at: end.map(Some), ..Patch::default() };
        let origin = operator().because(Some("the model says so")).unwrap();
        let id = KeyId::parse(&key.id).unwrap();
        let done = gateway.block_on(gateway.lifecycle().update_key(&origin, id, &patch)).is_ok();
        prop_assert_eq!(done, !key.revoked && (end.is_some() || !key.ended(now)), "{:?}", key);
        if done {
            key.scopes = scopes.iter().map(|name| (*name).to_owned()).collect();
            key.expires_at = end.or(key.expires_at);
        }
        Ok(())
    }

    fn rotate(
        &mut self,
        caller: &Caller,
        target: usize,
        overlap: bool,
        named: bool,
    ) -> Result<(), TestCaseError> {
        let (target, expected) = self.on(caller, target, |key| self.strength(caller, key));
        let seconds = if overlap { 3600 } else { 0 };
        let body = json!({ "overlap_seconds": seconds });
        let ends_at = self.api.gateway.now().plus(HOUR * u32::from(overlap));
        let call = self.call(json_call("POST", &format!("{}/rotate", self.path(target)), &body), named);
        let answer = self.api.ask(&call.clone().key(&caller.secret));
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            let key = &mut self.keys[target];
            key.secrets.truncate(1);
            key.secrets[0].ends_at = Some(ends_at);
            key.secrets.insert(0, Secret { text: ApiKey::of(&answer).secret, ends_at: None });
            check(&answer.json(), key)?;
            self.note(caller, call, &answer, target);
        }
        Ok(())
    }

    fn revoke(&mut self, caller: &Caller, target: usize) -> Result<(), TestCaseError> {
        let (target, expected) = self.on(caller, target, |_| 204);
        let answer = self.ask(caller, "DELETE", &self.path(target), None);
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        self.keys[target].revoked |= answer.status == 204;
        Ok(())
    }

    fn get(&self, caller: &Caller, target: usize) -> Result<(), TestCaseError> {
        let (target, expected) = self.on(caller, target, |_| 200);
        let answer = self.ask(caller, "GET", &self.path(target), None);
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 { check(&answer.json(), &self.keys[target]) } else { Ok(()) }
    }

    fn list(&self, caller: &Caller) -> Result<(), TestCaseError> {
        let expected = Self::barrier(caller, "keys:manage").unwrap_or(200);
        let answer = self.ask(caller, "GET", "/v1/api_keys?limit=100", None);
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            let json = answer.json();
            let listed: BTreeSet<&str> =
                json["data"].as_array().unwrap().iter().map(|key| key["id"].as_str().unwrap()).collect();
            let seen = self.keys.iter().filter(|key| caller.key.sees(key)).map(|key| key.id.as_str());
            prop_assert_eq!(listed, seen.collect::<BTreeSet<_>>());
        }
        Ok(())
    }

    fn audit(&self, caller: &Caller) -> Result<(), TestCaseError> {
        let expected = Self::barrier(caller, "audit:read").unwrap_or(200);
        let answer = self.ask(caller, "GET", "/v1/audit_events?limit=100", None);
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        let told = answer.text();
        for other in self.keys.iter().filter(|key| key.org != caller.key.org) {
            prop_assert!(!told.contains(&other.id) && !told.contains(&other.org), "{}", told);
        }
        Ok(())
    }

    /// The identity headers at the upstream are those of the model.
    fn try_out(&self, caller: &Caller) -> Result<(), TestCaseError> {
        let answer = self.api.gateway.fetch(&Call::get("/v1/jobs").key(&caller.secret));
        let expected = Self::barrier(caller, "jobs:read").unwrap_or(200);
        prop_assert_eq!(answer.status, expected, "{}", answer.text());
        if answer.status == 200 {
            let upstream = if caller.key.test { &self.api.test } else { &self.api.live };
            let seen = upstream.only();
            upstream.forget();
            prop_assert_eq!(seen.value("x-org-id"), &caller.key.org);
            prop_assert_eq!(seen.value("x-key-id"), &caller.key.id);
            let scopes: BTreeSet<String> = seen.value("x-scopes").split(' ').map(str::to_owned).collect();
            prop_assert_eq!(&scopes, &caller.key.scopes);
        }
        Ok(())
    }

    fn path(&self, target: usize) -> String {
        format!("/v1/api_keys/{}", self.keys[target].id)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A command of an operator about a key, or about its organisation.
fn order(name: &str, key: &str, org: &str) -> Value {
    let list = |org| json!({ "keys": { "list": { "filter": { "org": org }, "after": null, "limit": 500 } } });
    let filter = json!({ "kind": null, "from": null, "until": null });
    match name {
        "show" => json!({ "keys": { "show": { "id": key } } }),
        "descendants" => json!({ "keys": { "descendants": { "id": key } } }),
        "list" => list(Some(org)),
        "list all" => list(None),
        "organisation" => json!({ "orgs": { "show": { "id": org } } }),
        "organisations" => json!({ "orgs": { "list": { "after": null, "limit": 500 } } }),
        "audit" => {
            json!({ "audit": { "list": { "trail": org, "filter": filter, "before": null, "limit": 100 } } })
        }
        "create" => json!({ "keys": { "create": {
            "org": org, "name": "an operator's", "environment": "live", "scopes": ["jobs:read"],
            "expires_at": null, "allowed_addresses": [], "owner": null, "note": null,
        } } }),
        "rotate" => json!({ "keys": { "rotate": { "id": key, "overlap_seconds": 3600 } } }),
        "export" => json!({ "keys": { "export": { "org": org, "after": null, "limit": 100 } } }),
        "resume" => json!({ "orgs": { "resume": { "id": org } } }),
        other => panic!("{other}"),
    }
}

fn names(list: &Value) -> BTreeSet<String> {
    list.as_array().unwrap().iter().map(|name| name.as_str().unwrap().to_owned()).collect()
}

/// Whether a key in an answer equals the model's.
fn check(shown: &Value, key: &Key) -> Result<(), TestCaseError> {
    prop_assert_eq!(&shown["id"], &json!(key.id));
    prop_assert_eq!(&shown["organization_id"], &json!(key.org));
    prop_assert_eq!(&shown["environment"], if key.test { "test" } else { "live" });
    prop_assert_eq!(&names(&shown["scopes"]), &key.scopes);
    prop_assert_eq!(&shown["expires_at"], &json!(key.expires_at.map(|end| end.to_string())));
    prop_assert_eq!(&shown["allowed_addresses"], &json!(PLACES[key.place]));
    Ok(())
}

fn no_way_leads_from_one_organisation_to_another_or_from_few_scopes_to_more(kept: Kept) {
    let api = Api::builder(kept).admin().start();
    let config =
        Config { cases: CASES, max_shrink_iters: 200, failure_persistence: None, ..Config::default() };
    let case = std::cell::Cell::new(0);
    let outcome = TestRunner::new(config).run(&steps(), |steps| {
        case.set(case.get() + 1);
        let mut model = Model::begin(&api, case.get());
        api.live.forget();
        api.test.forget();
        steps.iter().try_for_each(|step| model.step(step))
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

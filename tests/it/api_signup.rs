//! Signup, where the configuration allows it: once for each address, and within the quotas.

use std::collections::BTreeSet;
use std::time::Duration;

use keygate::vocabulary::id::OrgId;
use serde_json::json;

use crate::harness::api::{
    Api, Client, HOUR, Kept, at_once, json_call, on_both_stores, refused, sign_up, wrong_fields,
};
use crate::harness::{Answer, Call, operator};

on_both_stores! {
    an_address_signs_up_once_whatever_its_case
    of_64_signups_with_one_address_exactly_one_succeeds
    five_an_hour_come_from_one_network
    two_hundred_a_day_come_in_all
    the_networks_of_one_ipv6_site_share_a_limit
    one_network_or_site_takes_half_a_day_at_most
    who_has_signed_up_counts_when_the_gateway_starts_anew
    an_organisation_is_verified_before_its_keys_open_anything
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

fn from(call: Call, address: &str) -> Call {
    call.field("x-forwarded-for", address)
}

/// The time to wait, from a 429.
#[track_caller]
fn wait_of(answer: &Answer) -> Duration {
    refused(answer, 429, "rate_limit_exceeded");
    Duration::from_secs(answer.field("retry-after").unwrap().parse().unwrap())
}

#[test]
fn signup_is_404_unless_it_is_enabled() {
    let api = Api::builder(Kept::Embedded).signup("").start();
    let key = api.gateway.live_key().secret;
    for call in [
        sign_up("ada@example.com"),
        sign_up("ada@example.com").key(&key),
        json_call("POST", "/v1/auth/signup", &json!({ "nonsense": 1 })),
    ] {
        refused(&api.ask(&call), 404, "not_found");
    }
}

#[test]
fn the_answer_is_as_documented() {
    let api = Api::builder(Kept::Embedded).signup("enabled = true\nfree_credits_cents = 500").start();
    let answer = api.ask(&sign_up("Ada.Lovelace+keys@Example.com"));
    let json = answer.json();
    let fields: BTreeSet<&str> = json.as_object().unwrap().keys().map(String::as_str).collect();
    assert_eq!(fields, ["api_key", "credits_cents", "organization_id"].into_iter().collect());
    assert_eq!(json["credits_cents"], 500);
    let secret = json["api_key"].as_str().unwrap();
    assert!(secret.starts_with("fh_live_sk_"));
    let own = api.get(secret, "/v1/api_keys/self").json();
    assert_eq!(own["organization_id"], json["organization_id"]);
    assert_eq!((&own["created_by"], &own["environment"]), (&json!("signup"), &json!("live")));
    let scopes = ["audit:read", "billing:read", "billing:write", "jobs:read", "jobs:write", "keys:manage"];
    assert_eq!(
        own["scopes"],
        json!([&scopes[..], &["usage:read", "webhooks:read", "webhooks:write"]].concat())
    );
}

#[test]
fn name_and_address_are_checked_both_at_once() {
    let api = Api::start(Kept::Embedded);
    let long = format!("{}@example.com", "x".repeat(65));
    let longest =
        format!("ada@{}.com", ["x".repeat(63), "y".repeat(63), "z".repeat(63), "w".repeat(63)].join("."));
    for bad in [
        "",
        "ada",
        "@example.com",
        "ada@",
        "ada@example",
        "ada@@example.com",
        "ada example@example.com",
        "ada@exa mple.com",
        ".ada@example.com",
        "ada.@example.com",
        "a..da@example.com",
        "ada@-example.com",
        "ada@example-.com",
        "ada@example..com",
        "ada@.example.com",
        "ada@example.com.",
        "Ada <ada@example.com>",
        "\"ada\"@example.com",
        "ada@[192.0.2.1]",
        "ada@exämple.com",
        "ada\n@example.com",
        "ada\u{0}@example.com",
        &long,
        &longest,
    ] {
        assert_eq!(wrong_fields(&api.ask(&sign_up(bad))), ["email"], "{bad:?}");
    }
    for (body, wrong) in [
        (json!({}), &["email", "name"][..]),
        (json!({ "name": "", "email": "ada" }), &["email", "name"]),
        (json!({ "name": 5, "email": "ada" }), &["email", "name"]),
        (json!({ "name": "x".repeat(201), "email": null, "plan": "free" }), &["email", "name", "plan"]),
        (json!({ "name": "a\u{7}b", "email": "ada@example.com" }), &["name"]),
    ] {
        assert_eq!(wrong_fields(&api.ask(&json_call("POST", "/v1/auth/signup", &body))), wrong, "{body}");
    }
    // Refused signups do not count, and do not reserve an address.
    assert_eq!(api.ask(&sign_up("ada@example.com")).status, 200);
}

fn an_address_signs_up_once_whatever_its_case(kept: Kept) {
    let api = Api::start(kept);
    api.sign_up("Ada@Example.com");
    let orgs = || api.gateway.block_on(api.gateway.lifecycle().list_orgs(None, 10)).unwrap().len();
    let before = orgs();
    for taken in ["Ada@Example.com", "ada@example.com", "ADA@EXAMPLE.COM", " ada@example.com "] {
        refused(&api.ask(&sign_up(taken)), 409, "conflict");
    }
    assert_eq!(orgs(), before);
    for free in ["ada+1@example.com", "a.da@example.com", "ada@example.org"] {
        api.sign_up(free);
    }
}

fn of_64_signups_with_one_address_exactly_one_succeeds(kept: Kept) {
    let api = Api::start(kept);
    let orgs = || api.gateway.block_on(api.gateway.lifecycle().list_orgs(None, 100)).unwrap().len();
    let before = orgs();
    let calls: Vec<Call> = (0..64)
        .map(|n| {
            from(
                sign_up(if n % 2 == 0 { "ada@example.com" } else { "ADA@example.com" }),
                &format!("10.0.{n}.1"),
            )
        })
        .collect();
    let answers = at_once(&[api.client()], &calls);
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 200);
    assert_eq!(won.len(), 1);
    lost.iter().for_each(|answer| drop(refused(answer, 409, "conflict")));
    assert_eq!(orgs(), before + 1);
    let secret = won[0].json()["api_key"].as_str().unwrap().to_owned();
    assert_eq!(api.keys(&secret).len(), 1);
    assert_eq!(api.events(&secret).len(), 1);
}

#[test]
fn of_64_signups_at_two_gateways_exactly_one_succeeds() {
    let api = Api::start(Kept::Redis);
    let neighbour = api.neighbour();
    let clients = [api.client(), Client::of(&neighbour)];
    for round in 0..5 {
        let answers = at_once(&clients, &vec![sign_up(&format!("ada{round}@example.com")); 64]);
        let won = answers.iter().filter(|answer| answer.status == 200).count();
        let lost = answers.iter().filter(|answer| answer.status == 409).count();
        assert_eq!((won, lost), (1, 63));
    }
}

fn five_an_hour_come_from_one_network(kept: Kept) {
    let api = Api::builder(kept).signup("enabled = true").start();
    let mut number = 0;
    let mut attempt = |address: &str| {
        number += 1;
        api.ask(&from(sign_up(&format!("ada{number}@example.com")), address))
    };
    for n in 1..=5 {
        assert_eq!(attempt(&format!("203.0.113.{n}")).status, 200);
    }
    let wait = wait_of(&attempt("203.0.113.6"));
    assert!(wait <= HOUR && wait > HOUR - HOUR / 60, "{wait:?}");
    assert_eq!(attempt("203.0.114.6").status, 200, "the network beside it");
    for n in 1..=5 {
        assert_eq!(attempt(&format!("2001:db8::{n}")).status, 200);
    }
    wait_of(&attempt("2001:db8::ffff:ffff:ffff:ffff"));
    assert_eq!(attempt("2001:db8:0:1::1").status, 200);
    // The client's own entries are ignored: the client is the rightmost address that is not a trusted proxy.
    wait_of(&attempt("198.51.100.1, 203.0.113.9"));
    wait_of(&attempt("nonsense, 203.0.113.9"));
    wait_of(&attempt("203.0.113.9, 127.0.0.1"));
    api.gateway.advance(wait);
    assert_eq!(attempt("203.0.113.6").status, 200, "as it was told");
}

/// A restart of the gateway does not reset a client's quota.
fn who_has_signed_up_counts_when_the_gateway_starts_anew(kept: Kept) {
    let mut api = Api::builder(kept).signup("enabled = true\nper_network_and_hour = 2\nper_day = 5").start();
    let attempt = |api: &Api, n: usize| {
        api.ask(&from(sign_up(&format!("ada{n}@example.com")), &format!("10.0.{}.1", n / 2)))
    };
    assert_eq!((attempt(&api, 0).status, attempt(&api, 1).status), (200, 200));
    api.gateway.restart();
    let wait = wait_of(&api.ask(&from(sign_up("ada@example.com"), "10.0.0.9")));
    assert!(wait <= HOUR && wait > HOUR - HOUR / 60, "{wait:?}");
    let others = [2, 3, 4].map(|n| attempt(&api, n).status);
    assert_eq!(others, [200; 3], "the third to fifth of the day, from other networks");
    api.gateway.restart();
    assert!(wait_of(&attempt(&api, 6)) > HOUR, "five came in all");
}

fn two_hundred_a_day_come_in_all(kept: Kept) {
    let api = Api::builder(kept).signup("enabled = true\nper_day = 20").start();
    let attempt = |n: usize| api.ask(&from(sign_up(&format!("ada{n}@example.com")), &format!("10.0.{n}.1")));
    for n in 0..20 {
        assert_eq!(attempt(n).status, 200);
    }
    let wait = wait_of(&attempt(20));
    assert!(wait <= DAY && wait > DAY - HOUR, "{wait:?}");
    api.gateway.advance(2 * HOUR);
    assert!(wait_of(&attempt(20)) <= DAY - 2 * HOUR);
    api.gateway.advance(DAY - 2 * HOUR);
    assert_eq!(attempt(20).status, 200);
}

/// A site has 65,536 networks, and one customer can have it.
fn the_networks_of_one_ipv6_site_share_a_limit(kept: Kept) {
    let api = Api::builder(kept).signup("enabled = true\nper_network_and_hour = 2").start();
    let mut number = 0;
    let mut attempt = |address: &str| {
        number += 1;
        api.ask(&from(sign_up(&format!("ada{number}@example.com")), address))
    };
    for network in 0..8 {
        assert_eq!(attempt(&format!("2001:db8:0:{network:x}::1")).status, 200);
    }
    for network in ["2001:db8:0:8::1", "2001:db8:0:ffff::1", "2001:db8::1"] {
        let wait = wait_of(&attempt(network));
        assert!(wait <= HOUR && wait > HOUR - HOUR / 60, "{wait:?}");
    }
    for _ in 0..2 {
        assert_eq!(attempt("2001:db8:1::1").status, 200, "the site beside it");
    }
    wait_of(&attempt("2001:db8:1::2"));
    assert_eq!(attempt("2001:db8:1:1::1").status, 200, "another network of that site");
    api.gateway.advance(HOUR);
    assert_eq!(attempt("2001:db8:0:8::1").status, 200, "as it was told");
}

fn one_network_or_site_takes_half_a_day_at_most(kept: Kept) {
    let api = Api::builder(kept).signup("enabled = true\nper_network_and_hour = 1000\nper_day = 15").start();
    let mut number = 0;
    let mut attempt = |address: String| {
        number += 1;
        api.ask(&from(sign_up(&format!("ada{number}@example.com")), &address))
    };
    for n in 0..8 {
        assert_eq!(attempt(format!("192.0.2.{n}")).status, 200);
    }
    let wait = wait_of(&attempt("192.0.2.8".to_owned()));
    assert!(wait <= DAY && wait > DAY - HOUR, "{wait:?}");
    // What was refused has taken nothing from the others' half.
    for n in 0..20 {
        wait_of(&attempt(format!("192.0.2.{n}")));
    }
    for n in 0..7 {
        assert_eq!(attempt(format!("2001:db8:0:{n:x}::1")).status, 200);
    }
    wait_of(&attempt("198.51.100.1".to_owned()));
    api.gateway.advance(DAY);
    for n in 0..8 {
        assert_eq!(attempt(format!("2001:db8:0:{n:x}::1")).status, 200);
    }
    wait_of(&attempt("2001:db8:0:ff::1".to_owned()));
    assert_eq!(attempt("2001:db8:1::1".to_owned()).status, 200);
}

#[test]
fn the_daily_quota_is_200_by_default() {
    let settings = keygate::lifecycle::SignupSettings::default();
    assert_eq!((settings.per_network, settings.per_day, settings.free_credits_cents), (5, 200, 250));
    assert!(!settings.enabled && !settings.verification);
}

fn an_organisation_is_verified_before_its_keys_open_anything(kept: Kept) {
    let api = Api::builder(kept).signup("enabled = true\nverification = true").start();
    let (org, root) = api.sign_up("ada@example.com");
    refused(&api.get(&root, "/v1/api_keys/self"), 403, "forbidden");
    refused(&api.post(&root, "/v1/api_keys", &json!({ "name": "x" })), 403, "forbidden");
    api.gateway.fetch(&Call::get("/v1/jobs").key(&root)).refusal(403, "forbidden");
    assert_eq!(api.live.connections(), 0);
    let id = OrgId::parse(&org).unwrap();
    api.gateway.block_on(api.gateway.lifecycle().verify_org(&operator(), id)).unwrap();
    assert_eq!(api.get(&root, "/v1/api_keys/self").json()["status"], "active");
    assert_eq!(api.gateway.fetch(&Call::get("/v1/jobs").key(&root)).status, 200);
    let types: Vec<_> = api.events(&root).into_iter().map(|event| event["type"].clone()).collect();
    assert_eq!(types, ["org.verified", "org.created"]);
}

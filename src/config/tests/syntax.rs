//! Texts that are not TOML: each mistake is told once, and hides no other.

use super::*;

/// The text without each single bracket, quotation mark or `=` in turn.
fn mutilated(text: &str) -> impl Iterator<Item = (usize, String)> {
    let is_in_comment =
        |at: usize| text[..at].rsplit('\n').next().is_some_and(|line| line.trim_start().starts_with('#'));
    let places = text.match_indices(['[', ']', '"', '=', '{', '}']).map(|(at, _)| at);
    places.filter(move |at| !is_in_comment(*at)).map(|at| (at, format!("{}{}", &text[..at], &text[at + 1..])))
}

#[test]
fn one_character_that_is_missing_is_one_mistake() {
    let line = |text: &str, at: usize| text[..at].matches('\n').count() + 1;
    let mut wrong = Vec::new();
    for (at, policy) in mutilated(STARTER_POLICY) {
        if let Err(mistakes) = load(DEFAULT_CONFIGURATION, &policy, &[])
            && mistakes.len() > 1
        {
            wrong.push(format!(
                "policy.toml:{} without {:?}: {mistakes}",
                line(STARTER_POLICY, at),
                &STARTER_POLICY[at..=at]
            ));
        }
    }
    let toml = around(
        "[server]\nlisten = \"127.0.0.1:8080\"\ntls = [\n  { cert = \"a\", key = \"b\" },\n]\ntrusted_proxies = [\"192.0.2.1\"]",
    );
    for (at, text) in mutilated(&toml) {
        if let Err(mistakes) = load(&text, ROUTE, &[])
            && mistakes.len() > 1
        {
            wrong.push(format!("keygate.toml:{} without {:?}: {mistakes}", line(&toml, at), &toml[at..=at]));
        }
    }
    assert!(wrong.is_empty(), "{}\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn several_mistakes_are_told_one_by_one() {
    let toml = around(
        "[server]\nlisten = 127.0.0.1:8080\nworkers = \"3\ntrusted_proxies = [\"192.0.2.1\",\n  \"192.0.2.2\"\nplaintext = \"\"\"behind\n[cache]\nttl \"1s\"\ncapacity = 0",
    );
    assert_says(
        mistakes(&toml, ROUTE, &[]),
        &[
            "etc/keygate.toml:2:15: invalid TOML: a text stands in quotation marks; put it in quotes",
            "etc/keygate.toml:3:11: invalid TOML: the text that begins here has no end; write the quotation mark behind it",
            "etc/keygate.toml:4:19: invalid TOML: the list that begins here has no end; write ] behind it",
            "etc/keygate.toml:6:13: invalid TOML: the text that begins here has no end; write its three quotation marks behind it",
            "etc/keygate.toml:8:5: invalid TOML: key with no value, expected `=`; correct the syntax",
            "etc/keygate.toml:9:12: cache.capacity: 0 is out of range; write a value from 1 to 100000000",
        ],
    );
}

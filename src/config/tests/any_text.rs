//! Random text as a configuration.

use proptest::prelude::*;

use super::*;

proptest! {
    #[test]
    fn no_text_makes_the_reader_panic_or_refuse_without_a_reason(
        text in "(?s).{0,200}",
        pieces in prop::collection::vec(prop::sample::select(PIECES), 0..40),
        name in "(?i)KEYGATE__[A-Z_é]{0,20}",
        value in "(?s).{0,40}",
    ) {
        let pieces = pieces.concat();
        for toml in [text.as_str(), &pieces, &around(&pieces)] {
            for policy in [text.as_str(), &pieces, ROUTE] {
                if let Err(mistakes) = load(toml, policy, &[(&name, &value)]) {
                    prop_assert!(!mistakes.is_empty(), "refused without a reason");
                }
            }
        }
    }
}

const PIECES: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ".",
    ",",
    "\"",
    "'",
    "\n",
    "\r\n",
    "#",
    " ",
    "é",
    "\u{0}",
    "\"\"\"",
    "1",
    "-1",
    "1e9",
    "0x",
    "9999999999999999999999999999999999999999",
    "nan",
    "true",
    "false",
    "1979-05-27",
    "server",
    "listen",
    "workers",
    "limits",
    "body",
    "upstreams",
    "api",
    "live",
    "shared",
    "policy",
    "file",
    "route",
    "id",
    "methods",
    "paths",
    "scopes",
    "public",
    "any_key",
    "upstream",
    "serve",
    "body_limit",
    "\"GET\"",
    "\"/a/{id}\"",
    "\"64KiB\"",
    "\"75s\"",
    "\"99999999999999999999GiB\"",
    "\"9999999999999999y\"",
    "\"http://a\"",
    "\"keys.list\"",
    "\"policy.toml\"",
];

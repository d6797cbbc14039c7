//! The shape of keys that are imported: what a line says of it, what a secret shows of it, and which shapes open anything.

use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use zeroize::Zeroizing;

use super::operator::{Failure, Session, unexpected};
use crate::lifecycle::MovedKey;
use crate::operators::admin::{Command, KeyCommand, Reply};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::scope::{Scope, ScopeSet};
use crate::vocabulary::key::{Digest, Environment, KeyFormat, Prefix};

/// What `--scheme` says of all keys of an import: `fh`, or `fh:no-checksum`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scheme {
    prefix: Prefix,
    has_checksum: bool,
}

impl Scheme {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (prefix, has_checksum) = match text.split_once(':') {
            None => (text, true),
            Some((prefix, "no-checksum")) => (prefix, false),
            Some(_) => {
                return Err(
                    "write the prefix, as in fh, or the prefix and :no-checksum, as in fh:no-checksum"
                        .to_owned(),
                );
            }
        };
        Ok(Self { prefix: Prefix::parse(prefix).map_err(|error| error.to_string())?, has_checksum })
    }
}

/// What a key must look like here.
#[derive(Debug)]
pub(super) struct Shapes {
    prefixes: Vec<Prefix>,
    checksum_required: bool,
}

/// What a secret shows of its key.
#[derive(Debug, PartialEq, Eq)]
struct Shown {
    prefix: Prefix,
    environment: Environment,
}

impl Shapes {
    /// # Errors
    /// When the gateway or the store does not answer.
    pub(super) async fn ask(session: &mut Session<'_>) -> Result<Self, Failure> {
        let reply = session.ask(Command::Keys(KeyCommand::Shapes)).await?;
        let Reply::KeyShapes { prefixes, checksum_required } = reply else { return Err(unexpected()) };
        Ok(Self { prefixes, checksum_required })
    }

    /// # Errors
    /// When keys of this scheme would all be refused.
    pub(super) fn check(&self, scheme: &Scheme) -> Result<(), Failure> {
        self.check_prefix(&scheme.prefix)?;
        if self.checksum_required && !scheme.has_checksum {
            return Err("nothing was imported: keys without keygate's checksum would be refused; set \
                        keys.accept_without_checksum = true and restart the gateways first"
                .into());
        }
        Ok(())
    }

    fn check_prefix(&self, prefix: &Prefix) -> Result<(), String> {
        if self.prefixes.contains(prefix) {
            return Ok(());
        }
        let accepted: Vec<&str> = self.prefixes.iter().map(Prefix::as_str).collect();
        Err(format!(
            "keys that begin with {prefix}_ would be refused: this installation accepts {}; to accept them, run `keygate \
             store accept-prefix {prefix}`",
            accepted.join(", ")
        ))
    }

    /// What a secret shows. No message repeats a part of it, except a prefix of the right form.
    fn judge(&self, secret: &str, scheme: Option<&Scheme>) -> Result<Shown, String> {
        let found = Environment::ALL.into_iter().find_map(|environment| {
            let (prefix, digits) = secret.split_once(&format!("_{environment}_sk_"))?;
            Some((Prefix::parse(prefix).ok()?, environment, digits))
        });
        let Some((prefix, environment, digits)) = found else {
            return Err(
                "the secret does not begin as keys do, with a prefix and _live_sk_ or _test_sk_".to_owned()
            );
        };
        self.check_prefix(&prefix)?;
        if let Some(scheme) = scheme.filter(|scheme| scheme.prefix != prefix) {
            return Err(format!("the secret begins with {prefix}_, and --scheme says {}", scheme.prefix));
        }
        let takes_it =
            |without_checksum| KeyFormat::new(&prefix, without_checksum).parse(secret.as_bytes()).is_ok();
        if !takes_it(true) {
            return Err(format!(
                "the secret has {} characters behind {}, and keys have 16 to 128 letters and digits there",
                digits.chars().count(),
                prefix.head(environment)
            ));
        }
        let needs_checksum = self.checksum_required || scheme.is_some_and(|scheme| scheme.has_checksum);
        if needs_checksum && !takes_it(false) {
            return Err("the secret does not end with keygate's checksum; keys without one need \
                        keys.accept_without_checksum = true, and no --scheme that says otherwise"
                .to_owned());
        }
        Ok(Shown { prefix, environment })
    }
}

/// How the lines of an import are read.
#[derive(Debug, Default)]
pub(super) struct Reading {
    /// The organisation of the keys that name none.
    pub(super) org: Option<OrgId>,
    pub(super) scheme: Option<Scheme>,
    /// The lines have secrets, which are judged by these shapes.
    pub(super) secrets: Option<Shapes>,
    /// The scopes of secrets that name none.
    pub(super) scopes: Option<Vec<Scope>>,
}

impl Reading {
    /// The key on a line and the line's length; `None` for an empty line.
    pub(super) fn parse(&self, line: &[u8]) -> Result<Option<(MovedKey, usize)>, String> {
        let line = line.trim_ascii();
        if line.is_empty() {
            return Ok(None);
        }
        let mut key = match &self.secrets {
            Some(shapes) => self.parse_secret(line, shapes)?,
            None if !line.starts_with(b"{") => {
                return Err(
                    "not a JSON object; write {\"sha256\": …}, or import secrets with --secrets".to_owned()
                );
            }
            None => serde_json::from_slice(line).map_err(|error| without_line(&error))?,
        };
        key.organization_id = key.organization_id.or(self.org);
        match (&self.scheme, &key.prefix) {
            (Some(scheme), Some(prefix)) if scheme.prefix != *prefix => {
                return Err(format!("prefix: is {prefix}, and --scheme says {}", scheme.prefix));
            }
            (Some(scheme), None) => key.prefix = Some(scheme.prefix.clone()),
            _ => {}
        }
        Ok(Some((key, line.len())))
    }

    /// A line with a secret: the secret alone, or an object.
    fn parse_secret(&self, line: &[u8], shapes: &Shapes) -> Result<MovedKey, String> {
        let mut fields: Map<String, Value> = if line.starts_with(b"{") {
            serde_json::from_slice(line).map_err(|error| without_line(&error))?
        } else {
            let text = str::from_utf8(line).map_err(|_| "the line is not UTF-8".to_owned())?;
            Map::from_iter([("secret".to_owned(), text.into())])
        };
        let secret = match fields.remove("secret") {
            Some(Value::String(secret)) => Zeroizing::new(secret),
            _ => return Err("secret: is missing, or no text".to_owned()),
        };
        for name in ["sha256", "digest", "pepper_id", "last_four", "prefix"] {
            if fields.contains_key(name) {
                return Err(format!("{name}: leave it out; it follows from the secret"));
            }
        }
        let Shown { prefix, environment } = shapes.judge(&secret, self.scheme.as_ref())?;
        if fields.get("environment").is_some_and(|said| *said != environment.as_str()) {
            return Err(format!("environment: the secret is one of {environment}"));
        }
        let last_four = secret.get(secret.len().saturating_sub(4)..).unwrap_or_default();
        if !line.starts_with(b"{") {
            fields.insert("name".to_owned(), format!("imported …{last_four}").into());
        }
        if !fields.contains_key("scopes") {
            let scopes = self.scopes.clone().ok_or("scopes: are missing; add --scopes")?;
            fields.insert("scopes".to_owned(), json(&ScopeSet::from_iter(scopes))?);
        }
        let sha256 = Digest::from_bytes(Sha256::digest(secret.as_bytes()).into());
        fields.insert("environment".to_owned(), environment.as_str().into());
        fields.insert("prefix".to_owned(), json(&prefix)?);
        fields.insert("last_four".to_owned(), last_four.into());
        fields.insert("sha256".to_owned(), json(&sha256)?);
        serde_json::from_value(fields.into()).map_err(|error| error.to_string())
    }
}

fn json(value: &impl serde::Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

/// serde counts lines within its input, which is a single line.
fn without_line(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let text = text.split(" at line 1").next().unwrap_or_default();
    format!("{text}, at column {}", error.column())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::key::ApiKey;

    const REST: &str = "\"name\":\"n\",\"environment\":\"live\",\"scopes\":[\"jobs:read\"]";

    fn shapes(checksum_required: bool) -> Shapes {
        Shapes { prefixes: ["fh", "kg"].map(|text| Prefix::parse(text).unwrap()).into(), checksum_required }
    }

    #[test]
    fn messages_about_a_line_do_not_show_a_secret_in_it() {
        let secret = "fh_live_sk_0123456789abcdef";
        let sha256 = "\"sha256\":\"".to_owned() + &"a5".repeat(32) + "\"";
        let rest = REST;
        let said = |line: String| Reading::default().parse(line.as_bytes()).unwrap_err();
        assert!(
            said(format!("{{{sha256}}}")).starts_with("missing field `name`"),
            "{}",
            said(format!("{{{sha256}}}"))
        );
        assert!(said(format!("{{{sha256},{rest},\"scope\":1}}")).contains("unknown field `scope`"));
        assert!(said("{".to_owned()).contains("column"));
        for odd in ["[]", "1", "\"x\"", "null", "sha256,name"] {
            assert!(said(odd.to_owned()).contains("not a JSON object"), "{odd}");
        }
        let plain = said(format!("{{\"sha256\":\"{secret}\",{rest}}}"));
        assert!(plain.contains("64 hexadecimal digits") && !plain.contains(secret), "{plain}");
        assert_eq!(Reading::default().parse(b" \n"), Ok(None));
        let org = OrgId::from_bytes([1; 16]);
        let (key, _) = Reading { org: Some(org), ..Reading::default() }
            .parse(format!("{{{sha256},{rest}}}").as_bytes())
            .unwrap()
            .unwrap();
        assert_eq!(key.organization_id, Some(org));
    }

    #[test]
    fn a_scheme_is_a_prefix_with_or_without_a_checksum() {
        let scheme = |text| Scheme::parse(text).unwrap();
        assert!(
            shapes(true).check(&scheme("kg")).is_ok()
                && shapes(false).check(&scheme("fh:no-checksum")).is_ok()
        );
        assert!(
            shapes(true).check(&scheme("fh:no-checksum")).is_err()
                && shapes(true).check(&scheme("acme")).is_err()
        );
        for bad in ["", "FH", "fh_live_sk_", "fh:checksum", "fh:", "key"] {
            assert!(Scheme::parse(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn each_secret_is_judged_and_no_message_shows_it() {
        let key = ApiKey::mint(&Prefix::parse("kg").unwrap(), Environment::Test).unwrap();
        let secret = key.expose();
        let read = |line: &str, checksum_required| {
            let secrets = Some(shapes(checksum_required));
            let scopes = Some(vec![Scope::parse("jobs:read").unwrap()]);
            Reading { secrets, scopes, ..Reading::default() }.parse(line.as_bytes())
        };
        let (bare, _) = read(secret, true).unwrap().unwrap();
        assert_eq!((bare.environment, bare.prefix.unwrap().as_str()), (Environment::Test, "kg"));
        assert_eq!(bare.sha256, Some(Digest::from_bytes(Sha256::digest(secret.as_bytes()).into())));
        let (whole, _) = read(&format!("{{\"secret\":\"{secret}\",\"name\":\"n\"}}"), true).unwrap().unwrap();
        assert_eq!((whole.name.as_str(), whole.sha256), ("n", bare.sha256));
        let old = "fh_live_sk_0123456789abcdefghij";
        assert!(read(old, false).is_ok());
        let mistyped = secret.replacen("kg_test_sk_", "kg_test_sk_x", 1);
        for (line, said) in [
            (old.to_owned(), "keygate's checksum"),
            (mistyped, "keygate's checksum"),
            (secret.replacen("kg", "acme", 1), "acme_ would be refused"),
            (secret.replacen("kg_test", "kgtest", 1), "does not begin as keys do"),
            ("hunter2 hunter2 hunter2".to_owned(), "does not begin as keys do"),
            ("fh_live_sk_short".to_owned(), "16 to 128"),
            (format!("{{\"secret\":\"{secret}\",{REST}}}"), "environment: the secret is one of test"),
            (format!("{{\"secret\":\"{secret}\",\"sha256\":\"\"}}"), "sha256: leave it out"),
            (format!("{{\"secrets\":\"{secret}\"}}"), "secret: is missing"),
        ] {
            let text = read(&line, true).unwrap_err();
            assert!(text.contains(said), "{text}");
            assert!(
                !text.contains(&secret[11..]) && !text.contains("hunter2") && !text.contains("0123456789"),
                "{text}"
            );
        }
    }
}

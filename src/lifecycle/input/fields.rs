//! Single fields of what a caller sends.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::vocabulary::key::record::Email;
use crate::vocabulary::key::scope::{Scope, ScopeSet};
use crate::vocabulary::rejection::FieldError;
use crate::vocabulary::spelling::nearest;
use crate::vocabulary::text::Unseen;

/// The longest name, in characters. Names are shown in tables and answers; longer ones would hide what follows them.
const NAME_LEN: usize = 200;
/// The longest note, in characters.
const NOTE_LEN: usize = 1000;
/// Networks in a key's list; every request of the key is compared with each.
const ADDRESSES: usize = 100;

pub(in crate::lifecycle) fn parse_name(name: &str) -> Result<String, FieldError> {
    let trimmed = name.trim();
    if trimmed.is_empty() || trimmed.chars().count() > NAME_LEN {
        return Err(FieldError::new("name", "must be 1 to 200 characters"));
    }
    let before = name.chars().take_while(|one| one.is_whitespace()).count();
    refuse("name", Unseen::first_in(trimmed).map(|unseen| unseen.after(before)))?;
    Ok(trimmed.to_owned())
}

/// # Errors
/// For a character that deceives who reads the text.
fn refuse(field: &'static str, unseen: Option<Unseen>) -> Result<(), FieldError> {
    let error = |unseen: Unseen| FieldError { field: field.into(), message: unseen.to_string().into() };
    unseen.map_or(Ok(()), |unseen| Err(error(unseen)))
}

fn parse_owner(owner: &str) -> Result<String, FieldError> {
    parse_name(owner).map_err(|error| FieldError { field: "owner".into(), ..error })
}

/// Parses a text of several lines.
pub(in crate::lifecycle) fn parse_text(field: &'static str, text: &str) -> Result<String, FieldError> {
    if text.is_empty() || text.chars().count() > NOTE_LEN {
        return Err(FieldError::new(field, "must be 1 to 1000 characters"));
    }
    refuse(field, Unseen::first_in_lines(text))?;
    Ok(text.to_owned())
}

/// A name and an e-mail address with which a stranger signs up.
///
/// # Errors
/// Every mistake.
pub fn parse_signup(name: &str, email: &str) -> Result<(String, Email), Vec<FieldError>> {
    let email = Email::parse(email.trim()).map_err(|_| FieldError::new("email", "must be an e-mail address"));
    match (parse_name(name), email) {
        (Ok(name), Ok(email)) => Ok((name, email)),
        (name, email) => Err(name.err().into_iter().chain(email.err()).collect()),
    }
}

/// A network, or a single address. An IPv4-mapped IPv6 network becomes the IPv4 network, as the addresses do that it
/// is compared with.
///
/// # Errors
/// The spelling that is expected.
pub fn parse_network(text: &str) -> Result<IpNet, &'static str> {
    let net: Option<IpNet> =
        text.parse().ok().or_else(|| text.parse().ok().map(|address: IpAddr| address.into()));
    net.map(|net| canonical(net.trunc())).ok_or("must be networks such as 192.0.2.0/24 or single addresses")
}

fn canonical(net: IpNet) -> IpNet {
    let mapped = match net.addr() {
        IpAddr::V6(address) => address.to_ipv4_mapped().zip(net.prefix_len().checked_sub(96)),
        IpAddr::V4(_) => None,
    };
    let mapped = mapped.and_then(|(address, prefix)| IpNet::new(address.into(), prefix).ok());
    mapped.unwrap_or(net)
}

/// Gathers the mistakes in a request while its fields are checked.
#[derive(Debug, Default)]
pub(super) struct Mistakes(Vec<FieldError>);

impl Mistakes {
    pub(super) fn add(&mut self, field: &'static str, message: &'static str) {
        self.0.push(FieldError::new(field, message));
    }

    /// The value, or `None` and one more mistake.
    pub(super) fn keep<T>(&mut self, parsed: Result<T, FieldError>) -> Option<T> {
        parsed.map_err(|error| self.0.push(error)).ok()
    }

    pub(super) fn name(&mut self, name: &str) -> Option<String> {
        self.keep(parse_name(name))
    }

    pub(super) fn owner(&mut self, owner: Option<&str>) -> Option<String> {
        owner.and_then(|owner| self.keep(parse_owner(owner)))
    }

    pub(super) fn note(&mut self, note: Option<&str>) -> Option<String> {
        note.and_then(|note| self.keep(parse_text("note", note)))
    }

    /// Whether the scopes are right: at least one, and all of them known to the policy.
    pub(super) fn scopes(&mut self, scopes: &ScopeSet, vocabulary: &ScopeSet) -> bool {
        if scopes.is_empty() {
            self.add("scopes", "at least one scope is needed");
            return false;
        }
        if let Some(unknown) = vocabulary.first_missing(scopes) {
            let known = vocabulary.iter().map(Scope::as_str);
            let advice = nearest(unknown.as_str(), known).map(|near| format!("; did you mean {near}?"));
            let message = format!("there is no scope {unknown}{}", advice.unwrap_or_default()).into();
            self.0.push(FieldError { field: "scopes".into(), message });
            return false;
        }
        true
    }

    pub(super) fn addresses(&mut self, addresses: &[IpNet]) {
        if addresses.len() > ADDRESSES {
            self.add("allowed_addresses", "must be at most 100 networks");
        }
    }

    /// The value, if there was no mistake and it is there.
    pub(super) fn finish<T>(self, value: Option<T>) -> Result<T, Vec<FieldError>> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(self.0),
        }
    }
}

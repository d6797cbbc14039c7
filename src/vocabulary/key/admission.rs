//! Whether a key may act now: the one decision.
//!
//! The request path, the sweep over requests in flight, the lifecycle and the tools all ask [`admit`]. A new
//! rule about keys goes there and nowhere else, and gets its own reason in [`Refusal`].

use std::net::IpAddr;

use thiserror::Error;

use super::record::{KeyRecord, OrgRecord, Secret, Status};
use super::scope::{OneOf, Scope, ScopeSet};
use super::{Digest, Environment};
use crate::vocabulary::clock::UnixMillis;

/// One use of a key.
#[derive(Clone, Copy, Debug)]
pub struct Attempt<'a> {
    /// The digest of the presented secret.
    pub digest: &'a Digest,
    /// The environment that the prefix of the presented key names.
    pub environment: Environment,
    /// The scopes that are asked for. `None` where none are, or where the route is judged later, by
    /// [`Needs::check`].
    pub needs: Option<&'a Needs>,
    pub now: UnixMillis,
}

/// The scopes that a route or an operation asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// The key must have all of these.
    pub all: ScopeSet,
    /// The key must have one of these, whichever. `None` where only `all` counts.
    pub any: Option<OneOf>,
}

impl Needs {
    #[must_use]
    pub const fn all(all: ScopeSet) -> Self {
        Self { all, any: None }
    }

    /// # Errors
    /// The first scope of `all` that is not among those that are `held`; else `any`, if none of it is.
    pub fn check<'n>(&'n self, held: &ScopeSet) -> Result<(), Lacking<'n>> {
        if let Some(missing) = held.first_missing(&self.all) {
            return Err(Lacking::Scope(missing));
        }
        match &self.any {
            Some(any) if any.scopes().first_common(held).is_none() => Err(Lacking::OneOf(any)),
            Some(_) | None => Ok(()),
        }
    }

    /// The scopes that let a key in, of those that it has: all that it must have, and the first of the alternatives.
    #[must_use]
    pub fn used_of(&self, held: &ScopeSet) -> ScopeSet {
        let alternative = self.any.as_ref().and_then(|any| any.scopes().first_common(held));
        self.all.iter().chain(alternative).cloned().collect()
    }
}

/// The scopes that a key lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lacking<'n> {
    Scope(&'n Scope),
    /// Any of these would do.
    OneOf(&'n OneOf),
}

impl From<Lacking<'_>> for OneOf {
    fn from(lacking: Lacking<'_>) -> Self {
        match lacking {
            Lacking::Scope(scope) => scope.clone().into(),
            Lacking::OneOf(scopes) => scopes.clone(),
        }
    }
}

/// Why a key may not act now.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refusal {
    #[error("the key is no longer valid")]
    Dead(Dead),
    #[error("the key's organisation is suspended")]
    OrganisationSuspended,
    /// The organisation signed up and is not verified yet.
    #[error("the key's organisation is not verified yet")]
    OrganisationPending,
    /// The client's address is not on the key's list.
    #[error("the key may not be used from this address")]
    Address,
    #[error("the key lacks the scope {0}")]
    MissingScope(OneOf),
}

/// Why a known key opens nothing. The client is never told which.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dead {
    Revoked,
    Disabled,
    Expired,
    /// The overlap of the rotation that replaced this secret is over.
    SecretEnded,
    /// The prefix of the presented key and the record name different environments.
    WrongEnvironment,
}

/// Decides whether `key` may be used as `attempt` says.
///
/// Where several reasons apply, the first in this order is given: the key itself (revoked, expired, disabled,
/// wrong environment, secret ended), its organisation (suspended, pending), the address, the scopes. A limit of
/// a key is no rule of this kind: it is charged, not judged, between the address and the scopes (the order of
/// refusals is 401, 403 `forbidden`, 429, 404, 403 for a scope).
///
/// `address` gives the client's address, not as an IPv4-mapped IPv6 address. It is called only for a key with a
/// list of addresses, because most keys have none and the address may be costly to find out. `None` leaves the
/// list out of the decision.
///
/// # Errors
/// The reason why the key may not be used.
pub fn admit(
    key: &KeyRecord,
    org: &OrgRecord,
    attempt: &Attempt<'_>,
    address: impl FnOnce() -> Option<IpAddr>,
) -> Result<(), Refusal> {
    check_key(key, attempt).map_err(Refusal::Dead)?;
    if org.suspended_at.is_some() {
        return Err(Refusal::OrganisationSuspended);
    }
    if org.pending {
        return Err(Refusal::OrganisationPending);
    }
    let networks = &key.allowed_addresses;
    if !networks.is_empty()
        && let Some(address) = address()
        && !networks.iter().any(|network| network.contains(&address))
    {
        return Err(Refusal::Address);
    }
    match attempt.needs {
        None => Ok(()),
        Some(needs) => needs.check(&key.scopes).map_err(|lacking| Refusal::MissingScope(lacking.into())),
    }
}

fn check_key(key: &KeyRecord, attempt: &Attempt<'_>) -> Result<(), Dead> {
    match key.status_at(attempt.now) {
        Status::Active => {}
        Status::Revoked => return Err(Dead::Revoked),
        Status::Expired => return Err(Dead::Expired),
        Status::Disabled => return Err(Dead::Disabled),
    }
    if attempt.environment != key.environment {
        return Err(Dead::WrongEnvironment);
    }
    match key.secrets.iter().find(|secret| secret.digest == *attempt.digest) {
        Some(Secret { ends_at: None, .. }) => Ok(()),
        Some(Secret { ends_at: Some(end), .. }) if *end > attempt.now => Ok(()),
        Some(_) | None => Err(Dead::SecretEnded),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::id::{IdSource, KeyId, OrgId};
    use crate::vocabulary::key::record::Further;

    const NOW: UnixMillis = UnixMillis(1_000);
    const CURRENT: Digest = Digest::from_bytes([1; 32]);
    /// Opens the key until 500.
    const OLD: Digest = Digest::from_bytes([2; 32]);
    const UNKNOWN: Digest = Digest::from_bytes([3; 32]);

    fn scopes(names: &[&str]) -> ScopeSet {
        names.iter().map(|name| Scope::parse(name).unwrap()).collect()
    }

    fn records() -> (KeyRecord, OrgRecord) {
        let mut ids = IdSource::seeded(7);
        let org = OrgRecord {
            id: OrgId::draw(&mut ids, NOW),
            name: "Acme".to_owned(),
            created_at: NOW,
            suspended_at: None,
            pending: false,
            email: None,
            further: Further::default(),
        };
        let secret = |digest, ends_at| Secret {
            digest,
            last_four: "wxyz".to_owned(),
            prefix: None,
            ends_at,
            further: Further::default(),
        };
        let key = KeyRecord {
            id: KeyId::draw(&mut ids, NOW),
            org: org.id,
            name: "a key".to_owned(),
            environment: Environment::Test,
            scopes: scopes(&["jobs:read"]),
            secrets: vec![secret(CURRENT, None), secret(OLD, Some(UnixMillis(500)))],
            created_at: NOW,
            created_by: "test".to_owned(),
            expires_at: None,
            disabled_at: None,
            revoked_at: None,
            allowed_addresses: Vec::new(),
            owner: None,
            note: None,
            further: Further::default(),
        };
        (key, org)
    }

    /// Whether the key opens with this secret at this time, whatever its organisation and scopes.
    fn opens(key: &KeyRecord, digest: Digest, environment: Environment, now: u64) -> Result<(), Dead> {
        let attempt = Attempt { digest: &digest, environment, needs: None, now: UnixMillis(now) };
        admit(key, &records().1, &attempt, || None).map_err(|refusal| match refusal {
            Refusal::Dead(dead) => dead,
            other => panic!("{other}"),
        })
    }

    #[test]
    fn a_key_opens_only_while_everything_about_it_holds() {
        let (key, _) = records();
        let (test, live) = (Environment::Test, Environment::Live);
        assert_eq!(opens(&key, CURRENT, test, 1_000), Ok(()));
        assert_eq!(opens(&key, CURRENT, live, 1_000), Err(Dead::WrongEnvironment));
        assert_eq!(opens(&key, OLD, test, 499), Ok(()));
        assert_eq!(opens(&key, OLD, test, 500), Err(Dead::SecretEnded));
        assert_eq!(opens(&key, UNKNOWN, test, 499), Err(Dead::SecretEnded));
        let expiring = KeyRecord { expires_at: Some(NOW), ..key.clone() };
        assert_eq!(opens(&expiring, CURRENT, test, 999), Ok(()));
        assert_eq!(opens(&expiring, CURRENT, test, 1_000), Err(Dead::Expired));
        let disabled = KeyRecord { disabled_at: Some(NOW), ..key.clone() };
        assert_eq!(opens(&disabled, CURRENT, test, 1_000), Err(Dead::Disabled));
        let revoked = KeyRecord { revoked_at: Some(UnixMillis(9_999)), ..key };
        assert_eq!(opens(&revoked, CURRENT, test, 1_000), Err(Dead::Revoked), "whatever the clock says");
    }

    #[test]
    fn an_address_list_lets_its_own_networks_through_and_an_empty_one_everybody() {
        let (anywhere, org) = records();
        let networks = ["192.0.2.0/24", "2001:db8::/32"].map(|network| network.parse().unwrap()).to_vec();
        let listed = KeyRecord { allowed_addresses: networks, ..anywhere.clone() };
        let attempt = Attempt { digest: &CURRENT, environment: Environment::Test, needs: None, now: NOW };
        for (address, inside) in [
            ("192.0.2.7", true),
            ("192.0.3.7", false),
            ("2001:db8:1::1", true),
            ("2001:db9::1", false),
            ("::1", false),
        ] {
            let from = |key| admit(key, &org, &attempt, || Some(address.parse().unwrap()));
            assert_eq!(from(&anywhere), Ok(()), "{address}");
            assert_eq!(from(&listed).is_ok(), inside, "{address}");
        }
        assert_eq!(admit(&listed, &org, &attempt, || None), Ok(()), "no address is judged");
        let unasked = || panic!("a key without a list needs no address");
        assert_eq!(admit(&anywhere, &org, &attempt, unasked), Ok(()));
    }

    #[test]
    fn a_key_needs_every_scope_that_is_asked_for() {
        let held = scopes(&["jobs:read", "webhooks:read"]);
        assert_eq!(Needs::default().check(&ScopeSet::default()), Ok(()));
        assert_eq!(Needs::all(scopes(&["webhooks:read", "jobs:read"])).check(&held), Ok(()));
        let more = Needs::all(scopes(&["jobs:read", "jobs:write"]));
        assert_eq!(more.check(&held), Err(Lacking::Scope(&Scope::parse("jobs:write").unwrap())));
        assert!(more.check(&ScopeSet::default()).is_err(), "empty scopes mean nothing, never everything");
    }

    #[test]
    fn a_key_needs_one_of_the_alternatives_beside_every_scope_that_is_asked_for() {
        let any = OneOf::new(scopes(&["billing:read", "usage:read"]));
        let needs = Needs { all: scopes(&["jobs:read"]), any: any.clone() };
        let read = Scope::parse("jobs:read").unwrap();
        for (held, expected, used) in [
            (&["jobs:read", "usage:read"][..], Ok(()), "jobs:read usage:read"),
            (&["jobs:read", "billing:read", "usage:read"], Ok(()), "billing:read jobs:read"),
            (&["jobs:read"], Err(Lacking::OneOf(any.as_ref().unwrap())), "jobs:read"),
            (&["usage:read"], Err(Lacking::Scope(&read)), "jobs:read usage:read"),
            (&[], Err(Lacking::Scope(&read)), "jobs:read"),
        ] {
            let held = scopes(held);
            assert_eq!(needs.check(&held), expected, "{held}");
            assert_eq!(needs.used_of(&held).to_string(), used, "{held}");
        }
        let alone = Needs { all: ScopeSet::default(), any };
        assert_eq!(alone.check(&scopes(&["usage:read"])), Ok(()));
        assert!(alone.check(&ScopeSet::default()).is_err());
        let lacking = OneOf::from(alone.check(&scopes(&["jobs:read"])).unwrap_err());
        assert_eq!(lacking.to_string(), "billing:read or usage:read");
    }

    /// The faults of a use of a key, in the order in which their reasons win.
    const FAULTS: usize = 9;

    fn decide_with(faults: [bool; FAULTS]) -> Result<(), Refusal> {
        let [revoked, expired, disabled, elsewhere, unknown, suspended, pending, address, scope] = faults;
        let (mut key, mut org) = records();
        key.revoked_at = revoked.then_some(NOW);
        key.expires_at = expired.then_some(NOW);
        key.disabled_at = disabled.then_some(NOW);
        key.allowed_addresses = vec!["192.0.2.0/24".parse().unwrap()];
        org.suspended_at = suspended.then_some(NOW);
        org.pending = pending;
        let needs = Needs::all(scopes(if scope { &["jobs:write"] } else { &["jobs:read"] }));
        let attempt = Attempt {
            digest: if unknown { &UNKNOWN } else { &CURRENT },
            environment: if elsewhere { Environment::Live } else { Environment::Test },
            needs: Some(&needs),
            now: NOW,
        };
        let client = if address { "198.51.100.1" } else { "192.0.2.1" };
        admit(&key, &org, &attempt, || Some(client.parse().unwrap()))
    }

    #[test]
    fn of_several_reasons_the_first_in_the_order_of_refusals_is_given() {
        let reasons: [Refusal; FAULTS] = [
            Refusal::Dead(Dead::Revoked),
            Refusal::Dead(Dead::Expired),
            Refusal::Dead(Dead::Disabled),
            Refusal::Dead(Dead::WrongEnvironment),
            Refusal::Dead(Dead::SecretEnded),
            Refusal::OrganisationSuspended,
            Refusal::OrganisationPending,
            Refusal::Address,
            Refusal::MissingScope(Scope::parse("jobs:write").unwrap().into()),
        ];
        for set in 0..1_usize << FAULTS {
            let faults = std::array::from_fn(|n| set >> n & 1 == 1);
            let first = reasons.iter().zip(faults).find(|(_, fault)| *fault).map(|(reason, _)| reason);
            assert_eq!(decide_with(faults).err().as_ref(), first, "{faults:?}");
        }
    }
}

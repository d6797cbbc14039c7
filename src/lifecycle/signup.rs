//! Strangers become customers: an organisation and its first key.

use std::future::ready;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::authority::Authority;
use super::change::Decided;
use super::error::LifecycleError;
use super::input::fields::parse_signup;
use super::input::new_key::NewKey;
use super::keys::create::Making;
use super::orgs::describe_org;
use super::principal::Origin;
use super::turn::Lane;
use crate::store::quotas::{Admission, Quota};
use crate::store::{Change, EmailClaim, Mutation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord};
use crate::vocabulary::key::{ApiKey, Environment};
use crate::vocabulary::network::ClientNetwork;

/// How strangers become customers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignupSettings {
    /// Whether they can without an operator.
    pub enabled: bool,
    /// The free credits that the answer to a signup names, in cents. The upstream learns the same from the news.
    pub free_credits_cents: u64,
    /// Signups an hour from one client network, an IPv4 /24 or an IPv6 /64. Four times as many may come from one
    /// IPv6 /48.
    pub per_network: u32,
    /// Signups a day in all. Half of them at most may come from one IPv4 /24 or IPv6 /48.
    pub per_day: u32,
    /// Whether an organisation's keys are refused until it is verified.
    pub verification: bool,
    /// Whether news of organisations are kept for the upstream: whether there is somewhere to send them.
    pub news: bool,
}

impl Default for SignupSettings {
    fn default() -> Self {
        Self {
            enabled: false,
            free_credits_cents: 250,
            per_network: 5,
            per_day: 200,
            verification: false,
            news: false,
        }
    }
}

/// A new customer, with the only copy of the first key's secret.
#[derive(Debug)]
pub struct SignedUp {
    pub org: OrgRecord,
    pub key: KeyRecord,
    pub secret: ApiKey,
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How many times as often as one of its networks an IPv6 /48 may sign up. One customer can have all of its 65,536
/// networks, but it may also be the site of many people.
const OF_A_SITE: u32 = 4;
/// The first key's name.
const FIRST_KEY: &str = "Default";

impl Lifecycle {
    /// Creates an organisation and its first key, a live one with all scopes.
    ///
    /// # Errors
    /// [`LifecycleError`]; then nothing was created, except after a fault of the store, which leaves that open.
    pub async fn sign_up(
        &self,
        origin: &Origin,
        name: &str,
        email: &str,
    ) -> Result<SignedUp, LifecycleError> {
        let (name, email) = parse_signup(name, email).map_err(LifecycleError::Invalid)?;
        self.count_signup(origin).await?;
        let minting = self.minting().await?;
        let now = self.now();
        let org = OrgRecord {
            pending: self.settings.signup.verification,
            email: Some(email.clone()),
            ..self.new_org(name, now).await
        };
        let new = NewKey::named(org.id, FIRST_KEY, Environment::Live);
        let decide = |(): &(), _| {
            // All of it is made whether or not the address is free, so that the time taken tells nothing.
            let making = Making { now, minting: &minting };
            let made = self.draft_key(origin, Authority::Unbounded, &new, &making)?;
            let mutation = Mutation {
                org: Some(Change::Insert(org.clone())),
                key: Some(Change::Insert(made.key.clone())),
                email: Some(EmailClaim::under(&self.settings.peppers, &email, org.id)),
                news: self.settings.signup.news.then(|| self.news_of(&org)),
                ..Mutation::default()
            };
            let about = json!({ "organization": describe_org(&org), "key": self.describe(&made.key) });
            Ok(Decided::commit(mutation, Draft::of_org(AuditKind::OrgCreated, org.id).after(about), made))
        };
        let line = Lane::Making.of(Trail::Org(org.id));
        let (made, _) = self.change(line, origin, None, || ready(Ok(())), decide).await?;
        Ok(SignedUp { org, key: made.key, secret: made.secret })
    }

    async fn count_signup(&self, origin: &Origin) -> Result<(), LifecycleError> {
        let quotas = quotas(&self.settings.signup, origin.address);
        match self.store.quotas().admit(quotas, self.clock.kept()).await? {
            Admission::Admitted => Ok(()),
            Admission::Refused { retry_after } => Err(LifecycleError::QuotaExceeded { retry_after }),
        }
    }
}

/// Everything under which a signup counts: its network and its site within an hour, its site and all within a day. So
/// nobody who has one network, or one site of them, can use the day up for all.
fn quotas(settings: &SignupSettings, address: Option<IpAddr>) -> Vec<Quota> {
    let SignupSettings { per_network, per_day, .. } = *settings;
    let hourly = |name: String, limit| Quota { name, limit, window: HOUR };
    let daily = |name: String, limit| Quota { name, limit, window: DAY };
    let mut quotas = vec![daily("signup".to_owned(), per_day)];
    if let Some(network) = address.map(ClientNetwork::of) {
        let site = network.site();
        quotas.push(hourly(format!("signup:{network}"), per_network));
        if site.has_networks() {
            quotas.push(hourly(format!("signup:{site}"), per_network.saturating_mul(OF_A_SITE)));
        }
        quotas.push(daily(format!("signup-day:{site}"), per_day.div_ceil(2)));
    }
    quotas
}

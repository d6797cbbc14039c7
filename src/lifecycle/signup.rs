//! Strangers become customers: an organisation and its first key.

use std::future::ready;
use std::time::Duration;

use serde_json::json;

use super::Lifecycle;
use super::audit::Draft;
use super::authority::Authority;
use super::change::Decided;
use super::error::LifecycleError;
use super::input::fields::parse_signup;
use super::input::new_key::NewKey;
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
    /// Signups an hour from one client network.
    pub per_network: u32,
    /// Signups a day in all.
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
        let now = self.now();
        let org = OrgRecord {
            pending: self.settings.signup.verification,
            email: Some(email.clone()),
            ..self.new_org(name, now)
        };
        // All of it is made whether or not the address is free, so that the time taken tells nothing.
        let claim = EmailClaim { index: email.index(self.settings.pepper.as_ref()), org: org.id };
        let new = NewKey::named(org.id, FIRST_KEY, Environment::Live);
        let made = self.draft_key(origin, Authority::Unbounded, &new, now)?;
        let decide = |(): &(), _| {
            let mutation = Mutation {
                org: Some(Change::Insert(org.clone())),
                key: Some(Change::Insert(made.key.clone())),
                email: Some(claim),
                news: self.settings.signup.news.then(|| self.news_of(&org, now)),
                ..Mutation::default()
            };
            let about = json!({ "organization": describe_org(&org), "key": self.describe(&made.key) });
            Ok(Decided::commit(mutation, Draft::of_org(AuditKind::OrgCreated, org.id).after(about), ()))
        };
        let line = Lane::Making.of(Trail::Org(org.id));
        self.change(line, origin, None, || ready(Ok(())), decide).await?;
        Ok(SignedUp { org, key: made.key, secret: made.secret })
    }

    async fn count_signup(&self, origin: &Origin) -> Result<(), LifecycleError> {
        let settings = &self.settings.signup;
        let network = origin.address.map(|address| Quota {
            name: format!("signup:{}", ClientNetwork::of(address)),
            limit: settings.per_network,
            window: HOUR,
        });
        let all = Quota { name: "signup".to_owned(), limit: settings.per_day, window: DAY };
        let quotas = network.into_iter().chain([all]).collect();
        match self.store.quotas().admit(quotas, self.now()).await? {
            Admission::Admitted => Ok(()),
            Admission::Refused { retry_after } => Err(LifecycleError::QuotaExceeded { retry_after }),
        }
    }
}

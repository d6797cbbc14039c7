//! Organisations: signed up or made by an operator, verified, suspended, resumed.

use std::time::Duration;

use serde_json::json;

use super::authority::Authority;
use super::keys::NewKey;
use super::propagation::Changed;
use super::turn::{Draft, Settled};
use super::{Lifecycle, LifecycleError, Origin, parse_name};
use crate::store::events::Subject;
use crate::store::outbox::News;
use crate::store::quotas::{Admission, Quota};
use crate::store::{Change, EmailClaim, Mutation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::record::{Email, Further, KeyRecord, OrgRecord, Versioned};
use crate::vocabulary::key::{ApiKey, Environment};
use crate::vocabulary::network::ClientNetwork;
use crate::vocabulary::rejection::FieldError;

/// How strangers become customers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignupSettings {
    /// Whether they can without an operator.
    pub enabled: bool,
    /// What the answer to a signup says of free credits, in cents. The upstream learns the same from the news.
    pub free_credits_cents: u64,
    /// Signups an hour from one client network.
    pub per_network: u32,
    /// Signups a day in all.
    pub per_day: u32,
    /// Whether an organisation's keys open nothing until it is verified.
    pub verification: bool,
    /// Whether news of organisations are kept for the upstream; that is, whether there is somewhere to send
    /// them.
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

/// What somebody signs up with.
///
/// # Errors
/// All that is wrong with it.
pub fn parse_signup(name: &str, email: &str) -> Result<(String, Email), Vec<FieldError>> {
    let email = Email::parse(email.trim()).map_err(|_| FieldError::new("email", "must be an e-mail address"));
    match (parse_name(name), email) {
        (Ok(name), Ok(email)) => Ok((name, email)),
        (name, email) => Err(name.err().into_iter().chain(email.err()).collect()),
    }
}

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The first key's name.
const FIRST_KEY: &str = "Default";

impl Lifecycle {
    /// # Errors
    /// [`LifecycleError`]; nothing was made then.
    pub async fn create_org(&self, origin: &Origin, name: &str) -> Result<OrgRecord, LifecycleError> {
        let name = parse_name(name).map_err(|error| LifecycleError::Invalid(vec![error]))?;
        let now = self.now();
        let org = self.new_org(name, now);
        let mut turn = self.turn(Trail::Org(org.id), origin).await;
        loop {
            turn.next()?;
            let news = self.settings.signup.news.then(|| self.news_of(&org, now));
            let mutation = Mutation { org: Some(Change::Insert(org.clone())), news, ..Mutation::default() };
            let draft = Draft::of_org(AuditKind::OrgCreated, org.id).after(describe(&org));
            match turn.commit(mutation, draft).await? {
                Settled::Done { .. } => return Ok(org),
                Settled::Again => {}
                Settled::Missing | Settled::EmailTaken => return Err(LifecycleError::Collision),
            }
        }
    }

    /// Makes an organisation and its first key, a live one with all scopes.
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing was made then, unless the store could not say.
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
        let made = self.draft_key(origin, &Authority::Unbounded, &new, now)?;
        let mut turn = self.turn(Trail::Org(org.id), origin).await;
        loop {
            turn.next()?;
            let mutation = Mutation {
                org: Some(Change::Insert(org.clone())),
                key: Some(Change::Insert(made.key.clone())),
                email: Some(claim),
                news: self.settings.signup.news.then(|| self.news_of(&org, now)),
                ..Mutation::default()
            };
            let about = json!({ "organization": describe(&org), "key": self.describe(&made.key) });
            let draft = Draft::of_org(AuditKind::OrgCreated, org.id).after(about);
            match turn.commit(mutation, draft).await? {
                Settled::Done { .. } => return Ok(SignedUp { org, key: made.key, secret: made.secret }),
                Settled::Again => {}
                Settled::EmailTaken => return Err(LifecycleError::EmailTaken),
                Settled::Missing => return Err(LifecycleError::Collision),
            }
        }
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

    fn new_org(&self, name: String, now: UnixMillis) -> OrgRecord {
        OrgRecord {
            id: self.draw(|ids| OrgId::draw(ids, now)),
            name,
            created_at: now,
            suspended_at: None,
            pending: false,
            email: None,
            further: Further::default(),
        }
    }

    /// What the upstream is told of a new organisation, any number of times; its id tells them apart.
    fn news_of(&self, org: &OrgRecord, now: UnixMillis) -> News {
        let body = json!({
            "type": "org.created",
            "created_at": now.to_string(),
            "data": {
                "organization_id": org.id,
                "name": org.name,
                "email": org.email,
                "verified": !org.pending,
                "credits_cents": self.settings.signup.free_credits_cents,
            },
        });
        News { org: org.id, due: now, body: body.to_string().into_bytes() }
    }

    /// # Errors
    /// [`LifecycleError::NoOrg`], or a fault of the store.
    pub async fn org(&self, id: OrgId) -> Result<OrgRecord, LifecycleError> {
        Ok(self.store.org(id).await?.ok_or(LifecycleError::NoOrg(id))?.record)
    }

    /// At most `limit` organisations, newest first, after `after`.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> Result<Vec<OrgRecord>, LifecycleError> {
        let orgs = self.store.orgs(after, limit).await?;
        Ok(orgs.into_iter().map(|org| org.record).collect())
    }

    /// Makes an organisation's keys open nothing until it is resumed. Repeating it is safe.
    ///
    /// # Errors
    /// [`LifecycleError`]; nothing was changed then, unless the store could not say.
    pub async fn suspend_org(
        &self,
        origin: &Origin,
        id: OrgId,
    ) -> Result<Changed<OrgRecord>, LifecycleError> {
        self.change_org(origin, id, AuditKind::OrgSuspended, |org, now| {
            org.suspended_at = Some(org.suspended_at.unwrap_or(now));
        })
        .await
    }

    /// # Errors
    /// As [`Lifecycle::suspend_org`].
    pub async fn resume_org(&self, origin: &Origin, id: OrgId) -> Result<Changed<OrgRecord>, LifecycleError> {
        self.change_org(origin, id, AuditKind::OrgResumed, |org, _| org.suspended_at = None).await
    }

    /// The organisation is who it says it is: from now on its keys open what they should.
    ///
    /// # Errors
    /// As [`Lifecycle::suspend_org`].
    pub async fn verify_org(&self, origin: &Origin, id: OrgId) -> Result<Changed<OrgRecord>, LifecycleError> {
        self.change_org(origin, id, AuditKind::OrgVerified, |org, _| org.pending = false).await
    }

    async fn change_org(
        &self,
        origin: &Origin,
        id: OrgId,
        kind: AuditKind,
        change: impl Fn(&mut OrgRecord, UnixMillis),
    ) -> Result<Changed<OrgRecord>, LifecycleError> {
        let mut turn = self.turn(Trail::Org(id), origin).await;
        loop {
            let now = turn.next()?;
            let before = self.store.org(id).await?.ok_or(LifecycleError::NoOrg(id))?;
            let Versioned { rev, record: before } = before;
            let mut record = before.clone();
            change(&mut record, now);
            let draft = Draft::of_org(kind, id).difference(&describe(&before), &describe(&record));
            let mutation = Mutation {
                org: Some(Change::Update { rev, record: record.clone() }),
                subjects: vec![Subject::Org(id)],
                ..Mutation::default()
            };
            match turn.commit(mutation, draft).await? {
                Settled::Done { event } => {
                    drop(turn);
                    let propagation = self.propagate(Trail::Org(id), None, id.to_string(), event).await;
                    return Ok(Changed { record, propagation });
                }
                Settled::Again => {}
                Settled::Missing => return Err(LifecycleError::NoOrg(id)),
                Settled::EmailTaken => return Err(LifecycleError::Collision),
            }
        }
    }
}

/// An organisation as the audit trail shows it.
fn describe(org: &OrgRecord) -> serde_json::Value {
    json!({
        "name": org.name,
        "email": org.email,
        "suspended": org.suspended_at.is_some(),
        "verified": !org.pending,
    })
}

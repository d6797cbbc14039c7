//! Organisations: created by an operator, verified, suspended, resumed.

use serde_json::json;
use std::future::ready;

use super::Lifecycle;
use super::audit::Draft;
use super::change::Decided;
use super::error::LifecycleError;
use super::input::fields::parse_name;
use super::principal::{Origin, Principal};
use super::propagation::Changed;
use super::turn::{Lane, Line};
use crate::store::events::Subject;
use crate::store::outbox::News;
use crate::store::unreadable::{Unreadable, id_of};
use crate::store::{Change, Mutation, StoreFault};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::record::{Further, OrgRecord, Versioned};

/// A part of a list of organisations, newest first. It ends the list if it has none that can be read.
#[derive(Debug)]
pub struct OrgPage {
    pub orgs: Vec<OrgRecord>,
    /// Those in between whose records cannot be read. Those behind the last organisation that can are told by the last page.
    pub unreadable: Vec<Unreadable<OrgId>>,
}

impl Lifecycle {
    /// Creates an organisation without an e-mail address.
    ///
    /// # Errors
    /// [`LifecycleError`]; then no organisation was created, except after a fault of the store, which leaves that
    /// open.
    pub async fn create_org(&self, origin: &Origin, name: &str) -> Result<OrgRecord, LifecycleError> {
        let name = parse_name(name).map_err(|error| LifecycleError::Invalid(vec![error]))?;
        let org = self.new_org(name, self.now()).await;
        let decide = |(): &(), _| {
            let news = self.settings.signup.news.then(|| self.news_of(&org));
            let mutation = Mutation { org: Some(Change::Insert(org.clone())), news, ..Mutation::default() };
            let draft = Draft::of_org(AuditKind::OrgCreated, org.id).after(describe_org(&org));
            Ok(Decided::commit(mutation, draft, ()))
        };
        let line = Lane::Making.of(Trail::Org(org.id));
        self.change(line, origin, None, || ready(Ok(())), decide).await?;
        Ok(org)
    }

    /// The record of a new organisation. Its id comes after those of all others, whatever clocks those are of, so that lists are
    /// newest first. Of two that are made at the same time either may come first.
    pub(super) async fn new_org(&self, name: String, now: UnixMillis) -> OrgRecord {
        // If the store cannot answer, nothing is made either.
        let newest =
            self.store.orgs(None, 1).await.ok().and_then(|orgs| orgs.first().map(|org| org.record.id));
        if let Some(newest) = newest {
            self.draw(|ids| ids.go_on_after(newest.to_bytes()));
        }
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

    /// The notification about a new organisation for the upstream. It may be told several times; the id tells organisations
    /// apart.
    pub(super) fn news_of(&self, org: &OrgRecord) -> News {
        let body = json!({
            "type": "org.created",
            "created_at": org.created_at.to_string(),
            "data": {
                "organization_id": org.id,
                "name": org.name,
                "email": org.email,
                "verified": !org.pending,
                "credits_cents": self.settings.signup.free_credits_cents,
            },
        });
        News { org: org.id, due: self.clock.kept(), body: body.to_string().into_bytes() }
    }

    /// An organisation.
    ///
    /// # Errors
    /// [`LifecycleError::NoOrg`], or a fault of the store.
    pub async fn org(&self, id: OrgId) -> Result<OrgRecord, LifecycleError> {
        Ok(self.load_org(id).await?.record)
    }

    async fn load_org(&self, id: OrgId) -> Result<Versioned<OrgRecord>, LifecycleError> {
        self.store.org(id).await?.ok_or(LifecycleError::NoOrg(id))
    }

    /// At most `limit` organisations, newest first, after `after`, without those whose records cannot be read.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> Result<Vec<OrgRecord>, LifecycleError> {
        Ok(self.org_page(after, limit).await?.orgs)
    }

    /// As many organisations as are asked for, unless there are no more: an unreadable one takes no place.
    async fn org_page(&self, mut after: Option<OrgId>, limit: usize) -> Result<OrgPage, LifecycleError> {
        let (mut orgs, mut unreadable) = (Vec::new(), Vec::new());
        while orgs.len() < limit {
            let wanted = limit - orgs.len();
            let page = self.store.list_orgs(after, wanted).await?;
            after = page.last().map(id_of).or(after);
            let is_last = page.len() < wanted;
            for org in page {
                match org {
                    Ok(org) => orgs.push(org.record),
                    Err(org) => unreadable.push(org),
                }
            }
            if is_last {
                break;
            }
        }
        Ok(OrgPage { orgs, unreadable })
    }

    /// The same of those that the principal may see, with those that cannot be read.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn find_orgs(
        &self,
        origin: &Origin,
        after: Option<OrgId>,
        limit: usize,
    ) -> Result<OrgPage, LifecycleError> {
        let Principal::OperatorOf(_, bound) = &origin.principal else {
            return self.org_page(after, limit).await;
        };
        let mut ids: Vec<OrgId> =
            bound.iter().copied().filter(|id| after.is_none_or(|after| *id < after)).collect();
        ids.sort_unstable_by(|one, other| other.cmp(one));
        ids.dedup();
        let (mut orgs, mut unreadable) = (Vec::new(), Vec::new());
        for id in ids {
            if orgs.len() == limit {
                break;
            }
            match self.store.org(id).await {
                Ok(org) => orgs.extend(org.map(|org| org.record)),
                Err(StoreFault::Unreadable { why, .. }) => {
                    unreadable.push(Unreadable { id, why: why.as_ref().to_owned() });
                }
                Err(fault) => return Err(fault.into()),
            }
        }
        Ok(OrgPage { orgs, unreadable })
    }

    /// Suspends an organisation: all its keys are refused until it is resumed. Repeating it is safe.
    ///
    /// # Errors
    /// [`LifecycleError`]; then nothing was changed, except after a fault of the store, which leaves that open.
    pub async fn suspend_org(
        &self,
        origin: &Origin,
        id: OrgId,
    ) -> Result<Changed<OrgRecord>, LifecycleError> {
        let line = Lane::taking(origin).of(Trail::Org(id));
        self.change_org(origin, line, id, AuditKind::OrgSuspended, |org, now| {
            org.suspended_at = Some(org.suspended_at.unwrap_or(now));
        })
        .await
    }

    /// Ends a suspension.
    ///
    /// # Errors
    /// As [`Lifecycle::suspend_org`].
    pub async fn resume_org(&self, origin: &Origin, id: OrgId) -> Result<Changed<OrgRecord>, LifecycleError> {
        let line = Lane::Making.of(Trail::Org(id));
        self.change_org(origin, line, id, AuditKind::OrgResumed, |org, _| org.suspended_at = None).await
    }

    /// Marks an organisation as verified: from now on its keys are admitted.
    ///
    /// # Errors
    /// As [`Lifecycle::suspend_org`].
    pub async fn verify_org(&self, origin: &Origin, id: OrgId) -> Result<Changed<OrgRecord>, LifecycleError> {
        let line = Lane::Making.of(Trail::Org(id));
        self.change_org(origin, line, id, AuditKind::OrgVerified, |org, _| org.pending = false).await
    }

    /// Gives an organisation another name.
    ///
    /// # Errors
    /// As [`Lifecycle::suspend_org`].
    pub async fn rename_org(
        &self,
        origin: &Origin,
        id: OrgId,
        name: &str,
    ) -> Result<Changed<OrgRecord>, LifecycleError> {
        let name = parse_name(name).map_err(|error| LifecycleError::Invalid(vec![error]))?;
        let line = Lane::Making.of(Trail::Org(id));
        self.change_org(origin, line, id, AuditKind::OrgRenamed, |org, _| org.name.clone_from(&name)).await
    }

    async fn change_org(
        &self,
        origin: &Origin,
        line: Line,
        id: OrgId,
        kind: AuditKind,
        change: impl Fn(&mut OrgRecord, UnixMillis),
    ) -> Result<Changed<OrgRecord>, LifecycleError> {
        let decide = |Versioned { rev, record: before }: &Versioned<OrgRecord>, now: UnixMillis| {
            let mut record = before.clone();
            change(&mut record, now);
            let draft = Draft::of_org(kind, id).difference(&describe_org(before), &describe_org(&record));
            let mutation = Mutation {
                org: Some(Change::Update { rev: *rev, record: record.clone() }),
                subjects: vec![Subject::Org(id)],
                needs: kind.needs(),
                ..Mutation::default()
            };
            Ok(Decided::commit(mutation, draft, record))
        };
        let load = || self.load_org(id);
        let (record, propagation) = self.change(line, origin, None, load, decide).await?;
        Ok(Changed { record, propagation })
    }
}

/// An organisation as the audit trail shows it.
pub(super) fn describe_org(org: &OrgRecord) -> serde_json::Value {
    json!({
        "name": org.name,
        "email": org.email,
        "suspended": org.suspended_at.is_some(),
        "verified": !org.pending,
    })
}

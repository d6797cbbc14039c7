//! The one name for *who asks*: the [`Principal`], together with the [`Origin`] of its request.
//!
//! Four other names stand near it, each for another thing. A [`CallingKey`] is the key that a request presented, as
//! the request path knew it. An [`Authority`](super::authority::Authority) is what a principal may do, judged on
//! records that were read for one decision. A [`PrincipalName`] is what the audit trail and `created_by` keep of a
//! principal. The request path has its own `Caller`: what authentication made of the request.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use super::input::fields::parse_text;
use super::presence::Presence;
use crate::vocabulary::audit::PrincipalName;
use crate::vocabulary::id::{KeyId, OrgId, RequestId};
use crate::vocabulary::key::admission::Needs;
use crate::vocabulary::key::{Digest, Environment};
use crate::vocabulary::rejection::FieldError;

/// The caller of an operation.
#[derive(Clone, Debug)]
pub enum Principal {
    /// A named person who may do anything.
    Operator(String),
    /// A named person who may do anything to these organisations, and nothing else.
    OperatorOf(String, Arc<[OrgId]>),
    /// The holder of a key.
    Key(CallingKey),
    /// A caller without a key, who may only sign up.
    Stranger,
    /// keygate itself.
    Gateway,
}

impl Principal {
    /// The form that records keep.
    pub(super) fn name(&self) -> PrincipalName {
        match self {
            Self::Operator(name) | Self::OperatorOf(name, _) => {
                PrincipalName::Operator { name: name.clone() }
            }
            Self::Key(key) => PrincipalName::ApiKey { id: key.id },
            Self::Stranger => PrincipalName::Signup,
            Self::Gateway => PrincipalName::Gateway,
        }
    }

    /// Whether an organisation exists for the principal.
    pub(super) fn reaches(&self, org: OrgId) -> bool {
        match self {
            Self::Operator(_) | Self::Gateway => true,
            Self::OperatorOf(_, orgs) => orgs.contains(&org),
            Self::Key(calling) => calling.org == org,
            Self::Stranger => false,
        }
    }
}

/// The key that a request presented. The request path has admitted it; whether it is still valid is judged again
/// when a change is decided.
#[derive(Clone, Debug)]
pub struct CallingKey {
    pub id: KeyId,
    pub org: OrgId,
    pub environment: Environment,
    /// Of the secret that was presented; a key may have two.
    pub digest: Digest,
    /// The scopes that the route asks for.
    pub needs: Needs,
}

/// The caller of a change and its address. The audit record of the change contains both.
#[derive(Clone, Debug)]
pub struct Origin {
    pub principal: Principal,
    /// The client's address; `None` where there is no network in between.
    pub address: Option<IpAddr>,
    pub request: Option<RequestId>,
    /// When the request arrived; `None`: when the change is asked for.
    pub arrived: Option<Instant>,
    pub presence: Presence,
    /// Why, in the words of an operator.
    pub reason: Option<String>,
}

impl Origin {
    /// A request over the network.
    #[must_use]
    pub fn request(principal: Principal, address: IpAddr, request: RequestId) -> Self {
        Self { address: Some(address), request: Some(request), ..Self::local(principal) }
    }

    const fn local(principal: Principal) -> Self {
        Self {
            principal,
            address: None,
            request: None,
            arrived: None,
            presence: Presence::unwatched(),
            reason: None,
        }
    }

    /// An operator on this machine.
    #[must_use]
    pub fn operator(name: &str) -> Self {
        Self::local(Principal::Operator(name.to_owned()))
    }

    /// An operator who is bound to some organisations.
    #[must_use]
    pub fn operator_of(name: &str, orgs: Arc<[OrgId]>) -> Self {
        Self { principal: Principal::OperatorOf(name.to_owned(), orgs), ..Self::operator(name) }
    }

    /// The same with the reason of the change, if there is one.
    ///
    /// # Errors
    /// For an empty reason, one of more than 1000 characters, and one with characters that deceive its readers.
    pub fn because(self, reason: Option<&str>) -> Result<Self, FieldError> {
        let reason = reason.map(|reason| parse_text("reason", reason)).transpose()?;
        Ok(Self { reason, ..self })
    }

    /// keygate itself.
    #[must_use]
    pub const fn gateway() -> Self {
        Self::local(Principal::Gateway)
    }
}

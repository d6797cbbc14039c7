//! `POST /v1/auth/signup`: a stranger becomes a customer.

use serde::Serialize;

use super::body::{Body, text};
use super::{Answer, Call, Shown, internal, refuse, render_secret};
use crate::lifecycle::{Lifecycle, parse_signup};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::rejection::{NotFound, Rejection};

#[derive(Serialize)]
struct SignedUp {
    organization_id: OrgId,
    api_key: Shown,
    credits_cents: u64,
}

pub(super) async fn sign_up(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let settings = lifecycle.signup_settings();
    if !settings.enabled {
        return Err(Rejection::NotFound(NotFound::SignupOff));
    }
    let mut body = Body::parse(&call.body)?;
    let (name, email) = (body.require("name", text), body.require("email", text));
    let (name, email) = (name.unwrap_or_default(), email.unwrap_or_default());
    body.finish_with(parse_signup(&name, &email).err().unwrap_or_default())?;
    let made = lifecycle.sign_up(&call.origin(), &name, &email).await.map_err(refuse)?;
    let answer = SignedUp {
        organization_id: made.org.id,
        api_key: Shown::new(&made.secret),
        credits_cents: settings.free_credits_cents,
    };
    render_secret(&answer).map(Answer::secret).map_err(|error| internal(&error))
}

//! `/v1/api_keys`: the caller's keys.

use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::body::{Body, networks, nullable_text, nullable_time, scopes, seconds, text};
use super::query::{Cursor, Query};
use super::{Answer, Call, List, Shown, refuse, render_secret};
use crate::lifecycle::{
    CallingKey, Changed, Keep, KeyPage, KeyView, Lifecycle, LifecycleError, Made, NewKey, OVERLAP, Outcome,
    Patch,
};
use crate::store::KeysOf;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::record::KeyRecord;
use crate::vocabulary::key::{ApiKey, Environment};
use crate::vocabulary::network::parse_number;
use crate::vocabulary::rejection::{NotFound, Rejection};

/// A key with its secret: the one answer that shows it.
#[derive(Serialize)]
struct WithSecret {
    #[serde(flatten)]
    key: KeyView,
    secret: Shown,
}

pub(super) async fn create(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let (caller, origin) = (caller(call)?, call.origin());
    let begun = lifecycle.begin(&origin, None, call.idempotency.as_ref()).await.map_err(refuse)?;
    let standing = match begun {
        Outcome::Fresh(standing) => standing,
        Outcome::Repeated(body) => return Ok(Answer::secret(body)),
    };
    let mut body = Body::parse(&call.body)?;
    let name = body.require("name", text);
    let environment = body.take("environment", environment).unwrap_or(caller.environment);
    let new = NewKey {
        scopes: body.take("scopes", scopes),
        expires_at: body.take("expires_at", nullable_time).flatten(),
        allowed_addresses: body.take("allowed_addresses", networks).unwrap_or_default(),
        owner: body.take("owner", nullable_text).flatten(),
        note: body.take("note", nullable_text).flatten(),
        ..NewKey::named(caller.org, name.as_deref().unwrap_or_default(), environment)
    };
    body.finish_with(lifecycle.mistakes_in_new(&new))?;
    let render = |key: &KeyRecord, secret: &ApiKey| render(lifecycle, key, secret);
    let keep = call.idempotency.as_ref().map(|request| Keep { request, render: &render });
    answer(lifecycle, lifecycle.create_key_once(&origin, standing, &new, keep).await)
}

pub(super) async fn rotate(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let (id, origin) = (id(call)?, call.origin());
    let begun = lifecycle.begin(&origin, Some(id), call.idempotency.as_ref()).await.map_err(refuse)?;
    let standing = match begun {
        Outcome::Fresh(standing) => standing,
        Outcome::Repeated(body) => return Ok(Answer::secret(body)),
    };
    let mut body = Body::parse(&call.body)?;
    let overlap = body.take("overlap_seconds", seconds).unwrap_or(OVERLAP);
    body.finish()?;
    let render = |key: &KeyRecord, secret: &ApiKey| render(lifecycle, key, secret);
    let keep = call.idempotency.as_ref().map(|request| Keep { request, render: &render });
    answer(lifecycle, lifecycle.rotate_key_once(&origin, standing, id, overlap, keep).await)
}

pub(super) async fn list(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let mut query = Query::parse(call.query.as_deref());
    let (limit, cursor) = (query.limit(), query.cursor::<KeyId>());
    query.finish()?;
    let page = lifecycle.list_keys(&call.origin(), KeysOf::All, cursor, limit).await.map_err(refuse)?;
    // What cannot be read is told to operators.
    let KeyPage { keys, has_more, unreadable: _ } = page;
    let next = keys.last().filter(|_| has_more).map(|key| key.id.print());
    Answer::json(&List::new(lifecycle.view_keys(&keys).await.map_err(refuse)?, next))
}

/// A key may always ask about itself.
pub(super) async fn read_own(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let own = caller(call)?.id;
    show(lifecycle, lifecycle.key(&call.origin(), own).await).await
}

pub(super) async fn read(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    show(lifecycle, lifecycle.key(&call.origin(), id(call)?).await).await
}

pub(super) async fn update(lifecycle: &Lifecycle, mut call: Call) -> Result<Answer, Rejection> {
    let id = id(&call)?;
    let mut body = Body::parse(&call.body)?;
    let patch = Patch {
        name: body.take("name", text),
        owner: body.take("owner", nullable_text),
        note: body.take("note", nullable_text),
        scopes: body.take("scopes", scopes),
        expires_at: body.take("expires_at", nullable_time),
        allowed_addresses: body.take("allowed_addresses", networks),
    };
    if !patch.concerns_rights() {
        call.place = call.place.for_making(call.body.len())?;
    }
    if !body.is_clean() {
        body.finish_with(lifecycle.mistakes_in_patch(&call.origin(), id, &patch).await.map_err(refuse)?)?;
    }
    let Changed { record, propagation } =
        lifecycle.update_key(&call.origin(), id, &patch).await.map_err(refuse)?;
    Ok(show(lifecycle, Ok(record)).await?.propagated(propagation))
}

pub(super) async fn revoke(lifecycle: &Lifecycle, call: &Call) -> Result<Answer, Rejection> {
    let descendants = descendants(call)?;
    let (origin, id) = (call.origin(), id(call)?);
    let revoked = match descendants {
        None => lifecycle.revoke_key(&origin, id).await,
        Some(expected) => lifecycle.revoke_with_descendants(&origin, id, expected).await,
    };
    Ok(Answer::nothing().propagated(revoked.map_err(refuse)?.propagation))
}

/// The number of keys that were made with the key and are to be revoked with it; `None` for the key alone.
fn descendants(call: &Call) -> Result<Option<usize>, Rejection> {
    let mut query = Query::parse(call.query.as_deref());
    let (chosen, counted) = (query.has("descendants"), query.has("expected"));
    let all = query.take("descendants", |text| text.parse().ok(), "must be true or false");
    let expected = query.take("expected", parse_number, "must be a whole number");
    match (all, expected) {
        (Some(true), None) if !counted => {
            query.wrong("expected", "is missing: the number of keys that were made with this key");
        }
        (Some(false), Some(_)) => query.wrong("expected", "needs descendants=true"),
        (None, Some(_)) if !chosen => query.wrong("expected", "needs descendants=true"),
        _ => {}
    }
    query.finish()?;
    Ok(expected)
}

fn caller(call: &Call) -> Result<&CallingKey, Rejection> {
    call.caller.as_ref().ok_or_else(|| refuse(LifecycleError::Stranger))
}

/// The key's id in the path. A malformed id is the id of no key.
fn id(call: &Call) -> Result<KeyId, Rejection> {
    let id = call.id.as_deref().and_then(|text| KeyId::parse(text).ok());
    id.ok_or(Rejection::NotFound(NotFound::NoResource))
}

fn environment(value: &serde_json::Value) -> Result<Environment, &'static str> {
    Environment::deserialize(value).map_err(|_| "must be \"live\" or \"test\"")
}

async fn show(lifecycle: &Lifecycle, key: Result<KeyRecord, LifecycleError>) -> Result<Answer, Rejection> {
    let views = lifecycle.view_keys(&[key.map_err(refuse)?]).await.map_err(refuse)?;
    Answer::json(&views.first())
}

fn answer(
    lifecycle: &Lifecycle,
    outcome: Result<Outcome<Made>, LifecycleError>,
) -> Result<Answer, Rejection> {
    match outcome.map_err(refuse)? {
        Outcome::Fresh(Made { key, secret, propagation }) => {
            Ok(Answer::secret(render(lifecycle, &key, &secret)).propagated(propagation))
        }
        Outcome::Repeated(body) => Ok(Answer::secret(body)),
    }
}

fn render(lifecycle: &Lifecycle, key: &KeyRecord, secret: &ApiKey) -> Zeroizing<Vec<u8>> {
    let answer = WithSecret { key: lifecycle.view_key(key, None), secret: Shown::new(secret) };
    // Made of strings and lists of strings, so serialising it cannot fail.
    render_secret(&answer).unwrap_or_default()
}

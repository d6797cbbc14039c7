//! How long a request waits for the head of its answer.

use std::cell::Cell;
use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::request_body::Upload;

/// How often a request that waits looks whether it should wait elsewhere.
const LOOK: Duration = Duration::from_secs(1);

/// Waits for `delivering` until `timeout` has passed since the last part of the request's body was taken; `None`
/// after that. Meanwhile it calls `look` every [`LOOK`], while `looks`.
pub(super) async fn within<T>(
    (timeout, upload): (Duration, Option<&Upload>),
    mut delivering: Pin<&mut impl Future<Output = T>>,
    looks: &Cell<bool>,
    look: impl Fn(),
) -> Option<T> {
    let first = if looks.get() { timeout.min(LOOK) } else { timeout };
    let mut next = pin!(sleep(first));
    let mut end = None;
    loop {
        tokio::select! {
            biased;
            delivered = &mut delivering => return Some(delivered),
            () = &mut next => {
                let end = *end.get_or_insert(next.deadline() + (timeout - first));
                let until = upload.map_or(end, |upload| end.max(upload.progress() + timeout));
                let now = Instant::now();
                if until <= now {
                    return None;
                }
                look();
                next.as_mut().reset(if looks.get() { until.min(now + LOOK) } else { until });
            }
        }
    }
}

//! How long a request waits for the head of its answer.

use std::pin::{Pin, pin};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::request_body::Upload;

/// How often a request that waits looks at the endpoint where it does.
const LOOK: Duration = Duration::from_secs(1);

/// Waits for `delivering` until `timeout` has passed since the last part of the request's body was taken; `None`
/// after that. Meanwhile it calls `look` every [`LOOK`], with 1 at first, then 2, and so on.
pub(super) async fn within<T>(
    (timeout, upload): (Duration, Option<&Upload>),
    mut delivering: Pin<&mut impl Future<Output = T>>,
    look: impl Fn(u32),
) -> Option<T> {
    let first = timeout.min(LOOK);
    let mut next = pin!(sleep(first));
    let (mut end, mut looks) = (None, 0);
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
                looks += 1;
                look(looks);
                next.as_mut().reset(until.min(now + LOOK));
            }
        }
    }
}

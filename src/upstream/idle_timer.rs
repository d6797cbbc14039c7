//! A limit on the pauses of a body.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

/// Runs while a body's next part is awaited. It allocates at the first pause, so a body that is there at once
/// costs nothing.
#[derive(Debug)]
pub(super) struct IdleTimer {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl IdleTimer {
    pub(super) const fn new(timeout: Duration) -> Self {
        Self { timeout, sleep: None }
    }

    /// Ready when the timeout has passed since the first poll or the last reset.
    pub(super) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout))).as_mut().poll(cx)
    }

    pub(super) fn reset(&mut self) {
        if let Some(sleep) = &mut self.sleep {
            sleep.as_mut().reset(Instant::now() + self.timeout);
        }
    }
}

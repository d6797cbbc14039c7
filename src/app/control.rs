//! The control runtime, beside those of the workers.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// How long the end waits for work that cannot be interrupted.
pub(super) const BLOCKED_AT_MOST: Duration = Duration::from_secs(1);

/// The control runtime: one thread beside the workers for everything that is no request.
#[derive(Debug)]
pub struct Control {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// # Errors
    /// When the thread cannot be started.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("keygate-control".to_owned()).spawn(move || {
            drop(runtime.block_on(stopped));
            // A read that hangs on its disk must not keep the process from ending.
            runtime.shutdown_timeout(BLOCKED_AT_MOST);
        })?;
        Ok(Self { handle, stop: Some(stop), thread: Some(thread) })
    }

    #[must_use]
    pub const fn handle(&self) -> &Handle {
        &self.handle
    }

    pub(super) fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A thread that panicked has said so on standard error.
            let _ = thread.join();
        }
    }
}

/// Also when starting fails half-way, nothing is left running.
impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

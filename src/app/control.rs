//! The control runtime, beside the runtimes of the workers.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::runtime::{Builder, Handle};
use tokio::sync::oneshot;

/// How long the end of the process waits for work that cannot be interrupted.
pub(super) const BLOCKED_AT_MOST: Duration = Duration::from_secs(1);

/// The control runtime: one thread beside the workers, for everything that is not a request.
#[derive(Debug)]
pub struct Control {
    handle: Handle,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Control {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the thread or its runtime cannot be started.
    pub fn start() -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new().name("keygate-control".to_owned()).spawn(move || {
            drop(runtime.block_on(stopped));
            // A disk that hangs must not keep the process from ending.
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
            // A thread that panicked has said so in the log.
            let _ = thread.join();
        }
    }
}

/// Nothing is left running, also when the start of the gateway fails half-way.
impl Drop for Control {
    fn drop(&mut self) {
        self.end();
    }
}

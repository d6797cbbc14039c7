//! Output for operators: a line for each event of the process, a record for every request, metrics.
//!
//! A line that strangers or an outage can cause in masses names its [`Event`], of which few lines are written.
//!
//! Never in a record or a line: a key or a part of one, a query, a header value or a body of a client.

mod event;
mod log;
pub mod metrics;
mod output;
mod panics;
mod record;
mod sink;
mod throttle;

pub use event::{Event, Level, Notice};
pub use log::{LineFormat, LogSettings, flush_log, lost_lines, reopen_log, use_log};
pub use output::{Losses, Lost};
pub use panics::log_panics;
pub use record::{Record, RecordSettings, RecordSink, RecordWriter, RecordedRoute, RequestLog};
pub use throttle::{Occurrences, events_so_far};

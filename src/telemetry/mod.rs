//! Output for operators: a line for each event of the process, a record for every request, metrics.
//!
//! A line that strangers or an outage can cause in masses names its [`Event`], of which few lines are written.
//!
//! Never in a record or a line: a key or a part of one, a query, a header value or a body of a client.

mod log;
pub mod metrics;
mod output;
mod record;
mod throttle;

pub use log::{flush_log, log, lost_lines, try_log};
pub use output::{Losses, Lost};
pub use record::{Record, RecordSink, RecordWriter, RequestLog};
pub use throttle::{Event, withheld_lines};

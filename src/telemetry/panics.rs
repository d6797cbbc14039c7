//! Panics: faults of keygate itself. The tokio runtime keeps them within the task, so the process goes on.

use std::panic::{Location, PanicHookInfo};

use super::event::Event;
use super::log::flush_log;
use crate::vocabulary::clock::Clock;

/// From now on, a panic of whichever thread is one line of the log, in the place of what the standard library would write.
///
/// A text that was put together at the time of the panic is not told: it may have parts of a request, or a secret.
pub fn log_panics() {
    std::panic::set_hook(Box::new(log_panic));
}

fn log_panic(panic: &PanicHookInfo<'_>) {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    let text = panic.payload().downcast_ref::<&'static str>();
    // Nothing panics while it holds the lock of the events.
    Event::Panicked.log(Clock::system().mono(), || described(name, panic.location(), text.copied()));
    if name == "main" {
        // The process ends now.
        flush_log();
    }
}

fn described(thread: &str, place: Option<&Location<'_>>, text: Option<&'static str>) -> String {
    let place = place.map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
    let text = text.unwrap_or("its text is not told, because it may have a secret");
    format!("a fault in keygate itself, at {place}, in the thread {thread}: {text}; please report this line")
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    const CHILD: &str = "KEYGATE_TEST_PANICS";
    const SECRET: &str = "fh_live_sk_secret";

    /// The hook is of a whole process, so this test runs itself in one of its own.
    #[test]
    fn a_panic_is_one_line_without_the_text_that_was_put_together_and_a_flood_of_them_is_counted() {
        if std::env::var_os(CHILD).is_some() {
            return panic_often();
        }
        let test = std::thread::current().name().unwrap().to_owned();
        let mut child = Command::new(std::env::current_exe().unwrap());
        let ran = child.args(["--exact", &test, "--nocapture"]).env(CHILD, "1").output().unwrap();
        let told = String::from_utf8(ran.stderr).unwrap();
        assert!(ran.status.success(), "{told}");
        let lines: Vec<&str> =
            told.lines().filter(|line| line.contains("a fault in keygate itself")).collect();
        assert_eq!(lines.len(), 5, "{told}");
        assert!(lines[0].contains("src/telemetry/panics.rs:"), "{told}");
        assert!(lines[0].contains("in the thread a-worker: a fixed text; please report"), "{told}");
        assert!(lines[1..].iter().all(|line| line.contains("its text is not told")), "{told}");
        assert!(told.contains("and 96 more like this in the last"), "{told}");
        assert!(!told.contains(SECRET) && !told.contains("panicked at"), "{told}");
    }

    fn panic_often() {
        log_panics();
        let run = |work: fn()| {
            let thread = std::thread::Builder::new().name("a-worker".to_owned());
            assert!(thread.spawn(work).unwrap().join().is_err());
        };
        run(|| panic!("a fixed text"));
        for _ in 0..100 {
            run(|| panic!("no key is like {}", std::hint::black_box(SECRET)));
        }
        let counted = super::super::events_so_far().into_iter().find(|event| event.event == "panicked");
        assert_eq!(counted.map(|event| event.all), Some(101));
        flush_log();
    }
}

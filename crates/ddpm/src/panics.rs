//! A panic is a bug of ours, or a device that ran out of memory; the user gets a single error line, and files on disk are left as they are.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use crate::failure::{Failure, Result};
use crate::out_of_memory;

/// The messages of the first and the last panic. The last one ended the work. The first may be its cause, or merely one that a GPU's tuner provokes
/// and survives.
static SAID: Mutex<Option<[String; 2]>> = Mutex::new(None);

/// Runs the work; a panic in it becomes a failure that says what happened and where.
pub fn without_panic(work: impl FnOnce() -> Result) -> Result {
    panic::set_hook(Box::new(|info| {
        let text = info.to_string().replace('\n', " ");
        said(|said| {
            let first = said.take().map_or_else(|| text.clone(), |[first, _]| first);
            *said = Some([first, text]);
        });
    }));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let [first, last] = said(Option::take).unwrap_or_default();
        let memory = [&last, &first].into_iter().find_map(|what| out_of_memory::failure(what));
        Err(memory.unwrap_or_else(|| {
            let before = if first == last { String::new() } else { format!("; the first panic before it: {first}") };
            Failure::failed(format!("internal: {last}{before}"))
                .hint("this is a bug; please report it with the command that triggers it")
        }))
    })
}

/// Forgets panics that were expected, such as those of drivers that are probed but missing, so that a later one is reported with its own message.
pub fn forget() {
    said(|said| *said = None);
}

fn said<T>(act: impl FnOnce(&mut Option<[String; 2]>) -> T) -> T {
    act(&mut SAID.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_error_line_with_its_place() {
        let failure = without_panic(|| {
            assert!(panic::catch_unwind(|| panic!("expected")).is_err());
            forget();
            assert!(panic::catch_unwind(|| panic!("survived")).is_err());
            panic!("two\nlines")
        })
        .unwrap_err();
        let _ = panic::take_hook();
        let text = failure.to_text();
        let (ended, before) = text.split_once("before it: ").unwrap();
        assert!(!ended.contains("survived") && before.contains("survived") && !text.contains("expected"), "{text}");
        assert!(
            text.starts_with("error: internal: ") && text.contains("panics.rs") && text.contains("two lines"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}

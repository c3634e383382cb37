//! A panic is a defect of ours, or a device's want of memory; the user gets one line all the same, and what is on disk is left as it is.

use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use crate::failure::{Failure, Result};
use crate::out_of_memory;

/// What the first panic said: others are often its consequences.
static FIRST: Mutex<Option<String>> = Mutex::new(None);

/// Does the work; a panic in it becomes a failure that says what and where.
pub fn without_panic(work: impl FnOnce() -> Result) -> Result {
    panic::set_hook(Box::new(|info| {
        first(|first| _ = first.get_or_insert_with(|| info.to_string().replace('\n', " ")));
    }));
    panic::catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        let what = first(Option::take).unwrap_or_default();
        Err(out_of_memory::failure(&what).unwrap_or_else(|| {
            Failure::failed(format!("internal: {what}"))
                .hint("this is a defect of the program; please report it with the command that shows it")
        }))
    })
}

/// After work whose panics were expected, such as drivers tried out that are not there: a later one is reported with its own words.
pub fn forget() {
    first(|first| *first = None);
}

fn first<T>(act: impl FnOnce(&mut Option<String>) -> T) -> T {
    act(&mut FIRST.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_one_error_line_with_its_place() {
        let failure = without_panic(|| {
            assert!(panic::catch_unwind(|| panic!("expected")).is_err());
            forget();
            panic!("two\nlines")
        })
        .unwrap_err();
        let _ = panic::take_hook();
        let text = failure.to_text();
        assert!(
            text.starts_with("error: internal: ") && text.contains("panics.rs") && text.contains("two lines"),
            "{text}"
        );
        assert_eq!(text.lines().count(), 2, "{text}");
    }
}

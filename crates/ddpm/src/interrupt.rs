//! Ctrl-C: the first one asks the work to end in good order, the second one ends the process at once.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use denoising_diffusion::train::StopSignal;

use crate::failure::{Code, Result};
use crate::output::note;

/// Signals within this time count as one: some programs signal a process and then its whole group.
const ONE_PRESS: Duration = Duration::from_millis(300);

/// Installs the handler; `first` is printed at the first Ctrl-C. Must be called only once.
pub fn stop_on_ctrl_c(first: &'static str) -> Result<StopSignal> {
    let stop = StopSignal::default();
    let requested = stop.clone();
    let pressed = OnceLock::new();
    ctrlc::set_handler(move || {
        if requested.is_requested() {
            if pressed.get().is_some_and(|at: &Instant| at.elapsed() < ONE_PRESS) {
                return;
            }
            std::process::exit(Code::Interrupted as i32);
        }
        let _ = pressed.set(Instant::now());
        note(format!("\n{first}; press Ctrl-C again to stop at once"));
        requested.request();
    })?;
    Ok(stop)
}

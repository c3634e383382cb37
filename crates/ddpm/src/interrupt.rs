//! Ctrl-C: the first one asks the work to end in good order, the second one ends the process at once.

use denoising_diffusion::train::StopSignal;

use crate::failure::{Code, Result};
use crate::output::note;

/// Installs the handler; `first` is said at the first Ctrl-C. To be called once.
pub fn stop_on_ctrl_c(first: &'static str) -> Result<StopSignal> {
    let stop = StopSignal::default();
    let requested = stop.clone();
    ctrlc::set_handler(move || {
        if requested.is_requested() {
            std::process::exit(Code::Interrupted as i32);
        }
        note(format!("\n{first}; press Ctrl-C again to stop at once"));
        requested.request();
    })?;
    Ok(stop)
}

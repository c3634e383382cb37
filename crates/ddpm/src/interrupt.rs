//! Ctrl-C: the first one asks the work to end in good order, the second one ends the process at once.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use denoising_diffusion::train::StopSignal;

use crate::failure::{Code, Result};
use crate::output::note;

/// Signals within this time count as one: some programs signal a process and then its whole group.
const ONE_PRESS: Duration = Duration::from_millis(300);

/// Installs the handler; `first` is printed at the first Ctrl-C. Must be called only once. Signals that the program was started to ignore (by `nohup`,
/// or by a shell for jobs in the background) are still ignored.
pub fn stop_on_ctrl_c(first: &'static str) -> Result<StopSignal> {
    let stop = StopSignal::default();
    let requested = stop.clone();
    let pressed = OnceLock::new();
    #[cfg(unix)]
    let ignored = ignored::signals();
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
    #[cfg(unix)]
    ignored::ignore(&ignored);
    Ok(stop)
}

/// A file beyond the limit of a shell (`ulimit -f`) is an error like a full disk, not the end of the process.
#[cfg(unix)]
pub fn survive_limits_of_files() {
    // SAFETY: ignoring a signal runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// Signals that a process is started to ignore, which `ctrlc` does not ask about.
#[cfg(unix)]
mod ignored {
    use libc::{SIG_IGN, SIGHUP, SIGINT, SIGTERM, c_int, sigaction};

    /// Those that are ignored, of the signals that `ctrlc` handles.
    pub fn signals() -> Vec<c_int> {
        [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|signal| is_ignored(*signal)).collect()
    }

    fn is_ignored(signal: c_int) -> bool {
        // SAFETY: a `sigaction` is plain data, for which zeros are valid; without a new action, the call only writes the present one to it.
        unsafe {
            let mut present: sigaction = std::mem::zeroed();
            sigaction(signal, std::ptr::null(), &raw mut present) == 0 && present.sa_sigaction == SIG_IGN
        }
    }

    pub fn ignore(signals: &[c_int]) {
        for &signal in signals {
            // SAFETY: ignoring a signal runs no code of ours. It cannot fail for a signal that was ignored before.
            unsafe { libc::signal(signal, SIG_IGN) };
        }
    }
}

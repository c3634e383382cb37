//! Training speed.

use std::time::Instant;

/// Images per second, smoothed over the last steps.
#[derive(Debug)]
pub(super) struct Pace {
    last: Instant,
    seconds_per_step: Option<f64>,
}

impl Pace {
    pub(super) fn start() -> Self {
        Self { last: Instant::now(), seconds_per_step: None }
    }

    pub(super) fn images_per_s(&mut self, images: usize) -> f64 {
        let seconds = self.last.elapsed().as_secs_f64();
        self.last = Instant::now();
        let smoothed = self.seconds_per_step.map_or(seconds, |before| 0.9 * before + 0.1 * seconds);
        self.seconds_per_step = Some(smoothed);
        images as f64 / smoothed
    }
}

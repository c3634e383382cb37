//! Progress of long-running work, on stderr: one line that is redrawn on a terminal, a few plain lines in a file.
//!
//! The code that does the work calls [`Progress::update`] after every step and knows nothing of terminals. Nothing is written to stdout, which is for
//! results.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::task::Task;

/// A plain line is due after this time ...
const LINE_EVERY: Duration = Duration::from_secs(10);
/// ... or after this part of the steps (1/20 = 5 %), ...
const LINE_EVERY_PART: u64 = 20;
/// ... but never sooner than this.
const LINE_PAUSE: Duration = Duration::from_secs(1);

/// How far a job has got.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Status {
    /// Steps done.
    pub step: u64,
    /// Loss of this step.
    pub loss: Option<f64>,
    /// Images per second.
    pub images_per_s: Option<f64>,
}

/// Receives the progress of a job.
pub trait Progress {
    /// Called after every step.
    fn update(&mut self, status: Status);

    /// A line that stays visible: something worth reading later.
    fn note(&mut self, line: &str);

    /// The job has ended, whether or not all steps were done.
    fn finish(&mut self);
}

/// Progress on stderr: a bar on a terminal, otherwise [`PlainLines`].
pub struct StderrProgress(Output);

enum Output {
    Bar { bar: ProgressBar, pace: Pace },
    Lines(PlainLines<std::io::Stderr>),
}

impl StderrProgress {
    /// For a job of `total` steps, `done` of which were done before (0 unless it is resumed).
    pub fn new(task: Task, done: u64, total: u64) -> Self {
        if !std::io::stderr().is_terminal() {
            return Self(Output::Lines(PlainLines::new(std::io::stderr(), task, done, total)));
        }
        let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()).with_position(done);
        // If the template did not parse, indicatif's own style would remain, which is legible too.
        if let Ok(style) = ProgressStyle::with_template("{prefix} {bar:24} {msg}") {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_prefix(task.verb());
        Self(Output::Bar { bar, pace: Pace::new(done, total, Instant::now()) })
    }
}

impl Progress for StderrProgress {
    fn update(&mut self, status: Status) {
        match &mut self.0 {
            Output::Bar { bar, pace } => {
                bar.set_message(pace.describe(status, Instant::now()));
                bar.set_position(status.step);
            }
            Output::Lines(lines) => lines.update(status),
        }
    }

    fn note(&mut self, line: &str) {
        match &mut self.0 {
            Output::Bar { bar, .. } => bar.println(line),
            Output::Lines(lines) => lines.note(line),
        }
    }

    fn finish(&mut self) {
        match &mut self.0 {
            Output::Bar { bar, .. } => bar.abandon(),
            Output::Lines(lines) => lines.finish(),
        }
    }
}

/// Progress as plain lines: after the first step, then every 10 seconds or 5 % of the steps (whichever comes first, but at most one line a second),
/// and after the last step.
///
/// Errors in writing are ignored: a closed stderr must not end a run.
pub struct PlainLines<W> {
    out: W,
    task: Task,
    pace: Pace,
    shown: Option<(u64, Instant)>,
    latest: Option<Status>,
}

impl<W: Write> PlainLines<W> {
    /// For a job of `total` steps, `done` of which were done before (0 unless it is resumed), written to `out`.
    pub fn new(out: W, task: Task, done: u64, total: u64) -> Self {
        Self { out, task, pace: Pace::new(done, total, Instant::now()), shown: None, latest: None }
    }

    fn update_at(&mut self, status: Status, now: Instant) {
        self.latest = Some(status);
        let due = status.step >= self.pace.total
            || self.shown.is_none_or(|(step, at)| {
                let waited = now.saturating_duration_since(at);
                let advanced = status.step.saturating_sub(step).saturating_mul(LINE_EVERY_PART) >= self.pace.total;
                waited >= LINE_EVERY || (advanced && waited >= LINE_PAUSE)
            });
        if due {
            self.show(status, now);
        }
    }

    fn show(&mut self, status: Status, now: Instant) {
        let _ = writeln!(self.out, "{} {}", self.task.verb(), self.pace.describe(status, now));
        self.shown = Some((status.step, now));
    }
}

impl<W: Write> Progress for PlainLines<W> {
    fn update(&mut self, status: Status) {
        self.update_at(status, Instant::now());
    }

    fn note(&mut self, line: &str) {
        let _ = writeln!(self.out, "{line}");
    }

    fn finish(&mut self) {
        // A job that ends early still reports where it ended.
        if let Some(status) = self.latest.filter(|status| self.shown.is_none_or(|(step, _)| step != status.step)) {
            self.show(status, Instant::now());
        }
        let _ = self.out.flush();
    }
}

/// Estimates the remaining time and puts a status into words.
#[derive(Clone, Copy, Debug)]
struct Pace {
    done: u64,
    total: u64,
    started: Instant,
    /// When the first step of this process, which is slower than the others, had ended.
    warm: Option<(u64, Instant)>,
}

impl Pace {
    fn new(done: u64, total: u64, started: Instant) -> Self {
        Self { done, total, started, warm: None }
    }

    /// Remaining time at the mean pace since the first step (or, during it, since the start).
    fn time_left(&mut self, step: u64, now: Instant) -> Option<Duration> {
        if self.warm.is_none() && step > self.done {
            self.warm = Some((step, now));
        }
        let (from_step, from_time) = match self.warm {
            Some((warm_step, warm_time)) if step > warm_step => (warm_step, warm_time),
            _ => (self.done, self.started),
        };
        let steps = step.checked_sub(from_step).filter(|&steps| steps > 0)?;
        let seconds = now.saturating_duration_since(from_time).as_secs_f64() / steps as f64;
        Duration::try_from_secs_f64(seconds * self.total.saturating_sub(step) as f64).ok()
    }

    fn describe(&mut self, status: Status, now: Instant) -> String {
        let Status { step, loss, images_per_s } = status;
        let percent = (step as f64 / self.total.max(1) as f64 * 100.0).floor();
        let mut text = format!("{step}/{} ({percent} %)", self.total);
        if let Some(loss) = loss {
            text += &format!("  loss {loss:.4}");
        }
        if let Some(rate) = images_per_s {
            let digits = if rate < 10.0 { 2 } else { 0 };
            text += &format!("  {rate:.digits$} images/s");
        }
        match self.time_left(step, now) {
            Some(left) if step < self.total => text += &format!("  ETA {}", words(left)),
            _ if step >= self.total => {
                text += &format!("  in {}", words(now.saturating_duration_since(self.started)));
            }
            _ => {}
        }
        text
    }
}

/// `42 s`, `3 min 20 s`, `2 h 05 min`.
pub(super) fn words(duration: Duration) -> String {
    let seconds = duration.as_secs_f64().round() as u64;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Steps `seconds_per_step` apart; returns the lines.
    fn lines(task: Task, done: u64, total: u64, seconds_per_step: f64) -> Vec<String> {
        let mut lines = PlainLines::new(Vec::new(), task, done, total);
        let start = lines.pace.started;
        for step in done + 1..=total {
            let now = start + Duration::from_secs_f64((step - done) as f64 * seconds_per_step);
            let (loss, rate) = match task {
                Task::Train => (Some(0.125), Some(64.4)),
                _ => (None, None),
            };
            lines.update_at(Status { step, loss, images_per_s: rate }, now);
        }
        lines.finish();
        String::from_utf8(lines.out).unwrap().lines().map(str::to_owned).collect()
    }

    #[test]
    fn training_says_what_matters() {
        let lines = lines(Task::Train, 0, 200, 1.0);
        assert_eq!(lines[0], "train 1/200 (0 %)  loss 0.1250  64 images/s  ETA 3 min 19 s");
        assert_eq!(lines[1], "train 11/200 (5 %)  loss 0.1250  64 images/s  ETA 3 min 09 s");
        assert_eq!(lines.last().unwrap(), "train 200/200 (100 %)  loss 0.1250  64 images/s  in 3 min 20 s");
        assert_eq!(lines.len(), 21);
    }

    #[test]
    fn a_fast_job_writes_one_line_a_second_and_a_slow_one_every_ten() {
        // 1000 steps in two seconds: the first, one after a second, the last.
        assert_eq!(lines(Task::Sample, 0, 1000, 0.002).len(), 3);
        // 100,000 steps of 0.1 s: a line every 10 s is a line every 100 steps.
        assert_eq!(lines(Task::Sample, 0, 100_000, 0.1).len(), 1001);
        // 20 steps of 30 s: each.
        assert_eq!(lines(Task::Sample, 0, 20, 30.0).len(), 20);
    }

    #[test]
    fn a_resumed_job_does_not_count_what_was_done_before() {
        let lines = lines(Task::Sample, 900, 1000, 1.0);
        assert_eq!(lines[0], "sample 901/1000 (90 %)  ETA 1 min 39 s");
    }

    #[test]
    fn an_early_end_is_told_once() {
        let mut lines = PlainLines::new(Vec::new(), Task::Sample, 0, 10);
        let start = lines.pace.started;
        lines.update_at(Status { step: 1, ..Status::default() }, start);
        lines.update_at(Status { step: 2, ..Status::default() }, start);
        lines.note("interrupted");
        lines.finish();
        lines.finish();
        let text = String::from_utf8(lines.out).unwrap();
        let starts: Vec<&str> = text.lines().map(|line| line.split("  ").next().unwrap()).collect();
        assert_eq!(starts, ["sample 1/10 (10 %)", "interrupted", "sample 2/10 (20 %)"]);
    }

    #[test]
    fn durations_in_words() {
        let cases = [(0.4, "0 s"), (59.6, "1 min 00 s"), (3599.0, "59 min 59 s"), (7500.0, "2 h 05 min")];
        for (seconds, expected) in cases {
            assert_eq!(words(Duration::from_secs_f64(seconds)), expected);
        }
    }

    #[test]
    fn no_steps_are_no_division_by_zero() {
        let mut pace = Pace::new(0, 0, Instant::now());
        assert_eq!(pace.describe(Status::default(), pace.started), "0/0 (0 %)  in 0 s");
    }
}

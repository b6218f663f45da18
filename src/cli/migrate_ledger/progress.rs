//! How far a move is, for whoever watches: a bar on a terminal, else a line every ten seconds.

use std::time::Duration;

use indicatif::ProgressBar;

use crate::{
    cli::{
        bar::{bar, left, line},
        figures::{grouped, rate},
    },
    clock::Instant,
};

const LINE_EVERY: Duration = Duration::from_secs(10);

/// One reading of the ledger from its beginning to its end.
pub(super) struct Progress {
    what: &'static str,
    total: Option<u64>,
    began: Instant,
    told: Instant,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Of so many records, if that is known.
    pub(super) fn start(what: &'static str, total: Option<u64>) -> Self {
        let now = Instant::now();
        Self {
            what,
            total,
            began: now,
            told: now,
            bar: bar(total),
        }
    }

    pub(super) fn show(&mut self, done: u64) {
        if self.bar.is_none() && self.told.elapsed() < LINE_EVERY {
            return;
        }
        self.told = Instant::now();
        let text = self.text(done);
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                bar.set_message(text);
            }
            None => line(format_args!("{text}")),
        }
    }

    fn text(&self, done: u64) -> String {
        let mut text = match self.total {
            Some(total) => format!("{}: {} of {} keys", self.what, grouped(done), grouped(total)),
            None => format!("{}: {} keys", self.what, grouped(done)),
        };
        // Counts of keys are far below 2^52.
        let speed = done as f64 / self.began.elapsed().as_secs_f64();
        if speed.is_finite() && speed > 0.0 {
            text.push_str(&format!("  {}/s", rate(speed)));
            text.push_str(&left(self.total, done, Some(speed)));
        }
        text
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

//! How far something is, for whoever watches: a bar on a terminal, else lines with their time.

use std::{
    fmt,
    io::{IsTerminal as _, stderr},
    time::SystemTime,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{figures::time_left, output::complain};

/// A bar to so many, if that is known; where there is no terminal, none.
pub fn bar(total: Option<u64>) -> Option<ProgressBar> {
    stderr().is_terminal().then(|| {
        let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr_with_hz(5));
        let template = match total {
            Some(_) => "{bar:30.green/dim} {percent:>3} %  {msg}",
            None => "{spinner:.green} {msg}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("━╸─"));
        }
        bar
    })
}

/// What is said where there is no bar.
pub fn line(text: fmt::Arguments<'_>) {
    complain(format_args!(
        "{} {text}",
        humantime::format_rfc3339_seconds(SystemTime::now())
    ));
}

/// `  5m left`, where that can be known.
pub fn left(total: Option<u64>, done: u64, per_second: Option<f64>) -> String {
    let left = total.map_or(0, |total| total.saturating_sub(done));
    match per_second {
        Some(per_second) if left > 0 && per_second > 0.0 => format!("  {} left", time_left(left, per_second)),
        _ => String::new(),
    }
}

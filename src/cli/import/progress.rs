//! How far it is, for whoever watches: a bar on a terminal, else a line of the log every ten seconds.

use std::{
    collections::VecDeque,
    io::{IsTerminal as _, stderr},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{
    sync::watch,
    task::AbortHandle,
    time::{Instant, sleep},
};
use tonic::Code;

use super::tally::Tally;
use crate::{
    cli::{
        bar::{bar, left, line},
        client::Client,
        figures::{grouped, rate},
        output::complain,
    },
    proto::{GetStatusRequest, GetStatusResponse, ServingState, invitation_service_client::InvitationServiceClient},
};

/// Between two looks at the gateway's status.
const ASK_EVERY: Duration = Duration::from_secs(1);

/// What the gateway says of itself, asked again and again until this is dropped.
pub struct Watch {
    latest: watch::Receiver<Option<GetStatusResponse>>,
    task: AbortHandle,
}

impl Watch {
    pub fn start(client: &Client) -> Self {
        let (sender, latest) = watch::channel(None);
        let client = client.clone();
        let task = tokio::spawn(async move {
            let mut gateway = InvitationServiceClient::new(client.connect_lazily());
            loop {
                let answer = gateway.get_status(client.request(GetStatusRequest {})).await;
                match answer {
                    Ok(status) => drop(sender.send_replace(Some(status.into_inner()))),
                    // An older gateway, or one that does not let this caller: then there is nothing to show.
                    Err(error) if matches!(error.code(), Code::Unimplemented | Code::PermissionDenied) => return,
                    Err(_) => drop(sender.send_replace(None)),
                }
                sleep(ASK_EVERY).await;
            }
        });
        Self {
            latest,
            task: task.abort_handle(),
        }
    }

    pub fn latest(&self) -> Option<GetStatusResponse> {
        self.latest.borrow().clone()
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Results a second, over the last half minute.
#[derive(Debug, Default)]
pub struct Speed {
    counted: u64,
    samples: VecDeque<(Instant, u64)>,
}

const SPAN: Duration = Duration::from_secs(30);

impl Speed {
    pub fn count(&mut self) {
        self.counted += 1;
    }

    pub fn sample(&mut self) {
        let now = Instant::now();
        self.samples.push_back((now, self.counted));
        while self.samples.len() > 2 && self.samples.front().is_some_and(|(at, _)| now - *at > SPAN) {
            self.samples.pop_front();
        }
    }

    pub fn per_second(&self) -> Option<f64> {
        let ((from, before), (to, after)) = (self.samples.front()?, self.samples.back()?);
        let span = (*to - *from).as_secs_f64();
        // Counts of rows are far below 2^52.
        (span > 0.0 && after > before).then(|| (after - before) as f64 / span)
    }
}

/// How far the check of the list is, on a terminal.
pub struct Looking(Option<ProgressBar>);

impl Looking {
    pub fn start() -> Self {
        Self(stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr_with_hz(5));
            bar.set_style(ProgressStyle::default_spinner());
            bar
        }))
    }

    pub fn show(&self, rows: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(format!("checking the list: {} rows", grouped(rows)));
            bar.tick();
        }
    }

    /// Says something without harm to it.
    pub fn tell(&self, text: &str) {
        match &self.0 {
            Some(bar) => bar.suspend(|| complain(format_args!("{text}"))),
            None => complain(format_args!("{text}")),
        }
    }

    pub fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// The bar, or the lines.
pub struct Progress {
    bar: Option<ProgressBar>,
    total: Option<u64>,
    watch: Watch,
}

impl Progress {
    /// For so many rows, if that is known.
    pub fn start(total: Option<u64>, watch: Watch) -> Self {
        Self {
            bar: bar(total),
            total,
            watch,
        }
    }

    /// Between two looks.
    pub fn every(&self) -> Duration {
        if self.bar.is_some() {
            Duration::from_millis(500)
        } else {
            Duration::from_secs(10)
        }
    }

    pub fn show(&mut self, tally: &Tally, would_add: u64, speed: Option<f64>, away: Option<String>, delayed: usize) {
        let done = tally.all() + would_add;
        let status = self.watch.latest();
        let waits_for = away.or_else(|| waits_for(status.as_ref(), delayed));
        let mut figures = match self.total {
            Some(total) => format!("{} of {}", grouped(done), grouped(total)),
            None => grouped(done),
        };
        if let Some(speed) = speed {
            figures.push_str(&format!("  {}/s", rate(speed)));
        }
        let expected = speed.or(status.as_ref().map(|status| status.learned_rate));
        figures.push_str(&left(self.total, done, expected));
        let mut counts = format!(
            "{} added  {} duplicate  {} failed  {} in doubt",
            grouped(tally.added),
            grouped(tally.duplicate),
            grouped(tally.failed),
            grouped(tally.in_doubt)
        );
        if would_add > 0 {
            counts = format!("{} would be added  {counts}", grouped(would_add));
        }
        match &self.bar {
            Some(bar) => {
                bar.set_position(done);
                let waits_for = waits_for.map(|what| format!("\n{what}")).unwrap_or_default();
                bar.set_message(format!("{figures}\n{counts}{waits_for}"));
            }
            None => {
                let waits_for = waits_for.map(|what| format!("  {what}")).unwrap_or_default();
                line(format_args!("{figures}  {counts}{waits_for}"));
            }
        }
    }

    /// Says something without harm to the bar.
    pub fn note(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => line(format_args!("{text}")),
        }
    }

    /// Takes the bar away: a summary follows.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn to_be_tried_again(rows: usize) -> String {
    match rows {
        1 => "1 row is to be tried again".into(),
        rows => format!("{} rows are to be tried again", grouped(rows as u64)),
    }
}

/// What holds the list up, if anything but its own length does.
fn waits_for(status: Option<&GetStatusResponse>, delayed: usize) -> Option<String> {
    let Some(status) = status else {
        return (delayed > 0).then(|| to_be_tried_again(delayed));
    };
    let pause = status.pause.and_then(|pause| Duration::try_from(pause).ok());
    if let Some(pause) = pause {
        return Some(format!(
            "SurveyLab asked to wait {} s; then the rate is {}/s",
            pause.as_secs_f64().ceil(),
            rate(status.learned_rate)
        ));
    }
    if let Some(breaker) = &status.breaker {
        return Some(format!("SurveyLab refuses every request: {}", breaker.reason));
    }
    match status.state() {
        ServingState::Draining => return Some("the gateway is shutting down".into()),
        ServingState::LedgerUnavailable => {
            return Some(format!("the gateway sends nothing: {}", status.state_reason));
        }
        ServingState::Serving | ServingState::Unspecified => {}
    }
    if delayed > 0 {
        return Some(to_be_tried_again(delayed));
    }
    if status.learned_rate < status.configured_rate {
        return Some(format!(
            "the rate is {}/s of {}/s, after SurveyLab's 429",
            rate(status.learned_rate),
            rate(status.configured_rate)
        ));
    }
    (status.waiting_streams > 0).then(|| format!("the rate is {}/s", rate(status.configured_rate)))
}

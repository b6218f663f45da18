//! The rows on their way: through a stream of the gateway, opened again whenever it breaks, until each has its result.

use std::{
    collections::{BTreeMap, VecDeque},
    pin::pin,
    time::Duration,
};

use rand::RngExt as _;
use tokio::{
    select,
    sync::mpsc,
    time::{Instant, Interval, MissedTickBehavior, interval, sleep_until},
};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, transport::Channel};

use super::{
    answer::{self, Again, Answer, one_line},
    progress::{Progress, Speed},
    results::{Record, Writer},
    tally::Tally,
};
use crate::{
    cli::client::{Client, error_text},
    clock,
    proto::{AddRespondentRequest, StreamAddRespondentResponse},
};

use stream::{open, reserve};

mod last;
mod stream;

/// What the reader of the list hands over.
#[expect(clippy::large_enum_variant, reason = "nearly all are the large one")]
pub enum Entry {
    Row(Item),
    /// It has its result without being sent.
    Bad(Record),
}

/// A row on its way.
#[derive(Debug)]
pub struct Item {
    pub line: u64,
    pub request: AddRespondentRequest,
    pub tries: u32,
    /// How often no request was made for it, as SurveyLab refused those before it.
    pub turned_away: u32,
}

/// What is wanted of the gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    Add,
    /// Nothing is sent: what would come of it?
    Check,
}

/// Why no more is done.
#[derive(Debug)]
pub enum Ended {
    /// Every row has its result.
    Done,
    /// By a signal.
    Interrupted,
    /// Something must be seen to first.
    Stopped(String),
}

/// Rows without an answer that are in memory, at most. The gateway takes `--stream-window` of a stream; the others wait in the
/// connection's buffers, so that it never runs dry.
const WINDOW: usize = 1_024;

/// SurveyLab's refusals of one row for a while (500, 503) after which it counts as failed; each stands for as many requests
/// as the gateway makes for a call.
const TRIES: u32 = 10;

/// Between two tries of a row, at most.
const LONGEST_DELAY: Duration = Duration::from_secs(60);

/// So often a row is turned away because SurveyLab refuses every request, until it is clear that waiting does not help: two
/// more requests have been refused by then.
const TURNED_AWAY: u32 = 3;

/// So many results in a row that are not about their rows: no other row will fare better.
const MOST_IN_A_ROW: u32 = 100;

/// Between two tries to reach the gateway.
const FIRST_BACKOFF: Duration = Duration::from_millis(250);
const LONGEST_BACKOFF: Duration = Duration::from_secs(15);

/// What a run needs.
pub struct Setup<'a> {
    pub client: &'a Client,
    pub purpose: Purpose,
    /// How long the gateway may be away.
    pub patience: Duration,
    /// Where results go; a check has none.
    pub results: Option<&'a Writer>,
    /// What earlier runs found out.
    pub earlier: Tally,
    pub interrupt: CancellationToken,
}

/// Brings rows to the gateway.
pub struct Sending<'a> {
    setup: Setup<'a>,
    progress: Progress,
    tick: Interval,
    /// To be sent, in order: rows whose stream broke, or whose delay has passed.
    ready: VecDeque<Item>,
    /// To be sent later. The line tells those of one moment apart.
    delayed: BTreeMap<(Instant, u64), Item>,
    /// Sent by the stream that is open, by sequence.
    under_way: BTreeMap<u64, Item>,
    list_ended: bool,
    list_error: Option<String>,
    in_a_row: u32,
    stop: Option<String>,
    heard_at: Instant,
    /// The connection, for as long as it holds.
    channel: Option<Channel>,
    speed: Speed,
    tally: Tally,
    would_add: u64,
}

/// How one stream came to its end.
enum End {
    Done,
    Cut(Status),
    Interrupted,
    Stopped,
}

impl<'a> Sending<'a> {
    pub fn new(setup: Setup<'a>, progress: Progress) -> Self {
        let mut tick = interval(progress.every());
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self {
            tally: setup.earlier.clone(),
            setup,
            progress,
            tick,
            ready: VecDeque::new(),
            delayed: BTreeMap::new(),
            under_way: BTreeMap::new(),
            list_ended: false,
            list_error: None,
            in_a_row: 0,
            stop: None,
            heard_at: Instant::now(),
            channel: None,
            speed: Speed::default(),
            would_add: 0,
        }
    }

    /// How many rows came to what, those of earlier runs included; and how many would be added.
    pub fn into_counts(self) -> (Tally, u64) {
        (self.tally, self.would_add)
    }

    /// Sends what the list holds, until every row has its result or something is in the way.
    pub async fn run(&mut self, list: &mut mpsc::Receiver<Result<Entry, String>>) -> Ended {
        let mut backoff = FIRST_BACKOFF;
        let mut was_reached = false;
        let ended = loop {
            let heard_before = self.heard_at;
            let end = self.one_stream(list, &mut was_reached).await;
            match end {
                End::Done => break Ended::Done,
                End::Interrupted => break Ended::Interrupted,
                End::Stopped => break Ended::Stopped(self.stop.take().unwrap_or_default()),
                End::Cut(status) => {
                    if !was_reached || is_final(status.code()) {
                        break Ended::Stopped(error_text(&status));
                    }
                    if self.heard_at > heard_before {
                        backoff = FIRST_BACKOFF;
                    }
                    if self.heard_at.elapsed() + backoff > self.setup.patience {
                        let away = humantime::format_duration(self.setup.patience);
                        break Ended::Stopped(format!("the gateway was away for {away}: {}", error_text(&status)));
                    }
                    self.take_back();
                    let delay = backoff.mul_f64(rand::rng().random_range(0.5..1.0));
                    if !self.rest(delay, &status).await {
                        break Ended::Interrupted;
                    }
                    backoff = (backoff * 2).min(LONGEST_BACKOFF);
                }
            }
        };
        if !matches!(ended, Ended::Done) && self.setup.purpose == Purpose::Add {
            self.ask_for_the_last().await;
        }
        self.progress.end();
        match self.list_error.take() {
            // What came before it was sent all the same.
            Some(error) => Ended::Stopped(error),
            None => ended,
        }
    }

    /// Opens a stream and works with it until it ends.
    async fn one_stream(&mut self, list: &mut mpsc::Receiver<Result<Entry, String>>, was_reached: &mut bool) -> End {
        let (requests, taken) = mpsc::channel(WINDOW);
        let interrupt = self.setup.interrupt.clone();
        let opened = {
            let mut opening = pin!(open(self.setup.client, None, taken));
            loop {
                select! {
                    biased;
                    () = interrupt.cancelled() => return End::Interrupted,
                    opened = &mut opening => break opened,
                    _ = self.tick.tick() => self.show(None),
                }
            }
        };
        let mut answers = match opened {
            Ok((channel, answers)) => {
                self.channel = Some(channel);
                answers
            }
            Err(status) => return End::Cut(status),
        };
        *was_reached = true;
        self.heard_at = Instant::now();
        let mut requests = Some(requests);
        let mut sequence = 0;
        loop {
            if self.stop.is_some() {
                return End::Stopped;
            }
            let nothing_left = self.list_ended && self.ready.is_empty() && self.delayed.is_empty();
            if nothing_left && self.under_way.is_empty() {
                // The gateway ends the stream once nothing more can come.
                requests = None;
            }
            let may_send = !self.ready.is_empty();
            let may_read =
                self.ready.is_empty() && !self.list_ended && self.under_way.len() + self.delayed.len() < WINDOW;
            select! {
                biased;
                () = interrupt.cancelled() => return End::Interrupted,
                _ = self.tick.tick() => self.show(None),
                answer = answers.message() => match answer {
                    Ok(Some(answer)) => {
                        self.heard_at = Instant::now();
                        if let Some(item) = self.under_way.remove(&answer.sequence) {
                            self.answered(item, answer).await;
                        }
                    }
                    Ok(None) if requests.is_none() => return End::Done,
                    Ok(None) => return End::Cut(Status::unavailable("the gateway ended the stream")),
                    Err(status) => return End::Cut(status),
                },
                () = clock::until(self.delayed.keys().next().map(|(at, _)| *at)) => {
                    if let Some((_, item)) = self.delayed.pop_first() {
                        self.ready.push_back(item);
                    }
                }
                place = reserve(requests.as_ref()), if may_send => {
                    // Without a place the stream has ended, which its answers tell.
                    if let (Some(place), Some(item)) = (place, self.ready.pop_front()) {
                        place.send(item.request.clone());
                        self.under_way.insert(sequence, item);
                        sequence += 1;
                    }
                }
                entry = list.recv(), if may_read => self.read(entry).await,
            }
        }
    }

    async fn read(&mut self, entry: Option<Result<Entry, String>>) {
        match entry {
            Some(Ok(Entry::Row(mut item))) => {
                item.request.validate_only = self.setup.purpose == Purpose::Check;
                self.ready.push_back(item);
            }
            Some(Ok(Entry::Bad(record))) => self.finish(record).await,
            Some(Err(error)) => {
                self.list_error = Some(error);
                self.list_ended = true;
            }
            None => self.list_ended = true,
        }
    }

    async fn answered(&mut self, mut item: Item, answer: StreamAddRespondentResponse) {
        match answer::read(item.line, answer) {
            Some(Answer::Final(record)) => self.finish(record).await,
            Some(Answer::WouldAdd) => {
                self.would_add += 1;
                self.speed.count();
            }
            Some(Answer::Again(Again {
                after,
                was_sent,
                record,
            })) => {
                if was_sent {
                    item.tries += 1;
                }
                if item.tries >= TRIES {
                    self.finish(record).await;
                    return;
                }
                let longer = Duration::from_secs(1 << item.tries.min(6)) / 2;
                self.delay(item, if was_sent { after.max(longer) } else { after });
            }
            Some(Answer::TurnedAway(Again { after, record, .. })) => {
                item.turned_away += 1;
                if item.turned_away >= TURNED_AWAY {
                    // The row has no result: the next run brings it.
                    self.stop = Some(format!(
                        "SurveyLab refuses every request with {} {}: see to that first. {}",
                        record.code, record.reason, record.message
                    ));
                    return;
                }
                self.delay(item, after);
            }
            None => {
                self.stop = Some("the gateway gave an answer that this version does not understand".into());
            }
        }
    }

    /// Has a row sent later.
    fn delay(&mut self, item: Item, after: Duration) {
        let delay = after.min(LONGEST_DELAY).mul_f64(rand::rng().random_range(1.0..1.25));
        self.delayed.insert((Instant::now() + delay, item.line), item);
    }

    /// Writes a result down.
    async fn finish(&mut self, record: Record) {
        self.tally.count(record.outcome, &record.reason);
        self.speed.count();
        if answer::is_about_all(&record) {
            self.in_a_row += 1;
        } else {
            self.in_a_row = 0;
        }
        if self.in_a_row >= MOST_IN_A_ROW && self.setup.purpose == Purpose::Add {
            self.stop = Some(format!(
                "{MOST_IN_A_ROW} rows in a row ended with {} {}: see to that first. {}",
                record.code, record.reason, record.message
            ));
        }
        if let Some(results) = self.setup.results
            && !results.write(record).await
        {
            self.stop = Some("the results can't be written".into());
        }
    }

    /// What the broken stream had not answered is to be sent again, in the order of the list.
    fn take_back(&mut self) {
        while let Some((_, item)) = self.under_way.pop_last() {
            self.ready.push_front(item);
        }
    }

    /// Waits before the next try to reach the gateway; false if the import is to end.
    async fn rest(&mut self, delay: Duration, why: &Status) -> bool {
        let interrupt = self.setup.interrupt.clone();
        let again_at = Instant::now() + delay;
        self.show(Some((why, again_at)));
        loop {
            select! {
                biased;
                () = interrupt.cancelled() => return false,
                () = sleep_until(again_at) => return true,
                _ = self.tick.tick() => self.show(Some((why, again_at))),
            }
        }
    }

    fn show(&mut self, away: Option<(&Status, Instant)>) {
        let away = away.map(|(why, again_at)| {
            let wait = again_at.saturating_duration_since(Instant::now());
            format!(
                "no gateway ({}): next try in {} s",
                one_line(why.message()),
                wait.as_secs_f64().ceil()
            )
        });
        self.speed.sample();
        self.progress.show(
            &self.tally,
            self.would_add,
            self.speed.per_second(),
            away,
            self.delayed.len(),
        );
    }
}

/// Codes of a stream that come again whenever it is opened.
fn is_final(code: Code) -> bool {
    matches!(
        code,
        Code::Unauthenticated | Code::PermissionDenied | Code::Unimplemented | Code::InvalidArgument
    )
}

//! The row in memory, and a database between it and the replicas that is slow, loses answers and fails.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use tokio::time::sleep;

use crate::{
    clock::Instant,
    limiter::shared::{Answer, Ask, Error, Slices, Terms},
};

const WHOLE: i64 = 1_000_000;
const SECOND: i64 = 1_000_000;

/// One row of `account_rate`. Times in microseconds of the database's clock, shares in millionths.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    pub terms: Terms,
    pub tat: i64,
    pub share: i64,
    pub epoch: i64,
    pub pause_until: i64,
    pub step_at: Option<i64>,
}

/// The statement's arithmetic, once more: what it does to the row and answers at `now`.
impl Row {
    pub fn new(terms: Terms, now: i64, rested: Duration) -> Self {
        let mut row = Self {
            terms,
            tat: 0,
            share: WHOLE,
            epoch: 0,
            pause_until: 0,
            step_at: None,
        };
        let full = row.full(WHOLE);
        row.tat = now + full - i64::try_from(rested.as_micros()).unwrap_or(i64::MAX).min(full);
        row
    }

    fn pace(&self, share: i64) -> i64 {
        let nanos = self.terms.pace.as_nanos() * WHOLE as u128;
        nanos.div_ceil(share as u128) as i64
    }

    fn tolerance(&self, share: i64) -> i64 {
        (self.terms.tolerance.as_micros() as i64) * WHOLE / share
    }

    fn full(&self, share: i64) -> i64 {
        self.tolerance(share) + (self.pace(share) as u64).div_ceil(1_000) as i64
    }

    pub fn apply(&mut self, wanted: u32, horizon: i64, report: Option<(i64, i64)>, now: i64) -> Answer {
        let before = self.share;
        let mut share = before;
        let mut step_at = self.step_at.map(|at| at.min(now + 3_610 * SECOND));
        if let Some(at) = step_at.filter(|at| *at <= now) {
            let steps = 1 + (now - at) / (10 * SECOND);
            share = (share + steps * 100_000).min(WHOLE);
            step_at = (share < WHOLE).then_some(at + steps * 10 * SECOND);
        }
        let mut ahead = (self.tat - now).min(self.full(before) + SECOND);
        if ahead > 0 {
            let part = i128::from(ahead.min(self.full(before))) * i128::from(share - before) / i128::from(share);
            ahead -= part as i64;
        }
        let mut pause = (self.pause_until - now).clamp(0, 3_600 * SECOND);
        let mut epoch = self.epoch;
        if let Some((seen, asked)) = report {
            if seen == epoch {
                let cut = (share * 7 / 10).max(10_000);
                ahead = (ahead - self.full(share)).max(0) + self.full(cut);
                share = cut;
                epoch += 1;
            }
            pause = pause.max(asked);
            step_at = (share < WHOLE).then_some(now + pause + 10 * SECOND);
        }
        let (pace, tolerance) = (self.pace(share), self.tolerance(share));
        let base = ahead.max(pause);
        let from = base - tolerance;
        let granted = if pause > horizon || from > horizon {
            0
        } else {
            i64::from(wanted).min((horizon - from) * 1_000 / pace + 1)
        };
        if granted > 0 {
            ahead = base + ((granted * pace) as u64).div_ceil(1_000) as i64;
        }
        if granted > 0 || report.is_some() {
            self.tat = now + ahead;
            self.share = share;
            self.epoch = epoch;
            self.pause_until = now + pause;
            self.step_at = step_at;
        }
        let micros = |time: i64| Duration::from_micros(time.max(0) as u64);
        Answer {
            asked: Instant::now(),
            granted: granted as u32,
            start: micros(pause),
            from: i128::from(from) * 1_000,
            tat: micros(ahead),
            pace: Duration::from_nanos(pace as u64),
            tolerance: micros(tolerance),
            validity: self.terms.validity,
            share: share as f64 / WHOLE as f64,
            epoch: epoch as u64,
            next_step: step_at.map(|at| micros(at - now)),
            period: self.terms.period,
            burst: self.terms.burst,
        }
    }
}

/// How a database answers.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    /// Each way takes up to so long, and never nothing.
    pub way: Duration,
    /// One answer in so many is lost, after the row has changed. 0: none.
    pub lost: u32,
}

impl Network {
    pub const FAST: Self = Self {
        way: Duration::from_millis(2),
        lost: 0,
    };
}

/// The database: the row, its clock, and whether it is there.
#[derive(Clone)]
pub struct Database {
    state: Arc<Mutex<(Row, bool)>>,
    origin: Instant,
    /// The database's clock at the origin.
    epoch: i64,
}

impl Database {
    pub fn new(terms: Terms) -> Self {
        let epoch = 1_700_000_000 * SECOND;
        Self {
            state: Arc::new(Mutex::new((Row::new(terms, epoch, Duration::MAX), true))),
            origin: Instant::now(),
            epoch,
        }
    }

    pub fn client(&self, network: Network, seed: u64) -> Client {
        Client {
            database: self.clone(),
            network,
            random: StdRng::seed_from_u64(seed),
            connects: Duration::ZERO,
            asks: Arc::default(),
        }
    }

    pub fn set_up(&self, is_up: bool) {
        self.state.lock().unwrap().1 = is_up;
    }

    /// Puts a new row in the place of the old one, as after a restore.
    pub fn make_anew(&self) {
        let now = self.now();
        let (row, _) = &mut *self.state.lock().unwrap();
        *row = Row::new(row.terms, now, Duration::ZERO);
    }

    pub fn row(&self) -> Row {
        self.state.lock().unwrap().0.clone()
    }

    fn now(&self) -> i64 {
        self.epoch + self.origin.elapsed().as_micros() as i64
    }
}

/// A replica's connection.
pub struct Client {
    database: Database,
    network: Network,
    random: StdRng,
    /// How long the first connection takes.
    pub connects: Duration,
    /// Statements that arrived.
    pub asks: Arc<Mutex<u32>>,
}

impl Client {
    async fn travel(&mut self) {
        let way = self.network.way.as_micros() as u64;
        sleep(Duration::from_micros(self.random.random_range(1..=way))).await;
    }
}

impl Slices for Client {
    async fn lease(&mut self, ask: &Ask) -> Result<Answer, Error> {
        sleep(std::mem::take(&mut self.connects)).await;
        let asked = Instant::now();
        self.travel().await;
        *self.asks.lock().unwrap() += 1;
        let report = ask.report.map(|report| {
            let pause = report.until.saturating_duration_since(Instant::now());
            (report.epoch as i64, pause.as_micros() as i64)
        });
        let answer = {
            let now = self.database.now();
            let mut state = self.database.state.lock().unwrap();
            let (row, is_up) = &mut *state;
            is_up.then(|| row.apply(ask.wanted, ask.horizon.as_micros() as i64, report, now))
        };
        self.travel().await;
        let is_lost = self.network.lost > 0 && self.random.random_range(0..self.network.lost) == 0;
        answer
            .filter(|_| !is_lost)
            .map(|answer| Answer { asked, ..answer })
            .ok_or_else(|| Error::Database("the model is away".into()))
    }
}

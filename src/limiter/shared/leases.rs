//! The tokens that one replica has leased and not used yet, and how many more it wants.

use std::{collections::VecDeque, time::Duration};

use super::{Answer, Ask, Report, Terms};
use crate::clock::Instant;

/// How far ahead of their time tokens are leased at most: a slice is what the rate adds in this time. Long enough for a busy
/// replica to ask again before it runs dry; short, as another one that gets work waits for so long at most.
pub const HORIZON: Duration = Duration::from_millis(100);

/// The use of the last so much time foretells that of the next.
const USE_MEMORY: Duration = Duration::from_millis(100);
/// Nothing is foretold from less time than this.
const USE_SPAN_MIN: Duration = Duration::from_millis(5);

/// Of a full bucket one slice takes at most this part.
const BURST_PART: u32 = 4;
/// The share of the account's tokens that a replica expects for itself, at least.
const OURS_MIN: f64 = 0.05;

/// Tokens of one answer, in the order of their times.
struct Run {
    /// When the answer was asked for, which was before the database looked at its clock: from here expiry is counted.
    asked: Instant,
    /// When it came, which was after that: from here the times are counted from which on tokens may be used.
    came: Instant,
    /// No token may be used before this, counted from the database's clock at the answer.
    start: Duration,
    /// The time of token number 0, by the pace alone; in nanoseconds, and in the past where the bucket was not empty.
    from: i128,
    pace: Duration,
    validity: Duration,
    next: u32,
    end: u32,
}

impl Run {
    fn offset(&self, index: u32) -> Duration {
        let nanos = self
            .from
            .saturating_add_unsigned(self.pace.as_nanos() * u128::from(index));
        let paced = u64::try_from(nanos.max(0)).map_or(Duration::MAX, Duration::from_nanos);
        self.start.max(paced)
    }

    fn usable_from(&self, index: u32) -> Instant {
        self.came + self.offset(index)
    }

    fn expires(&self, index: u32) -> Instant {
        self.asked + self.offset(index) + self.validity
    }

    /// The first token that has not expired at a moment.
    fn first_alive(&self, at: Instant) -> u32 {
        let (mut low, mut high) = (self.next, self.end);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.expires(middle) > at {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        low
    }
}

/// What the last answer said of the row, in this process's time.
struct Row {
    /// The theoretical arrival time of GCRA.
    tat: Instant,
    pace: Duration,
    tolerance: Duration,
}

/// The leased tokens. A token is used at its time or up to its validity later, and is lost otherwise: what a replica holds
/// unsent is bounded, and has been counted when it was leased.
pub struct Leases {
    runs: VecDeque<Run>,
    row: Row,
    /// Tokens used since the last answer came, and when that was.
    used: u32,
    used_since: Instant,
    /// Tokens used a second, lately.
    use_rate: f64,
    /// The part of the account's tokens that comes to this replica while it wants more than it gets.
    ours: f64,
    /// Says that the lease task sleeps until it is told of work.
    pub rests: bool,
    /// A 429 that the row is not known to have learned of.
    pub report: Option<Report>,
    terms: Terms,
}

impl Leases {
    /// Holds nothing, and knows no more of the row than that it is kept by these terms.
    pub fn new(terms: Terms) -> Self {
        let now = Instant::now();
        Self {
            runs: VecDeque::new(),
            row: Row {
                tat: now,
                pace: terms.pace,
                tolerance: terms.tolerance,
            },
            used: 0,
            used_since: now,
            use_rate: 0.0,
            ours: 1.0,
            rests: false,
            report: None,
            terms,
        }
    }

    /// Takes what an answer grants. Returns how many of the tokens can be used, as those of an answer that took too long have
    /// expired.
    pub fn receive(&mut self, ask: &Ask, answer: &Answer, came: Instant) -> u32 {
        self.learn_use(came);
        self.learn_contention(ask, answer, came);
        self.row = Row {
            tat: came + answer.tat,
            pace: answer.pace,
            tolerance: answer.tolerance,
        };
        self.expire(came);
        let mut run = Run {
            asked: answer.asked,
            came,
            start: answer.start,
            from: answer.from,
            pace: answer.pace,
            validity: answer.validity,
            next: 0,
            end: answer.granted,
        };
        // Times are counted from the answer's end and expiry from its beginning: if it took longer than tokens live, none
        // of them can ever be used.
        if came.saturating_duration_since(answer.asked) >= run.validity {
            return 0;
        }
        run.next = run.first_alive(came);
        let usable = run.end - run.next;
        if usable > 0 {
            self.runs.push_back(run);
        }
        usable
    }

    /// Loses all tokens: they belong to a rate that holds no more.
    pub fn clear(&mut self) {
        self.runs.clear();
    }

    /// Expects an empty bucket and a part of the rate, until the row's own numbers come.
    pub fn cut(&mut self, share: f64) {
        self.clear();
        self.row.pace = self.terms.pace.div_f64(share);
        self.row.tolerance = self.terms.tolerance.div_f64(share);
        self.row.tat = Instant::now() + self.row.tolerance + self.row.pace;
    }

    /// Takes one token, or says when one can be expected.
    pub fn take(&mut self, now: Instant) -> Result<(), Instant> {
        self.expire(now);
        let due = self.runs.iter_mut().find(|run| run.usable_from(run.next) <= now);
        match due {
            Some(run) => {
                run.next += 1;
                self.used = self.used.saturating_add(1);
                self.runs.retain(|run| run.next < run.end);
                Ok(())
            }
            None => Err(self.earliest(1, now)),
        }
    }

    /// When the `n`th of those tokens may be used that are still there at `then`.
    pub fn nth(&self, n: usize, then: Instant) -> Option<Instant> {
        let mut left = n.checked_sub(1)?;
        for run in &self.runs {
            let first = run.first_alive(then);
            let count = (run.end - first) as usize;
            if left < count {
                return Some(run.usable_from(first + u32::try_from(left).unwrap_or(u32::MAX)));
            }
            left -= count;
        }
        None
    }

    /// When the `n`th token will be there at the earliest, if none is taken before `from`: a held one's time, and of further
    /// ones what the row's state and the rate allow if no other replica wants any.
    pub fn earliest(&self, n: usize, from: Instant) -> Instant {
        self.foreseen(n, from, 1.0)
    }

    /// The same if the part of the rate that comes to this replica stays as it was lately.
    pub fn likely(&self, n: usize, from: Instant) -> Instant {
        self.foreseen(n, from, self.ours)
    }

    fn foreseen(&self, n: usize, from: Instant, part: f64) -> Instant {
        if let Some(at) = self.nth(n, from) {
            return at.max(from);
        }
        let further = n.saturating_sub(self.alive(from)).saturating_sub(1);
        let ahead = self.row.tat.saturating_duration_since(from).as_secs_f64();
        let pace = self.row.pace.as_secs_f64() / part;
        let wait = ahead + pace * further as f64 - self.row.tolerance.as_secs_f64();
        from + Duration::try_from_secs_f64(wait.max(0.0)).map_or(YEAR, |wait| wait.min(YEAR))
    }

    /// Sleeps until there is work, and forgets how many others wanted tokens.
    pub fn rest(&mut self) {
        self.rests = true;
        self.ours = 1.0;
    }

    /// Tokens that nobody has used yet, here or in the row, as far as is known.
    pub fn tokens(&self, at: Instant) -> f64 {
        let ahead = self.row.tat.saturating_duration_since(at);
        let saved = self.row.pace + self.row.tolerance;
        self.alive(at) as f64 + saved.saturating_sub(ahead).as_secs_f64() / self.row.pace.as_secs_f64().max(1e-9)
    }

    /// How long a token may lie here before it is likely to be lost.
    pub fn slack(&self) -> Duration {
        self.runs.back().map_or(Duration::ZERO, |run| run.validity / 2)
    }

    /// How long a token has to live so that a permit can be given for it.
    fn claimed_in(&self, claim_time: Duration) -> Duration {
        claim_time.min(self.slack())
    }

    /// When the `n`th token can be used for which a permit can be given now.
    pub fn permit(&self, n: usize, now: Instant, claim_time: Duration) -> Option<Instant> {
        self.nth(n, now + self.claimed_in(claim_time))
    }

    /// How many tokens to ask for: what those need who could use one at once, and what the recent use foretells, but for what
    /// is held and lives as long as a claim takes: others are no use, and give no permits. None while the latter is enough.
    pub fn wanted(&self, needed: usize, now: Instant, claim_time: Duration) -> u32 {
        let foretold = self.foretold(now);
        let held = self.alive(now + self.claimed_in(claim_time));
        if held >= needed + foretold.div_ceil(2) {
            return 0;
        }
        let wanted = needed + foretold - held;
        u32::try_from(wanted).unwrap_or(u32::MAX).min(self.slice_max())
    }

    /// The time of the row's next token, as far as is known.
    pub fn next_free(&self, now: Instant) -> Instant {
        now + self
            .row
            .tat
            .saturating_duration_since(now)
            .saturating_sub(self.row.tolerance)
    }

    fn foretold(&self, now: Instant) -> usize {
        (self.use_rate_at(now) * HORIZON.as_secs_f64()) as usize
    }

    fn use_rate_at(&self, now: Instant) -> f64 {
        let span = now.saturating_duration_since(self.used_since).max(USE_SPAN_MIN);
        let lately = f64::from(self.used) / span.as_secs_f64();
        let fresh = 1.0 - (-span.as_secs_f64() / USE_MEMORY.as_secs_f64()).exp();
        self.use_rate + (lately - self.use_rate) * fresh
    }

    fn learn_use(&mut self, now: Instant) {
        self.use_rate = self.use_rate_at(now);
        self.used = 0;
        self.used_since = now;
    }

    /// How many tokens others got since the last answer, by how far the row went on in between.
    fn learn_contention(&mut self, ask: &Ask, answer: &Answer, came: Instant) {
        let others = if answer.granted >= ask.wanted {
            0.0
        } else {
            let pace = answer.pace.as_secs_f64().max(1e-9);
            let went_on = (came + answer.tat).saturating_duration_since(self.row.tat.max(came));
            (went_on.as_secs_f64() / pace - f64::from(answer.granted)).max(0.0)
        };
        let total = others + f64::from(answer.granted);
        if total > 0.0 {
            let lately = f64::from(answer.granted) / total;
            self.ours = (self.ours + (lately - self.ours) / 8.0).max(OURS_MIN);
        }
    }

    fn slice_max(&self) -> u32 {
        let pace = self.row.pace.as_nanos().max(1);
        let of_rate = HORIZON.as_nanos() / pace;
        let of_burst = self.row.tolerance.as_nanos() / pace / u128::from(BURST_PART);
        u32::try_from(of_rate.max(of_burst)).unwrap_or(u32::MAX).max(1)
    }

    fn alive(&self, at: Instant) -> usize {
        self.runs
            .iter()
            .map(|run| (run.end - run.first_alive(at)) as usize)
            .sum()
    }

    fn expire(&mut self, now: Instant) {
        self.runs.retain_mut(|run| {
            run.next = run.first_alive(now);
            run.next < run.end
        });
    }
}

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

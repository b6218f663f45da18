//! The account at the fake SurveyLab: which keys it has seen, and what they came to.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fmt,
};

use serde::Serialize;

/// What the fake does with a crk that its collector already has. SurveyLab's documentation doesn't say what it does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum OnRepeat {
    /// Answers `status: false` and sends nothing.
    #[default]
    Refuse,
    /// Sends the e-mail again: the worst case, and the one that shows a request made twice.
    SendAgain,
}

/// What was received for one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) requests: u32,
    pub(super) effects: u32,
}

/// One key and what was received for it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct KeyCounts {
    #[serde(rename = "cId")]
    pub collector_id: String,
    pub crk: String,
    pub requests: u32,
    pub effects: u32,
}

/// What was received, in numbers. An effect is an e-mail sent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    pub requests: u64,
    pub effects: u64,
    /// Distinct keys among the requests that named one.
    pub keys: u64,
    /// Answers by HTTP status. Requests without an answer are in none, so the sum may be less than `requests`.
    pub statuses: BTreeMap<u16, u64>,
    /// The most requests that were open at one time.
    pub most_at_once: usize,
    /// Keys with more than one effect: what must never be.
    pub duplicates: Vec<KeyCounts>,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let number = |count: u64, what: &str| format!("{count} {what}{}", if count == 1 { "" } else { "s" });
        write!(
            f,
            "received {}, sent {}, {} twice",
            number(self.requests, "request"),
            number(self.effects, "e-mail"),
            number(self.duplicates.len() as u64, "key"),
        )
    }
}

/// One request's parameters, as far as they decide.
pub(super) struct Call<'q> {
    pub(super) collector_id: &'q str,
    pub(super) email: &'q str,
    pub(super) crk: &'q str,
}

/// What the checks come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Processed,
    Repeated,
    WrongToken,
    /// Over the fake's own rate limit, until so many seconds later.
    TooFast(u64),
    MissingParameter,
    UnknownCollector,
}

pub(super) struct Account {
    /// Empty: any will do.
    collectors: HashSet<String>,
    on_repeat: OnRepeat,
    /// By collector, then crk: with millions of keys the collector's id is kept once.
    counts: HashMap<Box<str>, HashMap<Box<str>, Counts>>,
    requests: u64,
    effects: u64,
    statuses: BTreeMap<u16, u64>,
}

impl Account {
    pub(super) fn new(collectors: HashSet<String>, on_repeat: OnRepeat) -> Self {
        Self {
            collectors,
            on_repeat,
            counts: HashMap::new(),
            requests: 0,
            effects: 0,
            statuses: BTreeMap::new(),
        }
    }

    /// Forgets what was received.
    pub(super) fn reset(&mut self) {
        *self = Self::new(std::mem::take(&mut self.collectors), self.on_repeat);
    }

    pub(super) fn count_request(&mut self, call: &Call<'_>) {
        self.requests += 1;
        // Without both there is no key to count under.
        if !call.collector_id.is_empty() && !call.crk.is_empty() {
            self.update(call.collector_id, call.crk, |counts| {
                counts.requests = counts.requests.saturating_add(1)
            });
        }
    }

    pub(super) fn count_status(&mut self, status: u16) {
        *self.statuses.entry(status).or_default() += 1;
    }

    /// The checks behind those of token and rate.
    pub(super) fn check(&self, call: &Call<'_>) -> Verdict {
        if call.collector_id.is_empty() || call.email.is_empty() || call.crk.is_empty() {
            Verdict::MissingParameter
        } else if !self.collectors.is_empty() && !self.collectors.contains(call.collector_id) {
            Verdict::UnknownCollector
        } else if self.is_spent(call.collector_id, call.crk) {
            Verdict::Repeated
        } else {
            Verdict::Processed
        }
    }

    /// Sends the e-mail. False: there is none to send, because the key's has gone out meanwhile.
    pub(super) fn take_effect(&mut self, collector_id: &str, crk: &str) -> bool {
        if self.is_spent(collector_id, crk) {
            return false;
        }
        self.effects += 1;
        self.update(collector_id, crk, |counts| {
            counts.effects = counts.effects.saturating_add(1)
        });
        true
    }

    pub(super) fn of(&self, collector_id: &str, crk: &str) -> Counts {
        self.counts
            .get(collector_id)
            .and_then(|keys| keys.get(crk))
            .copied()
            .unwrap_or_default()
    }

    pub(super) fn totals(&self) -> (u64, u64) {
        (self.requests, self.effects)
    }

    pub(super) fn report(&self, most_at_once: usize) -> Report {
        Report {
            requests: self.requests,
            effects: self.effects,
            keys: self.counts.values().map(|keys| keys.len() as u64).sum(),
            statuses: self.statuses.clone(),
            most_at_once,
            duplicates: self.keys(|counts| counts.effects > 1),
        }
    }

    /// The chosen keys, ordered.
    pub(super) fn keys(&self, chosen: impl Fn(&Counts) -> bool) -> Vec<KeyCounts> {
        let all = self
            .counts
            .iter()
            .flat_map(|(id, keys)| keys.iter().map(move |(crk, counts)| (id, crk, counts)));
        let mut keys: Vec<KeyCounts> = all
            .filter(|(_, _, counts)| chosen(counts))
            .map(|(id, crk, counts)| KeyCounts {
                collector_id: id.to_string(),
                crk: crk.to_string(),
                requests: counts.requests,
                effects: counts.effects,
            })
            .collect();
        keys.sort_unstable_by(|a, b| (&a.collector_id, &a.crk).cmp(&(&b.collector_id, &b.crk)));
        keys
    }

    fn is_spent(&self, collector_id: &str, crk: &str) -> bool {
        self.on_repeat == OnRepeat::Refuse && self.of(collector_id, crk).effects > 0
    }

    /// Applies `change` to the key's counts. Allocates for a new key only, which `HashMap::entry` can't.
    fn update(&mut self, collector_id: &str, crk: &str, change: impl Fn(&mut Counts)) {
        if let Some(counts) = self.counts.get_mut(collector_id).and_then(|keys| keys.get_mut(crk)) {
            return change(counts);
        }
        change(
            self.counts
                .entry(collector_id.into())
                .or_default()
                .entry(crk.into())
                .or_default(),
        );
    }
}

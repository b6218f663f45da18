//! The contract as rules over a history. Knows what is promised, and nothing of how it is kept.

use std::{collections::BTreeMap, time::Duration};

use super::history::{CallId, Event, History, Moment};
use crate::{
    dispatch,
    ledger::{Resolution, State},
    surveylab::Answer,
};

mod answers;
mod keys;
mod pace;

use super::plan::Asked;

/// Fails the rule, with what was seen, unless the condition holds.
macro_rules! ensure {
    ($condition:expr, $($seen:tt)+) => {
        match $condition {
            true => {}
            false => return Err(format!($($seen)+)),
        }
    };
}
use ensure;

/// tokio's timers are exact to a millisecond; one more is lost where a moment lies between two of its ticks.
const GRAIN: Duration = Duration::from_millis(2);

type Rule = fn(&Seen<'_>) -> Result<(), String>;

/// Checks all rules, and tells the first that is broken.
pub fn check(history: &History) -> Result<(), String> {
    let seen = Seen::of(history);
    let rules: [(&str, Rule); 8] = [
        ("no key takes effect twice unasked", keys::effects),
        ("one request at a time, under a durable claim", keys::wire),
        ("the ledger says what SurveyLab said", keys::settlements),
        ("requests keep to the rate, the pauses and the places", pace::requests),
        ("first come, first served", pace::order),
        ("every call is answered in time", pace::bounds),
        ("every answer is true", answers::truth),
        ("nothing is left over", leftovers),
    ];
    for (name, rule) in rules {
        rule(&seen).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}

/// A history with what follows from it.
struct Seen<'a> {
    history: &'a History,
    calls: Vec<Call>,
    /// What the ledger knew of each key, and from which moment on.
    known: BTreeMap<u8, Vec<(Moment, Option<Known>)>>,
}

struct Call {
    id: CallId,
    process: usize,
    asked: Asked,
    from: Moment,
    /// When it was answered, or its caller was gone.
    to: Moment,
    answer: Option<dispatch::Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    state: State,
    data: u8,
}

/// What a request tells of its effect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
enum Told {
    #[default]
    None,
    Doubt,
    Effect,
}

impl<'a> Seen<'a> {
    fn of(history: &'a History) -> Self {
        let mut calls: Vec<Call> = Vec::new();
        let mut known: BTreeMap<u8, Vec<(Moment, Option<Known>)>> = BTreeMap::new();
        let mut before: BTreeMap<u8, Option<Known>> = BTreeMap::new();
        let last = history.entries.len();
        for (at, entry) in history.entries.iter().enumerate() {
            let now = |known: &BTreeMap<u8, Vec<(Moment, Option<Known>)>>, key: &u8| {
                known.get(key).and_then(|states| states.last()?.1)
            };
            let mut becomes = |key: u8, state| known.entry(key).or_default().push((at, state));
            match &entry.event {
                Event::Called(id, asked) => calls.push(Call {
                    id: *id,
                    process: entry.process,
                    asked: *asked,
                    from: at,
                    to: last,
                    answer: None,
                }),
                Event::Left(id) => {
                    let call = calls.iter_mut().find(|call| call.id == *id);
                    call.into_iter().for_each(|call| call.to = at);
                }
                Event::Answered(id, answer) => {
                    for call in calls.iter_mut().filter(|call| call.id == *id) {
                        (call.to, call.answer) = (at, Some(answer.clone()));
                    }
                }
                Event::Died => {
                    for call in &mut calls {
                        call.to = call.to.min(at);
                    }
                }
                Event::Claimed { key, data, .. } => {
                    before.insert(*key, now(&known, key));
                    let state = State::Pending;
                    known
                        .entry(*key)
                        .or_default()
                        .push((at, Some(Known { state, data: *data })));
                }
                Event::Released { key } => becomes(*key, before.remove(key).flatten()),
                Event::Settled { key, state } => {
                    let state = now(&known, key).map(|known| Known { state: *state, ..known });
                    known.entry(*key).or_default().push((at, state));
                }
                Event::Resolved { key, resolution } => {
                    let state = match resolution {
                        Resolution::Added => State::Added,
                        Resolution::NotAdded => State::Failed,
                    };
                    let state = now(&known, key).map(|known| Known { state, ..known });
                    known.entry(*key).or_default().push((at, state));
                }
                _ => {}
            }
        }
        Self { history, calls, known }
    }

    fn time(&self, at: Moment) -> Duration {
        let entries = &self.history.entries;
        let entry = entries.get(at).or(entries.last());
        entry.map_or(Duration::ZERO, |entry| entry.at)
    }

    fn events(&self) -> impl DoubleEndedIterator<Item = (Moment, usize, &Event)> {
        self.before(Moment::MAX)
    }

    fn before(&self, at: Moment) -> impl DoubleEndedIterator<Item = (Moment, usize, &Event)> {
        let entries = &self.history.entries;
        let before = entries[..at.min(entries.len())].iter().enumerate();
        before.map(|(at, entry)| (at, entry.process, &entry.event))
    }

    /// Everything the ledger knew of a key at some moment of a span.
    fn known_during(&self, key: u8, from: Moment, to: Moment) -> Vec<Option<Known>> {
        let states = self.known.get(&key).map_or(&[][..], Vec::as_slice);
        let first = states.iter().rev().find(|(at, _)| *at <= from);
        let mut known = vec![first.and_then(|(_, state)| *state)];
        let later = states.iter().filter(|(at, _)| from < *at && *at <= to);
        known.extend(later.map(|(_, state)| *state));
        known
    }

    fn known_at(&self, key: u8, at: Moment) -> Option<Known> {
        self.known_during(key, at, at)[0]
    }

    /// Everything that a call can have been told by the ledger.
    fn known_to(&self, call: &Call) -> Vec<Option<Known>> {
        self.known_during(call.asked.key, self.joined(call), call.to)
    }

    /// Since when somebody has been there for a call's key without a break. Who joins others hears what they hear: what
    /// was so when the key was looked up, for one who may have left since.
    fn joined(&self, call: &Call) -> Moment {
        let mut since = call.from;
        loop {
            let there = self.callers(call.process, call.asked.key, since, since);
            match there.map(|other| other.from).min() {
                Some(from) if from < since => since = from,
                _ => return since,
            }
        }
    }

    /// Calls of one process for a key that overlap a span.
    fn callers(&self, process: usize, key: u8, from: Moment, to: Moment) -> impl Iterator<Item = &Call> {
        self.calls
            .iter()
            .filter(move |call| call.process == process && call.asked.key == key && call.from <= to && from <= call.to)
    }

    /// What a request's answer tells of its effect, by the table of SurveyLab's answers.
    fn told(&self, answer: Option<&Answer>) -> Told {
        let Some(answer) = answer else { return Told::Doubt };
        match answer {
            Answer::Added { .. } => Told::Effect,
            Answer::InDoubt { .. } => Told::Doubt,
            Answer::InternalError => match self.history.account.on_server_error {
                dispatch::OnServerError::Retry => Told::None,
                dispatch::OnServerError::Hold => Told::Doubt,
            },
            Answer::ActionFailed { .. }
            | Answer::BadRequest
            | Answer::Unauthorized
            | Answer::Forbidden
            | Answer::NotFound
            | Answer::RateLimited { .. }
            | Answer::Unavailable { .. }
            | Answer::UnexpectedStatus { .. }
            | Answer::Unreachable { .. } => Told::None,
        }
    }
}

fn leftovers(seen: &Seen<'_>) -> Result<(), String> {
    let end = &seen.history.end;
    let nothing = super::history::End::default();
    ensure!(*end == nothing, "{end:?}");
    Ok(())
}

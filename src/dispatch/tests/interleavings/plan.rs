//! What happens in one interleaving, as plain data, so that a failing one shrinks and can be written down.

use std::time::Duration;

use proptest::{collection::vec, option, prelude::*, sample::select};

use super::super::world::ms;
use crate::{
    dispatch::OnServerError,
    ledger::{Doubt, Resolution},
    surveylab::Answer,
};

/// The longest that a step of the ledger takes before it is done, and until it is told.
pub const PACE_MAX: Duration = ms(300);

#[derive(Clone, Debug)]
pub struct Plan {
    pub account: Account,
    /// What SurveyLab does with each request, in the order in which they arrive; from then on it adds.
    pub behaviours: Vec<Behaviour>,
    /// How many times a task steps back at each of its yield points, over and over: they set the order of polls.
    pub hiccups: Vec<u8>,
    pub steps: Vec<Step>,
}

/// The limits under which a process runs.
#[derive(Clone, Copy, Debug)]
pub struct Account {
    pub rate: &'static str,
    pub burst: u32,
    pub max_in_flight: usize,
    pub max_queue: usize,
    pub max_attempts: u32,
    pub on_server_error: OnServerError,
    pub breaker_after: u32,
}

/// What becomes of one request.
#[derive(Clone, Debug)]
pub struct Behaviour {
    pub answer: Answer,
    /// From its arrival to its answer.
    pub latency: Duration,
    /// From its arrival to its effect, where it has one: perhaps long after the gateway gave up. An answer "added" comes
    /// with its effect.
    pub effect: Option<Duration>,
}

#[derive(Clone, Debug)]
pub struct Step {
    /// Since the step before.
    pub after: Duration,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    Call(Asked),
    /// The caller of a call made so far, counted in a circle, leaves.
    Leave(usize),
    Resolve(u8, Resolution),
    Fail(Fault),
    /// From now on each step of the ledger takes so long before it is done, and so long until it is told.
    Pace(Duration, Duration),
    Close,
    /// Closes, drains for so long, cuts off what is left, and starts anew.
    Stop(Duration),
    /// The process dies on the spot, and another one starts over what it left.
    Kill,
}

/// A call, and how it is made.
#[derive(Clone, Copy, Debug)]
pub struct Asked {
    pub kind: Kind,
    pub key: u8,
    /// Which of the data variants it carries.
    pub data: u8,
    /// The stream it is an item of; `None` for a unary call.
    pub stream: Option<u8>,
    /// From the moment it is made.
    pub deadline: Option<Duration>,
    pub doubt: Doubt,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Add,
    /// `validate_only`.
    Check,
}

/// The next steps of one kind fail in the ledger.
#[derive(Clone, Copy, Debug)]
pub struct Fault {
    pub of: Operation,
    pub count: u8,
    /// The last one that failed turns out done if the process dies before anything else is written.
    pub lingers: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    LookUp,
    Claim,
    Settle,
    Release,
    Resolve,
}

pub fn plans() -> impl Strategy<Value = Plan> {
    (
        accounts(),
        vec(behaviours(), 0..12),
        vec(0..4_u8, 1..12),
        vec(steps(), 1..40),
    )
        .prop_map(|(account, behaviours, hiccups, steps)| Plan {
            account,
            behaviours,
            hiccups,
            steps,
        })
}

fn accounts() -> impl Strategy<Value = Account> {
    (
        select(vec![("1000/s", 100), ("20/s", 3), ("2/s", 1), ("12/m", 2), ("1/m", 1)]),
        select(vec![1, 2, 32]),
        select(vec![1, 3, 1_000]),
        select(vec![1, 2, 5]),
        select(vec![OnServerError::Retry, OnServerError::Hold]),
        select(vec![0, 1, 2, 20]),
    )
        .prop_map(
            |((rate, burst), max_in_flight, max_queue, max_attempts, on_server_error, breaker_after)| Account {
                rate,
                burst,
                max_in_flight,
                max_queue,
                max_attempts,
                on_server_error,
                breaker_after,
            },
        )
}

fn behaviours() -> impl Strategy<Value = Behaviour> {
    let retry_after = || option::of(select(vec![ms(0), ms(1_500), ms(20_000)]));
    let answers = prop_oneof![
        6 => Just(Answer::Added { notification: "ok".into() }),
        5 => option::of(Just(502)).prop_map(|http_status| Answer::InDoubt { http_status, cause: "cut".into() }),
        2 => retry_after().prop_map(|retry_after| Answer::RateLimited { retry_after }),
        2 => retry_after().prop_map(|retry_after| Answer::Unavailable { retry_after }),
        1 => Just(Answer::InternalError),
        1 => Just(Answer::Unreachable { cause: "refused".into() }),
        1 => Just(Answer::BadRequest),
        1 => select(vec![Answer::Unauthorized, Answer::Forbidden, Answer::NotFound]),
        1 => Just(Answer::ActionFailed { http_status: 200, notification: "no".into() }),
        1 => Just(Answer::UnexpectedStatus { http_status: 302 }),
    ];
    let latency = prop_oneof![1 => Just(ms(0)), 4 => (1..500_u64).prop_map(ms), 1 => Just(ms(30_000))];
    let effect = option::of(prop_oneof![Just(ms(0)), (1..60_000_u64).prop_map(ms)]);
    (answers, latency, effect).prop_map(|(answer, latency, effect)| Behaviour {
        answer,
        latency,
        effect,
    })
}

fn steps() -> impl Strategy<Value = Step> {
    let after = prop_oneof![
        4 => Just(ms(0)),
        3 => (1..50_u64).prop_map(ms),
        2 => (50..2_000_u64).prop_map(ms),
        1 => (2_000..70_000_u64).prop_map(ms),
    ];
    (after, actions()).prop_map(|(after, action)| Step { after, action })
}

fn actions() -> impl Strategy<Value = Action> {
    let operations = vec![
        Operation::LookUp,
        Operation::Claim,
        Operation::Claim,
        Operation::Settle,
        Operation::Settle,
        Operation::Release,
        Operation::Resolve,
    ];
    let faults =
        (select(operations), 1..5_u8, any::<bool>()).prop_map(|(of, count, lingers)| Fault { of, count, lingers });
    let moments = || prop_oneof![2 => Just(ms(0)), 1 => (1..=300_u64).prop_map(ms)];
    let resolutions = select(vec![Resolution::Added, Resolution::NotAdded]);
    prop_oneof![
        24 => calls().prop_map(Action::Call),
        5 => any::<usize>().prop_map(Action::Leave),
        3 => (keys(), resolutions).prop_map(|(key, resolution)| Action::Resolve(key, resolution)),
        2 => faults.prop_map(Action::Fail),
        2 => (moments(), moments()).prop_map(|(before, after)| Action::Pace(before, after)),
        1 => Just(Action::Close),
        1 => select(vec![ms(0), ms(300), ms(25_000)]).prop_map(Action::Stop),
        1 => Just(Action::Kill),
    ]
}

/// A few keys that many calls share, and some that hardly any two do.
fn keys() -> impl Strategy<Value = u8> {
    prop_oneof![3 => 0..2_u8, 1 => 2..9_u8]
}

fn calls() -> impl Strategy<Value = Asked> {
    let deadlines = prop_oneof![
        4 => Just(None),
        1 => Just(Some(ms(0))),
        3 => (1..1_000_u64).prop_map(|millis| Some(ms(millis))),
        3 => (1_000..40_000_u64).prop_map(|millis| Some(ms(millis))),
    ];
    (
        prop_oneof![9 => Just(Kind::Add), 1 => Just(Kind::Check)],
        keys(),
        prop_oneof![4 => Just(0_u8), 1 => Just(1_u8)],
        prop_oneof![2 => Just(None), 1 => (0..2_u8).prop_map(Some)],
        deadlines,
        prop_oneof![2 => Just(Doubt::Hold), 1 => Just(Doubt::Resend)],
    )
        .prop_map(|(kind, key, data, stream, deadline, doubt)| Asked {
            kind,
            key,
            data,
            stream,
            deadline,
            doubt,
        })
}

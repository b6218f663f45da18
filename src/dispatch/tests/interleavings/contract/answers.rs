//! What callers are told.

use super::{
    super::{
        history::{Event, Moment},
        plan::{Kind, Operation, PACE_MAX},
    },
    Call, GRAIN, Known, Seen, ensure,
};
use crate::{
    dispatch::{Added, Outcome},
    invitation::{Failure, Reason, Sent},
    ledger::{Doubt, Resolution, State},
    surveylab::Answer,
};

pub fn truth(seen: &Seen<'_>) -> Result<(), String> {
    for call in &seen.calls {
        let Some(answer) = &call.answer else { continue };
        let told = match answer {
            Ok(outcome) => outcome_is_true(seen, call, outcome),
            Err(failure) => failure_is_true(seen, call, failure),
        };
        told.and_then(|()| held(seen, call))
            .map_err(|why| format!("call {} got {answer:?}, but {why}", call.id))?;
    }
    added_once(seen)
}

fn outcome_is_true(seen: &Seen<'_>, call: &Call, outcome: &Outcome) -> Result<(), String> {
    let Call { asked, from, to, .. } = *call;
    let known = seen.known_during(asked.key, from, to);
    match outcome {
        Outcome::Added(added) => {
            ensure!(asked.kind == Kind::Add, "it only asked");
            ensure!(
                requests(seen, call).any(|request| adds(&request, to)),
                "nothing had an effect"
            );
            attempts(seen, call, added)?;
            // Who comes while the ledger is about to tell that it has recorded an effect is one of those who wait for it.
            let recorded = seen.before(to).any(|(at, _, event)| {
                let is_added = matches!(event, Event::Settled { key, state: State::Added } if *key == asked.key);
                is_added && seen.time(at) + PACE_MAX + GRAIN >= seen.time(from)
            });
            ensure!(recorded, "nothing was recorded meanwhile");
        }
        Outcome::Duplicate(_) => {
            let resolved = seen.before(to).any(
                |(_, _, event)| matches!(event, Event::Resolved { key, resolution: Resolution::Added } if *key == asked.key),
            );
            ensure!(
                resolved || requests(seen, call).any(|request| adds(&request, to)),
                "nothing ever had an effect"
            );
            let alone = seen.callers(call.process, asked.key, from, to).count() == 1;
            let mut own = requests(seen, call).filter(|request| from < request.sent);
            ensure!(
                asked.kind == Kind::Check || !alone || !own.any(|request| adds(&request, to)),
                "it was its own request that had an effect"
            );
            let added = Known {
                state: State::Added,
                data: asked.data,
            };
            ensure!(known.contains(&Some(added)), "it is not recorded: {known:?}");
        }
        Outcome::WouldAdd => {
            ensure!(asked.kind == Kind::Check, "it was to be added");
            let free = known.iter().any(|known| match known {
                None => true,
                Some(known) if known.state == State::InDoubt => {
                    known.data == asked.data && asked.doubt == Doubt::Resend
                }
                Some(known) => known.state == State::Failed,
            });
            ensure!(free, "the key was not free: {known:?}");
        }
    }
    Ok(())
}

/// A request with a call's key and data, and its answer.
struct Request<'a> {
    sent: Moment,
    back: Option<(Moment, Option<&'a Answer>)>,
}

/// All of them that were sent before the call was answered.
fn requests<'a>(seen: &'a Seen<'_>, call: &'a Call) -> impl Iterator<Item = Request<'a>> {
    let sent = seen.before(call.to).filter_map(|(at, _, event)| match event {
        Event::Sent { request, key, data } if (*key, *data) == (call.asked.key, call.asked.data) => {
            Some((at, *request))
        }
        _ => None,
    });
    sent.map(|(sent, id)| {
        let back = seen.events().skip(sent).find_map(|(at, _, event)| match event {
            Event::Back { request, answer, .. } if *request == id => Some((at, answer.as_ref())),
            _ => None,
        });
        Request { sent, back }
    })
}

/// SurveyLab told before a moment that the request had an effect.
fn adds(request: &Request<'_>, before: Moment) -> bool {
    let back = request.back.filter(|(at, _)| *at < before);
    back.is_some_and(|(_, answer)| matches!(answer, Some(Answer::Added { .. })))
}

fn attempts(seen: &Seen<'_>, call: &Call, added: &Added) -> Result<(), String> {
    let before = || seen.before(call.to);
    let made = before()
        .filter(|(_, _, event)| matches!(event, Event::Sent { key, .. } if *key == call.asked.key))
        .count();
    let lost = before().any(|(_, _, event)| matches!(event, Event::CutOff | Event::Died));
    let told = usize::try_from(added.attempts).unwrap();
    // A claim that was lost counts, though nobody knows of a request.
    ensure!(told == made || (lost && told > made), "{made} requests were made");
    Ok(())
}

/// Each answer "added" of SurveyLab is credited to one call at most.
fn added_once(seen: &Seen<'_>) -> Result<(), String> {
    for call in &seen.calls {
        let key = call.asked.key;
        let credited = seen
            .calls
            .iter()
            .filter(|other| other.asked.key == key && matches!(other.answer, Some(Ok(Outcome::Added(_)))))
            .count();
        let said = seen.events().filter(|(_, _, event)| {
            matches!(event, Event::Back { key: of, answer: Some(Answer::Added { .. }), .. } if *of == key)
        });
        let said = said.count();
        ensure!(
            credited <= said,
            "key {key} was added for {credited} calls, by {said} answers"
        );
    }
    Ok(())
}

fn failure_is_true(seen: &Seen<'_>, call: &Call, failure: &Failure) -> Result<(), String> {
    let Call {
        asked,
        from,
        to,
        process,
        ..
    } = *call;
    let (start, end) = (seen.time(from), seen.time(to));
    let known = || seen.known_to(call);
    sent_is_true(seen, call, failure.sent)?;
    let later = matches!(
        failure.reason,
        Reason::SurveylabRateLimited
            | Reason::SurveylabInternalError
            | Reason::SurveylabUnavailable
            | Reason::SurveylabUnreachable
            | Reason::WaitTooLong
            | Reason::QueueFull
            | Reason::ShuttingDown
            | Reason::LedgerUnavailable
    );
    ensure!(
        !later || failure.retry_after.is_some_and(|after| !after.is_zero()),
        "it is not told when to try again"
    );
    let before = |happened: fn(&Event, u8) -> bool| {
        let mut events = seen.before(to);
        events.any(|(_, of, event)| of == process && happened(event, asked.key))
    };
    let claims = |event: &Event, key| matches!(event, Event::Claims { key: of, .. } if *of == key);
    // Whether a claim that is cut off is granted, nobody here can tell any more.
    let is_lost = || before(|event, _| matches!(event, Event::CutOff)) && before(claims);
    let is_doubtful = || {
        let mut known = known().into_iter().flatten();
        known.any(|known| known.state == State::InDoubt) || is_lost()
    };
    ensure!(
        !failure.still_in_doubt || is_doubtful(),
        "the key was not in doubt: {:?}",
        known()
    );
    if failure.turned_away_after.is_some() {
        return turned_away_is_true(seen, call, failure);
    }
    match failure.reason {
        Reason::OutcomeInDoubt => ensure!(is_doubtful(), "the doubt is not recorded: {:?}", known()),
        Reason::CrkReused => {
            let mut others = seen.callers(process, asked.key, from, to);
            let other = others.any(|other| other.asked.data != asked.data);
            let held = known()
                .iter()
                .flatten()
                .any(|known| known.data != asked.data && known.state != State::Failed);
            // A claim goes its way, whoever leaves.
            let mut claims = seen.before(to);
            let claim = claims.rfind(|(_, of, event)| {
                let claims = matches!(event, Event::Claims { key, .. } if *key == asked.key);
                claims && *of == process
            });
            let claimed =
                claim.is_some_and(|(_, _, event)| matches!(event, Event::Claims { data, .. } if *data != asked.data));
            ensure!(other || held || claimed, "nobody has the key with other data");
        }
        Reason::WaitTooLong => {
            ensure!(
                asked.deadline.is_some() || asked.stream.is_none(),
                "it could wait for ever"
            );
            let passed = asked.deadline.is_some_and(|deadline| start + deadline <= end + GRAIN);
            ensure!(!failure.deadline_passed || passed, "its deadline lies ahead");
        }
        Reason::QueueFull => {
            let queue = seen.history.account.max_queue;
            let meanwhile = |other: &&Call| {
                other.process == process && seen.time(other.from) <= end && start <= seen.time(other.to)
            };
            let calls = seen.calls.iter().filter(meanwhile).count();
            ensure!(calls > queue, "{calls} calls were there, {queue} may wait");
        }
        Reason::DeadlineAfterSend => {
            ensure!(
                asked.deadline.is_some_and(|deadline| start + deadline <= end),
                "its deadline lies ahead"
            );
            ensure!(before(claims), "there never was a claim");
        }
        Reason::ShuttingDown => {
            ensure!(
                before(|event, _| matches!(event, Event::Closed)),
                "it does not shut down"
            );
        }
        Reason::LedgerUnavailable => {
            let failed = match failure.sent {
                Sent::No => before(|event, key| matches!(event, Event::Failed(_, of) if *of == key)),
                Sent::Yes | Sent::Unknown => before(|event, key| {
                    let kinds = |what: &Operation| matches!(what, Operation::Settle | Operation::Release);
                    matches!(event, Event::Failed(what, of) if *of == key && kinds(what))
                }),
            };
            ensure!(failed, "the ledger did all it was asked");
        }
        said => {
            let said_so = requests(seen, call).any(|request| {
                let back = request.back.filter(|(at, _)| *at < to);
                let answer = back.and_then(|(_, answer)| answer);
                answer.is_some_and(|answer| says(answer) == Some((said, failure.http_status)))
            });
            ensure!(said_so, "SurveyLab did not say so");
        }
    }
    Ok(())
}

/// SurveyLab has refused as many requests of this process in a row as it takes, one of them with these words.
fn turned_away_is_true(seen: &Seen<'_>, call: &Call, failure: &Failure) -> Result<(), String> {
    ensure!(failure.retry_after.is_some(), "it is not told when to try again");
    let (mut in_a_row, mut longest, mut said_so) = (0, 0, false);
    for (_, process, event) in seen.before(call.to) {
        let Event::Back {
            answer: Some(answer), ..
        } = event
        else {
            continue;
        };
        if process != call.process {
            continue;
        }
        match answer {
            Answer::BadRequest | Answer::Unauthorized => {
                in_a_row += 1;
                said_so |= says(answer).is_some_and(|(reason, _)| reason == failure.reason);
            }
            Answer::Unreachable { .. } | Answer::InDoubt { .. } => {}
            _ => in_a_row = 0,
        }
        longest = longest.max(in_a_row);
    }
    ensure!(said_so, "SurveyLab did not say so");
    let after = seen.history.account.breaker_after;
    ensure!(
        after > 0 && longest >= after,
        "{longest} in a row were refused, {after} turn calls away"
    );
    Ok(())
}

/// The table of SurveyLab's answers.
fn says(answer: &Answer) -> Option<(Reason, Option<u16>)> {
    Some(match answer {
        Answer::Added { .. } | Answer::InDoubt { .. } => return None,
        Answer::ActionFailed { http_status, .. } => (Reason::SurveylabActionFailed, Some(*http_status)),
        Answer::BadRequest => (Reason::SurveylabBadRequest, Some(400)),
        Answer::Unauthorized => (Reason::SurveylabUnauthorized, Some(401)),
        Answer::Forbidden => (Reason::SurveylabForbidden, Some(403)),
        Answer::NotFound => (Reason::SurveylabNotFound, Some(404)),
        Answer::RateLimited { .. } => (Reason::SurveylabRateLimited, Some(429)),
        Answer::InternalError => (Reason::SurveylabInternalError, Some(500)),
        Answer::Unavailable { .. } => (Reason::SurveylabUnavailable, Some(503)),
        Answer::UnexpectedStatus { http_status } => (Reason::SurveylabUnexpectedStatus, Some(*http_status)),
        Answer::Unreachable { .. } => (Reason::SurveylabUnreachable, None),
    })
}

fn sent_is_true(seen: &Seen<'_>, call: &Call, sent: Sent) -> Result<(), String> {
    let reached = |request: &Request<'_>| {
        let answer = request.back.and_then(|(_, answer)| answer);
        !matches!(answer, Some(Answer::Unreachable { .. }))
    };
    match sent {
        Sent::No => {
            let own = requests(seen, call).find(|request| call.from < request.sent && reached(request));
            ensure!(
                own.is_none() || call.asked.kind == Kind::Check,
                "a request was sent at {}",
                own.map_or(0, |own| own.sent)
            );
        }
        Sent::Yes => ensure!(
            requests(seen, call).any(|request| reached(&request)),
            "no request was sent"
        ),
        Sent::Unknown => {}
    }
    Ok(())
}

/// A key that is held the whole time of a call decides its answer.
fn held(seen: &Seen<'_>, call: &Call) -> Result<(), String> {
    let Call { asked, to, process, .. } = *call;
    let known = seen.known_to(call);
    let resenders = seen
        .callers(process, asked.key, seen.joined(call), to)
        .any(|other| other.asked.doubt == Doubt::Resend);
    let [Some(held)] = known[..] else { return Ok(()) };
    let failure = match &call.answer {
        Some(Err(failure)) => failure.reason,
        Some(Ok(outcome)) => {
            let told = matches!(outcome, Outcome::Added(_) | Outcome::Duplicate(_));
            let free = held.state == State::Failed || resenders || held.state == State::Pending;
            ensure!(
                free || (held.state == State::Added && held.data == asked.data && told),
                "the key was {held:?}"
            );
            return Ok(());
        }
        None => return Ok(()),
    };
    // The ledger was not heard of in time, or not at all.
    let unheard = match failure {
        Reason::LedgerUnavailable => true,
        Reason::WaitTooLong | Reason::DeadlineAfterSend => asked.deadline.is_some(),
        Reason::OutcomeInDoubt => seen
            .before(to)
            .any(|(_, of, event)| of == process && matches!(event, Event::CutOff)),
        _ => false,
    };
    let fitting = match held.state {
        State::Failed | State::Pending => true,
        _ if held.data != asked.data => failure == Reason::CrkReused,
        State::Added => false,
        State::InDoubt => failure == Reason::OutcomeInDoubt || resenders,
    };
    ensure!(fitting || unheard, "the key was {held:?}");
    Ok(())
}

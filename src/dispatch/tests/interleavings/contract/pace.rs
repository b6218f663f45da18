//! When requests go out, in which order, and how long calls wait.

use std::{collections::BTreeMap, time::Duration};

use super::{
    super::{
        history::{Event, Moment, RequestId},
        plan::{Kind, PACE_MAX},
        run::MAX_WAIT,
    },
    Call, GRAIN, Seen, ensure,
};
use crate::{rate::Rate, surveylab::Answer};

/// What `Retry-After` is trusted for.
const PAUSES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(3_600));

/// The requests of one process.
#[derive(Default)]
struct Traffic {
    sent: Vec<Duration>,
    on_the_wire: BTreeMap<RequestId, Moment>,
    /// The end of the pause, and the 429 that began it.
    pause: Duration,
    last_429: Option<Moment>,
}

/// No window of W seconds carries more than burst + rate·W requests, none goes out in a pause, and no more are on the wire
/// than there are places.
pub fn requests(seen: &Seen<'_>) -> Result<(), String> {
    let account = seen.history.account;
    let period = account.rate.parse::<Rate>().unwrap().period().as_secs_f64();
    let mut processes: BTreeMap<usize, Traffic> = BTreeMap::new();
    for (at, process, event) in seen.events() {
        let now = seen.time(at);
        let traffic = processes.entry(process).or_default();
        match event {
            Event::Sent { request, .. } => {
                ensure!(
                    now >= traffic.pause,
                    "request {request} at {at}, {now:?}, in a pause until {:?}",
                    traffic.pause
                );
                traffic.sent.push(now);
                for (n, first) in traffic.sent.iter().rev().enumerate() {
                    let allowed = f64::from(account.burst) + (now - *first).as_secs_f64() / period;
                    let count = n + 1;
                    ensure!(
                        count as f64 <= allowed + 1e-6,
                        "{count} requests from {first:?} to {now:?}"
                    );
                }
                traffic.on_the_wire.insert(*request, at);
                ensure!(
                    traffic.on_the_wire.len() <= account.max_in_flight,
                    "too many on the wire at {at}: {:?}",
                    traffic.on_the_wire
                );
            }
            Event::Back { request, answer, .. } => {
                let sent = traffic.on_the_wire.remove(request);
                if let Some(Answer::RateLimited { retry_after }) = answer {
                    // One to a request from before the last 429 says nothing new.
                    let is_news = sent > traffic.last_429;
                    let pause = match retry_after {
                        Some(asked) => (*asked).clamp(PAUSES.0, PAUSES.1),
                        None if is_news => PAUSES.0,
                        None => Duration::ZERO,
                    };
                    traffic.pause = traffic.pause.max(now + pause);
                    traffic.last_429 = Some(at);
                }
            }
            _ => {}
        }
    }
    Ok(())
}

/// Of two calls of one lane, each alone with its key, the one that came to the limiter at an earlier time is served first.
pub fn order(seen: &Seen<'_>) -> Result<(), String> {
    // Lane, time of coming, time of claiming, call.
    let mut served: Vec<(_, Duration, Duration, &Call)> = Vec::new();
    for call in &seen.calls {
        let key = call.asked.key;
        let alone = seen.callers(call.process, key, call.from, call.to).count() == 1;
        if call.asked.kind == Kind::Check || !alone {
            continue;
        }
        let first = |wanted: fn(&Event, u8) -> bool| {
            let mut events = seen.events().skip(call.from).take(call.to - call.from);
            events.find(|(_, process, event)| *process == call.process && wanted(event, key))
        };
        // Where it finds a permit at once it claims without a look-up.
        let came = first(
            |event, key| matches!(event, Event::LookedUp { key: other } | Event::Claims { key: other, .. } if *other == key),
        );
        let claimed = first(|event, key| matches!(event, Event::Claims { key: other, .. } if *other == key));
        if let (Some((came, ..)), Some((claimed, ..))) = (came, claimed) {
            let lane = (call.process, call.asked.stream);
            served.push((lane, seen.time(came), seen.time(claimed), call));
        }
    }
    for first in &served {
        let overtaking = served
            .iter()
            .find(|other| other.0 == first.0 && first.1 < other.1 && other.2 < first.2);
        ensure!(
            overtaking.is_none(),
            "call {} was overtaken by call {}",
            first.3.id,
            overtaking.map_or(0, |other| other.3.id)
        );
    }
    Ok(())
}

/// A call with a deadline is answered by it. A unary call without one waits as long as the longest wait, and then only for
/// what is on the wire or in the ledger's hands.
pub fn bounds(seen: &Seen<'_>) -> Result<(), String> {
    for call in seen.calls.iter().filter(|call| call.answer.is_some()) {
        let (from, to) = (seen.time(call.from), seen.time(call.to));
        if let Some(deadline) = call.asked.deadline {
            ensure!(
                to <= from + deadline + GRAIN,
                "call {} was answered at {to:?}, its deadline was {:?}",
                call.id,
                from + deadline
            );
        } else if call.asked.stream.is_none() && call.asked.kind == Kind::Add {
            let until = from + MAX_WAIT + GRAIN;
            if to > until {
                let busy = busy_until(seen, call, until);
                ensure!(
                    busy.is_some_and(|busy| to <= busy + GRAIN),
                    "call {} waited from {from:?} to {to:?}; its key was busy until {busy:?}",
                    call.id
                );
            }
        }
    }
    Ok(())
}

/// Until when a request, or the ledger, was at work for a call's key without a break from a time on.
fn busy_until(seen: &Seen<'_>, call: &Call, time: Duration) -> Option<Duration> {
    let of_key = |event: &Event| event.key() == Some(call.asked.key);
    let events = || seen.events().filter(|(_, _, event)| of_key(event));
    let is_settled = |event: &Event| matches!(event, Event::Settled { .. } | Event::Released { .. });
    let ends = |event: &Event| is_settled(event) || matches!(event, Event::LookedUp { .. } | Event::Failed(..));
    // The ledger tells a while later what it did.
    let told = |at| seen.time(at) + PACE_MAX;
    match events().rfind(|(at, ..)| seen.time(*at) <= time) {
        Some((at, _, event)) if is_settled(event) => Some(told(at)).filter(|told| *told >= time),
        _ => {
            let end = events().find(|(at, _, event)| ends(event) && seen.time(*at) > time);
            end.map(|(at, ..)| told(at))
        }
    }
}

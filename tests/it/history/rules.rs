//! What must hold in every history. They know the contract, and nothing of the gateway.

use std::{collections::BTreeMap, time::Duration};

use surveylab_gateway::proto::InvitationState as State;

use super::{Heard, History, Operation, Request, Wish};

/// Says how `history` breaks the rules: nothing, if it follows them all.
pub fn violations(history: &History) -> Vec<String> {
    let mut keys: BTreeMap<&str, Key> = BTreeMap::new();
    for operation in &history.operations {
        keys.entry(&operation.crk).or_default().operations.push(operation);
    }
    for request in &history.requests {
        keys.entry(&request.crk).or_default().requests.push(request);
    }
    for (crk, state) in &history.states {
        keys.entry(crk).or_default().state = Some(*state);
    }
    let mut found = Vec::new();
    for (crk, mut key) in keys {
        key.operations.sort_by_key(|operation| operation.begun);
        key.requests.sort_by_key(|request| request.at);
        key.ends = &history.ends;
        let broken = [
            key.is_sent_again(),
            key.is_acknowledged_without_effect(),
            key.was_sent_against_its_word(),
            key.forgets_what_it_said(),
            key.ends_in_the_wrong_state(),
        ];
        for what in broken.into_iter().flatten() {
            found.push(format!("{crk}: {what}"));
        }
    }
    found
}

/// The greatest number by which arrivals, in their order, exceed burst + rate·W in any window of time.
pub fn excess(arrivals: &[Duration], burst: f64, rate: f64) -> f64 {
    // Over all windows i..=j the greatest (j - i + 1) - burst - rate·(t[j] - t[i]).
    let (mut worst, mut begin) = (f64::MIN, f64::MIN);
    for (i, at) in arrivals.iter().enumerate() {
        let (i, used) = (i as f64, rate * at.as_secs_f64());
        begin = begin.max(used - i);
        worst = worst.max(i + 1.0 - used + begin - burst);
    }
    worst
}

/// Panics if a request arrived before the rate allows, counted from the first call on. It can be held up on its way, but
/// never leave early: this holds whatever the machine does.
pub fn none_is_early(arrivals: &[Duration], first_call: Duration, burst: f64, rate: f64) {
    for (before, at) in arrivals.iter().enumerate() {
        let allowed = burst + rate * at.saturating_sub(first_call).as_secs_f64();
        assert!(
            (before + 1) as f64 <= allowed,
            "{} arrived where {allowed} may",
            before + 1
        );
    }
}

/// All that happened to one key.
#[derive(Default)]
struct Key<'h> {
    operations: Vec<&'h Operation>,
    requests: Vec<&'h Request>,
    state: Option<State>,
    ends: &'h [Duration],
}

/// SurveyLab said that it did not process a request, or refused it.
fn is_settled_without_effect(request: &Request) -> bool {
    !request.effect
        && request
            .status
            .is_some_and(|status| !matches!(status, 200..=299 | 502 | 504))
}

/// Reasons that say nothing about the key.
fn is_transient(heard: &Heard) -> bool {
    match heard {
        Heard::Nothing => true,
        Heard::Error { reason, .. } => matches!(
            reason.as_str(),
            "LEDGER_UNAVAILABLE" | "SHUTTING_DOWN" | "WAIT_TOO_LONG" | "QUEUE_FULL"
        ),
        _ => false,
    }
}

/// Was it, or may it have been, done as wished? What is refused is not.
fn may_be_done(operation: &Operation) -> bool {
    !matches!(operation.heard, Heard::Error { .. })
}

fn reason(heard: &Heard) -> &str {
    match heard {
        Heard::Error { reason, .. } => reason,
        _ => "",
    }
}

impl Key<'_> {
    /// Until when an operation may still do something.
    fn lasts_until(&self, operation: &Operation) -> Duration {
        match operation.heard {
            // Its flight may be on the wire until the process ends.
            Heard::Nothing => self.ends.get(operation.run).copied().unwrap_or(Duration::MAX),
            _ => operation.ended,
        }
    }

    /// Did somebody allow, in this time, that a request be made again?
    fn is_allowed_between(&self, from: Duration, to: Duration) -> bool {
        self.operations.iter().any(|operation| {
            let allows = match operation.wish {
                Wish::Resend => true,
                Wish::ResolveNotAdded => may_be_done(operation),
                Wish::Add | Wish::ResolveAdded => false,
            };
            allows && operation.begun <= to && self.lasts_until(operation) >= from
        })
    }

    fn is_sent_again(&self) -> Option<String> {
        for pair in self.requests.windows(2) {
            let [first, second] = pair else { continue };
            if !is_settled_without_effect(first) && !self.is_allowed_between(first.at, second.at) {
                let what = if first.effect && second.effect {
                    "took effect twice"
                } else {
                    "was sent again while nobody could know what became of the first request"
                };
                return Some(format!("{what}, at {:?} and {:?}", first.at, second.at));
            }
        }
        None
    }

    fn is_acknowledged_without_effect(&self) -> Option<String> {
        for operation in &self.operations {
            if !matches!(operation.heard, Heard::Added | Heard::Duplicate(_)) {
                continue;
            }
            let by_request = self
                .requests
                .iter()
                .any(|request| request.effect && request.at <= operation.ended && request.email == operation.email);
            let by_a_person = self
                .operations
                .iter()
                .any(|other| other.wish == Wish::ResolveAdded && may_be_done(other) && other.begun <= operation.ended);
            let explained = by_request || (by_a_person && operation.heard != Heard::Added);
            if !explained {
                return Some(format!("was acknowledged without an effect: {operation:?}"));
            }
        }
        let added = self
            .operations
            .iter()
            .filter(|operation| operation.heard == Heard::Added)
            .count();
        let effects = self.requests.iter().filter(|request| request.effect).count();
        (added > effects).then(|| format!("was added by {added} calls, with {effects} effects"))
    }

    fn was_sent_against_its_word(&self) -> Option<String> {
        for operation in &self.operations {
            let Heard::Error { reason, sent } = &operation.heard else {
                continue;
            };
            let during = |at: Duration| operation.begun <= at && at <= operation.ended;
            if sent == "no" {
                // Another call that is under way with the key at the same time may well send.
                let alone = !self.operations.iter().any(|other| {
                    !std::ptr::eq(*other, *operation)
                        && other.begun <= operation.ended
                        && self.lasts_until(other) >= operation.begun
                });
                if alone && self.requests.iter().any(|request| during(request.at)) {
                    return Some(format!(
                        "was sent, but its caller was told that it was not: {operation:?}"
                    ));
                }
            }
            let was_answered = reason.starts_with("SURVEYLAB_") && reason != "SURVEYLAB_UNREACHABLE";
            if was_answered && !self.requests.iter().any(|request| request.at <= operation.ended) {
                return Some(format!(
                    "was never sent, but its caller was told of an answer: {operation:?}"
                ));
            }
        }
        None
    }

    fn forgets_what_it_said(&self) -> Option<String> {
        let touched_before = |at: Duration| {
            self.operations
                .iter()
                .any(|operation| operation.wish != Wish::Add && operation.begun <= at)
        };
        for (index, earlier) in self.operations.iter().enumerate() {
            for later in &self.operations[index..] {
                let is_call = matches!(later.wish, Wish::Add | Wish::Resend);
                if earlier.ended >= later.begun || !is_call || is_transient(&later.heard) {
                    continue;
                }
                let same = earlier.email == later.email;
                let agrees = match &earlier.heard {
                    Heard::Added | Heard::Duplicate(_) if !same => reason(&later.heard) == "CRK_REUSED",
                    Heard::Added => matches!(later.heard, Heard::Duplicate(_)),
                    Heard::Duplicate(_) => later.heard == earlier.heard,
                    Heard::Error { reason: held, .. } if held == "OUTCOME_IN_DOUBT" && !touched_before(later.ended) => {
                        reason(&later.heard) == if same { "OUTCOME_IN_DOUBT" } else { "CRK_REUSED" }
                    }
                    _ => true,
                };
                if !agrees {
                    return Some(format!("was answered differently later: {earlier:?}, then {later:?}"));
                }
            }
        }
        None
    }

    fn ends_in_the_wrong_state(&self) -> Option<String> {
        let state = self.state;
        let wrong = |why: &str| {
            Some(format!(
                "ends {}, but {why}",
                state.map_or("unknown", |state| state.as_str_name())
            ))
        };
        let acknowledged = self
            .operations
            .iter()
            .any(|operation| matches!(operation.heard, Heard::Added | Heard::Duplicate(_)));
        if acknowledged && state != Some(State::Added) {
            return wrong("it was acknowledged");
        }
        let resolved = |wish: Wish, since: Duration| {
            self.operations.iter().any(|operation| {
                operation.wish == wish && may_be_done(operation) && self.lasts_until(operation) >= since
            })
        };
        let has_effect = self.requests.iter().any(|request| request.effect);
        let may_be_unsent = self
            .operations
            .iter()
            .any(|operation| operation.heard == Heard::Nothing || reason(&operation.heard) == "OUTCOME_IN_DOUBT");
        match state {
            Some(State::Pending | State::Unspecified) => return wrong("nothing is under way any more"),
            Some(State::Added) if !has_effect && !resolved(Wish::ResolveAdded, Duration::ZERO) => {
                return wrong("nothing took effect");
            }
            // What is cut off between claim and arrival leaves a key in doubt that was never sent.
            Some(_) if self.requests.is_empty() && !may_be_unsent => return wrong("no request was ever made"),
            _ => {}
        }
        if let Some(last) = self.requests.last() {
            let is_free = matches!(state, None | Some(State::Failed));
            let is_released = resolved(Wish::ResolveNotAdded, last.at);
            if is_free && !is_settled_without_effect(last) && !is_released {
                return wrong("its last request may have taken effect");
            }
        }
        let last = self
            .operations
            .iter()
            .filter(|operation| !is_transient(&operation.heard))
            .max_by_key(|operation| operation.ended);
        let is_held = last.is_some_and(|last| reason(&last.heard) == "OUTCOME_IN_DOUBT");
        let touched = self.operations.iter().any(|operation| operation.wish != Wish::Add);
        if is_held && !touched && state != Some(State::InDoubt) {
            return wrong("its caller was told that it is in doubt");
        }
        None
    }
}

/// Each rule finds the history that breaks it, and none finds fault with its mended twin.
mod tests {
    use super::*;

    fn ms(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    fn call(begun: u64, ended: u64, heard: Heard) -> Operation {
        Operation {
            crk: "k".into(),
            email: "a".into(),
            wish: Wish::Add,
            run: 0,
            begun: ms(begun),
            ended: ms(ended),
            heard,
        }
    }

    fn wish(wish: Wish, begun: u64, ended: u64, heard: Heard) -> Operation {
        Operation {
            wish,
            ..call(begun, ended, heard)
        }
    }

    fn error(reason: &str, sent: &str) -> Heard {
        Heard::Error {
            reason: reason.into(),
            sent: sent.into(),
        }
    }

    fn request(at: u64, effect: bool, status: Option<u16>) -> Request {
        Request {
            crk: "k".into(),
            email: "a".into(),
            at: ms(at),
            effect,
            status,
        }
    }

    fn history(operations: &[Operation], requests: &[Request], state: Option<State>) -> History {
        History {
            operations: operations.to_vec(),
            requests: requests.to_vec(),
            ends: vec![ms(1_000)],
            states: state.map(|state| ("k".to_string(), state)).into_iter().collect(),
        }
    }

    /// The first history is fine, and the second breaks a rule with these words.
    fn differ(good: History, bad: History, words: &str) {
        assert_eq!(violations(&good), Vec::<String>::new());
        let found = violations(&bad);
        assert!(found.iter().any(|found| found.contains(words)), "{found:?}");
    }

    #[test]
    fn a_second_effect_needs_leave() {
        let requests = [request(10, true, None), request(50, true, Some(200))];
        let doubted = call(0, 20, error("OUTCOME_IN_DOUBT", "unknown"));
        let again = wish(Wish::Resend, 40, 60, Heard::Added);
        differ(
            history(&[doubted.clone(), again], &requests, Some(State::Added)),
            history(&[doubted, call(40, 60, Heard::Added)], &requests, Some(State::Added)),
            "took effect twice",
        );
    }

    #[test]
    fn a_second_request_needs_a_first_that_came_to_nothing() {
        let calls = [call(0, 60, Heard::Added)];
        let second = request(50, true, Some(200));
        differ(
            history(
                &calls,
                &[request(10, false, Some(503)), second.clone()],
                Some(State::Added),
            ),
            history(&calls, &[request(10, false, None), second], Some(State::Added)),
            "was sent again",
        );
    }

    #[test]
    fn what_is_acknowledged_took_effect() {
        let calls = [call(0, 20, Heard::Added)];
        differ(
            history(&calls, &[request(10, true, Some(200))], Some(State::Added)),
            history(&calls, &[request(10, false, Some(200))], Some(State::Added)),
            "without an effect",
        );
        let twice = [calls[0].clone(), call(1, 20, Heard::Added)];
        differ(
            history(&calls, &[request(10, true, Some(200))], Some(State::Added)),
            history(&twice, &[request(10, true, Some(200))], Some(State::Added)),
            "was added by 2 calls",
        );
    }

    #[test]
    fn what_was_not_sent_was_not_sent() {
        let calls = [call(0, 20, error("WAIT_TOO_LONG", "no"))];
        differ(
            history(&calls, &[], None),
            history(&calls, &[request(10, true, None)], Some(State::InDoubt)),
            "told that it was not",
        );
        let calls = [call(0, 20, error("SURVEYLAB_BAD_REQUEST", "yes"))];
        differ(
            history(&calls, &[request(10, false, Some(400))], Some(State::Failed)),
            history(&calls, &[], None),
            "was never sent",
        );
    }

    #[test]
    fn what_was_said_holds() {
        let requests = [request(10, true, Some(200))];
        let added = call(0, 20, Heard::Added);
        let with = |heard| history(&[added.clone(), call(30, 40, heard)], &requests, Some(State::Added));
        for wrong in [
            Heard::Added,
            error("OUTCOME_IN_DOUBT", "unknown"),
            error("SURVEYLAB_NOT_FOUND", "yes"),
        ] {
            differ(with(Heard::Duplicate(1)), with(wrong), "");
        }
        let duplicates = |other| {
            let calls = [call(30, 40, Heard::Duplicate(1)), call(50, 60, Heard::Duplicate(other))];
            history(&calls, &requests, Some(State::Added))
        };
        differ(duplicates(1), duplicates(2), "answered differently");
        let doubted = |heard| {
            let calls = [call(0, 20, error("OUTCOME_IN_DOUBT", "unknown")), call(30, 40, heard)];
            history(&calls, &[request(10, true, None)], Some(State::InDoubt))
        };
        differ(
            doubted(error("OUTCOME_IN_DOUBT", "unknown")),
            doubted(error("SURVEYLAB_BAD_REQUEST", "yes")),
            "answered differently",
        );
    }

    #[test]
    fn a_key_ends_as_its_requests_and_answers_say() {
        let lost = [call(0, 20, Heard::Nothing)];
        let requests = [request(10, true, None)];
        let ends = |state| history(&lost, &requests, state);
        differ(ends(Some(State::InDoubt)), ends(None), "may have taken effect");
        differ(
            ends(Some(State::InDoubt)),
            ends(Some(State::Failed)),
            "may have taken effect",
        );
        differ(
            ends(Some(State::Added)),
            ends(Some(State::Pending)),
            "nothing is under way",
        );
        let added = [call(0, 20, Heard::Added)];
        differ(
            history(&added, &requests, Some(State::Added)),
            history(&added, &requests, Some(State::InDoubt)),
            "it was acknowledged",
        );
        let refused = [call(0, 20, error("WAIT_TOO_LONG", "no"))];
        differ(
            history(&lost, &[], Some(State::InDoubt)),
            history(&refused, &[], Some(State::InDoubt)),
            "no request was ever made",
        );
        let no_effect = [request(10, false, Some(400))];
        differ(
            history(&lost, &no_effect, Some(State::Failed)),
            history(&lost, &no_effect, Some(State::Added)),
            "nothing took effect",
        );
    }

    #[test]
    fn too_many_in_a_window_are_counted() {
        let at = |times: &[u64]| times.iter().map(|at| ms(*at)).collect::<Vec<_>>();
        assert_eq!(excess(&at(&[0, 0, 100, 200]), 2.0, 10.0), 0.0);
        assert_eq!(excess(&at(&[0, 100, 100, 100, 500, 500]), 2.0, 10.0), 1.0);
    }
}

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use tokio::time::advance;

use super::*;
use crate::surveylab::Answer;

/// A breaker that opens after three, and the version of its token.
fn breaker() -> (Breaker, Arc<AtomicU64>) {
    let version = Arc::new(AtomicU64::new(1));
    let token_version = {
        let version = version.clone();
        move || version.load(Ordering::Relaxed)
    };
    (Breaker::new(3, Clock::system(), token_version), version)
}

fn added() -> Answer {
    Answer::Added {
        notification: String::new(),
    }
}

fn in_doubt() -> Answer {
    Answer::InDoubt {
        http_status: Some(502),
        cause: String::new(),
    }
}

fn unreachable() -> Answer {
    Answer::Unreachable { cause: String::new() }
}

fn answer(breaker: &Breaker, collector: &str, answer: &Answer) {
    breaker.enter(collector).ok().unwrap().answered(answer);
}

/// Reason, refusals and seconds of a call that is turned away.
fn away(breaker: &Breaker, collector: &str) -> Option<(Reason, u32, u64)> {
    let before = breaker.turns_away(collector);
    let at_its_turn = breaker.enter(collector).err();
    assert_eq!(before, at_its_turn);
    before.map(|away| (away.reason, away.refusals, away.retry_after.as_secs()))
}

const UNAUTHORIZED: Reason = Reason::SurveylabUnauthorized;
const BAD_REQUEST: Reason = Reason::SurveylabBadRequest;

async fn seconds(seconds: u64) {
    advance(Duration::from_secs(seconds)).await;
}

#[tokio::test(start_paused = true)]
async fn a_run_of_refusals_opens_it_with_the_last_ones_reason() {
    let (breaker, _) = breaker();
    answer(&breaker, "a", &Answer::BadRequest);
    answer(&breaker, "b", &Answer::BadRequest);
    assert_eq!((away(&breaker, "a"), breaker.standing()), (None, None));
    answer(&breaker, "b", &Answer::Unauthorized);
    assert_eq!(away(&breaker, "c"), Some((UNAUTHORIZED, 3, 5)));
    seconds(2).await;
    assert_eq!(away(&breaker, "c"), Some((UNAUTHORIZED, 3, 3)));
    let standing = breaker.standing().unwrap();
    assert_eq!(
        (
            standing.reason,
            standing.refusals,
            standing.collector_id,
            standing.next_probe
        ),
        (UNAUTHORIZED, 3, None, Duration::from_secs(3))
    );
}

#[tokio::test(start_paused = true)]
async fn any_other_answer_ends_the_run_and_none_changes_nothing() {
    let others = [
        added(),
        Answer::ActionFailed {
            http_status: 200,
            notification: String::new(),
        },
        Answer::Forbidden,
        Answer::NotFound,
        Answer::RateLimited { retry_after: None },
        Answer::InternalError,
        Answer::Unavailable { retry_after: None },
        Answer::UnexpectedStatus { http_status: 302 },
    ];
    for other in others {
        let (breaker, _) = breaker();
        for said in [
            &Answer::Unauthorized,
            &Answer::Unauthorized,
            &other,
            &Answer::Unauthorized,
        ] {
            answer(&breaker, "a", said);
        }
        assert_eq!(away(&breaker, "a"), None, "{other:?}");
        for said in [
            &in_doubt(),
            &Answer::Unauthorized,
            &unreachable(),
            &Answer::Unauthorized,
        ] {
            answer(&breaker, "a", said);
        }
        assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 3, 5)), "{other:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn one_probe_at_a_time_goes_out_after_pauses_that_double() {
    let (breaker, _) = breaker();
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    for (refusals, pause) in (3..).zip([5, 10, 20, 40, 60, 60]) {
        assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, refusals, pause)));
        seconds(pause - 1).await;
        assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, refusals, 1)));
        seconds(1).await;
        assert_eq!(breaker.turns_away("a"), None);
        let probe = breaker.enter("a").ok().unwrap();
        // Until it is answered, what comes then is what is known.
        let next = (pause * 2).min(60);
        assert_eq!(away(&breaker, "b"), Some((UNAUTHORIZED, refusals, next)));
        seconds(30).await;
        assert_eq!(away(&breaker, "b"), Some((UNAUTHORIZED, refusals, next)));
        probe.answered(&Answer::Unauthorized);
    }
    seconds(60).await;
    answer(&breaker, "a", &Answer::NotFound);
    assert_eq!((away(&breaker, "a"), breaker.standing()), (None, None));
    // The next time begins anew.
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 3, 5)));
}

#[tokio::test(start_paused = true)]
async fn a_probe_without_an_answer_gives_its_place_to_the_next() {
    let (breaker, _) = breaker();
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    seconds(5).await;
    // Withdrawn, or not sent for another reason.
    drop(breaker.enter("a").ok().unwrap());
    answer(&breaker, "a", &unreachable());
    answer(&breaker, "a", &in_doubt());
    let probe = breaker.enter("a").ok().unwrap();
    assert!(away(&breaker, "a").is_some());
    probe.answered(&added());
    assert_eq!(away(&breaker, "a"), None);
}

#[tokio::test(start_paused = true)]
async fn what_was_on_the_wire_when_it_opened_neither_delays_the_probe_nor_is_one() {
    let (breaker, _) = breaker();
    let late: Vec<_> = (0..2).map(|_| breaker.enter("a").ok().unwrap()).collect();
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    seconds(5).await;
    let probe = breaker.enter("a").ok().unwrap();
    for late in late {
        late.answered(&Answer::Unauthorized);
    }
    assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 5, 10)));
    probe.answered(&Answer::Unauthorized);
    assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 6, 10)));
}

#[tokio::test(start_paused = true)]
async fn a_late_answer_of_another_kind_closes_it() {
    let (breaker, _) = breaker();
    let late = breaker.enter("a").ok().unwrap();
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    late.answered(&added());
    assert_eq!(away(&breaker, "a"), None);
}

#[tokio::test(start_paused = true)]
async fn a_new_token_is_probed_at_once() {
    let (breaker, version) = breaker();
    let late = breaker.enter("a").ok().unwrap();
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    seconds(5).await;
    answer(&breaker, "a", &Answer::Unauthorized);
    assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 4, 10)));
    version.store(2, Ordering::Relaxed);
    let probe = breaker.enter("a").ok().unwrap();
    // What the old one is answered says nothing of the new one.
    late.answered(&Answer::Unauthorized);
    assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 4, 5)));
    probe.answered(&Answer::Unauthorized);
    assert_eq!(away(&breaker, "a"), Some((UNAUTHORIZED, 5, 5)));
    // Nor is a probe with an old one waited for.
    seconds(5).await;
    let old = breaker.enter("a").ok().unwrap();
    version.store(3, Ordering::Relaxed);
    let probe = breaker.enter("a").ok().unwrap();
    old.answered(&Answer::Unauthorized);
    assert!(away(&breaker, "a").is_some());
    probe.answered(&added());
    assert_eq!(away(&breaker, "a"), None);
}

#[tokio::test(start_paused = true)]
async fn refusals_of_an_old_token_do_not_count() {
    let (breaker, version) = breaker();
    let late: Vec<_> = (0..3).map(|_| breaker.enter("a").ok().unwrap()).collect();
    answer(&breaker, "a", &Answer::Unauthorized);
    answer(&breaker, "a", &Answer::Unauthorized);
    version.store(2, Ordering::Relaxed);
    for late in late {
        late.answered(&Answer::Unauthorized);
    }
    answer(&breaker, "a", &Answer::Unauthorized);
    answer(&breaker, "a", &Answer::Unauthorized);
    assert_eq!(away(&breaker, "a"), None);
    answer(&breaker, "a", &Answer::Unauthorized);
    assert!(away(&breaker, "a").is_some());
}

#[tokio::test(start_paused = true)]
async fn bad_requests_of_one_collector_turn_nobody_else_away() {
    let (breaker, _) = breaker();
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::BadRequest);
    }
    assert_eq!(away(&breaker, "a"), Some((BAD_REQUEST, 3, 5)));
    assert_eq!(breaker.standing().unwrap().collector_id.as_deref(), Some("a"));
    assert_eq!(away(&breaker, "b"), None);
    // The token is good, so the list's rows are told one by one again.
    answer(&breaker, "b", &added());
    assert_eq!(away(&breaker, "a"), None);

    // If it is not, the next collector's call shows that.
    for _ in 0..3 {
        answer(&breaker, "a", &Answer::BadRequest);
    }
    answer(&breaker, "b", &Answer::BadRequest);
    assert_eq!(away(&breaker, "c"), Some((BAD_REQUEST, 4, 5)));
    // A probe of any collector mends it.
    seconds(5).await;
    answer(&breaker, "c", &added());
    assert_eq!(away(&breaker, "a"), None);
}

#[tokio::test(start_paused = true)]
async fn without_a_number_it_never_opens() {
    let breaker = Breaker::new(0, Clock::system(), || 0);
    for _ in 0..1_000 {
        answer(&breaker, "a", &Answer::Unauthorized);
    }
    assert_eq!((away(&breaker, "a"), breaker.standing()), (None, None));
}

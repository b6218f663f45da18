//! The wall clock of the running gateway is set back and forth. It gives dates, and nothing is measured by it.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use surveylab_gateway::{
    proto::{Invitation, InvitationState, Outcome, Resolution},
    sandbox::{Fault, Gate, Sandbox},
};
use tokio::{task::JoinSet, time::Instant};

use crate::{
    history::rules,
    support::{
        Gateway,
        call::{add, added, get, request, resolve, stream},
        calling,
        deadline::PatientClient,
        gateway::surveylab,
        holding,
        shim::WallClock,
        watch::{add_within, list, metric, soon, until},
    },
};

const DAY: i64 = 24 * 60 * 60;
const YEAR: i64 = 365 * DAY;

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// A moment of a clock that is so many seconds ahead.
fn by_clock(ahead: i64) -> SystemTime {
    let now = SystemTime::now();
    if ahead < 0 {
        now - s(ahead.unsigned_abs())
    } else {
        now + s(ahead.unsigned_abs())
    }
}

async fn start(clock: &WallClock, sandbox: &Sandbox) -> Gateway {
    Gateway::with(clock.options(), sandbox).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rate_holds_and_nothing_stalls_when_the_clock_jumps_under_load() {
    const BURST: f64 = 5.0;
    const RATE: f64 = 100.0;
    let clock = WallClock::new();
    let sandbox = surveylab().await;
    let sandbox_started = Instant::now();
    let options = clock.options().flag("--rate", "100/s").flag("--burst", 5);
    let gateway = Gateway::with(options, &sandbox).await;
    let client = gateway.client().await;
    let first_call = Instant::now() - sandbox_started;
    let mut calls = JoinSet::new();
    for i in 0..150 {
        let client = client.clone();
        calls.spawn(async move { vec![add(&client, request(&format!("unary{i:03}"))).await] });
    }
    let items = (0..150).map(|i| request(&format!("item{i:03}"))).collect();
    calls.spawn({
        let client = client.clone();
        async move { stream(&client, items).await }
    });
    for (requests, ahead) in [(30, -DAY), (80, YEAR), (130, 0), (180, -YEAR), (230, DAY)] {
        soon(sandbox.wait_for_requests(requests)).await;
        clock.set_ahead(ahead);
    }
    // With the clock back by a year, who waited by it would wait for a year.
    for result in soon(calls.join_all()).await.into_iter().flatten() {
        assert_eq!(result.unwrap().outcome(), Outcome::Added);
    }
    // A bucket filled by the wall clock would have let all the rest through at the first jump ahead.
    let arrivals: Vec<Duration> = sandbox.requests().iter().map(|request| request.at).collect();
    assert_eq!(arrivals.len(), 300);
    rules::none_is_early(&arrivals, first_call, BURST, RATE);
}

async fn ends_when_it_was_to_end(status: u16, ahead: i64) {
    let clock = WallClock::new();
    let sandbox = surveylab().await;
    sandbox.add_fault(Fault::status(status).retry_after("2").times(1));
    let gateway = start(&clock, &sandbox).await;
    let client = gateway.client().await;
    let call = tokio::spawn(async move { added(&client, request("k")).await });
    soon(sandbox.wait_for_requests(1)).await;
    until("it is answered", async || {
        metric(&gateway, "requests_in_flight", "").await == 0.0
    })
    .await;
    clock.set_ahead(ahead);
    assert_eq!(soon(call).await.unwrap(), Outcome::Added);
    let arrivals: Vec<Duration> = sandbox.requests().iter().map(|request| request.at).collect();
    assert_eq!(arrivals.len(), 2);
    assert!(arrivals[1] >= arrivals[0] + s(2), "{status}, {ahead}: {arrivals:?}");
}

#[tokio::test]
async fn a_pause_that_has_begun_ends_when_it_was_to_end() {
    tokio::join!(
        ends_when_it_was_to_end(429, -DAY),
        ends_when_it_was_to_end(429, YEAR),
        ends_when_it_was_to_end(503, -DAY),
        ends_when_it_was_to_end(503, YEAR),
    );
}

#[tokio::test]
async fn a_date_by_another_clock_asks_for_a_second_at_least_and_an_hour_at_most() {
    // The gateway's clock and SurveyLab's, which asks for 30 s, and how long the pause may be in the end.
    let hour = (s(3000), s(3600));
    let own = (s(1), Duration::from_millis(1500));
    for (gateways, surveylabs, (least, most)) in [
        (-DAY, 0, hour),
        (YEAR, 0, own),
        (0, -DAY, own),
        (0, YEAR, hour),
        // Both wrong, and agreed. A machine that takes 29 s over this is left with the least pause.
        (YEAR, YEAR, (s(1), s(30))),
        (-DAY, -DAY, (s(1), s(30))),
    ] {
        let clock = WallClock::new();
        let sandbox = surveylab().await;
        let gateway = Gateway::with(clock.options().flag("--max-attempts", 1), &sandbox).await;
        // While it runs: what it has kept of the time before is wrong now.
        clock.set_ahead(gateways);
        let date = httpdate::fmt_http_date(by_clock(surveylabs) + s(30));
        sandbox.add_fault(Fault::status(429).retry_after(&date));
        let error = add(&gateway.client().await, request("k")).await.unwrap_err();
        let what = format!("{gateways} {surveylabs}: {error:?}");
        assert_eq!(error.reason, "SURVEYLAB_RATE_LIMITED", "{what}");
        let retry = error.retry.unwrap();
        assert!(retry >= least && retry <= most, "{what}");
        let pause = Duration::from_secs_f64(metric(&gateway, "pause_seconds", "").await);
        assert!(pause <= most && (least == s(1) || pause >= least), "{what}, {pause:?}");
    }
}

#[tokio::test]
async fn deadlines_and_timeouts_are_not_the_wall_clocks() {
    let clock = WallClock::new();
    let (sandbox, gate) = holding().await;
    let gateway = start(&clock, &sandbox).await;
    let client = gateway.client().await;
    // A year ahead no deadline and no timeout has passed.
    let calls = [Some(s(1000)), None].map(|within| {
        let (client, crk) = (client.clone(), format!("{within:?}"));
        tokio::spawn(async move {
            match within {
                Some(within) => add_within(&client, request(&crk), within).await,
                None => add(&client, request(&crk)).await,
            }
        })
    });
    soon(sandbox.wait_for_requests(2)).await;
    for ahead in [YEAR, -DAY, 0] {
        clock.set_ahead(ahead);
        // Something is done by the new time, while the others wait.
        assert_eq!(get(&client, "unknown").await, None);
    }
    assert_eq!(metric(&gateway, "requests_in_flight", "").await, 2.0);
    assert!(calls.iter().all(|call| !call.is_finished()));
    // A year back one still passes.
    clock.set_ahead(-YEAR);
    let patient = PatientClient::new(&gateway);
    let late = soon(patient.add(request("late"), Duration::from_millis(300))).await;
    let reason = late.unwrap_err().reason;
    assert!(
        ["DEADLINE_AFTER_SEND", "WAIT_TOO_LONG"].contains(&reason.as_str()),
        "{reason}"
    );
    gate.release();
    for call in calls {
        assert_eq!(soon(call).await.unwrap().unwrap().outcome(), Outcome::Added);
    }
}

fn time(at: Option<prost_types::Timestamp>) -> SystemTime {
    at.unwrap().try_into().unwrap()
}

/// A record whose times agree with each other: when it was changed last.
fn sane(record: &Invitation) -> SystemTime {
    let (created, updated) = (time(record.created_at), time(record.updated_at));
    assert!(created <= updated, "{record:?}");
    assert_eq!(
        record.added_at.is_some(),
        record.state() == InvitationState::Added,
        "{record:?}"
    );
    assert!(record.added_at.is_none_or(|at| time(Some(at)) == updated), "{record:?}");
    updated
}

#[tokio::test]
async fn records_are_dated_by_the_clock_as_it_is_and_never_created_after_their_last_change() {
    let clock = WallClock::new();
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.set_faults(vec![
        Fault::status(400).for_crk("refused-in-a-year").times(1),
        Fault::status(400).for_crk("refused-a-day-ago").times(1),
        Fault::hold(&gate).for_crk_prefix("held"),
    ]);
    let mut gateway = start(&clock, &sandbox).await;
    let client = gateway.client().await;

    // Claimed by one time, and settled by another.
    let held = ["held-back", "held-forth"].map(|crk| {
        let client = client.clone();
        tokio::spawn(async move { add(&client, request(crk)).await.unwrap() })
    });
    soon(sandbox.wait_for_requests(2)).await;
    clock.set_ahead(-DAY);
    gate.release();
    for call in held {
        let answer = soon(call).await.unwrap();
        let record = get(&client, &answer.crk).await.unwrap();
        assert!(sane(&record) <= by_clock(-DAY), "{record:?}");
        assert_eq!(record.added_at, answer.added_at);
    }
    // Refused in a year, and added now: nothing is dated by the year that was wrong.
    for (crk, ahead) in [("refused-in-a-year", YEAR), ("refused-a-day-ago", -DAY)] {
        clock.set_ahead(ahead);
        assert_eq!(
            add(&client, request(crk)).await.unwrap_err().reason,
            "SURVEYLAB_BAD_REQUEST"
        );
        sane(&get(&client, crk).await.unwrap());
        clock.set_ahead(0);
        let before = SystemTime::now();
        let answer = add(&client, request(crk)).await.unwrap();
        let record = get(&client, crk).await.unwrap();
        let updated = sane(&record);
        // The contract's times are in microseconds, rounded down.
        assert!(
            updated + Duration::from_micros(1) > before && updated <= SystemTime::now(),
            "{record:?}"
        );
        assert_eq!(record.added_at, answer.added_at);
    }

    // A process that dies in a year, and one that finds its claims now.
    let gate = Gate::new();
    sandbox.set_faults(vec![Fault::hold(&gate)]);
    clock.set_ahead(YEAR);
    let requests = sandbox.report().requests;
    let call = calling(&client, "orphan");
    soon(sandbox.wait_for_requests(requests + 1)).await;
    let mut settled = BTreeMap::new();
    for crk in list(&client, InvitationState::Added).await {
        settled.insert(crk.clone(), get(&client, &crk).await.unwrap());
    }
    gateway.kill();
    soon(call).await.unwrap().unwrap_err();
    gate.release();
    clock.set_ahead(0);
    let gateway = gateway.restart().await;
    let client = gateway.client().await;
    let orphan = get(&client, "orphan").await.unwrap();
    assert_eq!(orphan.state(), InvitationState::InDoubt);
    assert!(sane(&orphan) <= SystemTime::now(), "{orphan:?}");
    assert_eq!(settled.len(), 4);
    for (crk, record) in settled {
        assert_eq!(get(&client, &crk).await.as_ref(), Some(&record));
        let again = add(&client, request(&crk)).await.unwrap();
        assert_eq!((again.outcome(), again.added_at), (Outcome::Duplicate, record.added_at));
    }
    clock.set_ahead(-DAY);
    let resolved = resolve(&client, "orphan", Resolution::Added).await.unwrap();
    assert!(sane(&resolved) <= by_clock(-DAY), "{resolved:?}");
    assert_eq!(get(&client, "orphan").await, Some(resolved));
}

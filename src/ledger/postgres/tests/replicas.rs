//! Several replicas on one ledger: leases, dead ones, and those that only seem dead.

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::SystemTime,
};

use super::*;
use crate::ledger::Doubt;

/// Short, so that a test need not wait long for its end; long enough for a busy machine to keep it.
const SHORT: Duration = Duration::from_secs(2);

async fn short_lived(database: &Database<'_>) -> Postgres {
    let options = Options {
        lease: SHORT,
        name: "short-lived".into(),
    };
    open_by(&database.socket_url(), options).await.expect("opens")
}

fn resent(crk: &str, at: i64) -> Claim {
    Claim {
        doubt: Doubt::Resend,
        ..a_claim(&key(crk), at)
    }
}

#[tokio::test]
async fn of_two_replicas_one_claims_and_the_other_hears_of_the_end() {
    let database = testing::shared().database();
    let (one, other) = (
        open(&database).await.expect("opens"),
        open(&database).await.expect("opens"),
    );
    let key = key("1");
    assert_eq!(one.claim(a_claim(&key, 1)).await.expect("claims"), FIRST);
    for claim in [a_claim(&key, 2), resent("1", 2)] {
        let Claimed::No(record) = other.claim(claim).await.expect("answers") else {
            panic!("claimed twice")
        };
        assert_eq!(record.state, State::Pending);
    }
    // The other's word ends nothing: the claim is not its own.
    other.settle(&key, added(), Timestamp(3)).await.expect("answers");
    other.release(&key).await.expect("answers");
    assert_eq!(state(&one, "1").await, Some(State::Pending));

    // One's own claim is not waited for.
    one.settled(&key).await.expect("answers");
    let mut told = other.ended.subscribe();
    let waiting = other.settled(&key);
    let settling = async {
        until("the other watches", async || {
            database.sql("SELECT watched FROM pending") == "t"
        })
        .await;
        one.settle(&key, added(), Timestamp(4)).await.expect("settles");
    };
    let (waited, ()) = tokio::join!(waiting, settling);
    waited.expect("waits");
    assert_eq!(state(&other, "1").await, Some(State::Added));
    // It was told, and did not only look.
    timeout(Duration::from_secs(60), told.recv())
        .await
        .expect("is told")
        .expect("is told");
    // There is nothing to wait for.
    other.settled(&key).await.expect("answers");
}

#[tokio::test]
async fn those_who_wait_notice_the_end_without_being_told() {
    let database = testing::shared().database();
    let (one, other) = (
        open(&database).await.expect("opens"),
        open(&database).await.expect("opens"),
    );
    one.claim(a_claim(&key("1"), 1)).await.expect("claims");
    let key = key("1");
    let waiting = other.settled(&key);
    let releasing = async {
        until("the other watches", async || {
            database.sql("SELECT watched FROM pending") == "t"
        })
        .await;
        // As if the telling were lost with a connection.
        database.sql("UPDATE pending SET watched = false");
        one.release(&key).await.expect("releases");
    };
    let (waited, ()) = tokio::join!(waiting, releasing);
    waited.expect("waits");
}

/// More often than they look for themselves.
#[tokio::test]
async fn those_who_wait_look_for_themselves_while_the_ends_of_other_claims_are_told() {
    let database = testing::shared().database();
    let (one, other) = (
        open(&database).await.expect("opens"),
        open(&database).await.expect("opens"),
    );
    let key = key("1");
    one.claim(a_claim(&key, 1)).await.expect("claims");
    let waiting = timeout(Duration::from_secs(30), other.settled(&key));
    let releasing = async {
        until("the other watches", async || {
            database.sql("SELECT watched FROM pending") == "t"
        })
        .await;
        // As if the telling were lost with a connection.
        database.sql("UPDATE pending SET watched = false");
        one.release(&key).await.expect("releases");
        std::future::pending::<()>().await;
    };
    let telling = async {
        loop {
            let _others = other.ended.send(Id::random());
            sleep(LOOK / 5).await;
        }
    };
    select! {
        waited = waiting => waited.expect("notices").expect("waits"),
        () = releasing => {}
        () = telling => {}
    }
}

#[tokio::test]
async fn a_dead_replicas_claims_are_in_doubt_when_its_lease_has_run_out() {
    let database = testing::shared().database();
    let other = open(&database).await.expect("opens");
    let dying = short_lived(&database).await;
    dying.claim(a_claim(&key("1"), 1)).await.expect("claims");
    dying.die().await;
    // Until then nobody knows that it is dead.
    assert_eq!(state(&other, "1").await, Some(State::Pending));
    other.settled(&key("1")).await.expect("waits");
    let record = other.look_up(&key("1")).await.expect("looks up").expect("is there");
    assert_eq!(record.state, State::InDoubt);
    let reason = record.last_error.map(|error| error.reason);
    assert_eq!(reason, Some(crate::invitation::Reason::OutcomeInDoubt));
    assert_eq!(database.sql("SELECT name FROM replica"), Options::default().name);
    assert_eq!(
        other.claim(resent("1", 3)).await.expect("claims"),
        Claimed::Yes {
            attempts: 2,
            was_in_doubt: true,
            fence: FENCE,
        }
    );
}

#[tokio::test]
async fn a_replica_that_closes_leaves_nothing_pending() {
    let database = testing::shared().database();
    let (one, other) = (
        open(&database).await.expect("opens"),
        open(&database).await.expect("opens"),
    );
    one.claim(a_claim(&key("cut off"), 1)).await.expect("claims");
    one.claim(a_claim(&key("settled"), 1)).await.expect("claims");
    // What was begun before is finished.
    let settled = key("settled");
    let (settled, ()) = tokio::join!(one.settle(&settled, added(), Timestamp(2)), one.close());
    settled.expect("settles");
    assert_eq!(state(&other, "settled").await, Some(State::Added));
    assert_eq!(state(&other, "cut off").await, Some(State::InDoubt));
    assert_eq!(database.sql("SELECT count(*) FROM replica"), "1");
    assert!(!one.may_send(FENCE));
    assert_unavailable(one.claim(a_claim(&key("late"), 3)).await);
    assert_unavailable(one.look_up(&key("settled")).await);
}

/// It stood still for longer than its lease: by its own clocks it knows that before it can be told.
#[tokio::test]
async fn a_replica_that_stood_still_does_not_send_until_it_is_somebody_new() {
    let database = testing::shared().database();
    let other = open(&database).await.expect("opens");
    let ahead = Arc::new(AtomicU64::new(0));
    let clock = {
        let ahead = ahead.clone();
        Clock::with_wall(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::SeqCst)))
    };
    let settings = database.socket_url().parse().expect("is one");
    let options = Options {
        name: "slow".into(),
        ..Options::default()
    };
    let slow = Postgres::open(&settings, &clock, options).await.expect("opens");
    for crk in ["1", "3"] {
        assert_eq!(slow.claim(a_claim(&key(crk), 1)).await.expect("claims"), FIRST);
    }
    assert!(slow.may_send(FENCE));
    let before = database.sql("SELECT id FROM replica WHERE name = 'slow'");
    // The database, and with it the others, take it for dead.
    database.sql("UPDATE replica SET lease_until = clock_timestamp() - interval '1 second' WHERE name = 'slow'");
    ahead.store(9, Ordering::SeqCst);
    assert!(!slow.may_send(FENCE));
    other.settled(&key("1")).await.expect("waits");
    assert_eq!(state(&other, "1").await, Some(State::InDoubt));

    until("it has a lease again", async || slow.lease.holder().is_some()).await;
    let after = database.sql("SELECT id FROM replica WHERE name = 'slow'");
    assert_ne!(before, after);
    // Others may send them by now.
    assert!(!slow.may_send(FENCE));
    // Its late outcome ends the doubt, as its caller is told of it; unless somebody has gone by the doubt meanwhile.
    slow.settle(&key("1"), added(), Timestamp(2)).await.expect("answers");
    assert_eq!(state(&other, "1").await, Some(State::Added));
    other.claim(resent("3", 3)).await.expect("claims");
    slow.settle(&key("3"), added(), Timestamp(4)).await.expect("answers");
    assert_eq!(state(&slow, "3").await, Some(State::Pending));
    let Claimed::Yes { fence, .. } = slow.claim(a_claim(&key("2"), 5)).await.expect("claims") else {
        panic!("not claimed")
    };
    assert!(slow.may_send(fence));
}

/// Two replicas, of which one had claimed `crks` and was taken for dead, and goes on under another name.
async fn put_in_doubt(database: &Database<'_>, crks: &[&str]) -> (Postgres, Postgres) {
    let (slow, other) = (
        open(database).await.expect("opens"),
        open(database).await.expect("opens"),
    );
    for crk in crks {
        let claimed = slow.claim(a_claim(&key(crk), 1)).await.expect("claims");
        assert!(matches!(claimed, Claimed::Yes { .. }), "{claimed:?}");
    }
    database.sql(&format!(
        "UPDATE replica SET lease_until = clock_timestamp() - interval '1 second' WHERE id = '{}'",
        slow.lease.last().replica
    ));
    for crk in crks {
        until("its claims are in doubt", async || {
            state(&other, crk).await == Some(State::InDoubt)
        })
        .await;
    }
    (slow, other)
}

/// The settlement has looked at the key, and waits to change it, when another replica claims it.
#[tokio::test]
async fn a_late_outcome_and_a_resend_come_one_after_the_other() {
    let database = testing::shared().database();
    let (slow, other) = put_in_doubt(&database, &["1"]).await;
    let stranger = stranger(&database).await;
    stranger
        .batch_execute("BEGIN; SELECT FROM invitation FOR UPDATE")
        .await
        .expect("locks");
    let key = key("1");
    let resent_already = AtomicBool::new(false);
    let resending = async {
        until_one_waits(&database).await;
        let claimed = other.claim(resent("1", 3)).await.expect("answers");
        resent_already.store(true, Ordering::SeqCst);
        claimed
    };
    let unlocking = async {
        let waiting =
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
        until("the resend is claimed, or waits as well", async || {
            resent_already.load(Ordering::SeqCst) || database.sql(waiting) == "2"
        })
        .await;
        stranger.batch_execute("ROLLBACK").await.expect("ends");
    };
    let (settled, claimed, ()) = tokio::join!(slow.settle(&key, added(), Timestamp(2)), resending, unlocking);
    settled.expect("settles");
    let Claimed::No(record) = claimed else {
        panic!("sent again although it was told that it is added")
    };
    assert_eq!(record.state, State::Added);
    assert_eq!(database.sql("SELECT count(*) FROM pending"), "0");
}

/// SurveyLab's own word goes before what a person could find out, where nobody has gone by that yet.
#[tokio::test]
async fn a_key_that_was_resolved_as_not_added_is_added_if_the_late_outcome_says_so() {
    let database = testing::shared().database();
    let (slow, other) = put_in_doubt(&database, &["added", "failed", "claimed", "resolved"]).await;
    for (crk, resolution) in [
        ("added", Resolution::NotAdded),
        ("failed", Resolution::NotAdded),
        ("claimed", Resolution::NotAdded),
        ("resolved", Resolution::Added),
    ] {
        let resolved = other.resolve(&key(crk), resolution, Timestamp(2)).await;
        assert!(matches!(resolved, Ok(Resolved::Done(_))), "{resolved:?}");
    }
    let claimed = other.claim(a_claim(&key("claimed"), 3)).await.expect("answers");
    assert!(matches!(claimed, Claimed::Yes { .. }), "{claimed:?}");
    let failed = Settlement::Failed {
        error: LastError {
            reason: crate::invitation::Reason::SurveylabUnavailable,
            http_status: Some(503),
        },
        notification: None,
    };
    for (crk, settlement, found) in [
        ("added", added(), State::Added),
        ("failed", failed.clone(), State::Failed),
        ("claimed", added(), State::Pending),
        ("resolved", failed, State::Added),
    ] {
        slow.settle(&key(crk), settlement, Timestamp(4)).await.expect("settles");
        assert_eq!(state(&other, crk).await, Some(found), "{crk}");
    }
    let record = other
        .look_up(&key("failed"))
        .await
        .expect("looks up")
        .expect("is there");
    assert_eq!(record.updated_at, Timestamp(2));
    assert_eq!(database.sql("SELECT count(*) FROM pending"), "1");
}

/// The caller says that it has sent nothing. Of a key that was claimed before nobody knows any more what it was then.
#[tokio::test]
async fn a_late_release_ends_the_doubt_of_a_key_that_was_never_sent() {
    let database = testing::shared().database();
    let before = open(&database).await.expect("opens");
    let doubt = Settlement::InDoubt {
        error: LastError {
            reason: crate::invitation::Reason::OutcomeInDoubt,
            http_status: None,
        },
    };
    for crk in ["again", "doubt"] {
        before.claim(a_claim(&key(crk), 1)).await.expect("claims");
        before
            .settle(&key(crk), doubt.clone(), Timestamp(1))
            .await
            .expect("settles");
    }
    before
        .resolve(&key("again"), Resolution::NotAdded, Timestamp(1))
        .await
        .expect("resolves");
    let (slow, other) = put_in_doubt(&database, &["again", "new", "resolved", "resent"]).await;
    other
        .resolve(&key("resolved"), Resolution::NotAdded, Timestamp(2))
        .await
        .expect("resolves");
    other.claim(resent("resent", 2)).await.expect("claims");
    for (crk, found) in [
        ("again", Some(State::InDoubt)),
        ("doubt", Some(State::InDoubt)),
        ("new", None),
        ("resolved", Some(State::Failed)),
        ("resent", Some(State::Pending)),
    ] {
        slow.release(&key(crk)).await.expect("releases");
        assert_eq!(state(&other, crk).await, found, "{crk}");
    }
    assert_eq!(other.claim(a_claim(&key("new"), 3)).await.expect("claims"), FIRST);
}

/// What is tried again for the sake of another transaction may have taken long.
#[tokio::test]
async fn a_claim_that_is_tried_again_is_refused_if_the_lease_has_lapsed() {
    let database = testing::shared().database();
    let ahead = Arc::new(AtomicU64::new(0));
    let clock = {
        let ahead = ahead.clone();
        Clock::with_wall(move || SystemTime::now() + Duration::from_secs(ahead.load(Ordering::SeqCst)))
    };
    let settings = database.socket_url().parse().expect("is one");
    let slow = Postgres::open(&settings, &clock, Options::default())
        .await
        .expect("opens");
    database.sql(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             PERFORM pg_advisory_xact_lock(1);
             IF nextval('tries') = 1 THEN RAISE EXCEPTION 'as planned' USING ERRCODE = '40001'; END IF;
             RETURN NEW; END $$;
         CREATE TRIGGER conflict BEFORE INSERT ON pending FOR EACH ROW EXECUTE FUNCTION conflict()",
    );
    let (first_try, heartbeats) = (stranger(&database).await, stranger(&database).await);
    first_try
        .batch_execute("SELECT pg_advisory_lock(1)")
        .await
        .expect("locks");
    let key = key("1");
    let claim = slow.claim(a_claim(&key, 1));
    let lapse = async {
        until_one_waits(&database).await;
        heartbeats
            .batch_execute("BEGIN; SELECT FROM replica FOR UPDATE")
            .await
            .expect("locks");
        ahead.store(9, Ordering::SeqCst);
        first_try
            .batch_execute("SELECT pg_advisory_unlock(1)")
            .await
            .expect("unlocks");
    };
    let (claimed, ()) = tokio::join!(claim, lapse);
    assert_unavailable(claimed);
    assert_eq!(state(&slow, "1").await, None);
}

#[tokio::test]
async fn a_lapsed_lease_refuses_claims_and_records_outcomes() {
    let database = testing::shared().database();
    let ahead = Arc::new(AtomicU64::new(0));
    let clock = {
        let ahead = ahead.clone();
        // Time passes between any two looks, so that no lease holds.
        Clock::with_wall(move || {
            let step = ahead.load(Ordering::SeqCst);
            let passed = if step == 0 {
                0
            } else {
                ahead.fetch_add(100, Ordering::SeqCst)
            };
            SystemTime::UNIX_EPOCH + Duration::from_secs(passed)
        })
    };
    let settings = database.socket_url().parse().expect("is one");
    let ledger = Postgres::open(&settings, &clock, Options::default())
        .await
        .expect("opens");
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");
    ahead.store(1_000, Ordering::SeqCst);
    assert_unavailable(ledger.claim(a_claim(&key("2"), 1)).await);
    assert_unavailable(ledger.check().await);
    assert_eq!(state(&ledger, "2").await, None);
    // Nobody has put it in doubt, so the outcome is known.
    ledger.settle(&key("1"), added(), Timestamp(2)).await.expect("settles");
    assert_eq!(state(&ledger, "1").await, Some(State::Added));
}

#[tokio::test]
async fn a_heartbeat_under_way_keeps_its_replica_from_being_taken_for_dead() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");
    database
        .sql("INSERT INTO replica VALUES (gen_random_uuid(), 'theirs', now(), clock_timestamp() + interval '1 hour')");
    database.sql("UPDATE pending SET replica = (SELECT id FROM replica WHERE name = 'theirs')");
    // Another replica's renewal, sent in time, which the server has not committed.
    let theirs = stranger(&database).await;
    let now = "clock_timestamp()";
    database.sql(&format!(
        "UPDATE replica SET lease_until = {now} + interval '300 ms' WHERE name = 'theirs'"
    ));
    theirs
        .batch_execute(&format!(
            "BEGIN; UPDATE replica SET lease_until = {now} + interval '1 hour' WHERE name = 'theirs'"
        ))
        .await
        .expect("writes");
    until("its old lease has run out", async || {
        database.sql(&format!(
            "SELECT lease_until < {now} FROM replica WHERE name = 'theirs'"
        )) == "t"
    })
    .await;
    // By a replica that starts now, and looks for dead ones before it answers anything.
    let late = open(&database).await.expect("opens");
    theirs.batch_execute("COMMIT").await.expect("commits");
    let later = open(&database).await.expect("opens");
    for ledger in [&ledger, &late, &later] {
        assert_eq!(state(ledger, "1").await, Some(State::Pending));
    }
}

/// All want the same keys at once, in all orders, and settle them. Nobody waits in a circle, and each key has one
/// winner at a time.
#[tokio::test]
async fn replicas_that_want_the_same_keys_share_them_without_a_deadlock() {
    let database = testing::shared().database();
    let ledgers = join_all((0..3).map(|_| open(&database))).await;
    let ledgers: Vec<_> = ledgers.into_iter().map(|ledger| ledger.expect("opens")).collect();
    let failed = || Settlement::Failed {
        error: LastError {
            reason: crate::invitation::Reason::SurveylabUnavailable,
            http_status: Some(503),
        },
        notification: None,
    };
    let error = "answers";
    let turns = ledgers.iter().enumerate().map(async |(replica, ledger)| {
        let mut won = 0;
        for round in 0..30 {
            let keys: Vec<_> = (0..40)
                .map(|n| key(&((n * 7 + replica * 13 + round) % 40).to_string()))
                .collect();
            let claims = join_all(keys.iter().map(|key| ledger.claim(a_claim(key, 1)))).await;
            let mine: Vec<_> = keys
                .iter()
                .zip(claims)
                .filter(|(_, claimed)| matches!(claimed.as_ref().expect(error), Claimed::Yes { .. }))
                .map(|(key, _)| key)
                .collect();
            won += mine.len();
            join_all(
                mine.into_iter()
                    .map(async |key| ledger.settle(key, failed(), Timestamp(2)).await.expect(error)),
            )
            .await;
        }
        won
    });
    let won: usize = join_all(turns).await.into_iter().sum();
    // Each claim that was granted counts as one attempt, and no settlement was lost.
    assert_eq!(database.sql("SELECT sum(attempts) FROM invitation"), won.to_string());
    assert_eq!(database.sql("SELECT count(*) FROM pending"), "0");
    for ledger in ledgers {
        ledger.close().await;
    }
    let deadlocks =
        "SELECT pg_stat_force_next_flush(), deadlocks FROM pg_stat_database WHERE datname = current_database()";
    assert_eq!(database.sql(deadlocks), "|0");
}

#[tokio::test]
async fn a_host_that_hangs_does_not_keep_a_replica_from_the_next() {
    let database = testing::shared().database();
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("binds");
    let silent = silent.local_addr().expect("has one");
    let url = database.url_by(&format!("{silent},127.0.0.1:{}", database.server.port));
    let options = Options {
        // A heartbeat should take less time than the first host is given.
        lease: Duration::from_secs(1),
        name: "patient".into(),
    };
    let ledger = open_by(&format!("{url}?connect_timeout=1"), options)
        .await
        .expect("opens");
    // Other tests have databases on this server, too.
    database.sql(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
         WHERE datname = current_database() AND application_name LIKE 'surveylab-gateway%'",
    );
    until("its lease has run out", async || !ledger.may_send(FENCE)).await;
    until("it is there again", async || ledger.check().await.is_ok()).await;
}

//! The connection is lost, and with it the answer to a COMMIT.

use super::{
    cut::{Cut, MARK, Mistake, Place, Relay},
    *,
};

/// A ledger behind a relay that can cut at a batch with `MARK`.
async fn behind(database: &Database<'_>) -> (Postgres, Relay) {
    let relay = Relay::to(([127, 0, 0, 1], database.server.port).into()).await;
    let url = database.url_by(&relay.address.to_string());
    let ledger = open_by(&format!("{url}?sslmode=disable"), Options::default()).await;
    (ledger.expect("opens"), relay)
}

#[tokio::test]
async fn a_claim_that_was_committed_is_its_callers() {
    let database = testing::shared().database();
    let (ledger, relay) = behind(&database).await;
    relay.arm(Cut::AfterCommit);
    let marked = key(MARK);
    assert_eq!(ledger.claim(a_claim(&marked, 1)).await.expect("claims"), FIRST);
    ledger.settle(&marked, added(), Timestamp(2)).await.expect("settles");
    assert_eq!(state(&ledger, MARK).await, Some(State::Added));
}

/// An error that comes before the answers of a batch need not come from who carried the batch out.
#[tokio::test]
async fn a_claim_that_was_committed_behind_an_error_of_a_poolers_is_its_callers() {
    for (place, severity, code) in [
        (Place::First, "ERROR", "57014"),
        (Place::First, "FATAL", "08P01"),
        (Place::AfterBegin, "ERROR", "08P01"),
        (Place::AfterBegin, "FATAL", "57P01"),
        (Place::AfterBegin, "ERROR", "40003"),
    ] {
        let database = testing::shared().database();
        let (ledger, relay) = behind(&database).await;
        let mistake = Mistake { place, severity, code };
        relay.arm(Cut::Answered(mistake));
        let marked = key(MARK);
        let claimed = ledger.claim(a_claim(&marked, 1)).await;
        assert_eq!(claimed.expect("claims"), FIRST, "{mistake:?}");
        ledger.settle(&marked, added(), Timestamp(2)).await.expect("settles");
        assert_eq!(state(&ledger, MARK).await, Some(State::Added));
    }
}

/// Such as engines say whose nodes have lost each other.
#[tokio::test]
async fn a_claim_whose_completion_the_server_does_not_know_is_not_made_again() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    database.sql(
        "CREATE SEQUENCE tries;
         CREATE FUNCTION unknown() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
             IF nextval('tries') = 1 THEN RAISE EXCEPTION 'as planned' USING ERRCODE = '40003'; END IF;
             RETURN NEW; END $$;
         CREATE TRIGGER unknown BEFORE INSERT ON pending FOR EACH ROW EXECUTE FUNCTION unknown()",
    );
    assert_unavailable(ledger.claim(a_claim(&key("1"), 1)).await);
    assert_eq!(database.sql("SELECT last_value FROM tries"), "1");
    assert_eq!(ledger.claim(a_claim(&key("1"), 2)).await.expect("claims"), FIRST);
}

#[tokio::test]
async fn a_claim_over_a_record_that_cannot_be_read_is_taken_back() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    database.sql("INSERT INTO invitation VALUES ('c', '1', '\\x00', 3, 1, 1, 1, NULL, NULL, NULL)");
    assert_unavailable(ledger.claim(a_claim(&key("1"), 2)).await);
    until("it was taken back", async || {
        database.sql("SELECT count(*) FROM pending") == "0"
    })
    .await;
}

#[tokio::test]
async fn a_claim_that_was_not_committed_is_refused_and_the_key_free() {
    let database = testing::shared().database();
    let (ledger, relay) = behind(&database).await;
    relay.arm(Cut::BeforeCommit);
    let marked = key(MARK);
    assert_unavailable(ledger.claim(a_claim(&marked, 1)).await);
    assert_eq!(state(&ledger, MARK).await, None);
    assert_eq!(ledger.claim(a_claim(&marked, 2)).await.expect("claims"), FIRST);
}

/// The server does not know yet that the connection is lost, and commits when the caller has long been refused.
#[tokio::test]
async fn a_claim_that_is_committed_after_it_was_refused_is_taken_back() {
    let database = testing::shared().database();
    let (ledger, relay) = behind(&database).await;
    relay.arm(Cut::Unnoticed);
    // Counts what is deleted, which nobody but the ledger does.
    database.sql(
        "CREATE SEQUENCE came; CREATE FUNCTION came() RETURNS trigger LANGUAGE plpgsql AS \
         $$ BEGIN PERFORM nextval('came'); RETURN NULL; END $$; \
         CREATE TRIGGER came AFTER DELETE ON pending FOR EACH ROW EXECUTE FUNCTION came()",
    );
    let other = stranger(&database).await;
    other
        .batch_execute(&format!(
            "BEGIN; INSERT INTO pending VALUES ('c', '{MARK}', '\\x00', false, 1, gen_random_uuid(), gen_random_uuid())"
        ))
        .await
        .expect("writes");
    let marked = key(MARK);
    let claim = ledger.claim(a_claim(&marked, 1));
    let refused = async {
        relay.made.notified().await;
        until_one_waits(&database).await;
    };
    let (claimed, ()) = tokio::join!(claim, refused);
    assert_unavailable(claimed);
    other.batch_execute("ROLLBACK").await.expect("ends");
    until("it came and was taken back", async || {
        database.sql("SELECT is_called FROM came") == "t" && database.sql("SELECT count(*) FROM pending") == "0"
    })
    .await;
    assert_eq!(ledger.claim(a_claim(&marked, 2)).await.expect("claims"), FIRST);
}

#[tokio::test]
async fn what_ends_a_claim_is_done_whether_or_not_it_was_committed() {
    for cut in [Cut::BeforeCommit, Cut::AfterCommit, Cut::Unnoticed] {
        for is_settled in [true, false] {
            let database = testing::shared().database();
            let (ledger, relay) = behind(&database).await;
            let marked = key(MARK);
            assert_eq!(ledger.claim(a_claim(&marked, 1)).await.expect("claims"), FIRST);
            relay.arm(cut);
            if is_settled {
                ledger.settle(&marked, added(), Timestamp(2)).await.expect("settles");
            } else {
                ledger.release(&marked).await.expect("releases");
            }
            relay.made.notified().await;
            let expected = is_settled.then_some(State::Added);
            assert_eq!(state(&ledger, MARK).await, expected, "{cut:?}");
            // Nothing is left over for a next claim to be ended by.
            assert_eq!(database.sql("SELECT count(*) FROM pending"), "0");
        }
    }
}

#[tokio::test]
async fn a_resolution_is_refused_where_nobody_can_tell_whose_it_is() {
    for (cut, found) in [(Cut::BeforeCommit, State::InDoubt), (Cut::AfterCommit, State::Added)] {
        let database = testing::shared().database();
        let (ledger, relay) = behind(&database).await;
        let marked = key(MARK);
        ledger.claim(a_claim(&marked, 1)).await.expect("claims");
        let error = LastError {
            reason: crate::invitation::Reason::OutcomeInDoubt,
            http_status: None,
        };
        let doubt = Settlement::InDoubt { error };
        ledger.settle(&marked, doubt, Timestamp(2)).await.expect("settles");
        relay.arm(cut);
        assert_unavailable(ledger.resolve(&marked, Resolution::Added, Timestamp(3)).await);
        assert_eq!(state(&ledger, MARK).await, Some(found));
        assert_eq!(database.sql("SELECT count(*) FROM pending"), "0");
    }
}

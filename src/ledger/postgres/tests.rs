mod census;
mod cut;
mod replicas;
mod unknown;

use tokio::time::{sleep, timeout};
use tokio_postgres::Client;

use super::*;
use crate::{
    ledger::{
        LastError, State,
        conformance::{FENCE, FIRST, a_claim, added, key},
    },
    postgres::testing::{self, Database, Server},
};

impl Postgres {
    /// Ends as the process would: whatever is under way stays as it is. Returns when nothing of it runs any more.
    pub(in crate::ledger) async fn die(self) {
        let (work, tasks) = (self.work.clone(), self.tasks.clone());
        drop(self);
        for tracker in [work, tasks] {
            tracker.close();
            tracker.wait().await;
        }
    }
}

async fn open(database: &Database<'_>) -> Result<Postgres, Error> {
    open_by(&database.socket_url(), Options::default()).await
}

async fn open_by(url: &str, options: Options) -> Result<Postgres, Error> {
    let settings = url.parse().expect("is one");
    Postgres::open(&settings, &Clock::system(), options).await
}

/// Somebody else's connection, to be in the way with.
async fn stranger(database: &Database<'_>) -> Client {
    let settings = database.socket_url().parse().expect("is one");
    let (client, driver) = postgres::connect(&settings, "stranger").await.expect("connects");
    tokio::spawn(driver.run(|_| {}));
    client
}

async fn state(ledger: &Postgres, crk: &str) -> Option<State> {
    let record = ledger.look_up(&key(crk)).await.expect("looks up");
    record.map(|record| record.state)
}

/// Looks again and again until it holds: only for what gives no signal.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds().await {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// Returns once a session of the ledger waits for another's lock.
async fn until_one_waits(database: &Database<'_>) {
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'";
    until("a session waits", async || database.sql(waiting) == "1").await;
}

#[track_caller]
fn assert_unavailable<T: std::fmt::Debug>(answer: Result<T, Error>) -> String {
    match answer {
        Err(Error::Unavailable(text)) => text,
        other => panic!("not unavailable: {other:?}"),
    }
}

#[tokio::test]
async fn many_that_open_a_new_ledger_at_once_make_it_once() {
    let database = testing::shared().database();
    let opened = join_all((0..6).map(|_| open(&database))).await;
    for ledger in opened {
        let ledger = ledger.expect("opens");
        ledger.check().await.expect("works");
    }
    let versions = database.sql("SELECT version, compatible_with FROM schema_version");
    assert_eq!(versions, format!("{0}|1", schema::MIGRATIONS.len()));
}

#[tokio::test]
async fn a_migration_is_made_once_while_an_older_version_runs() {
    use schema::{MIGRATIONS, Migration, migrate};
    let database = testing::shared().database();
    let older = open(&database).await.expect("opens");
    older.claim(a_claim(&key("before"), 1)).await.expect("claims");
    // What a next version may bring.
    let column = Migration {
        sql: "ALTER TABLE invitation ADD COLUMN campaign text; ALTER TABLE pending ADD COLUMN campaign text",
        compatible_with: 1,
    };
    let first = Migration { ..copy(&MIGRATIONS[0]) };
    let migrations = [first, column];
    let clients = [stranger(&database).await, stranger(&database).await];
    let migrated = join_all(clients.iter().map(|client| migrate(client, &migrations))).await;
    migrated.into_iter().for_each(|migrated| migrated.expect("migrates"));
    assert_eq!(database.sql("SELECT count(*) FROM schema_version"), "2");
    // The older one goes on, and can even start.
    older
        .settle(&key("before"), added(), Timestamp(2))
        .await
        .expect("settles");
    older.claim(a_claim(&key("after"), 3)).await.expect("claims");
    let another = open(&database).await.expect("opens");
    assert_eq!(state(&another, "before").await, Some(State::Added));

    // Half of one that fails is no migration.
    let broken = Migration {
        sql: "CREATE TABLE half (); CREATE TABLE invitation ()",
        compatible_with: 1,
    };
    let [first, column] = migrations;
    let refused = migrate(&clients[0], &[first, column, broken]).await;
    assert!(matches!(refused, Err(Error::Unusable(_))), "{refused:?}");
    assert_eq!(
        database.sql("SELECT to_regclass('half') IS NULL, max(version) FROM schema_version"),
        "t|2"
    );

    database.sql("INSERT INTO schema_version VALUES (9, 3, now())");
    let Err(Error::Unusable(why)) = open(&database).await else {
        panic!("an incompatible version was opened")
    };
    assert!(why.contains("later version"), "{why}");
}

fn copy(migration: &schema::Migration) -> schema::Migration {
    schema::Migration {
        sql: migration.sql,
        compatible_with: migration.compatible_with,
    }
}

#[tokio::test]
async fn a_server_that_forgets_or_refuses_is_unusable_and_one_that_is_away_is_not() {
    let forgetful = Server::start(&["fsync = off"]);
    let Err(Error::Unusable(why)) = open(&forgetful.database()).await else {
        panic!("opened")
    };
    assert!(why.contains("fsync"), "{why}");
    let database = testing::shared().database();
    let url = database.url().replace("p%40ss", "hunter2");
    let Err(Error::Unusable(why)) = open_by(&url, Options::default()).await else {
        panic!("opened")
    };
    assert!(why.contains(&database.name) && !why.contains("hunter2"), "{why}");
    let away = open_by("postgres://u@127.0.0.1:1/d", Options::default()).await;
    assert_unavailable(away.map(drop));
}

/// The heart of it: the claim waits for the other replica's transaction, and was sent before that had an outcome.
#[tokio::test]
async fn a_claim_that_waited_for_a_settlement_sees_it() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    for (crk, state) in [("added", 2), ("failed", 3), ("doubt", 4)] {
        database.sql(&format!(
            "INSERT INTO pending VALUES ('c', '{crk}', '\\x{}', false, 1, \
             (SELECT id FROM replica), gen_random_uuid())",
            "01".repeat(32)
        ));
        let other = stranger(&database).await;
        other
            .batch_execute(&format!(
                "BEGIN; DELETE FROM pending WHERE crk = '{crk}'; INSERT INTO invitation \
                 SELECT 'c', '{crk}', '\\x{}', {state}, 1, 1, 2, NULL, NULL, NULL",
                "01".repeat(32)
            ))
            .await
            .expect("writes");
        let key = key(crk);
        let claim = ledger.claim(a_claim(&key, 5));
        let commit = async {
            until_one_waits(&database).await;
            other.batch_execute("COMMIT").await.expect("commits");
        };
        let (claimed, ()) = tokio::join!(claim, commit);
        match (state, claimed.expect("answers")) {
            (3, claimed) => assert_eq!(
                claimed,
                Claimed::Yes {
                    attempts: 2,
                    was_in_doubt: false,
                    fence: FENCE,
                }
            ),
            (_, Claimed::No(record)) => assert_eq!(record.state as i16, state),
            (_, claimed) => panic!("{claimed:?}"),
        }
    }
    assert_eq!(database.sql("SELECT crk FROM pending"), "failed");
}

#[tokio::test]
async fn what_the_server_undid_for_another_transaction_is_done_again() {
    for (when, commits) in [("BEFORE", ""), ("AFTER", "DEFERRABLE INITIALLY DEFERRED")] {
        for code in ["40001", "40P01"] {
            let database = testing::shared().database();
            let ledger = open(&database).await.expect("opens");
            // A sequence counts on when a transaction is undone.
            let constraint = if commits.is_empty() { "" } else { "CONSTRAINT" };
            database.sql(&format!(
                "CREATE SEQUENCE tries;
                 CREATE FUNCTION conflict() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                     IF nextval('tries') <= 2 THEN RAISE EXCEPTION 'as planned' USING ERRCODE = '{code}'; END IF;
                     RETURN NEW; END $$;
                 CREATE {constraint} TRIGGER conflict {when} INSERT ON pending {commits}
                 FOR EACH ROW EXECUTE FUNCTION conflict()"
            ));
            assert_eq!(ledger.claim(a_claim(&key("1"), 1)).await.expect("claims"), FIRST);
            assert_eq!(database.sql("SELECT last_value FROM tries"), "3");
            ledger.settle(&key("1"), added(), Timestamp(2)).await.expect("settles");
            assert_eq!(state(&ledger, "1").await, Some(State::Added));
        }
    }
}

#[tokio::test]
async fn one_bad_step_fails_alone() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    // PostgreSQL's text does not hold it; no key that was validated does, either.
    let bad = Key::new("c", "a\0b");
    let mut claims: Vec<_> = (0..40).map(|n| a_claim(&key(&n.to_string()), 1)).collect();
    claims.insert(17, a_claim(&bad, 1));
    let answers = join_all(claims.into_iter().map(|claim| ledger.claim(claim))).await;
    for (n, answer) in answers.into_iter().enumerate() {
        match n {
            17 => drop(assert_unavailable(answer)),
            _ => assert_eq!(answer.expect("claims"), FIRST),
        }
    }
    let looked_up = join_all([&bad, &key("1")].map(|key| ledger.look_up(key))).await;
    let [wrong, right] = <[_; 2]>::try_from(looked_up).expect("two");
    assert_unavailable(wrong);
    assert_eq!(
        right.expect("looks up").map(|record| record.state),
        Some(State::Pending)
    );
    ledger.check().await.expect("works");

    // SurveyLab may say anything.
    let notification = "zero \0 byte".to_string();
    let said = Settlement::Added { notification };
    ledger.settle(&key("1"), said, Timestamp(2)).await.expect("settles");
    let record = ledger.look_up(&key("1")).await.expect("looks up").expect("is there");
    assert_eq!(record.notification.as_deref(), Some("zero \u{fffd} byte"));
}

#[tokio::test]
async fn without_a_server_it_fails_and_with_it_works_again() {
    let server = Server::start(&[]);
    let database = server.database();
    let ledger = open(&database).await.expect("opens");
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");
    server.kill();
    assert_unavailable(ledger.claim(a_claim(&key("2"), 1)).await);
    assert_unavailable(ledger.settle(&key("1"), added(), Timestamp(2)).await);
    assert_unavailable(ledger.look_up(&key("1")).await);
    assert_unavailable(ledger.check().await);
    server.start_again();
    until("it works again", async || ledger.check().await.is_ok()).await;
    // What was claimed before is its own to settle, and what was refused was not claimed.
    ledger.settle(&key("1"), added(), Timestamp(2)).await.expect("settles");
    assert_eq!(state(&ledger, "1").await, Some(State::Added));
    until("what was refused is free", async || {
        matches!(ledger.claim(a_claim(&key("2"), 1)).await, Ok(FIRST))
    })
    .await;
    ledger.close().await;
}

#[tokio::test]
async fn a_listing_reads_no_more_of_the_ledger_than_its_page() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    database.sql(
        "INSERT INTO invitation SELECT 'c', lpad(n::text, 6, '0'), '\\x00', 2, 1, 1, 1, NULL, NULL, NULL \
         FROM generate_series(1, 20000) n; ANALYZE",
    );
    for (state, index) in [
        (None, "invitation_pkey"),
        (Some(State::Added), "invitation_pkey"),
        (Some(State::InDoubt), "invitation_not_added"),
    ] {
        let query = Query {
            collector_id: Some("c".into()),
            state,
            after: Some(key("010000")),
            limit: 3,
        };
        let sql = read::listing(&query);
        let sql = ["3", "'c'", "'c'", "'010000'"]
            .iter()
            .zip(1..)
            .fold(sql, |sql, (value, n)| sql.replace(&format!("${n}"), value));
        let plan = database.sql(&format!("EXPLAIN {sql}"));
        assert!(
            plan.contains(index) && !plan.contains("Seq Scan on invitation"),
            "{plan}"
        );
    }
    let page = ledger.list(Query {
        after: Some(key("010000")),
        limit: 3,
        ..Query::default()
    });
    // Their fingerprints are none.
    assert_unavailable(page.await);
}

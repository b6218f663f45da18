//! The statement against a real server.

use proptest::{
    prelude::*,
    test_runner::{Config, TestRunner},
};
use tokio_postgres::Client;

use super::{model::Row, *};
use crate::postgres::{
    self,
    testing::{self, Server},
};

const KEY: &str = "account";

fn url(database: &testing::Database<'_>) -> postgres::Settings {
    database.url().parse().unwrap()
}

fn account(database: &testing::Database<'_>, settings: &Settings) -> Account {
    Account::new(url(database), KEY, settings)
}

fn look() -> Ask {
    Ask {
        wanted: 0,
        horizon: HORIZON,
        report: None,
    }
}

async fn client(database: &testing::Database<'_>) -> Client {
    let (client, driver) = postgres::connect(&url(database), "test").await.unwrap();
    tokio::spawn(driver.run(|_| {}));
    client
}

/// One step, and what happened to the row before it.
#[derive(Clone, Debug)]
struct Step {
    wanted: u32,
    horizon: i64,
    /// How far the report's epoch is behind the row's, and the pause.
    report: Option<(i64, i64)>,
    /// Microseconds by which all of the row's times move into the past: so much time passes. Negative: the clock is set back.
    passed: i64,
}

fn step() -> impl Strategy<Value = Step> {
    let passed = prop_oneof![
        4 => 0i64..200_000,
        3 => 0i64..40_000_000,
        1 => -4_000_000_000i64..0,
        1 => 0i64..10_000_000_000,
    ];
    let report = prop::option::weighted(0.3, (0i64..3, 0i64..4_000_000_000));
    (0u32..3_000, 0i64..200_000, report, passed).prop_map(|(wanted, horizon, report, passed)| Step {
        wanted,
        horizon,
        report,
        passed,
    })
}

async fn read_row(client: &Client, terms: Terms) -> Row {
    let row = client
        .query_one(
            "SELECT tat, share, epoch, pause_until, step_at FROM account_rate WHERE account = $1",
            &[&KEY],
        )
        .await
        .unwrap();
    Row {
        terms,
        tat: row.get(0),
        share: row.get(1),
        epoch: row.get(2),
        pause_until: row.get(3),
        step_at: row.get(4),
    }
}

/// Lets the server and the model take the same steps at the same moments of the server's clock.
#[test]
fn the_statement_does_what_the_model_does() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let database = testing::shared().database();
    let client = runtime.block_on(client(&database));
    let settings = (
        prop_oneof![
            (1u32..5_000).prop_map(|n| format!("{n}/s")),
            (1u32..500).prop_map(|n| format!("{n}/h"))
        ],
        prop_oneof![1u32..20, 1u32..4_000_000],
    );
    let plan = (settings, prop::collection::vec(step(), 1..12));
    let mut runner = TestRunner::new(Config {
        cases: 40,
        failure_persistence: None,
        ..Config::default()
    });
    let outcome = runner.run(&plan, |((rate, burst), steps)| {
        let settings = super::settings(&rate, burst);
        let terms = Terms::new(settings.rate.period(), settings.burst);
        runtime.block_on(async {
            client
                .batch_execute("DROP TABLE IF EXISTS account_rate")
                .await
                .unwrap();
            let Ok((_, statement)) = super::super::account::prepare(&client, KEY, terms, Some(Duration::MAX)).await else {
                panic!("the row can't be made");
            };
            for step in &steps {
                client
                    .execute(
                        "UPDATE account_rate SET tat = tat - $1, pause_until = pause_until - $1, step_at = step_at - $1",
                        &[&step.passed],
                    )
                    .await
                    .unwrap();
                let mut model = read_row(&client, terms).await;
                let report = step.report.map(|(behind, pause)| (model.epoch - behind, pause));
                let report = report.filter(|(epoch, _)| *epoch >= 0);
                let (epoch, pause) = report.unwrap_or((-1, 0));
                let answered = client
                    .query_one(&statement, &[&KEY, &i64::from(step.wanted), &step.horizon, &epoch, &pause])
                    .await
                    .unwrap();
                let expected = model.apply(step.wanted, step.horizon, report, answered.get("now"));
                let answer = super::super::account::read(&answered, expected.asked).unwrap();
                prop_assert_eq!(answer, expected);
                prop_assert_eq!(read_row(&client, terms).await, model);
            }
            Ok(())
        })
    });
    outcome.unwrap();
}

/// Three clients lease as fast as they can. Times are the database's, so nothing depends on how this machine is loaded.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_together_are_granted_what_the_terms_allow_and_leave_nothing() {
    for (rate, burst) in [("50/s", 10), ("1000/s", 120), ("5000/s", 600)] {
        for isolation in ["read committed", "serializable"] {
            let database = testing::shared().database();
            database.sql(&format!(
                "ALTER DATABASE {} SET default_transaction_isolation = '{isolation}'",
                database.name
            ));
            let settings = settings(rate, burst);
            let terms = Terms::new(settings.rate.period(), settings.burst);
            let mut tasks = JoinSet::new();
            for _ in 0..3 {
                let mut account = account(&database, &settings);
                tasks.spawn(async move {
                    let mut answers = Vec::new();
                    for _ in 0..60 {
                        let ask = Ask {
                            wanted: 1 + burst / 10,
                            ..look()
                        };
                        answers.push((ask, account.lease(&ask).await.unwrap()));
                    }
                    answers
                });
            }
            let granted = tasks.join_all().await.concat();
            let mut total = 0;
            for (ask, answer) in &granted {
                total += u128::from(answer.granted);
                let next = answer.from + answer.pace.as_nanos() as i128 * i128::from(answer.granted);
                // A client gets less than it wants only if the next token lies beyond the horizon.
                assert!(
                    answer.granted == ask.wanted || next > ask.horizon.as_nanos() as i128,
                    "{answer:?}"
                );
            }
            // All that was granted is in the row: it began full, and has gone on by a pace for each token at least.
            let row = read_row(&client(&database).await, terms).await;
            let first = database.sql("SELECT (extract(epoch FROM now()) * 1000000)::bigint");
            let horizon = first.parse::<i64>().unwrap() + HORIZON.as_micros() as i64;
            let full = (terms.tolerance + terms.pace).as_micros() as i64;
            assert!(row.tat <= horizon + full, "{row:?}");
            assert!(total > u128::from(burst) / 2, "{rate}: {total}");
        }
    }
}

/// The whole of it over a real database, in real time.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_over_a_real_database_never_exceed_the_rate_and_all_get_on() {
    for (rate, burst) in [("50/s", 10), ("1000/s", 120), ("5000/s", 600)] {
        let database = testing::shared().database();
        let settings = settings(rate, burst);
        let (sent, mut sends) = mpsc::unbounded_channel();
        let limiters = [0, 1, 2].map(|_| replica(settings, account(&database, &settings)));
        let mut work = Vec::new();
        for (name, limiter) in limiters.iter().enumerate() {
            work.extend(saturate(limiter, name, 300, ms(0), &sent));
        }
        // Three seconds of the rate.
        let enough = (settings.rate.per_second() * 3.0) as usize;
        let (mut counts, mut times) = ([0; 3], Vec::new());
        while times.len() < enough {
            let (name, at) = sends.recv().await.unwrap();
            counts[name] += 1;
            times.push(at);
        }
        work.iter().for_each(JoinHandle::abort);
        limiters.iter().for_each(Limiter::close);
        times.sort();
        let over = excess(&times, burst, settings.rate.period());
        // For people, as it depends on what else this machine does. Without the first second, in which the table is made.
        let steady = &times[enough / 3..];
        let length = (steady[steady.len() - 1] - steady[0]).as_secs_f64();
        let used = steady.len() as f64 / length / settings.rate.per_second();
        println!("{rate}: {used:.3} of the rate used, by {counts:?}; excess {over:.1}");
        assert!(over < 1e-6, "{rate}: {over}");
        assert!(counts.iter().all(|count| *count > 0), "{counts:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_database_that_crashes_and_comes_back_is_leased_from_again() {
    let server = Server::start(&[]);
    let database = server.database();
    let settings = settings("100/s", 30);
    let limiter = replica(settings, account(&database, &settings));
    let (sent, mut sends) = mpsc::unbounded_channel();
    let _work = saturate(&limiter, 0, 50, ms(0), &sent);
    for _ in 0..100 {
        sends.recv().await.unwrap();
    }
    server.kill();
    // What was leased is used up or lost, and then nobody gets a permit.
    let deadline = Instant::now() + s(1);
    assert!(
        limiter
            .acquire(Lane::Stream(StreamId(999)), Some(deadline))
            .await
            .is_err()
    );
    while sends.try_recv().is_ok() {}
    server.start_again();
    for _ in 0..100 {
        sends.recv().await.unwrap();
    }
}

#[tokio::test]
async fn a_row_that_somebody_deleted_is_made_anew_with_an_empty_bucket() {
    let database = testing::shared().database();
    let settings = settings("1/h", 10);
    let mut account = account(&database, &settings);
    let ask = Ask { wanted: 1, ..look() };
    assert_eq!(account.lease(&ask).await.unwrap().granted, 1);
    database.sql("DELETE FROM account_rate");
    assert!(matches!(account.lease(&ask).await, Err(Error::NoRow)));
    let answer = account.lease(&ask).await.unwrap();
    assert_eq!(answer.granted, 0);
    assert!(answer.from > s(3_590).as_nanos() as i128, "{answer:?}");
}

#[tokio::test]
async fn a_row_with_an_earlier_versions_name_stays_the_accounts_row() {
    let database = testing::shared().database();
    let settings = settings("1/h", 1);
    let rows = || database.sql("SELECT string_agg(account, ',' ORDER BY account) FROM account_rate");
    let named = |name| Account::new(url(&database), name, &settings);
    let all = Ask { wanted: 9, ..look() };
    let mut earlier = named("earlier");
    assert_eq!(earlier.lease(&all).await.unwrap().granted, 1);
    // They share what is left, which is nothing.
    let mut first = account(&database, &settings);
    let mut second = account(&database, &settings);
    for account in [&mut first, &mut second] {
        assert_eq!(account.lease(&all).await.unwrap().granted, 0);
    }
    assert_eq!(rows(), "earlier");
    // Of several the one that was used last.
    database.sql(
        "INSERT INTO account_rate SELECT 'unused', period_ns, burst, pace_ns, tolerance_us, validity_us, 0, share, epoch, \
         pause_until, step_at FROM account_rate",
    );
    assert_eq!(account(&database, &settings).lease(&all).await.unwrap().granted, 0);
    assert_eq!(rows(), "earlier,unused");
    // Where it is gone, all make the same one.
    database.sql("DELETE FROM account_rate");
    for account in [&mut first, &mut second] {
        assert!(account.lease(&all).await.is_err());
        account.lease(&all).await.unwrap();
    }
    assert_eq!(rows(), KEY);
    // And that one is used, however lately another one was.
    database.sql(
        "INSERT INTO account_rate SELECT 'another', period_ns, burst, pace_ns, tolerance_us, validity_us, tat + 1, share, \
         epoch, pause_until, step_at FROM account_rate",
    );
    let mut third = account(&database, &settings);
    third.lease(&all).await.unwrap();
    let tat = "SELECT tat FROM account_rate WHERE account = 'another'";
    let before = database.sql(tat);
    third.lease(&all).await.unwrap();
    assert_eq!(database.sql(tat), before);
}

#[tokio::test]
async fn the_settings_of_the_replica_that_started_last_hold_for_all() {
    let database = testing::shared().database();
    let (old, new) = (settings("100/s", 50), settings("10/s", 20));
    let mut first = account(&database, &old);
    let ask = Ask { wanted: 40, ..look() };
    assert!(first.lease(&ask).await.unwrap().granted > 20);
    let mut second = account(&database, &new);
    // The bucket begins empty: two sets of settings allow no two bursts, only what time brings.
    let begin = Instant::now();
    let answer = second.lease(&ask).await.unwrap();
    let brought = begin.elapsed().as_millis() / 100;
    assert!(u128::from(answer.granted) <= 1 + brought, "{answer:?}");
    assert_eq!((answer.period, answer.burst), (ms(100), 20));
    let answer = first.lease(&look()).await.unwrap();
    assert_eq!((answer.period, answer.burst), (ms(100), 20));
    // A new connection of the first one changes nothing: they would take turns.
    database.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE '%rate'");
    assert!(first.lease(&look()).await.is_err());
    assert_eq!(first.lease(&look()).await.unwrap().burst, 20);
}

#[tokio::test]
async fn who_may_not_create_tables_uses_the_one_that_is_there() {
    let database = testing::shared().database();
    let settings = settings("10/s", 5);
    account(&database, &settings).lease(&look()).await.unwrap();
    database.sql(
        "CREATE ROLE poor LOGIN PASSWORD 'poor'; GRANT SELECT, INSERT, UPDATE ON account_rate TO poor; \
         REVOKE CREATE ON SCHEMA public FROM PUBLIC",
    );
    let poor = format!(
        "postgres://poor:poor@127.0.0.1:{}/{}",
        database.server.port, database.name
    );
    let mut account = Account::new(poor.parse().unwrap(), KEY, &settings);
    let answer = account.lease(&Ask { wanted: 1, ..look() }).await.unwrap();
    assert_eq!(answer.granted, 1);
    database.sql("DROP OWNED BY poor; DROP ROLE poor");
}

//! What a census costs, and what it is made of where nobody counts.

use super::{super::census::CENSUS, *};

/// Rows in a state, with the crks `FROM` to `TO`.
fn fill(database: &Database<'_>, state: State, crks: std::ops::Range<u32>) {
    let (from, to) = (crks.start, crks.end - 1);
    database.sql(&format!(
        "INSERT INTO invitation SELECT 'c', lpad(n::text, 6, '0'), '', {}, 1, n, n FROM generate_series({from}, {to}) n",
        state as i16
    ));
}

#[tokio::test]
async fn what_is_many_is_estimated_and_what_is_few_is_counted() {
    let database = testing::shared().database();
    let ledger = open(&database).await.expect("opens");
    fill(&database, State::Added, 0..20_000);
    fill(&database, State::Failed, 20_000..20_300);
    fill(&database, State::InDoubt, 20_300..20_307);
    database.sql("ANALYZE invitation");
    // Not in the estimates.
    fill(&database, State::InDoubt, 20_307..20_310);
    let another = open(&database).await.expect("opens");
    ledger.claim(a_claim(&key("new"), 1)).await.expect("claims");
    ledger.count().await.expect("counts");
    let expected = Census {
        pending: Some(1),
        added: Some(20_000),
        failed: Some(297),
        in_doubt: Some(10),
        oldest_doubt: Some(Timestamp(20_300)),
        replicas: Some(2),
    };
    assert_eq!(ledger.census(), expected);
    another.close().await;
    ledger.count().await.expect("counts");
    assert_eq!(ledger.census().replicas, Some(1));
}

#[tokio::test]
async fn no_census_reads_the_table() {
    let database = testing::shared().database();
    let _ledger = open(&database).await.expect("opens");
    fill(&database, State::Added, 0..20_000);
    fill(&database, State::InDoubt, 20_000..20_010);
    database.sql("ANALYZE");
    let plan = database.sql(&format!("EXPLAIN {}", CENSUS));
    assert!(
        plan.contains("invitation_not_added") && !plan.contains("Seq Scan on invitation"),
        "{plan}"
    );
}

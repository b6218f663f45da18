//! The WAL is worked off, and begins anew.

use std::io::Read as _;

use super::*;

/// How often the WAL has begun anew: <https://www.sqlite.org/fileformat2.html#walformat>.
fn restarts(fixture: &Fixture) -> u32 {
    let mut wal = fs::File::open(fixture.directory.path().join("ledger.db-wal")).expect("opens");
    let mut header = [0; 16];
    wal.read_exact(&mut header).expect("a header");
    u32::from_be_bytes([header[12], header[13], header[14], header[15]])
}

/// One commit of so many pages and a few more.
async fn write(ledger: &Sqlite, pages: u32) {
    sql(
        &ledger.writer,
        format!("UPDATE probe SET filler = zeroblob({pages} * 4096)"),
    )
    .await
    .expect("writes");
}

#[tokio::test]
async fn beside_the_writer() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    let before = restarts(&fixture);
    write(&ledger, 12_000).await;
    write(&ledger, 0).await;
    // A page each: so few never fill it.
    let mut commits = 0;
    while restarts(&fixture) == before {
        commits += 1;
        assert!(commits < 3_500);
        sql(&ledger.writer, "UPDATE probe SET filler = randomblob(8)")
            .await
            .expect("writes");
    }
}

#[tokio::test]
async fn within_a_commit_where_nobody_else_does_it() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    ledger.checkpointer.stop().await;
    // The connection that takes the place of one that failed sees to it as well.
    assert_unavailable(sql(&ledger.writer, "SELECT * FROM nothing").await);
    let before = restarts(&fixture);
    write(&ledger, 12_000).await;
    write(&ledger, 0).await;
    assert_eq!(restarts(&fixture), before);
    write(&ledger, 6_000).await;
    write(&ledger, 0).await;
    assert_eq!(restarts(&fixture), before + 1);
}

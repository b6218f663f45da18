//! Files that are moved, deleted or replaced under an open ledger: nothing is acknowledged, nothing is made anew.

use super::*;

impl Fixture {
    /// One of the ledger's files, by what its name ends with.
    fn file(&self, suffix: &str) -> PathBuf {
        self.directory.path().join(format!("ledger.db{suffix}"))
    }

    fn move_away(&self, suffix: &str) {
        fs::rename(self.file(suffix), self.file("-away")).expect("moves away");
    }

    fn move_back(&self, suffix: &str) {
        fs::rename(self.file("-away"), self.file(suffix)).expect("moves back");
    }
}

/// Everything that answers out of the ledger must fail, and say why.
async fn assert_gone(ledger: &Sqlite, key: &Key, why: &str) {
    for text in [
        assert_unavailable(ledger.check().await),
        assert_unavailable(ledger.look_up(key).await),
        assert_unavailable(ledger.claim(a_claim(key, 1)).await),
        assert_unavailable(ledger.settle(key, added(), Timestamp(2)).await),
        assert_unavailable(ledger.release(key).await),
        assert_unavailable(ledger.resolve(key, Resolution::Added, Timestamp(2)).await),
        assert_unavailable(ledger.list(Query::default()).await),
    ] {
        assert!(text.ends_with(why), "{text}");
    }
}

#[tokio::test]
async fn a_file_that_was_moved_away_stops_the_ledger_until_it_is_back() {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let fixture = Fixture::new();
        let ledger = fixture.open();
        ledger.claim(a_claim(&key("before"), 1)).await.expect("claims");
        ledger.check().await.expect("works");

        fixture.move_away(suffix);
        let gone = format!("ledger.db{suffix} was deleted or moved away");
        assert_gone(&ledger, &key("refused"), &gone).await;
        assert_gone(&ledger, &key("before"), &gone).await;
        assert!(!fixture.file(suffix).exists(), "{suffix} was made anew");

        fixture.move_back(suffix);
        ledger.check().await.expect("works again");
        assert_eq!(
            ledger.look_up(&key("refused")).await.expect("looks up"),
            None,
            "{suffix}"
        );
        assert_eq!(ledger.claim(a_claim(&key("refused"), 3)).await.expect("claims"), FIRST);
        let before = ledger
            .look_up(&key("before"))
            .await
            .expect("looks up")
            .expect("is there");
        assert_eq!((before.state, before.attempts), (State::Pending, 1), "{suffix}");
        ledger
            .settle(&key("before"), added(), Timestamp(4))
            .await
            .expect("settles");

        ledger.close().await;
        let ledger = fixture.open();
        let before = ledger
            .look_up(&key("before"))
            .await
            .expect("looks up")
            .expect("is there");
        assert_eq!(before.state, State::Added, "{suffix}");
    }
}

#[tokio::test]
async fn a_file_that_was_replaced_is_not_taken_for_the_ledger() {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let fixture = Fixture::new();
        let ledger = fixture.open();
        ledger.claim(a_claim(&key("before"), 1)).await.expect("claims");
        // Byte for byte the same, so that nothing but its identity tells.
        let copy = fs::read(fixture.file(suffix)).expect("reads");
        fixture.move_away(suffix);
        fs::write(fixture.file(suffix), &copy).expect("replaces");

        let replaced = format!("ledger.db{suffix} was replaced by another file");
        assert_gone(&ledger, &key("before"), &replaced).await;
        assert_eq!(fs::read(fixture.file(suffix)).expect("reads"), copy, "{suffix}");

        fixture.move_back(suffix);
        ledger.check().await.expect("works again");
        assert_eq!(ledger.claim(a_claim(&key("2"), 1)).await.expect("claims"), FIRST);
    }
}

#[tokio::test]
async fn a_connection_is_not_opened_to_files_that_are_gone() {
    for suffix in ["", "-wal", "-shm", ".lock"] {
        let fixture = Fixture::new();
        let ledger = fixture.open();
        // The next batch is to connect again, to which SQLite would make an empty WAL.
        sql(&ledger.writer, "no SQL").await.expect_err("fails");
        sql(&ledger.reader, "no SQL").await.expect_err("fails");
        fixture.move_away(suffix);
        assert_gone(&ledger, &key("1"), "was deleted or moved away").await;
        assert!(!fixture.file(suffix).exists(), "{suffix} was made anew");
        fixture.move_back(suffix);
        ledger.check().await.expect("works again");
        assert_eq!(ledger.claim(a_claim(&key("1"), 1)).await.expect("claims"), FIRST);
    }
}

#[tokio::test]
async fn a_wal_that_was_deleted_is_worked_into_the_file_when_the_ledger_is_closed() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");
    ledger.settle(&key("1"), added(), Timestamp(2)).await.expect("settles");
    fs::remove_file(fixture.file("-wal")).expect("removes");
    assert_unavailable(ledger.claim(a_claim(&key("2"), 1)).await);
    ledger.close().await;

    let ledger = fixture.open();
    let record = ledger.look_up(&key("1")).await.expect("looks up").expect("is there");
    assert_eq!(record.state, State::Added);
    assert_eq!(ledger.look_up(&key("2")).await.expect("looks up"), None);
}

/// What SQLite has written by then is not acknowledged. It is taken back once the files are there again, if the process lives;
/// else it comes back in doubt, as the contract says.
#[tokio::test]
async fn a_commit_whose_file_goes_meanwhile_is_not_acknowledged() {
    let fixture = Fixture::new();
    let place = Place::find(&fixture.path()).expect("a place");
    let owner = place.lock().expect("locks");
    let database = place.prepare().expect("prepares");
    let mut db = schema::open(&place, Timestamp(1)).expect("opens");
    let files = Arc::new(Files::watch(place, database, owner.identity).expect("watches"));
    let (from, to) = (fixture.file(""), fixture.file("-away"));
    db.commit_hook(Some(move || {
        fs::rename(&from, &to).expect("moves away");
        false
    }))
    .expect("hooks");
    let role = Role {
        name: "ledger-write",
        begin: "BEGIN IMMEDIATE",
        max_batch: MAX_BATCH,
        tally: Some(Arc::default()),
        checkpoints: None,
    };
    let writer = Worker::spawn(role, files, db, owner).expect("spawns");
    let text = assert_unavailable(writer.ask(write::Claim(a_claim(&key("1"), 1))).await);
    assert!(text.ends_with("was deleted or moved away"), "{text}");

    // Back before the process ends, the claim is nobody's, and released.
    fixture.move_back("");
    // Its own commit moves the file once more.
    assert_unavailable(writer.ask(write::Claim(a_claim(&key("2"), 1))).await);
    fixture.move_back("");
    drop(writer);
    let ledger = fixture.open();
    assert_eq!(ledger.look_up(&key("1")).await.expect("looks up"), None);
    let record = ledger.look_up(&key("2")).await.expect("looks up").expect("is there");
    assert_eq!(record.state, State::InDoubt);
}

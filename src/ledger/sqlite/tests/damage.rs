//! Files that are damaged, or not a ledger's: refused with a way out, left as they are, and met by no more keys than must.

use std::collections::BTreeMap;

use super::*;

impl Fixture {
    /// Every file of the ledger but the lock and the WAL's index, which is SQLite's own scratch.
    fn bytes(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let entries = fs::read_dir(self.directory.path()).expect("reads");
        let files = entries.map(|entry| entry.expect("is there").path());
        files
            .filter(|file| file.extension().is_some_and(|end| end == "db" || end == "db-wal"))
            .map(|file| (file.clone(), fs::read(file).expect("reads")))
            .collect()
    }

    /// The files of a ledger that is open, as a crash would leave them.
    fn crashed(&self) -> Self {
        let copy = Self::new();
        for (file, bytes) in self.bytes() {
            fs::write(copy.directory.path().join(file.file_name().expect("a name")), bytes).expect("copies");
        }
        copy
    }
}

/// Where the page begins on which a key's row is, in the file of a closed ledger.
fn page_of(fixture: &Fixture, crk: &str) -> usize {
    let bytes = fs::read(fixture.path()).expect("reads");
    let at = bytes
        .windows(crk.len())
        .position(|window| window == crk.as_bytes())
        .expect("is in the file");
    at / PAGE * PAGE
}

const PAGE: usize = 4_096;

/// A closed ledger with so many added keys that their tree has several pages, the crks from `k0000` on.
async fn with_keys(count: usize) -> Fixture {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    let keys: Vec<_> = (0..count).map(|n| key(&format!("k{n:04}"))).collect();
    for part in keys.chunks(100) {
        for answer in join_all(part.iter().map(|key| ledger.claim(a_claim(key, 1)))).await {
            answer.expect("claims");
        }
        for answer in join_all(part.iter().map(|key| ledger.settle(key, added(), Timestamp(2)))).await {
            answer.expect("settles");
        }
    }
    ledger.close().await;
    fixture
}

fn overwrite(path: &Path, at: usize, with: &[u8]) {
    let mut bytes = fs::read(path).expect("reads");
    bytes[at..at + with.len()].copy_from_slice(with);
    fs::write(path, bytes).expect("writes");
}

#[tokio::test]
async fn a_damaged_page_fails_its_own_keys_and_no_others() {
    let fixture = with_keys(1_000).await;
    let page = page_of(&fixture, "k0500");
    overwrite(&fixture.path(), page, &[0xff; PAGE]);
    let ledger = fixture.open();
    let db = Connection::open(fixture.path()).expect("connects");
    // A stranger's lock holds up the writer until all are queued, so that they share a batch.
    db.execute_batch("BEGIN IMMEDIATE").expect("begins");
    let crks = ["new0", "k0500", "new1", "new2"];
    let claims = crks.map(|crk| ledger.claim(a_claim(&key(crk), 1)));
    let mut claims = join_all(claims).boxed();
    assert!(claims.as_mut().now_or_never().is_none());
    db.execute_batch("ROLLBACK").expect("rolls back");
    for (crk, answer) in crks.iter().zip(claims.await) {
        if *crk == "k0500" {
            let text = assert_unavailable(answer);
            assert!(text.contains("malformed"), "{text}");
        } else {
            assert_eq!(answer.expect("claims"), FIRST, "{crk}");
        }
    }

    // Every key of the other pages is still known; those of this one are never called free.
    let keys: Vec<_> = (0..1_000).map(|n| key(&format!("k{n:04}"))).collect();
    let mut refused = 0;
    for part in keys.chunks(100) {
        for record in join_all(part.iter().map(|key| ledger.look_up(key))).await {
            match record {
                Ok(record) => assert_eq!(record.expect("is known").state, State::Added),
                Err(Error::Unavailable(_)) => refused += 1,
                Err(other) => panic!("{other}"),
            }
        }
    }
    assert!((1..=100).contains(&refused), "{refused} keys on one page");
    for crk in ["new0", "new1", "new2"] {
        ledger.settle(&key(crk), added(), Timestamp(3)).await.expect("settles");
    }
    ledger.check().await.expect("others can be claimed");
}

#[tokio::test]
async fn damage_that_every_key_would_meet_is_refused_and_left_as_it_is() {
    let whole = with_keys(200).await;
    let bytes = fs::read(whole.path()).expect("reads");
    let db = Connection::open(whole.path()).expect("connects");
    let root = |name: &str| {
        let sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?1";
        let page: u16 = db.query_row(sql, [name], |row| row.get(0)).expect("has a root");
        usize::from(page - 1) * PAGE
    };
    let garbage = [0xa5_u8; PAGE];
    let damage = |at: usize, with: &[u8]| {
        let mut damaged = bytes.clone();
        damaged[at..at + with.len()].copy_from_slice(with);
        damaged
    };
    for (what, damaged, why) in [
        ("magic", damage(0, b"SQLite fromage 3"), "not a ledger"),
        ("page size", damage(16, &[0, 3]), "not a ledger"),
        ("schema", damage(100, &garbage[100..]), "damaged"),
        ("invitation", damage(root("invitation"), &garbage), "damaged"),
        ("pending", damage(root("pending"), &garbage), "damaged"),
        ("probe", damage(root("probe"), &garbage), "damaged"),
        (
            "cut in half",
            bytes[..bytes.len() / 2 / PAGE * PAGE].to_vec(),
            "damaged",
        ),
        ("cut within a page", bytes[..PAGE + 100].to_vec(), "damaged"),
        ("cut within the header", bytes[..50].to_vec(), "damaged"),
    ] {
        let fixture = Fixture::new();
        fs::write(fixture.path(), &damaged).expect("writes");
        let text = refusal(&fixture.path());
        assert!(text.contains(why) && text.contains("backup"), "{what}: {text}");
        assert_eq!(fs::read(fixture.path()).expect("reads"), damaged, "{what}");
        // Nothing remains beside it that would be taken for its WAL when it is restored.
        assert!(!fixture.directory.path().join("ledger.db-wal").exists(), "{what}");
    }
}

#[tokio::test]
async fn what_is_refused_keeps_its_wal() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");

    // Of a later version.
    let later = fixture.crashed();
    let db = Connection::open(later.path()).expect("connects");
    db.pragma_update(None, "user_version", 99).expect("writes");
    let crashed = later.crashed();
    drop(db);
    let before = crashed.bytes();
    assert_eq!(before.len(), 2, "a file and its WAL");
    assert!(refusal(&crashed.path()).contains("later version"));
    assert_eq!(crashed.bytes(), before);

    // Of something else.
    let theirs = Fixture::new();
    let db = Connection::open(theirs.path()).expect("connects");
    db.execute_batch("PRAGMA journal_mode = WAL; CREATE TABLE theirs (x)")
        .expect("writes");
    let crashed = theirs.crashed();
    let before = crashed.bytes();
    assert_eq!(before.len(), 2, "a file and its WAL");
    assert!(refusal(&crashed.path()).contains("not a ledger"));
    assert_eq!(crashed.bytes(), before);
}

#[tokio::test]
async fn a_wal_that_is_none_is_refused_and_not_thrown_away() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");

    let crashed = fixture.crashed();
    let wal = crashed.directory.path().join("ledger.db-wal");
    overwrite(&wal, 0, b"garbage");
    let before = crashed.bytes();
    let text = refusal(&crashed.path());
    assert!(text.contains("write-ahead log") && text.contains("backup"), "{text}");
    assert_eq!(crashed.bytes(), before);

    // Zeros are what a loss of power leaves before the first commit.
    let begun = Fixture::new();
    begun.open().close().await;
    fs::write(begun.directory.path().join("ledger.db-wal"), [0; 4_152]).expect("writes");
    begun.open().check().await.expect("works");
}

#[test]
fn a_wal_whose_ledger_is_missing_is_refused_and_no_ledger_is_made() {
    let fixture = Fixture::new();
    fs::write(fixture.directory.path().join("ledger.db-wal"), b"claims").expect("writes");
    let text = refusal(&fixture.path());
    assert!(
        text.contains("is missing or empty") && text.contains("restore"),
        "{text}"
    );
    assert!(!fixture.path().exists());
}

struct Panic;

impl Operation for Panic {
    type Answer = ();

    fn run(&self, db: &Connection, _: &mut Change) -> Result<(), Fault> {
        db.execute("UPDATE probe SET filler = x'01'", [])?;
        panic!("as the test wants it")
    }
}

struct Filler;

impl Operation for Filler {
    type Answer = Option<Vec<u8>>;

    fn run(&self, db: &Connection, _: &mut Change) -> Result<Option<Vec<u8>>, Fault> {
        Ok(db.query_row("SELECT filler FROM probe", [], |row| row.get(0))?)
    }
}

#[tokio::test]
async fn a_panic_fails_its_own_step_and_is_undone() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    let db = Connection::open(fixture.path()).expect("connects");
    for round in 0..3 {
        // A stranger's lock holds up the writer until all are queued, so that they share a batch.
        db.execute_batch("BEGIN IMMEDIATE").expect("begins");
        let [one, two] = [format!("{round}-1"), format!("{round}-2")];
        let asked = async {
            tokio::join!(
                ledger.claim(a_claim(&key(&one), 1)),
                ledger.writer.ask(Panic),
                ledger.claim(a_claim(&key(&two), 1)),
            )
        };
        let mut asked = asked.boxed();
        assert!(asked.as_mut().now_or_never().is_none());
        db.execute_batch("ROLLBACK").expect("rolls back");
        let (before, panicked, after) = asked.await;
        assert!(assert_unavailable(panicked).contains("panicked"));
        assert_eq!((before.expect("claims"), after.expect("claims")), (FIRST, FIRST));
        assert_eq!(ledger.writer.ask(Filler).await.expect("reads"), None);
        ledger.check().await.expect("works");
    }
    ledger.close().await;
    let ledger = fixture.open();
    for crk in ["0-1", "0-2", "2-1", "2-2"] {
        let record = ledger.look_up(&key(crk)).await.expect("looks up").expect("is there");
        assert_eq!(record.state, State::InDoubt, "{crk}");
    }
}

#[tokio::test]
async fn a_panic_of_a_reader_leaves_it_working() {
    let fixture = Fixture::new();
    let ledger = fixture.open();
    ledger.claim(a_claim(&key("1"), 1)).await.expect("claims");
    assert_unavailable(ledger.reader.ask(Panic).await);
    let record = ledger.look_up(&key("1")).await.expect("looks up").expect("is there");
    assert_eq!(record.state, State::Pending);
    ledger.check().await.expect("works");
}

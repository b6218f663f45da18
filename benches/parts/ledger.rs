//! The ledger: claim and settlement of a new key, and look-ups.

use std::{
    cell::OnceCell,
    env,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use criterion::{BenchmarkId, Criterion};
use surveylab_gateway::{
    clock::{Clock, Timestamp},
    invitation::{Fingerprint, Key},
    ledger::{Claim, Claimed, Doubt, Ledger, Settlement, State, memory::Memory, sqlite::Sqlite},
};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::{
    callers::Callers,
    support::{
        files,
        keys::{Keys, key},
        ledgers,
        stub::NOTIFICATION,
    },
};

/// No ledger holds them.
static FRESH: Keys = Keys::fresh(0, u64::MAX);

/// How many call an empty ledger.
const CALLERS: [usize; 5] = [1, 16, 64, 256, 1_024];
/// How many call one that holds something.
const CALLERS_OF_GROWN: usize = 64;
/// How many keys it holds, unless this variable names others.
const SIZES: &str = "10000,1000000";
const SIZES_VARIABLE: &str = "PARTS_KEYS";

/// New keys on a ledger that is empty at first.
pub fn empty(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("ledger, empty at first: claim and settle");
    for name in ["SQLite", "memory"] {
        for count in CALLERS {
            let callers = Callers {
                runtime: &runtime,
                count,
            };
            callers.configure(&mut group);
            let opened = OnceCell::new();
            group.bench_function(BenchmarkId::new(name, callers_of(count)), |bencher| {
                let opened = opened.get_or_init(|| match name {
                    "memory" => Opened::memory(),
                    _ => Opened::sqlite(|_| ()),
                });
                bencher.iter_custom(|times| opened.claim_and_settle(&callers, times));
            });
            Opened::close(opened, &runtime);
        }
    }
    group.finish();
}

/// Look-ups, and then new keys, on ledgers that hold many. New keys stay: the smallest ledger grows several times over.
pub fn grown(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let sizes = env::var(SIZES_VARIABLE).unwrap_or_else(|_| SIZES.into());
    for size in sizes.split(',') {
        let size: u64 = size.trim().parse().expect("numbers of keys, with commas between them");
        let callers = Callers {
            runtime: &runtime,
            count: CALLERS_OF_GROWN,
        };
        let mut group = criterion.benchmark_group(format!("ledger, {size} keys at first"));
        callers.configure(&mut group);
        // Copied once for all three, and only if one of them is wanted.
        let opened = OnceCell::new();
        let opened_now = || opened.get_or_init(|| Opened::sqlite(|path| ledgers::copy(size, path).expect("a copy")));
        group.bench_function(
            BenchmarkId::new("look up, known", callers_of(callers.count)),
            |bencher| {
                let opened = opened_now();
                let known = Arc::new(ledgers::keys(size));
                bencher.iter_custom(|times| {
                    let (ledger, known) = (opened.ledger.clone(), known.clone());
                    callers.call(times, move || look_up_known(ledger.clone(), known.clone()))
                });
            },
        );
        group.bench_function(
            BenchmarkId::new("look up, unknown", callers_of(callers.count)),
            |bencher| {
                let opened = opened_now();
                bencher.iter_custom(|times| {
                    let ledger = opened.ledger.clone();
                    callers.call(times, move || look_up_unknown(ledger.clone()))
                });
            },
        );
        group.bench_function(
            BenchmarkId::new("claim and settle", callers_of(callers.count)),
            |bencher| {
                let opened = opened_now();
                bencher.iter_custom(|times| opened.claim_and_settle(&callers, times));
            },
        );
        group.finish();
        Opened::close(opened, &runtime);
    }
}

fn callers_of(count: usize) -> String {
    match count {
        1 => "1 caller".into(),
        _ => format!("{count} callers"),
    }
}

struct Opened {
    ledger: Arc<dyn Ledger>,
    /// Where its file is.
    _directory: Option<TempDir>,
}

impl Opened {
    fn memory() -> Self {
        Self {
            ledger: Arc::new(Memory::new()),
            _directory: None,
        }
    }

    fn sqlite(prepare: impl FnOnce(&Path)) -> Self {
        let directory = files::scratch("parts-").expect("a directory");
        let path = directory.path().join("ledger.db");
        prepare(&path);
        Self {
            ledger: Arc::new(Sqlite::open(&path, &Clock::system()).expect("a ledger")),
            _directory: Some(directory),
        }
    }

    fn close(opened: OnceCell<Self>, runtime: &Runtime) {
        if let Some(opened) = opened.into_inner() {
            runtime.block_on(opened.ledger.close());
        }
    }

    fn claim_and_settle(&self, callers: &Callers<'_>, times: u64) -> Duration {
        let ledger = self.ledger.clone();
        callers.call(times, move || claim_and_settle(ledger.clone()))
    }
}

fn drawn(keys: &Keys) -> Key {
    key(keys.draw().expect("more than can be drawn"))
}

async fn claim_and_settle(ledger: Arc<dyn Ledger>) {
    let key = drawn(&FRESH);
    let at = Timestamp::from(SystemTime::now());
    let claim = Claim {
        key: key.clone(),
        fingerprint: Fingerprint([7; 32]),
        doubt: Doubt::Hold,
        at,
    };
    let claimed = ledger.claim(claim).await.expect("a ledger that works");
    assert!(matches!(claimed, Claimed::Yes { .. }), "{claimed:?}");
    let settlement = Settlement::Added {
        notification: NOTIFICATION.into(),
    };
    ledger.settle(&key, settlement, at).await.expect("a ledger that works");
}

async fn look_up_known(ledger: Arc<dyn Ledger>, known: Arc<Keys>) {
    let record = ledger.look_up(&drawn(&known)).await.expect("a ledger that works");
    assert_eq!(record.map(|record| record.state), Some(State::Added));
}

async fn look_up_unknown(ledger: Arc<dyn Ledger>) {
    let record = ledger.look_up(&drawn(&FRESH)).await.expect("a ledger that works");
    assert!(record.is_none());
}

//! The gateway on a ledger that has grown, beside an empty one.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::{
    Options, disk,
    support::{
        Failure, files,
        gateway::{self, Gateway, Setup, ledger_url},
        ledgers,
        load::{Args as Load, Method, Report},
        statistics::median,
        stub::Stub,
    },
    table::{Table, Target},
};

/// Far below what it can do, so that no call waits for another, and enough for a checkpoint within seconds.
const MODEST: f64 = 500.0;

pub fn measure(options: &Options) -> Result<Table, Failure> {
    let directory = files::scratch("grown-")?;
    let ledger = directory.path().join("grown.db");
    ledgers::copy(options.keys, &ledger)?;
    let bytes = fs::metadata(&ledger)?.len() as f64 / options.keys as f64;

    let stub = Stub::start(&[])?;
    let start = |ledger: &Path| start(&stub, directory.path(), ledger);
    files::evict(&ledger)?;
    let uncached = start(&ledger)?.0;
    let cached = start(&ledger)?.0;

    let mut peak_memory: f64 = 0.0;
    let mut rounds = Vec::new();
    for round in 0..options.rounds.max(1) {
        let seed = u64::from(round) * 2;
        let empty = files::scratch("empty-")?;
        let (_, gateway) = start(&empty.path().join("ledger.db"))?;
        let on_empty = load(&gateway, seed, options.seconds).run()?;
        drop(gateway);
        let (_, gateway) = start(&ledger)?;
        let on_grown = load(&gateway, seed + 1, options.seconds).run()?;
        peak_memory = peak_memory.max(gateway.process.peak_memory()?);
        eprintln!(
            "grown, round {round}: {:.0}/s, {:.0}/s on an empty one",
            on_grown.per_second, on_empty.per_second
        );
        rounds.push(Round { on_empty, on_grown });
    }

    let mut syncs = disk::fdatasyncs(directory.path())?;
    syncs.sort_by(f64::total_cmp);
    let (_, gateway) = start(&ledger)?;
    let mut wal = Wal::of(&ledger);
    let modest = Load {
        rate: Some(MODEST),
        ..load(&gateway, 1_000, options.seconds * 3.0)
    };
    let modest = modest.run_beside(Duration::from_millis(20), || Ok(wal.look()?))?;
    peak_memory = peak_memory.max(gateway.process.peak_memory()?);
    drop(gateway);
    let left = fs::metadata(&wal.path)?.len();
    let (after_kill, _) = start(&ledger)?;

    stub.requests()?;
    let mut table = Table::new(format!("A ledger of {} keys", options.keys));
    table.throughput(&rounds);
    table.fdatasyncs(&syncs, "; a call waits for two");
    table.p99(&modest, &wal);
    for (what, took, remark) in [
        ("start, its pages not in memory", uncached, String::new()),
        ("start, its pages in memory", cached, String::new()),
        (
            "start after a kill",
            after_kill,
            format!("its WAL {:.0} MiB", left as f64 / files::MEBIBYTE),
        ),
    ] {
        table.limit(what, (took.as_secs_f64() * 1e3, "ms"), Target::Below(1_000.0), remark);
    }
    table.limit("on the disk", (bytes, "bytes a key"), Target::AtMost(240.0), "");
    table.limit("resident memory, peak", (peak_memory, "MiB"), Target::Below(200.0), "");
    Ok(table)
}

/// A gateway that serves, and how long it took until it did.
fn start(stub: &Stub, directory: &Path, ledger: &Path) -> Result<(Duration, Gateway), Failure> {
    let setup = Setup {
        ledger: Some(&ledger_url(ledger)),
        options: &gateway::UNLIMITED,
        ..Setup::new(stub.address, directory)
    };
    let mut gateway = setup.spawn()?;
    Ok((gateway.until_it_serves()?, gateway))
}

fn load(gateway: &Gateway, seed: u64, seconds: f64) -> Load {
    Load {
        seed,
        seconds,
        ..Load::new(gateway.address, Method::Unary, &gateway.process)
    }
}

struct Round {
    on_empty: Report,
    on_grown: Report,
}

impl Table {
    fn throughput(&mut self, rounds: &[Round]) {
        let middle = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
        self.limit(
            "throughput, 64 calls in flight, of that on an empty ledger",
            (
                middle(|round| round.on_grown.per_second / round.on_empty.per_second),
                "",
            ),
            Target::AtLeast(0.8),
            format!(
                "{:.0}/s, {:.0}/s on an empty one; medians of {} rounds",
                middle(|round| round.on_grown.per_second),
                middle(|round| round.on_empty.per_second),
                rounds.len()
            ),
        );
    }

    fn p99(&mut self, report: &Report, wal: &Wal) {
        let what = format!("p99 at {MODEST:.0}/s while checkpoints run");
        let figure = (report.p99, "ms");
        let remark = format!(
            "{} checkpoints, WAL up to {:.0} MiB; p50 {:.2} ms, p99.9 {:.1} ms, max {:.1} ms",
            wal.restarts,
            wal.longest as f64 / files::MEBIBYTE,
            report.p50,
            report.p999,
            report.max
        );
        match wal.restarts {
            0 => self.note(
                what,
                figure,
                format!("no checkpoint ran, so it tells nothing: {remark}"),
            ),
            _ => self.limit(what, figure, Target::Below(10.0), remark),
        }
    }
}

/// Watches a WAL begin anew, which it does when a checkpoint has copied all of it: then its header gets another salt
/// (<https://www.sqlite.org/fileformat2.html#walformat>).
struct Wal {
    path: PathBuf,
    salt: Option<[u8; 8]>,
    restarts: u32,
    longest: u64,
}

impl Wal {
    fn of(ledger: &Path) -> Self {
        let mut path = ledger.as_os_str().to_owned();
        path.push("-wal");
        Self {
            path: path.into(),
            salt: None,
            restarts: 0,
            longest: 0,
        }
    }

    fn look(&mut self) -> io::Result<()> {
        let file = File::open(&self.path)?;
        self.longest = self.longest.max(file.metadata()?.len());
        let mut salt = [0; 8];
        // There is no header before the first commit.
        if file.read_exact_at(&mut salt, 16).is_ok() {
            self.restarts += u32::from(self.salt.is_some_and(|before| before != salt));
            self.salt = Some(salt);
        }
        Ok(())
    }
}

//! How large the binary is, and how soon it serves.

use std::{fs, path::Path, process::Command};

use crate::{
    support::{
        Failure, files,
        gateway::{Setup, ledger_url},
        ledgers,
        statistics::{median, percentile},
        stub::Stub,
    },
    table::{Table, Target},
};

const KEYS: u64 = 10_000;
const STARTS: usize = 20;

pub fn measure() -> Result<Table, Failure> {
    let directory = files::scratch("start-")?;
    let ledger = directory.path().join("small.db");
    ledgers::copy(KEYS, &ledger)?;
    let stub = Stub::start(&[])?;
    let setup = Setup {
        ledger: Some(&ledger_url(&ledger)),
        ..Setup::new(stub.address, directory.path())
    };
    let binary = &setup.binary;
    let mebibytes = |path: &Path| Ok::<_, Failure>(fs::metadata(path)?.len() as f64 / files::MEBIBYTE);

    let mut table = Table::new("Binary and start");
    let stripped = directory.path().join("stripped");
    let remark = match Command::new("strip").arg("-o").arg(&stripped).arg(binary).status() {
        Ok(status) if status.success() => format!("stripped {:.1} MiB", mebibytes(&stripped)?),
        _ => "strip is missing".into(),
    };
    table.limit("binary", (mebibytes(binary)?, "MiB"), Target::Below(25.0), remark);

    let start = |table: &mut Table, what: &str, before: &dyn Fn() -> Result<(), Failure>| {
        let mut took = Vec::new();
        for _ in 0..STARTS {
            before()?;
            let mut gateway = setup.spawn()?;
            took.push(gateway.until_it_serves()?.as_secs_f64() * 1e3);
        }
        took.sort_by(f64::total_cmp);
        table.limit(
            format!("start to the first answer, ledger of {KEYS} keys, {what}"),
            (median(took.clone()), "ms"),
            Target::Below(100.0),
            format!("median of {STARTS}; slowest {:.1} ms", percentile(&took, 1.0)),
        );
        Ok::<_, Failure>(())
    };
    start(&mut table, "in memory", &|| Ok(()))?;
    start(&mut table, "not in memory, nor the binary", &|| {
        files::evict(binary)?;
        Ok(files::evict(&ledger)?)
    })?;
    Ok(table)
}

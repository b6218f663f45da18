//! What the disk takes by itself.

use std::{fs::File, os::unix::fs::FileExt as _, path::Path, time::Instant};

use crate::{
    support::{Failure, statistics::percentile},
    table::Table,
};

/// How long this disk takes, in milliseconds each, for what one commit of a small transaction asks of it.
pub fn fdatasyncs(directory: &Path) -> Result<Vec<f64>, Failure> {
    const PAGE: [u8; 4096] = [1; 4096];
    const PAGES: u64 = 1_000;
    let file = File::create(directory.join("syncs"))?;
    // As in a WAL that was there before: no commit waits for the file to become longer.
    for page in 0..PAGES {
        file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
    }
    file.sync_all()?;
    let one = |page| {
        let begin = Instant::now();
        file.write_all_at(&PAGE, page * PAGE.len() as u64)?;
        file.sync_data()?;
        Ok(begin.elapsed().as_secs_f64() * 1e3)
    };
    (0..PAGES).map(one).collect()
}

impl Table {
    pub fn fdatasyncs(&mut self, sorted: &[f64], remark: &str) {
        self.note(
            "fdatasync of 4 KiB, p50",
            (percentile(sorted, 0.5), "ms"),
            format!("p99 {:.2} ms{remark}", percentile(sorted, 0.99)),
        );
    }
}

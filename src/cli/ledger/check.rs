//! `ledger check`: is it whole, and what is in it?

use std::path::Path;

use clap::Args;
use serde_json::{Value, json};

use super::{Error, Output, complain, say, time_text};
use crate::{
    cli::Exit,
    ledger::sqlite::maintenance::{Ownership, Report, Snapshot},
};

/// Read the whole ledger, also while the gateway runs: is it whole, what is in it, and when did it last change?
///
/// Exit code 3 if it is damaged. Not every damage can be seen: SQLite keeps no checksums, so a value that was replaced
/// by another possible one passes.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

pub(super) fn run(ledger: &Snapshot, path: &Path, output: Output) -> Result<Exit, Error> {
    let report = ledger.check()?;
    match output {
        Output::Json => say(format_args!("{}", to_json(&report, path))),
        Output::Human => print(&report, path),
    }
    if report.damages == 0 {
        return Ok(Exit::Ok);
    }
    if output == Output::Human {
        complain(format_args!(
            "surveylab-gateway: the ledger {} is damaged. Stop the gateway, keep its files for those who look into it, \
             and restore a backup: docs/operations.md, \"Restore\"",
            path.display()
        ));
    }
    Ok(Exit::Refused)
}

fn print(report: &Report, path: &Path) {
    let line = |name: &str, value: &str| say(format_args!("{name:<12} {value}"));
    let keys = &report.keys;
    line(
        "ledger",
        &format!("{} (schema {})", path.display(), report.schema_version),
    );
    let gateway = match report.ownership {
        Ownership::Free => "not running".into(),
        Ownership::Taken(Some(id)) => format!("running, process {id}"),
        Ownership::Taken(None) => "running".into(),
        Ownership::Unknown => "not known: the lock file can't be read".into(),
    };
    line("gateway", &gateway);
    let states = format!(
        "{}: {} added, {} failed, {} in doubt, {} pending",
        keys.total(),
        keys.added,
        keys.failed,
        keys.in_doubt,
        keys.pending
    );
    line("keys", &states);
    if let Some((key, since)) = &report.oldest_doubt {
        let since = time_text(*since).unwrap_or_default();
        line("oldest doubt", &format!("{key:?} since {since}"));
    }
    let last_change = report.last_change.and_then(time_text);
    line("last change", last_change.as_deref().unwrap_or("none"));
    for (file, bytes) in &report.files {
        line("file", &format!("{}: {bytes} bytes", file.display()));
    }
    if report.damages == 0 {
        line("result", "whole");
        return;
    }
    line("result", &format!("DAMAGED, {} findings", report.damages));
    for what in &report.damage {
        line("damage", &printable(what));
    }
    if report.damages > report.damage.len() as u64 {
        line("damage", "…");
    }
}

/// A damaged key may hold anything, and terminals obey control characters.
fn printable(text: &str) -> String {
    text.replace(char::is_control, "\u{fffd}")
}

fn to_json(report: &Report, path: &Path) -> Value {
    let keys = &report.keys;
    let (is_running, process) = match report.ownership {
        Ownership::Free => (Some(false), None),
        Ownership::Taken(process) => (Some(true), process),
        Ownership::Unknown => (None, None),
    };
    let files = report.files.iter();
    let files: Vec<Value> = files
        .map(|(file, bytes)| json!({ "path": file.to_string_lossy(), "bytes": bytes }))
        .collect();
    json!({
        "ledger": path.to_string_lossy(),
        "schemaVersion": report.schema_version,
        "gateway": { "running": is_running, "process": process },
        "keys": {
            "total": keys.total(),
            "added": keys.added,
            "failed": keys.failed,
            "inDoubt": keys.in_doubt,
            "pending": keys.pending,
        },
        "oldestDoubt": report.oldest_doubt.as_ref().map(|(key, since)| {
            json!({ "collectorId": key.collector_id(), "crk": key.crk(), "since": time_text(*since) })
        }),
        "lastChange": report.last_change.and_then(time_text),
        "files": files,
        "damaged": report.damages > 0,
        "findings": report.damages,
        "damage": report.damage,
    })
}

//! The list: looked at whole before anything is sent, and read again to be sent.

use std::sync::Arc;

use tokio::sync::mpsc;

use super::{
    Failure, ImportArgs, answer, blocking,
    list::{self, Checked, Row, Rows},
    progress::Looking,
    results::Earlier,
    send::{Entry, Item},
};
use crate::cli::{figures::grouped, output::complain};

/// Problems of a list that are told one by one.
const TOLD: usize = 20;

/// Looks at the whole list, and at the results that it has already.
pub async fn look(rows: Rows, earlier: Arc<Earlier>) -> Result<Checked, Failure> {
    let looked = blocking(move || {
        let mut known = 0;
        let mut other = None;
        let mut told = 0;
        let begun = Looking::start();
        let checked = list::check(
            rows,
            &mut |row| match earlier.of(row.line, &row.crk) {
                Ok(found) => known += usize::from(found.is_some()),
                Err(line) => other = other.or(Some(line)),
            },
            &mut |problem| {
                told += 1;
                if told <= TOLD {
                    begun.tell(&problem.to_string());
                }
            },
            &mut |progress| begun.show(progress.rows),
        );
        begun.end();
        let checked = checked?;
        if told > TOLD {
            complain(format_args!("and {} more", grouped((told - TOLD) as u64)));
        }
        match other {
            Some(line) => Err(Failure::usage(another_list(line))),
            None if known < earlier.len() => Err(Failure::usage(
                "the results hold rows that the list does not have: they are another list's; give another path with --results",
            )),
            None => Ok(checked),
        }
    });
    looked.await?
}

fn another_list(line: u64) -> String {
    format!(
        "line {line} of the list has another crk than its result: the results are another list's, or an older one's; give \
         another path with --results"
    )
}

/// Is the list good enough to begin? Tells how good it is.
pub fn may_begin(args: &ImportArgs, checked: &Checked) -> bool {
    let count = |count: u64, what: &str| (count > 0).then(|| format!("{} {what}", grouped(count)));
    let parts = [
        Some(format!("{} rows", grouped(checked.rows))),
        count(checked.bad, "bad"),
        count(checked.conflicts, "with the crk of an earlier row, but other data"),
        count(checked.repeats, "that repeat an earlier row, and add nobody"),
        count(
            checked.repeated_emails,
            "with the e-mail address of an earlier row, but another crk",
        ),
        count(checked.empty, "empty ones left out"),
    ];
    complain(format_args!(
        "{}",
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    ));
    let wrong = checked.bad + checked.conflicts;
    if wrong == 0 || args.dry_run || args.skip_bad {
        return true;
    }
    complain(format_args!(
        "nothing was sent: correct the list, or send the rest of it with --skip-bad"
    ));
    false
}

/// Reads the list to its end and hands over what has no result yet.
pub fn hand_over(rows: Rows, earlier: &Earlier, entries: &mpsc::Sender<Result<Entry, String>>) {
    for row in rows {
        let entry = match row {
            Ok(row) => match earlier.of(row.line, &row.crk) {
                Ok(Some(_)) => continue,
                Ok(None) => Ok(entry(row)),
                Err(line) => Err(another_list(line)),
            },
            Err(error) => Err(error.to_string()),
        };
        let is_last = entry.is_err();
        if entries.blocking_send(entry).is_err() || is_last {
            return;
        }
    }
}

fn entry(row: Row) -> Entry {
    match row.content {
        Ok(request) => Entry::Row(Item {
            line: row.line,
            request,
            tries: 0,
            turned_away: 0,
        }),
        Err(why) => Entry::Bad(answer::bad(row.line, &row.crk, &why)),
    }
}

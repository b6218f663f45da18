//! Is a ledger whole, and what is in it?

use std::{ops::ControlFlow, path::PathBuf};

use rusqlite::ErrorCode;

use super::{Error, Ownership, Snapshot, describe, length};
use crate::{
    clock::Timestamp,
    invitation::Key,
    ledger::{Query, State, moving::Keys, sqlite::schema},
};

/// What is told of damage, at most: enough to know its kind.
const MAX_TOLD: usize = 20;

/// Rows that no version of the gateway writes, with what is wrong about them. Their states and types are the table's
/// own constraints, which the integrity check looks at. A reason that is not known yet may be a later version's.
const NONSENSE: &str = "
    SELECT collector_id, crk, 'its reason does not fit its state' FROM invitation
        WHERE (state = 2) <> (reason IS NULL) OR reason NOT BETWEEN 1 AND 255
    UNION ALL
    SELECT collector_id, crk, 'it has no attempt' FROM invitation WHERE attempts < 1
    UNION ALL
    SELECT collector_id, crk, 'it is claimed without an attempt' FROM pending WHERE attempts < 1
    UNION ALL
    SELECT collector_id, crk, 'it is claimed although it was added' FROM pending
        JOIN invitation USING (collector_id, crk) WHERE invitation.state = 2";

/// What a check found.
#[derive(Debug)]
pub struct Report {
    pub schema_version: i64,
    /// Those that could be read.
    pub keys: Keys,
    /// The key that has been in doubt for the longest time, and since when.
    pub oldest_doubt: Option<(Key, Timestamp)>,
    /// When a key was last claimed, settled or resolved, by the gateway's clock.
    pub last_change: Option<Timestamp>,
    /// The ledger's files, with their sizes in bytes.
    pub files: Vec<(PathBuf, u64)>,
    pub ownership: Ownership,
    /// What is wrong, in words; empty for a ledger that is whole. The first findings only.
    pub damage: Vec<String>,
    /// All findings, those not in `damage` too.
    pub damages: u64,
}

impl Report {
    fn found(&mut self, what: String) {
        self.damages += 1;
        if self.damage.len() < MAX_TOLD {
            self.damage.push(what);
        }
    }
}

impl Snapshot {
    /// Looks at every page and every row. It can't see that a value was replaced by another that makes sense as well:
    /// SQLite's pages have no checksums.
    ///
    /// # Errors
    ///
    /// Only if it could not look: damage is what the report is for.
    pub fn check(&self) -> Result<Report, Error> {
        let files = ["", "-wal"].map(|suffix| self.place.beside(suffix));
        let mut report = Report {
            schema_version: schema::VERSION,
            keys: Keys::default(),
            oldest_doubt: None,
            last_change: None,
            files: files.into_iter().map(|path| (path.clone(), length(&path))).collect(),
            ownership: self.ownership,
            damage: Vec::new(),
            damages: 0,
        };
        // Each goes on where another one found that the file can't be read: they go different ways through it.
        for look in [Self::look_at_pages, Self::look_for_nonsense] {
            match look(self, &mut report) {
                Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseCorrupt) => {
                    report.found(describe(&error));
                }
                other => other.map_err(|error| self.failed(&error))?,
            }
        }
        match self.look_at_records(&mut report) {
            Err(Error::Damaged(how)) => report.found(how),
            other => other?,
        }
        self.confirm()?;
        Ok(report)
    }

    fn look_at_pages(&self, report: &mut Report) -> rusqlite::Result<()> {
        for text in self.integrity("PRAGMA integrity_check")? {
            report.found(text);
        }
        Ok(())
    }

    /// What an integrity check of SQLite's finds.
    pub(super) fn integrity(&self, pragma: &str) -> rusqlite::Result<Vec<String>> {
        let mut statement = self.db.prepare(pragma)?;
        let texts: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let lines = texts.iter().flat_map(|text| text.lines());
        let findings = lines.filter(|line| *line != "ok" && !line.starts_with("*** in database "));
        Ok(findings.map(str::to_string).collect())
    }

    fn look_for_nonsense(&self, report: &mut Report) -> rusqlite::Result<()> {
        let mut statement = self.db.prepare(NONSENSE)?;
        let mut rows = statement.raw_query();
        while let Some(row) = rows.next()? {
            let text = |column| row.get::<_, String>(column);
            // A key that is no text is found as a record.
            if let (Ok(collector_id), Ok(crk)) = (text(0), text(1)) {
                report.found(format!("{:?}: {}", Key::new(collector_id, crk), text(2)?));
            }
        }
        Ok(())
    }

    fn look_at_records(&self, report: &mut Report) -> Result<(), Error> {
        let all = Query {
            limit: usize::MAX,
            ..Query::default()
        };
        self.records(&all, |record| {
            let record = match record {
                Ok(record) => record,
                Err(unreadable) => {
                    report.found(format!("{:?}: its record can't be read", unreadable.key));
                    return ControlFlow::Continue(());
                }
            };
            report.keys.count(record.state);
            report.last_change = report.last_change.max(Some(record.updated_at));
            let is_older = |(_, since): &(Key, Timestamp)| record.updated_at < *since;
            if record.state == State::InDoubt && report.oldest_doubt.as_ref().is_none_or(is_older) {
                report.oldest_doubt = Some((record.key, record.updated_at));
            }
            ControlFlow::Continue(())
        })
    }
}

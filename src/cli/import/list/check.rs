//! A list as a whole, before anything of it is sent.

use std::{
    fmt,
    hash::{BuildHasher as _, Hash, RandomState},
    io,
};

use super::{
    Error, Row, Rows,
    sorter::{RUN, Sorted, Sorter},
};
use crate::{grpc::convert, proto::AddRespondentRequest};

/// Rows between two reports of progress.
const STEP: u64 = 4_096;

/// What a person may want to put right. Tells lines; no value of a row is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// The row can't be sent.
    Bad { line: u64, reason: String },
    /// The row has the collector and crk of an earlier one, and other data: the gateway refuses it as CRK_REUSED.
    Conflict { line: u64, first: u64 },
    /// The row has the e-mail address that an earlier one of the collector has, under another crk: one person gets two
    /// invitations. That may be meant.
    RepeatedEmail { line: u64, first: u64 },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bad { line, reason } => write!(f, "line {line}: {reason}"),
            Self::Conflict { line, first } => write!(f, "line {line}: the crk of line {first}, with other data"),
            Self::RepeatedEmail { line, first } => {
                write!(f, "line {line}: the e-mail address of line {first}, with another crk")
            }
        }
    }
}

/// How far a check is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checking {
    pub rows: u64,
    /// Of the file.
    pub bytes: u64,
}

/// What a list has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// All that are not empty.
    pub rows: u64,
    /// Blank lines, and rows whose cells are all empty.
    pub empty: u64,
    /// As in [`Problem::Bad`].
    pub bad: u64,
    /// As in [`Problem::Conflict`].
    pub conflicts: u64,
    /// Rows with the collector, crk and data of an earlier one: they do no harm, and add nobody.
    pub repeats: u64,
    /// As in [`Problem::RepeatedEmail`].
    pub repeated_emails: u64,
}

/// Reads a list once, and tells of bad rows as they come; behind them, each in the order of lines, of conflicts and of
/// e-mail addresses that are there twice. Of bad rows nothing but that they are bad is looked at.
///
/// Memory is bounded: what has to be compared goes as hashes to temporary files, 80 bytes a row. The hashes are keyed
/// with random numbers of this call, so nobody can find out from them who is on the list.
pub fn check(
    rows: Rows,
    on_row: &mut dyn FnMut(&Row),
    on_problem: &mut dyn FnMut(Problem),
    on_progress: &mut dyn FnMut(Checking),
) -> Result<Checked, Error> {
    check_with(Comparison::new(RUN), rows, on_row, on_problem, on_progress)
}

fn check_with(
    mut comparison: Comparison,
    mut rows: Rows,
    on_row: &mut dyn FnMut(&Row),
    on_problem: &mut dyn FnMut(Problem),
    on_progress: &mut dyn FnMut(Checking),
) -> Result<Checked, Error> {
    let mut checked = Checked::default();
    while let Some(row) = rows.next() {
        let row = row?;
        on_row(&row);
        let Row { line, content, .. } = row;
        checked.rows += 1;
        match content {
            Ok(request) => comparison.add(line, request).map_err(Error::Spill)?,
            Err(reason) => {
                checked.bad += 1;
                on_problem(Problem::Bad { line, reason });
            }
        }
        if checked.rows.is_multiple_of(STEP) {
            on_progress(progress(&checked, &rows));
        }
    }
    on_progress(progress(&checked, &rows));
    checked.empty = rows.empty();
    comparison.finish(&mut checked, on_problem).map_err(Error::Spill)?;
    Ok(checked)
}

fn progress(checked: &Checked, rows: &Rows) -> Checking {
    Checking {
        rows: checked.rows,
        bytes: rows.bytes(),
    }
}

/// Finds rows with something in common.
struct Comparison {
    run: usize,
    hashing: [RandomState; 2],
    /// Key, line, data.
    keys: Sorter<5>,
    /// Collector and e-mail address, line, key.
    emails: Sorter<5>,
}

impl Comparison {
    /// `run` is how many rows' hashes are in memory at once.
    fn new(run: usize) -> Self {
        Self {
            run,
            hashing: [RandomState::new(), RandomState::new()],
            keys: Sorter::new(run),
            emails: Sorter::new(run),
        }
    }

    fn add(&mut self, line: u64, request: AddRespondentRequest) -> io::Result<()> {
        let invitation = convert::invitation(request);
        let [key, more_key] = self.hash(&invitation.key);
        let [data, more_data] = self.hash(&invitation.fingerprint.0);
        let email = invitation.respondent.email.to_lowercase();
        let [email, more_email] = self.hash(&(invitation.key.collector_id(), email));
        self.keys.push([key, more_key, line, data, more_data])?;
        self.emails.push([email, more_email, line, key, more_key])
    }

    /// 128 bits: with a billion rows, two different ones are taken for the same once in 10^20 lists.
    fn hash(&self, value: &impl Hash) -> [u64; 2] {
        self.hashing.each_ref().map(|hashing| hashing.hash_one(value))
    }

    fn finish(self, checked: &mut Checked, on_problem: &mut dyn FnMut(Problem)) -> io::Result<()> {
        let mut conflicts = Sorter::new(self.run);
        for_each_later(self.keys.sorted()?, |line, first, has_same_data| {
            if has_same_data {
                checked.repeats += 1;
                return Ok(());
            }
            checked.conflicts += 1;
            conflicts.push([line, first])
        })?;
        let mut conflicts = conflicts.sorted()?;
        while let Some([line, first]) = conflicts.next()? {
            on_problem(Problem::Conflict { line, first });
        }
        let mut repeated = Sorter::new(self.run);
        for_each_later(self.emails.sorted()?, |line, first, has_same_key| {
            if has_same_key {
                return Ok(());
            }
            checked.repeated_emails += 1;
            repeated.push([line, first])
        })?;
        let mut repeated = repeated.sorted()?;
        while let Some([line, first]) = repeated.next()? {
            on_problem(Problem::RepeatedEmail { line, first });
        }
        Ok(())
    }
}

/// Visits each row that is the same as an earlier one by its first two numbers: its line, the first one's line, and
/// whether the last two numbers are the first one's.
fn for_each_later(mut entries: Sorted<5>, mut visit: impl FnMut(u64, u64, bool) -> io::Result<()>) -> io::Result<()> {
    let mut first: Option<[u64; 5]> = None;
    while let Some(entry) = entries.next()? {
        match first {
            Some(first) if first[..2] == entry[..2] => visit(entry[2], first[2], first[3..] == entry[3..])?,
            _ => first = Some(entry),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fmt::Write as _, io};

    use super::*;
    use crate::cli::import::list::{List, Options, Source};

    #[test]
    fn a_list_that_does_not_fit_into_memory_is_checked_as_well() {
        // Every row of the second half has the crk of one in the first, and of these every third has other data. Every
        // fifth row of the first half has the address of the row before it.
        const HALF: u64 = 1_500;
        let mut text = String::from("email,crk,custom1\n");
        for row in 0..2 * HALF {
            let number = row % HALF;
            let person = if number % 5 == 4 { number - 1 } else { number };
            let custom1 = if row >= HALF && number.is_multiple_of(3) {
                "other"
            } else {
                ""
            };
            writeln!(text, "{person}@example.com,k-{number},{custom1}").unwrap();
        }
        let options = Options {
            collector: Some("c-1".into()),
            ..Options::default()
        };
        let mut list = List::open(options, Source::Stream(Box::new(io::Cursor::new(text)))).unwrap();
        let mut problems = Vec::new();
        let rows = list.rows().unwrap();
        let checked = check_with(
            Comparison::new(70),
            rows,
            &mut |_| {},
            &mut |problem| problems.push(problem),
            &mut |_| {},
        );

        let wanted = Checked {
            rows: 2 * HALF,
            repeats: HALF - HALF / 3,
            conflicts: HALF / 3,
            repeated_emails: 2 * HALF / 5,
            ..Checked::default()
        };
        assert_eq!(checked.unwrap(), wanted);
        let conflicts = (0..HALF)
            .filter(|number| number.is_multiple_of(3))
            .map(|number| Problem::Conflict {
                line: number + HALF + 2,
                first: number + 2,
            });
        let repeated = (0..2 * HALF)
            .filter(|row| row % 5 == 4)
            .map(|row| Problem::RepeatedEmail {
                line: row + 2,
                first: row % HALF + 1,
            });
        assert!(problems.into_iter().eq(conflicts.chain(repeated)));
    }
}

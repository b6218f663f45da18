//! Why a list can't be read at all.

use std::{fmt, io};

use encoding_rs::{Encoding, UTF_8};

use super::{Field, records::MAX_RECORD};
use crate::cli::field::NoField;

/// Ends the reading. Tells lines and columns, and of a row no value; a header's words are shown, unless they look like a
/// person's data.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path} can't be opened: {source}")]
    Open { path: String, source: io::Error },
    #[error("the list can't be read: {0}")]
    Read(io::Error),
    #[error("the list was a stream, and is gone: it can't be read a second time")]
    Once,
    #[error("the list has changed since it was opened")]
    Changed,
    #[error("a temporary file can't be written or read (its place is set by TMPDIR): {0}")]
    Spill(io::Error),
    #[error("the rows can't be written: {0}")]
    Write(io::Error),

    #[error("this is an Excel workbook: save the sheet as CSV UTF-8 first")]
    Workbook,
    #[error(
        "--encoding says {}, but the file begins with the byte-order mark of {}: leave --encoding out",
        .asked.name(),
        .marked.name()
    )]
    OtherMark {
        marked: &'static Encoding,
        asked: &'static Encoding,
    },
    #[error("line {line} is not {}: byte {byte} of the file is wrong. {}", .encoding.name(), other_encoding(.encoding))]
    Malformed {
        line: u64,
        byte: u64,
        encoding: &'static Encoding,
    },
    #[error("line {line}: a character can't be written back in {}", .encoding.name())]
    Unwritable { line: u64, encoding: &'static Encoding },
    #[error("the header has NUL characters: is this UTF-16? try --encoding utf-16le")]
    Nul,

    #[error(
        "the record that begins in line {line} is longer than {} MiB: is there a quote that is never closed?",
        MAX_RECORD >> 20
    )]
    LongRecord { line: u64 },
    #[error("line {line} is longer than {} MiB", MAX_RECORD >> 20)]
    LongLine { line: u64 },
    #[error("a quote is opened in the record that begins in line {line}, and never closed")]
    OpenQuote { line: u64 },
    #[error(
        "lines {line} to {last} are one record, in which text follows right behind a closing quote: is there a quote too \
         many in line {line}, or one that is not doubled?"
    )]
    StrayQuote { line: u64, last: u64 },

    #[error("the list is empty: its first line has to name the columns")]
    Empty,
    #[error("line {line} has an @, so it looks like a person's data: the first line has to name the columns")]
    NoHeader { line: u64 },
    #[error("line {line} begins with {{, so it looks like JSON: give --format ndjson")]
    Json { line: u64 },
    #[error("the quotes in the header, line {line}, do not pair")]
    HeaderQuotes { line: u64 },
    #[error("the header can be read with several delimiters: choose one with --delimiter")]
    Delimiter,
    #[error("--delimiter: expected one ASCII character that is no quote, letter, digit or end of a line, or `tab`")]
    BadDelimiter,
    #[error("{0} is for CSV alone")]
    CsvOnly(&'static str),

    #[error("no column gives the e-mail address. The columns are: {columns}. Name it, as in --map 'COLUMN=email'")]
    NoEmail { columns: String },
    #[error(
        "no column gives the collector: name it with --map 'COLUMN=collector_id', or give one for all with --collector"
    )]
    NoCollector,
    #[error(
        "no column gives the crk, and rows without one can't be told apart: the crk (response key) is how an invitation \
         that was sent is known again, so that the same list can be imported again without a second e-mail. If a column \
         has something of your own that is unique for each invitation, such as an order's or a ticket's number, name it \
         with --map 'COLUMN=crk'; else have the crk made of a row's data, as in --derive-crk email. The columns are: \
         {columns}"
    )]
    NoCrk { columns: String },
    #[error(
        "{column} gives the crk, so --derive-crk can't: leave it out, or ignore the column with --map '#{number}='"
    )]
    CrkTwice { column: String, number: usize },
    #[error("--derive-crk: {0} can't be chosen; choose fields of the respondent, such as email")]
    Underivable(Field),
    #[error("--derive-crk: no column gives {0}")]
    DeriveFromNothing(Field),
    #[error("--derive-crk: {0}")]
    Field(#[from] NoField),
    #[error("--collector {0}")]
    Collector(String),

    #[error("--map: there is no column {name}. The columns are: {columns}")]
    NoColumn { name: String, columns: String },
    #[error("--map: {name} can be any of these: {columns}. Give its number, as in '#3=email'")]
    AmbiguousColumn { name: String, columns: String },
    #[error("--map: {column} is named twice")]
    MappedTwice { column: String },
    #[error("{field} is given by more than one column: {columns}. Keep one, and ignore the others with --map '#3='")]
    AmbiguousField { field: Field, columns: String },
}

fn other_encoding(encoding: &'static Encoding) -> &'static str {
    if encoding == UTF_8 {
        "Excel saves CSV in an older encoding unless told otherwise: try --encoding windows-1250 (Central Europe) or \
         windows-1252 (Western Europe)"
    } else {
        "Is it in another encoding, or damaged?"
    }
}

/// A column as a person finds it: its number, and its name where it has one.
pub(super) struct Column<'a>(pub usize, pub &'a str);

impl fmt::Display for Column<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.1.is_empty() {
            return write!(f, "column {} (no name)", self.0);
        }
        write!(f, "column {} ({})", self.0, shown(self.1))
    }
}

/// A name from a list, cut to what fits into a line and without what would disturb a terminal. What looks like an
/// address is not shown.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 40;
    if name.contains('@') {
        return "a name with an @".into();
    }
    let clean = name.chars().map(|c| if c.is_control() { ' ' } else { c });
    let mut shown: String = clean.take(MOST).collect();
    if name.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

/// Columns one after the other, as many as a person reads.
pub(super) fn columns<'a>(columns: impl IntoIterator<Item = (usize, &'a str)>) -> String {
    const MOST: usize = 30;
    let mut columns = columns.into_iter();
    let shown = columns.by_ref().take(MOST);
    let mut shown: Vec<_> = shown.map(|(number, name)| Column(number, name).to_string()).collect();
    match columns.count() {
        0 => {}
        more => shown.push(format!("and {more} more")),
    }
    shown.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_as_far_as_they_do_no_harm() {
        let told = columns([(1, "Imię"), (2, ""), (3, "a\u{1b}[31m\nb"), (4, "anna@example.com")]);
        assert_eq!(
            told,
            "column 1 (Imię), column 2 (no name), column 3 (a [31m b), column 4 (a name with an @)"
        );
        assert_eq!(shown(&"ł".repeat(40)), "ł".repeat(40));
        assert_eq!(shown(&"ł".repeat(41)), format!("{}…", "ł".repeat(40)));
        let wide = columns((1..=32).map(|number| (number, "x")));
        assert!(wide.ends_with("column 30 (x), and 2 more"), "{wide}");
    }
}

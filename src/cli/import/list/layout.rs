//! How a list is written: its format, and of CSV its delimiter and columns.

use std::{cmp::Reverse, io::Read, slice};

use encoding_rs::Encoding;

use super::{Decoded, Error, Format, Options, Records, cells::Cells, columns::Columns};

/// What was decided of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub encoding: &'static Encoding,
    pub has_mark: bool,
    /// What a list of some of its rows begins with, as it is in the file: of CSV the header, and what is said above it of
    /// the delimiter.
    pub head: String,
    pub syntax: Syntax,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Syntax {
    Csv { delimiter: u8, columns: Columns },
    Ndjson,
}

/// What spreadsheets write, and what is chosen of equals: a header of one word has none of them.
const DELIMITERS: [u8; 3] = [b',', b';', b'\t'];

impl Layout {
    /// Decides, and leaves the records at the first row.
    pub fn read(
        options: &Options,
        named: Option<Format>,
        input: Box<dyn Read + Send>,
    ) -> Result<(Self, Records), Error> {
        let mut records = Records::new(Decoded::new(input, options.encoding)?);
        records.begin()?;
        if records.raw().contains('\0') {
            return Err(Error::Nul);
        }
        let is_json = records.raw().trim_start().starts_with('{');
        let by_content = if is_json { Format::Ndjson } else { Format::Csv };
        let (head, syntax) = match options.format.or(named).unwrap_or(by_content) {
            Format::Ndjson if options.delimiter.is_some() => return Err(Error::CsvOnly("--delimiter")),
            Format::Ndjson => (String::new(), Syntax::Ndjson),
            Format::Csv => read_header(options, &mut records)?,
        };
        let layout = Self {
            encoding: records.text().encoding(),
            has_mark: records.text().has_mark(),
            head,
            syntax,
        };
        Ok((layout, records))
    }
}

fn read_header(options: &Options, records: &mut Records) -> Result<(String, Syntax), Error> {
    let mut head = String::new();
    let said = separator(records.raw()).filter(|_| records.line() == 1);
    if said.is_some() {
        head.push_str(records.raw());
        records.skip();
    }
    while records.begin()? && is_empty_row(records.raw()) {
        records.skip_as_empty();
    }
    records.pair_quotes()?;
    let (raw, line) = (records.raw(), records.line());
    if raw.is_empty() {
        return Err(Error::Empty);
    }
    let read = read_columns(options, said, raw, line);
    // What is wrong with a header is told with its words.
    let (delimiter, columns) = read.map_err(|error| match error {
        _ if raw.trim_start().starts_with('{') => Error::Json { line },
        _ if raw.contains('@') => Error::NoHeader { line },
        error => error,
    })?;
    head.push_str(raw);
    records.delimit(delimiter);
    records.advance()?;
    Ok((head, Syntax::Csv { delimiter, columns }))
}

/// Reads a header with the delimiter that is said, else with the one that gives the most fields, then the most cells.
fn read_columns(options: &Options, said: Option<u8>, raw: &str, line: u64) -> Result<(u8, Columns), Error> {
    struct Reading {
        delimiter: u8,
        cells: usize,
        columns: Result<Columns, Error>,
    }
    let said = options.delimiter.or(said);
    let candidates = match &said {
        Some(delimiter) if !is_delimiter(*delimiter) => return Err(Error::BadDelimiter),
        Some(delimiter) => slice::from_ref(delimiter),
        None => &DELIMITERS,
    };
    let mut readings: Vec<_> = candidates
        .iter()
        .filter_map(|delimiter| {
            let cells = Cells::of_record(raw, *delimiter)?;
            Some(Reading {
                delimiter: *delimiter,
                cells: cells.iter().count(),
                columns: Columns::new(cells.iter(), &options.map),
            })
        })
        .collect();
    let score = |reading: &Reading| (reading.columns.as_ref().map_or(0, Columns::known), reading.cells);
    // Stable: of equals the first comes first.
    readings.sort_by_key(|reading| Reverse(score(reading)));
    if let [first, second, ..] = &readings[..]
        && score(first) == score(second)
        && first.cells > 1
    {
        return Err(Error::Delimiter);
    }
    let best = readings.into_iter().next().ok_or(Error::HeaderQuotes { line })?;
    let columns = best.columns?;
    columns.check(options)?;
    Ok((best.delimiter, columns))
}

/// A delimiter has to be told from what cells are made of.
pub(super) fn is_delimiter(byte: u8) -> bool {
    byte == b'\t' || (byte.is_ascii_punctuation() && byte != b'"')
}

/// Excel's `sep=;`, which it writes and reads in the first line.
fn separator(line: &str) -> Option<u8> {
    let line = line.trim_end_matches(['\r', '\n']);
    let line = line
        .strip_prefix('"')
        .and_then(|line| line.strip_suffix('"'))
        .unwrap_or(line);
    let (name, value) = line.split_at_checked(4)?;
    match value.as_bytes() {
        [byte] if name.eq_ignore_ascii_case("sep=") && is_delimiter(*byte) => Some(*byte),
        _ => None,
    }
}

fn is_empty_row(line: &str) -> bool {
    line.chars().all(|c| c.is_whitespace() || c == ',' || c == ';')
}

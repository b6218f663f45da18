//! A list, cut into records: lines of JSON, or what CSV makes of one line or several.

use super::{Error, cells::Cells, decode::Decoded, lines::Lines};

/// The longest record. All fields of a respondent have some 24 000 characters at most; a quote that is never closed
/// makes one record of the rest of the file.
pub(super) const MAX_RECORD: usize = 1 << 20;

/// Reads record after record, in the memory of one.
pub(super) struct Records {
    lines: Lines,
    raw: String,
    line: u64,
    /// `raw` is the first line of a record that is not read to its end.
    is_begun: bool,
    empty: u64,
    /// Of CSV, once its delimiter is known.
    cells: Option<Cells>,
}

impl Records {
    pub fn new(text: Decoded) -> Self {
        Self {
            lines: Lines::new(text),
            raw: String::new(),
            line: 0,
            is_begun: false,
            empty: 0,
            cells: None,
        }
    }

    /// From here on the records are CSV's, with this delimiter.
    pub fn delimit(&mut self, delimiter: u8) {
        self.cells = Some(Cells::new(delimiter));
    }

    pub fn text(&self) -> &Decoded {
        self.lines.text()
    }

    /// The record as it is in the file, with the end of its line.
    pub fn raw(&self) -> &str {
        &self.raw
    }

    /// The line in which it begins, from 1.
    pub fn line(&self) -> u64 {
        self.line
    }

    /// Its cells, without white space around them; none if the list is not CSV.
    pub fn cells(&self) -> impl Iterator<Item = &str> {
        self.cells.iter().flat_map(Cells::iter)
    }

    /// Whether text follows right behind a closing quote.
    pub fn has_stray_quote(&self) -> bool {
        let cells = self.cells.as_ref();
        cells.is_some_and(|cells| cells.has_stray_quote(&self.raw))
    }

    /// Skipped so far: blank lines, and records whose cells are all empty.
    pub fn empty(&self) -> u64 {
        self.empty
    }

    /// Goes on to the next record that is not empty; false at the end.
    pub fn advance(&mut self) -> Result<bool, Error> {
        while self.begin()? {
            self.is_begun = false;
            self.finish()?;
            if self.cells.is_none() || self.cells().any(|cell| !cell.is_empty()) {
                return Ok(true);
            }
            self.empty += 1;
        }
        Ok(false)
    }

    /// Goes on to the next line that is not blank, and stays there: `raw` is that line, and `advance` begins with it.
    pub fn begin(&mut self) -> Result<bool, Error> {
        while !self.is_begun {
            self.raw.clear();
            self.line = self.lines.count() + 1;
            if !self.lines.append_to(&mut self.raw)? {
                return Ok(false);
            }
            self.is_begun = !self.raw.trim().is_empty();
            self.empty += u64::from(!self.is_begun);
        }
        Ok(true)
    }

    /// Leaves the line that was begun.
    pub fn skip(&mut self) {
        self.is_begun = false;
    }

    /// Leaves the line that was begun, as an empty one.
    pub fn skip_as_empty(&mut self) {
        self.skip();
        self.empty += 1;
    }

    /// Reads on to where all quotes pair: all of a header, before its delimiter is known.
    pub fn pair_quotes(&mut self) -> Result<(), Error> {
        let line = self.line;
        let mut looked_at = 0;
        let mut is_paired = true;
        loop {
            is_paired ^= self.raw[looked_at..].matches('"').count() % 2 == 1;
            if is_paired {
                return Ok(());
            }
            looked_at = self.raw.len();
            if !self
                .lines
                .append_to(&mut self.raw)
                .map_err(|error| of_record(error, line))?
            {
                return Err(Error::HeaderQuotes { line });
            }
        }
    }

    /// Reads lines to the end of the record.
    fn finish(&mut self) -> Result<(), Error> {
        let Some(cells) = &mut self.cells else {
            return Ok(());
        };
        let line = self.line;
        let mut fed = 0;
        cells.clear();
        while cells.feed(&self.raw[fed..]).is_none() {
            fed = self.raw.len();
            if self
                .lines
                .append_to(&mut self.raw)
                .map_err(|error| of_record(error, line))?
            {
                continue;
            }
            // The last line may have no end.
            if cells.feed("\n").is_some() {
                break;
            }
            return Err(Error::OpenQuote { line });
        }
        let last = self.lines.count();
        if last > line && self.has_stray_quote() {
            // Where the rows within it begin can't be told.
            return Err(Error::StrayQuote { line, last });
        }
        Ok(())
    }
}

/// Of a record that goes on behind its first line it is told where it begins: there is the quote.
fn of_record(error: Error, line: u64) -> Error {
    match error {
        Error::LongLine { .. } => Error::LongRecord { line },
        other => other,
    }
}

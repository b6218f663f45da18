//! The cells of one record of CSV.

use std::iter;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

/// Fed with a record line by line, it has the record's cells.
pub(super) struct Cells {
    reader: Reader,
    delimiter: u8,
    text: Vec<u8>,
    text_end: usize,
    /// Where cells end in `text`.
    ends: Vec<usize>,
    count: usize,
}

impl Cells {
    pub fn new(delimiter: u8) -> Self {
        Self {
            reader: ReaderBuilder::new().delimiter(delimiter).build(),
            delimiter,
            text: Vec::new(),
            text_end: 0,
            ends: vec![0; 32],
            count: 0,
        }
    }

    /// Reads a text that is one record, or `None` if it is another number of them, or quotes are out of place in it.
    pub fn of_record(raw: &str, delimiter: u8) -> Option<Self> {
        let mut cells = Self::new(delimiter);
        let left = cells.feed(raw).or_else(|| cells.feed("\n"))?;
        let is_one = matches!(&raw[raw.len() - left..], "" | "\n");
        (is_one && !cells.has_stray_quote(raw)).then_some(cells)
    }

    /// Forgets the record before.
    pub fn clear(&mut self) {
        (self.text_end, self.count) = (0, 0);
    }

    /// Takes a line of the record; when the record ends with it, how many of its bytes are left: none, or the LF of a
    /// CR LF, which belongs to no other record.
    pub fn feed(&mut self, line: &str) -> Option<usize> {
        let mut rest = line.as_bytes();
        loop {
            // Cells are no longer than what they are made of.
            self.text.resize(self.text.len().max(self.text_end + rest.len() + 1), 0);
            let (result, read, written, ended) =
                self.reader
                    .read_record(rest, &mut self.text[self.text_end..], &mut self.ends[self.count..]);
            rest = &rest[read..];
            self.text_end += written;
            self.count += ended;
            match result {
                ReadRecordResult::Record => return Some(rest.len()),
                ReadRecordResult::OutputEndsFull => self.ends.resize(2 * self.ends.len(), 0),
                ReadRecordResult::OutputFull => {}
                ReadRecordResult::InputEmpty | ReadRecordResult::End => return None,
            }
        }
    }

    /// Without white space around them. Also without what a spreadsheet shows nothing for: no-break spaces, which are
    /// white space, and zero-width ones, which are not.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        let ends = &self.ends[..self.count];
        let begins = iter::once(0).chain(ends.iter().copied());
        begins.zip(ends).map(|(begin, end)| {
            // Always UTF-8: it was cut at ASCII characters alone.
            let cell = str::from_utf8(&self.text[begin..*end]).unwrap_or_default();
            cell.trim_matches(|c: char| c.is_whitespace() || matches!(c, '\u{200b}' | '\u{2060}' | '\u{feff}'))
        })
    }

    /// Whether text follows right behind a closing quote. csv-core takes it as part of the cell; but mostly a quote
    /// before it is missing or one too many, and other rows may have become part of this one.
    pub fn has_stray_quote(&self, raw: &str) -> bool {
        let delimiter = char::from(self.delimiter);
        let mut rest = raw;
        loop {
            let behind = match rest.strip_prefix('"') {
                Some(quoted) => {
                    let Some(behind) = behind_quotes(quoted) else {
                        // Behind the last line's end.
                        return false;
                    };
                    behind.trim_start_matches(' ')
                }
                None => rest.trim_start_matches(|c| c != delimiter && c != '\r' && c != '\n'),
            };
            let mut chars = behind.chars();
            match chars.next() {
                Some(c) if c == delimiter => rest = chars.as_str(),
                None | Some('\r' | '\n') => return false,
                Some(_) => return true,
            }
        }
    }
}

/// What is behind the closing quote; of two quotes neither closes.
fn behind_quotes(quoted: &str) -> Option<&str> {
    let mut rest = quoted;
    loop {
        let (_, behind) = rest.split_once('"')?;
        match behind.strip_prefix('"') {
            Some(behind) => rest = behind,
            None => return Some(behind),
        }
    }
}

//! The lines of a text.

use super::{
    Error,
    decode::{Decoded, Stop},
    records::MAX_RECORD,
};

/// A line ends with LF, CR LF or CR, as spreadsheets have it.
pub(super) struct Lines {
    text: Decoded,
    /// Read to their end.
    count: u64,
}

impl Lines {
    pub fn new(text: Decoded) -> Self {
        Self { text, count: 0 }
    }

    pub fn text(&self) -> &Decoded {
        &self.text
    }

    /// How many were read.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Appends a line with its end; false at the end of the text. All of `record` stays within its bound.
    pub fn append_to(&mut self, record: &mut String) -> Result<bool, Error> {
        let before = record.len();
        loop {
            let line = self.count + 1;
            let piece = self.text.fill().map_err(|stop| stopped(stop, line))?;
            if piece.is_empty() {
                // The last line may have no end.
                let is_line = record.len() > before;
                self.count += u64::from(is_line);
                return Ok(is_line);
            }
            let end = piece.bytes().position(|b| b == b'\n' || b == b'\r');
            let piece = end.map_or(piece, |end| &piece[..=end]);
            if record.len() + piece.len() > MAX_RECORD {
                return Err(Error::LongLine { line });
            }
            record.push_str(piece);
            let length = piece.len();
            self.text.consume(length);
            if end.is_some() {
                self.count += 1;
                return self.append_lf_to(record).map(|()| true);
            }
        }
    }

    /// Behind a CR.
    fn append_lf_to(&mut self, record: &mut String) -> Result<(), Error> {
        let line = self.count + 1;
        if record.ends_with('\r') && self.text.fill().map_err(|stop| stopped(stop, line))?.starts_with('\n') {
            record.push('\n');
            self.text.consume(1);
        }
        Ok(())
    }
}

fn stopped(stop: Stop, line: u64) -> Error {
    match stop {
        Stop::Read(error) => Error::Read(error),
        Stop::Malformed { byte, encoding } => Error::Malformed { line, byte, encoding },
    }
}

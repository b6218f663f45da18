//! A list of respondents as people have them, turned into the rows that can be sent, and checked before anything is.
//!
//! | step | where |
//! |---|---|
//! | bytes to text, in constant memory; nothing is replaced | `decode` |
//! | text to lines, lines to records, records to cells | `lines`, `records`, `cells` |
//! | the header: the delimiter, and which column gives which field | `layout`, `columns`, `mapping` |
//! | a record to a row, with its key, its data checked as the gateway will | `rows`, `ndjson`, `key` |
//! | the list as a whole: keys used twice, addresses given twice | [`check()`], `sorter` |
//! | some of its rows as a list of their own | [`copy_rows`] |
//!
//! A list is read several times, each time from its beginning, and never held in memory.

use std::{fmt, sync::Arc};

use clap::ValueEnum;
use encoding_rs::Encoding;

mod cells;
mod check;
mod columns;
mod copy;
mod decode;
mod error;
mod input;
mod key;
mod layout;
mod lines;
mod mapping;
mod ndjson;
mod records;
mod rows;
mod sorter;
#[cfg(test)]
mod tests;

pub use check::{Checked, Checking, Problem, check};
pub use copy::copy_rows;
pub use error::Error;
pub use input::{Fingerprint, Source};
pub use mapping::Mapping;
pub use rows::{Row, Rows};

use crate::cli::field::Field;
use decode::Decoded;
use input::Input;
use key::Derivation;
use layout::{Layout, Syntax};
use records::Records;

/// How a list is to be read.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `None`: by the file's extension, else NDJSON if the first character that is no white space is a `{`.
    pub format: Option<Format>,
    /// `None`: a byte-order mark decides between UTF-8 and UTF-16, without one it is UTF-8.
    pub encoding: Option<&'static Encoding>,
    /// `None`: what the header has between its words, outside of quotes.
    pub delimiter: Option<u8>,
    /// Which columns give which fields; the others are known by their names. In NDJSON, names beside the contract's.
    pub map: Vec<Mapping>,
    /// The collector of all rows; those that name another one are bad.
    pub collector: Option<String>,
    /// Makes the crk of these fields of a row; nothing in the list may give it then.
    pub derive_crk: Vec<Field>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One row a line, under a line of names.
    Csv,
    /// One JSON object a line.
    Ndjson,
}

/// Reads the value of `--encoding`: any name of <https://encoding.spec.whatwg.org/#names-and-labels>.
pub fn encoding(label: &str) -> Result<&'static Encoding, &'static str> {
    Encoding::for_label_no_replacement(label.as_bytes())
        .ok_or("no encoding of this name is known; some are utf-8, utf-16le, windows-1250, windows-1252, iso-8859-2")
}

/// Reads the value of `--delimiter`: a character, or `tab`.
pub fn delimiter(text: &str) -> Result<u8, Error> {
    match text.as_bytes() {
        b"tab" | b"\\t" => Ok(b'\t'),
        [byte] if layout::is_delimiter(*byte) => Ok(*byte),
        _ => Err(Error::BadDelimiter),
    }
}

/// A list whose header was read: what is in which column is decided.
pub struct List {
    options: Arc<Options>,
    derivation: Option<Derivation>,
    input: Input,
    layout: Arc<Layout>,
    /// At the first row, for the first reading: of a stream there is no second.
    opened: Option<Records>,
}

impl List {
    /// Reads the header, and decides what the options leave open.
    pub fn open(options: Options, source: Source) -> Result<Self, Error> {
        if let Some(wrong) = options.collector.as_deref().and_then(crate::invitation::collector_id) {
            return Err(Error::Collector(wrong));
        }
        let derivation = Derivation::new(&options.derive_crk)?;
        let mut input = Input::open(source)?;
        let (layout, records) = Layout::read(&options, input.format(), input.read()?)?;
        Ok(Self {
            options: Arc::new(options),
            derivation,
            input,
            layout: Arc::new(layout),
            opened: Some(records),
        })
    }

    /// The rows, from the first. Fails for the second reading of a stream, or if the header is no longer the same.
    pub fn rows(&mut self) -> Result<Rows, Error> {
        let records = self.records()?;
        let (options, layout) = (Arc::clone(&self.options), Arc::clone(&self.layout));
        Ok(Rows::new(records, layout, options, self.derivation.clone()))
    }

    /// Tells what the file is like now; `None` for a stream. When this is the same before and after, the file is too.
    pub fn fingerprint(&self) -> Result<Option<Fingerprint>, Error> {
        self.input.fingerprint().map_err(Error::Read)
    }

    /// What was decided, for a person.
    pub fn describe(&self) -> Description<'_> {
        Description(self)
    }

    pub fn format(&self) -> Format {
        match self.layout.syntax {
            Syntax::Csv { .. } => Format::Csv,
            Syntax::Ndjson => Format::Ndjson,
        }
    }

    fn records(&mut self) -> Result<Records, Error> {
        if let Some(records) = self.opened.take() {
            return Ok(records);
        }
        let (layout, records) = Layout::read(&self.options, self.input.format(), self.input.read()?)?;
        if layout == *self.layout {
            Ok(records)
        } else {
            Err(Error::Changed)
        }
    }
}

/// What was decided of a list, one thing a line.
pub struct Description<'a>(&'a List);

impl fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(list) = self;
        let encoding = list.layout.encoding.name();
        match &list.layout.syntax {
            Syntax::Ndjson => write!(f, "NDJSON in {encoding}")?,
            Syntax::Csv { delimiter, columns } => {
                let delimiter = match delimiter {
                    b'\t' => "tabs".into(),
                    other => format!("`{}`", char::from(*other)),
                };
                write!(f, "CSV in {encoding}, with {delimiter} between columns")?;
                for (column, field) in columns.iter() {
                    match field {
                        Some(field) => write!(f, "\n{column}: {field}")?,
                        None => write!(f, "\n{column}: ignored")?,
                    }
                }
            }
        }
        if let Some(collector) = &list.options.collector {
            write!(f, "\ncollector_id: {collector}")?;
        }
        if let Some(derivation) = &list.derivation {
            let fields: Vec<_> = derivation.fields().iter().map(|field| field.name()).collect();
            write!(f, "\ncrk: made of {}", fields.join(", "))?;
        }
        Ok(())
    }
}

//! Some of a list's rows, as a list of its own.

use std::io::{BufWriter, Write};

use encoding_rs::{Encoder, EncoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::{Error, List, decode::is_utf16};

/// Writes the rows that begin in the wanted lines as they are in the list, character by character, under its header; so
/// they can be put right, and imported with the same flags. Returns how many rows that are.
///
/// The encoding is the list's. UTF-16 begins with a byte-order mark, UTF-8 only if the list does. Some encodings of Asian
/// scripts have characters that can be read and not written: then it fails, and names the line.
pub fn copy_rows(list: &mut List, wanted: impl Fn(u64) -> bool, out: impl Write) -> Result<u64, Error> {
    let mut records = list.records()?;
    let layout = &list.layout;
    let mut out = Encoded::new(BufWriter::new(out), layout.encoding);
    if layout.has_mark || is_utf16(layout.encoding) {
        out.write("\u{feff}", 1)?;
    }
    out.write(&layout.head, 1)?;
    let mut count = 0;
    while records.advance()? {
        if wanted(records.line()) {
            out.write(records.raw(), records.line())?;
            count += 1;
        }
    }
    out.finish()?;
    Ok(count)
}

/// Text to bytes.
struct Encoded<W: Write> {
    out: W,
    encoding: &'static Encoding,
    encoder: Encoder,
}

impl<W: Write> Encoded<W> {
    fn new(out: W, encoding: &'static Encoding) -> Self {
        Self {
            out,
            encoding,
            encoder: encoding.new_encoder(),
        }
    }

    fn write(&mut self, text: &str, line: u64) -> Result<(), Error> {
        // encoding_rs writes no UTF-16.
        if self.encoding == UTF_16LE {
            return self.write_units(text, u16::to_le_bytes);
        }
        if self.encoding == UTF_16BE {
            return self.write_units(text, u16::to_be_bytes);
        }
        if self.encoding == UTF_8 {
            return self.out.write_all(text.as_bytes()).map_err(Error::Write);
        }
        self.encode(text, line, false)
    }

    fn write_units(&mut self, text: &str, bytes: fn(u16) -> [u8; 2]) -> Result<(), Error> {
        let mut units = text.encode_utf16();
        units
            .try_for_each(|unit| self.out.write_all(&bytes(unit)))
            .map_err(Error::Write)
    }

    fn encode(&mut self, mut text: &str, line: u64, last: bool) -> Result<(), Error> {
        let mut bytes = [0; 1024];
        loop {
            let encoded = self
                .encoder
                .encode_from_utf8_without_replacement(text, &mut bytes, last);
            let (result, read, written) = encoded;
            self.out.write_all(&bytes[..written]).map_err(Error::Write)?;
            text = &text[read..];
            match result {
                EncoderResult::InputEmpty => return Ok(()),
                EncoderResult::OutputFull => {}
                EncoderResult::Unmappable(_) => {
                    let encoding = self.encoding;
                    return Err(Error::Unwritable { line, encoding });
                }
            }
        }
    }

    fn finish(mut self) -> Result<(), Error> {
        if self.encoding != UTF_8 && !is_utf16(self.encoding) {
            // Some encodings end with their first state.
            self.encode("", 0, true)?;
        }
        self.out.flush().map_err(Error::Write)
    }
}

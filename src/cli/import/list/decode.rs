//! Bytes to text, a piece at a time: whatever the encoding, nothing is replaced and nothing is guessed.

use std::io::{self, ErrorKind, Read};

use encoding_rs::{Decoder, DecoderResult, Encoding, UTF_8, UTF_16BE, UTF_16LE};

use super::Error;

const PIECE: usize = 64 * 1024;

/// The text of a list.
pub(super) struct Decoded {
    input: Box<dyn Read + Send>,
    decoder: Decoder,
    encoding: &'static Encoding,
    has_mark: bool,
    /// Read, and not decoded, from `begin` to `end`.
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
    is_input_at_end: bool,
    /// How many of the file's bytes are decoded.
    offset: u64,
    /// Decoded, and not consumed before `consumed`.
    text: String,
    consumed: usize,
    /// Where the text behind `text` is malformed.
    malformed: Option<u64>,
    is_at_end: bool,
}

/// Why there is no more text.
#[derive(Debug)]
pub(super) enum Stop {
    Read(io::Error),
    /// The number of the byte that is wrong, the file's first one being 1.
    Malformed {
        byte: u64,
        encoding: &'static Encoding,
    },
}

impl Decoded {
    /// A byte-order mark says what the encoding is; without one it is what was asked for, else UTF-8.
    pub fn new(mut input: Box<dyn Read + Send>, asked: Option<&'static Encoding>) -> Result<Self, Error> {
        let mut bytes = Vec::with_capacity(PIECE);
        // As much as a mark, or a workbook's signature, has.
        input.by_ref().take(4).read_to_end(&mut bytes).map_err(Error::Read)?;
        // <https://www.iana.org/assignments/media-types/application/zip>, and [MS-CFB] 2.2.
        if bytes == *b"PK\x03\x04" || bytes == *b"\xd0\xcf\x11\xe0" {
            return Err(Error::Workbook);
        }
        let mark = Encoding::for_bom(&bytes);
        let encoding = match (mark, asked) {
            // `utf-16` is a label of UTF_16LE, and says nothing about the order that is meant.
            (Some((marked, _)), Some(asked)) if marked != asked && !(is_utf16(marked) && is_utf16(asked)) => {
                return Err(Error::OtherMark { marked, asked });
            }
            (Some((marked, _)), _) => marked,
            (None, asked) => asked.unwrap_or(UTF_8),
        };
        let begin = mark.map_or(0, |(_, length)| length);
        let end = bytes.len();
        bytes.resize(PIECE, 0);
        Ok(Self {
            input,
            decoder: encoding.new_decoder_without_bom_handling(),
            encoding,
            has_mark: mark.is_some(),
            bytes,
            begin,
            end,
            is_input_at_end: false,
            offset: begin as u64,
            text: String::with_capacity(PIECE),
            consumed: 0,
            malformed: None,
            is_at_end: false,
        })
    }

    pub fn encoding(&self) -> &'static Encoding {
        self.encoding
    }

    pub fn has_mark(&self) -> bool {
        self.has_mark
    }

    /// How many of the file's bytes are decoded.
    pub fn bytes(&self) -> u64 {
        self.offset
    }

    /// The next piece of text, empty at the end only. Text in front of a malformed byte comes before the error.
    pub fn fill(&mut self) -> Result<&str, Stop> {
        while self.consumed == self.text.len() && !self.is_at_end {
            if let Some(byte) = self.malformed {
                let encoding = self.encoding;
                return Err(Stop::Malformed { byte, encoding });
            }
            if self.begin == self.end && !self.is_input_at_end {
                self.read()?;
            }
            self.decode();
        }
        Ok(&self.text[self.consumed..])
    }

    pub fn consume(&mut self, length: usize) {
        self.consumed += length;
    }

    fn read(&mut self) -> Result<(), Stop> {
        (self.begin, self.end) = (0, 0);
        let read = loop {
            match self.input.read(&mut self.bytes) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                other => break other,
            }
        };
        self.end = read.map_err(Stop::Read)?;
        self.is_input_at_end = self.end == 0;
        Ok(())
    }

    fn decode(&mut self) {
        self.text.clear();
        self.consumed = 0;
        let last = self.is_input_at_end;
        let decoded =
            self.decoder
                .decode_to_string_without_replacement(&self.bytes[self.begin..self.end], &mut self.text, last);
        let (result, read) = decoded;
        self.begin += read;
        self.offset += read as u64;
        match result {
            DecoderResult::InputEmpty => self.is_at_end = last,
            DecoderResult::OutputFull => {}
            DecoderResult::Malformed(length, behind) => {
                let wrong = u64::from(length) + u64::from(behind);
                self.malformed = Some(self.offset.saturating_sub(wrong) + 1);
            }
        }
    }
}

pub(super) fn is_utf16(encoding: &'static Encoding) -> bool {
    encoding == UTF_16LE || encoding == UTF_16BE
}

#[cfg(test)]
mod tests {
    use encoding_rs::{SHIFT_JIS, WINDOWS_1250};

    use super::*;

    /// Gives a few bytes at a time, as a pipe may.
    struct Drip(io::Cursor<Vec<u8>>, usize);

    impl Read for Drip {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.1.min(buffer.len());
            self.0.read(&mut buffer[..count])
        }
    }

    fn decoded(bytes: &[u8], piece: usize, asked: Option<&'static Encoding>) -> (String, Option<u64>) {
        let mut decoded = Decoded::new(Box::new(Drip(io::Cursor::new(bytes.to_vec()), piece)), asked).unwrap();
        let mut text = String::new();
        loop {
            match decoded.fill() {
                Ok("") => {
                    assert_eq!(decoded.bytes(), bytes.len() as u64);
                    return (text, None);
                }
                Ok(piece) => {
                    text.push_str(piece);
                    let length = piece.len();
                    decoded.consume(length);
                }
                Err(Stop::Malformed { byte, .. }) => return (text, Some(byte)),
                Err(Stop::Read(error)) => panic!("{error}"),
            }
        }
    }

    #[test]
    fn text_is_the_same_in_pieces_of_any_size() {
        let text = "Łukasz Gżegżółka, 日本 \u{10ffff}\r\n".repeat(5_000);
        let utf16: Vec<u8> = [0xfeff]
            .into_iter()
            .chain(text.encode_utf16())
            .flat_map(u16::to_le_bytes)
            .collect();
        for piece in [1, 3, 4_096, usize::MAX] {
            assert!(decoded(text.as_bytes(), piece, None) == (text.clone(), None));
            assert!(decoded(&[b"\xef\xbb\xbf", text.as_bytes()].concat(), piece, None) == (text.clone(), None));
            assert!(decoded(&utf16, piece, None) == (text.clone(), None));
        }
        let big_endian: Vec<u8> = utf16.chunks(2).flat_map(|pair| [pair[1], pair[0]]).collect();
        assert!(decoded(&big_endian, 5, Some(UTF_16LE)) == (text, None));
    }

    #[test]
    fn what_is_malformed_is_told_by_its_byte_and_behind_the_text_before_it() {
        for piece in [1, 2, 4_096] {
            // Windows-1250's ł is no beginning of a character in UTF-8, its ę begins one that does not follow.
            assert_eq!(decoded(b"abc\xb3def", piece, None), ("abc".into(), Some(4)));
            assert_eq!(decoded(b"abc\xeadef", piece, None), ("abc".into(), Some(4)));
            assert_eq!(decoded(b"\xef\xbb\xbfabc\xc5", piece, None), ("abc".into(), Some(7)));
            assert_eq!(decoded(b"\xff\xfea\0b", piece, None), ("a".into(), Some(5)));
            assert_eq!(decoded(b"a\x81", piece, Some(SHIFT_JIS)), ("a".into(), Some(2)));
            assert_eq!(decoded(b"a\xb3", piece, Some(WINDOWS_1250)), ("ał".into(), None));
        }
        let late = [&b"x".repeat(PIECE + 7)[..], b"\xb3"].concat();
        assert_eq!(decoded(&late, usize::MAX, None).1, Some(PIECE as u64 + 8));
    }

    #[test]
    fn a_mark_that_contradicts_the_flag_is_refused() {
        let marked = |asked| Decoded::new(Box::new(&b"\xef\xbb\xbfa"[..]), Some(asked)).err();
        assert!(matches!(marked(WINDOWS_1250), Some(Error::OtherMark { .. })));
        assert!(marked(UTF_8).is_none());
    }

    #[test]
    fn workbooks_are_known() {
        for bytes in [&b"PK\x03\x04rest"[..], b"\xd0\xcf\x11\xe0\xa1\xb1"] {
            let opened = Decoded::new(Box::new(bytes), None);
            assert!(matches!(opened, Err(Error::Workbook)));
        }
    }
}

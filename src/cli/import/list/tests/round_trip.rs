//! What the csv crate writes comes back as it was, and a copy of some rows as those.

use encoding_rs::{Encoding, UTF_8, UTF_16BE};
use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
struct Written {
    delimiter: u8,
    encoding: &'static Encoding,
    has_mark: bool,
    line_end: csv::Terminator,
    quotes: csv::QuoteStyle,
    /// Whether the last line has an end.
    is_ended: bool,
}

fn written() -> impl Strategy<Value = Written> {
    (
        prop::sample::select(&b",;\t|"[..]),
        prop::sample::select(vec![UTF_8, UTF_16LE, UTF_16BE, WINDOWS_1250]),
        any::<bool>(),
        prop::sample::select(vec![csv::Terminator::CRLF, csv::Terminator::Any(b'\n')]),
        prop::sample::select(vec![
            csv::QuoteStyle::Necessary,
            csv::QuoteStyle::Always,
            csv::QuoteStyle::NonNumeric,
        ]),
        any::<bool>(),
    )
        .prop_map(|(delimiter, encoding, has_mark, line_end, quotes, is_ended)| Written {
            delimiter,
            encoding,
            has_mark: has_mark && encoding != WINDOWS_1250,
            line_end,
            quotes,
            is_ended,
        })
}

impl Written {
    fn options(&self) -> Options {
        Options {
            encoding: (!self.has_mark).then_some(self.encoding),
            delimiter: (self.delimiter == b'|').then_some(b'|'),
            ..options()
        }
    }

    fn bytes(&self, header: &[&str], records: &[[String; 4]]) -> Vec<u8> {
        let mut writer = csv::WriterBuilder::new()
            .delimiter(self.delimiter)
            .terminator(self.line_end)
            .quote_style(self.quotes)
            .from_writer(Vec::new());
        writer.write_record(header).unwrap();
        records.iter().for_each(|record| writer.write_record(record).unwrap());
        let mut text = String::from_utf8(writer.into_inner().unwrap()).unwrap();
        if !self.is_ended {
            text.truncate(text.trim_end_matches(['\r', '\n']).len());
        }
        if self.has_mark {
            text.insert(0, '\u{feff}');
        }
        if self.encoding == UTF_16LE {
            text.encode_utf16().flat_map(u16::to_le_bytes).collect()
        } else if self.encoding == UTF_16BE {
            text.encode_utf16().flat_map(u16::to_be_bytes).collect()
        } else {
            let (bytes, _, has_unmappable) = self.encoding.encode(&text);
            assert!(!has_unmappable);
            bytes.into_owned()
        }
    }
}

/// Of what any of the encodings has, with much of what has a meaning in CSV.
fn cell() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zA-Z0-9ąćęłńóśźżŁŻ ]{0,12}",
        "[\",;|\t\n' =@a-cł]{0,12}",
        Just("\"".to_string()),
        Just("\"\"".to_string()),
        Just("\n".to_string()),
    ]
}

fn records() -> impl Strategy<Value = Vec<[String; 4]>> {
    let record = ("[a-z]{1,8}@example\\.com", "[a-zA-Z0-9ł/-]{1,12}", cell(), cell());
    proptest::collection::vec(record.prop_map(|(a, b, c, d)| [a, b, c, d]), 0..12)
}

/// In another order than the contract's.
const HEADER: [&str; 4] = ["E-mail", "crk", "Custom 2", "Referrer"];
const FIELDS: [Field; 4] = [Field::Email, Field::Crk, Field::Custom2, Field::Referrer];

fn values_of(rows: &[Row]) -> Vec<[String; 4]> {
    rows.iter()
        .map(|row| {
            let request = row.content.as_ref().unwrap();
            assert_eq!(request.collector_id, "c-1");
            assert_eq!(
                values(request).len(),
                1 + FIELDS.iter().filter(|f| !f.get(request).is_empty()).count()
            );
            FIELDS.map(|field| field.get(request).to_string())
        })
        .collect()
}

proptest! {
    #[test]
    fn rows_are_what_was_written(written in written(), records in records(), chosen in any::<u16>()) {
        let bytes = written.bytes(&HEADER, &records);
        let mut list = open(written.options(), &bytes);
        let read = rows(&mut list);
        let trimmed = |record: &[String; 4]| record.each_ref().map(|cell| cell.trim().to_string());
        let wanted: Vec<_> = records.iter().map(trimmed).collect();
        prop_assert_eq!(values_of(&read), &wanted[..]);

        // Each row begins in its line.
        let mut line = 2;
        for (row, record) in read.iter().zip(&records) {
            prop_assert_eq!(row.line, line);
            line += 1 + record.iter().map(|cell| cell.matches('\n').count() as u64).sum::<u64>();
        }

        let is_chosen = |index: usize| chosen >> (index % 16) & 1 == 1;
        let chosen_indices = (0..read.len()).filter(|index| is_chosen(*index));
        let (lines, wanted): (Vec<_>, Vec<_>) =
            chosen_indices.map(|index| (read[index].line, wanted[index].clone())).unzip();
        let copy = copied(&mut list, |line| lines.contains(&line));
        let mut copy = open(written.options(), copy);
        prop_assert_eq!(values_of(&rows(&mut copy)), wanted);

        // A copy of all is the list itself.
        let whole = copied(&mut list, |_| true);
        let mark: &[u8] = match written.encoding {
            _ if written.has_mark => b"",
            encoding if encoding == UTF_16LE => b"\xff\xfe",
            encoding if encoding == UTF_16BE => b"\xfe\xff",
            _ => b"",
        };
        prop_assert!(whole == [mark, &bytes[..]].concat());
    }

    /// Whatever the bytes: an end, no panic, and the lines of rows in their order.
    #[test]
    fn any_bytes_come_to_an_end(
        text in "[\"\",;\t\r\n\u{feff}ła@.{}:]{0,60}",
        bytes in proptest::collection::vec(any::<u8>(), 0..8),
        head in prop::sample::select(vec!["email,crk\n", "email;crk\r\n", "\u{feff}email\tcrk\r", "{}\n", ""]),
    ) {
        let all = [head.as_bytes(), text.as_bytes(), &bytes].concat();
        if let Ok(mut list) = List::open(options(), spooled(&all)) {
            let mut last = 0;
            for row in list.rows().unwrap() {
                let Ok(row) = row else { break };
                prop_assert!(row.line > last);
                last = row.line;
            }
        }
    }

    /// Where nothing is refused, cells are what the csv crate reads.
    #[test]
    fn cells_are_the_csv_crates(text in "[\"\",;\r\nab ]{0,40}") {
        let all = format!("email,crk,custom1\n{text}");
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(all.as_bytes());
        let wanted: Vec<Vec<String>> = reader
            .records()
            .map(|record| record.unwrap().iter().map(|cell| cell.trim().to_string()).collect())
            .filter(|cells: &Vec<String>| cells.iter().any(|cell| !cell.is_empty()))
            .collect();
        let mut list = open(options(), &all);
        let mut records = list.records().unwrap();
        let mut read = Vec::new();
        loop {
            match records.advance() {
                Ok(true) => read.push(records.cells().map(str::to_string).collect::<Vec<_>>()),
                Ok(false) => break,
                Err(Error::OpenQuote { .. } | Error::StrayQuote { .. }) => return Ok(()),
                Err(error) => return Err(TestCaseError::fail(error.to_string())),
            }
        }
        prop_assert_eq!(read, wanted);
    }
}

//! Files as spreadsheets and people make them. Those in `tests/it/import/fixtures` were encoded by another program.

use super::*;

#[test]
fn excels_semicolons_in_windows_1250() {
    let options = || Options {
        encoding: Some(WINDOWS_1250),
        ..mapped(&[
            "Imię=first_name",
            "nazwisko=last_name",
            "Nr zamówienia=crk",
            "#5=custom1",
        ])
    };
    let name = "excel-semicolons-windows-1250.csv";
    let mut list = List::open(options(), fixture(name)).unwrap();
    assert_eq!(
        list.describe().to_string(),
        "CSV in windows-1250, with `;` between columns\ncolumn 1 (E-mail): email\ncolumn 2 (Imię): first_name\n\
         column 3 (Nazwisko): last_name\ncolumn 4 (Nr zamówienia): crk\ncolumn 5 (Uwagi): custom1\ncollector_id: c-1"
    );
    let mut reading = list.rows().unwrap();
    let read: Vec<_> = reading.by_ref().map(Result::unwrap).collect();
    assert_eq!(
        told(&read),
        [
            row!(2, email: "lukasz@example.com", crk: "ZAM/2026/001", first_name: "Łukasz", last_name: "Gżegżółka"),
            row!(3, email: "zaneta@example.com", crk: "ZAM/2026/002", first_name: "Żaneta",
                last_name: "Źdźbło; z d. Śliwa", custom1: "mówi \"cześć\""),
            row!(5, email: "ola@example.com", crk: "ZAM/2026/003", first_name: "Ola", last_name: "Ćma"),
        ]
    );
    assert_eq!(reading.empty(), 3);

    // But for the empty rows, byte by byte.
    let file = read_fixture(name);
    let rows_of_file: Vec<_> = file
        .split_inclusive(|b| *b == b'\n')
        .filter(|line| *line != b";;;;;;\r\n")
        .collect();
    assert!(copied(&mut list, |_| true) == rows_of_file.concat());
    let some = copied(&mut list, |line| line == 3);
    assert_eq!(
        told(&rows(&mut open(options(), &some))),
        [(2, told(&read)[1].1.clone())]
    );
    assert!(some.starts_with(b"E-mail;Imi\xea;"));
}

#[test]
fn without_its_encoding_the_line_and_byte_are_told() {
    let mapped = mapped(&["#4=crk"]);
    let error = List::open(mapped, fixture("excel-semicolons-windows-1250.csv"))
        .err()
        .unwrap();
    let text = error.to_string();
    assert!(
        text.starts_with("line 1 is not UTF-8: byte 11 of the file is wrong"),
        "{text}"
    );
    assert!(text.contains("--encoding windows-1250"), "{text}");

    let mut list = open(options(), b"email;crk\r\na@example.com;k-1\r\nb@example.com;\xb3\r\n");
    let mut rows = list.rows().unwrap();
    assert!(rows.next().unwrap().unwrap().content.is_ok());
    assert!(matches!(
        rows.next(),
        Some(Err(Error::Malformed { line: 3, byte: 45, .. }))
    ));
    assert!(rows.next().is_none());
}

#[test]
fn excels_unicode_text() {
    let mut list = List::open(options(), fixture("excel-unicode-text.txt")).unwrap();
    assert!(
        list.describe()
            .to_string()
            .starts_with("CSV in UTF-16LE, with tabs between columns\n")
    );
    let wanted = [
        row!(2, email: "lukasz@example.com", crk: "T-1", first_name: "Łukasz", custom1: "two\nlines"),
        row!(4, email: "zaneta@example.com", crk: "T-2", first_name: "Żaneta 😀", custom1: "a \"quoted\" tab:\t."),
    ];
    assert_eq!(told(&rows(&mut list)), wanted);
    assert!(copied(&mut list, |_| true) == read_fixture("excel-unicode-text.txt"));
    let some = copied(&mut list, |line| line == 4);
    assert!(some.starts_with(b"\xff\xfeE\0m\0"));
    assert_eq!(told(&rows(&mut open(options(), &some))), [(2, wanted[1].1.clone())]);
}

#[test]
fn utf_16_without_a_mark() {
    let text = "email,crk\na@example.com,ł\n";
    let bytes: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    // The ł alone would not be UTF-8; the NUL characters before it tell more.
    assert!(refused(options(), &bytes).contains("try --encoding utf-16le"));
    let asked = Options {
        encoding: Some(UTF_16LE),
        ..options()
    };
    let mut list = open(asked.clone(), &bytes);
    assert_eq!(told(&rows(&mut list)), [row!(2, email: "a@example.com", crk: "ł")]);
    let copy = copied(&mut list, |_| true);
    assert_eq!(copy, [b"\xff\xfe", &bytes[..]].concat());
    assert_eq!(rows(&mut open(asked, copy)).len(), 1);
}

#[test]
fn a_sep_line_a_mark_and_a_header_of_several_lines() {
    let mut list = List::open(options(), fixture("sep-line-and-ragged-header.csv")).unwrap();
    let mut reading = list.rows().unwrap();
    let read: Vec<_> = reading.by_ref().map(Result::unwrap).collect();
    assert_eq!(
        told(&read),
        [
            row!(6, email: "a@example.com", crk: "k-1", first_name: "Anna", last_name: "O'Hara; Jr.",
                custom2: "one\ntwo, \"three\""),
            row!(10, email: "b@example.com", crk: "k-2", first_name: "Ben", last_name: "'\"'", custom3: "x"),
            row!(11, email: "c@example.com", crk: "k-3", first_name: "Cleo", custom3: "last row"),
        ]
    );
    assert_eq!(reading.empty(), 4);

    let some = copied(&mut list, |line| line != 6);
    assert!(some.starts_with("\u{feff}sep=;\r\n E-MAIL ;\"first\nname\";".as_bytes()));
    let again = told(&rows(&mut open(options(), some)));
    assert_eq!(again, [(4, told(&read)[1].1.clone()), (5, told(&read)[2].1.clone())]);
}

#[test]
fn lines_may_end_with_cr_alone() {
    let mut list = List::open(options(), fixture("mac-line-ends.csv")).unwrap();
    assert_eq!(
        told(&rows(&mut list)),
        [
            row!(2, email: "a@example.com", crk: "k-1", first_name: "Anna"),
            row!(3, email: "b@example.com", crk: "k-2", first_name: "Ben"),
        ]
    );
    // One within a row ends it: what is left of the row is bad, and so is what comes behind.
    let mut list = open(options(), "email,crk\na@example.com\r,k-1\nb@example.com,k-2\n");
    assert_eq!(
        told(&rows(&mut list)),
        [
            bad!(2, "has 1 cells, where the header has 2"),
            bad!(3, "email is required"),
            row!(4, email: "b@example.com", crk: "k-2"),
        ]
    );
    // Within quotes it is part of the cell, and an end of a line there.
    let mut list = open(
        options(),
        "email,crk,custom1\na@example.com,k-1,\"1\r2\"\nb@example.com,k-2,\n",
    );
    assert_eq!(
        told(&rows(&mut list)),
        [
            row!(2, email: "a@example.com", crk: "k-1", custom1: "1\n2"),
            row!(4, email: "b@example.com", crk: "k-2"),
        ]
    );
}

#[test]
fn a_stray_quote_in_one_line_is_a_bad_row_and_over_several_ends_the_reading() {
    let mut list = List::open(options(), fixture("stray-quote.csv")).unwrap();
    let mut reading = list.rows().unwrap();
    let first: Vec<_> = reading.by_ref().take(3).map(Result::unwrap).collect();
    assert_eq!(
        told(&first),
        [
            row!(2, email: "a@example.com", crk: "k-1", custom1: "fine"),
            bad!(
                3,
                "text follows right behind a closing quote: is there a quote too many, or one that is not doubled?"
            ),
            row!(4, email: "c@example.com", crk: "k-3", custom1: "6\" screen"),
        ]
    );
    assert!(matches!(
        reading.next(),
        Some(Err(Error::StrayQuote { line: 5, last: 7 }))
    ));
    assert!(reading.next().is_none());

    for end in ["", "\n", "\r\n", "\nb@example.com,k-2\n"] {
        let mut list = open(options(), format!("email,crk\na@example.com,\"k-1{end}"));
        assert!(
            matches!(list.rows().unwrap().next(), Some(Err(Error::OpenQuote { line: 2 }))),
            "{end:?}"
        );
    }
    // Blanks between a closing quote and the delimiter hurt nobody.
    let mut list = open(options(), "email,crk\n\"a@example.com\" ,\"k-1\"  \n");
    assert_eq!(told(&rows(&mut list)), [row!(2, email: "a@example.com", crk: "k-1")]);
}

#[test]
fn json_a_line() {
    let mut list = List::open(options(), fixture("rows.ndjson")).unwrap();
    assert_eq!(list.describe().to_string(), "NDJSON in UTF-8\ncollector_id: c-1");
    let mut reading = list.rows().unwrap();
    let read: Vec<_> = reading.by_ref().map(Result::unwrap).collect();
    assert_eq!(
        told(&read),
        [
            row!(1, email: "a@example.com", crk: "k-1", first_name: "Łukasz", custom8: "x\ny"),
            row!(3, email: "b@example.com", crk: "k-2", first_name: "Ben"),
            bad!(4, "crk must be a string"),
            bad!(5, "is not a JSON object"),
            bad!(6, "resendInDoubt is set by flags, not by rows"),
            row!(7, email: "e@example.com", crk: "k-5"),
        ]
    );
    assert_eq!(reading.empty(), 1);
    let some = copied(&mut list, |line| line == 3 || line == 7);
    assert_eq!(
        String::from_utf8(some).unwrap(),
        "{\"collector_id\":\"c-1\",\"email\":\"b@example.com\",\"crk\":\"k-2\",\"first_name\":\"Ben\"}\r\n\
         {\"email\":\"e@example.com\",\"crk\":\"k-5\"}"
    );
}

#[test]
fn rows_have_as_many_cells_as_the_header() {
    let mut list = open(
        options(),
        "email,crk,,custom1\na@example.com,k-1,ignored,x,,\nb@example.com,k-2,,x,,y\nc@example.com,k-3\n\
         d@example.com,k-4,,\n",
    );
    assert_eq!(
        told(&rows(&mut list)),
        [
            row!(2, email: "a@example.com", crk: "k-1", custom1: "x"),
            bad!(3, "has 6 cells, where the header has 4"),
            bad!(4, "has 2 cells, where the header has 4"),
            row!(5, email: "d@example.com", crk: "k-4"),
        ]
    );
    assert_eq!(rows(&mut list)[1].crk, "", "which cell is the crk is not sure");
}

#[test]
fn records_of_any_width_are_whole() {
    for width in [1, 31, 32, 33, 64, 65, 500] {
        for end in ["", "\n", "\r\n"] {
            let mut text = "email,crk".to_string();
            (2..width.max(2)).for_each(|column| text.push_str(&format!(",x{column}")));
            text.push_str("\na@example.com,k-1");
            (2..width.max(2)).for_each(|_| text.push_str(",\"\n\""));
            text.push_str(end);
            let mut list = open(options(), &text);
            assert_eq!(
                told(&rows(&mut list)),
                [row!(2, email: "a@example.com", crk: "k-1")],
                "{width} {end:?}"
            );
        }
    }
}

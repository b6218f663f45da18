//! What is decided by the header and the flags, and what is refused.

use super::*;

fn crk_of_email() -> Options {
    Options {
        derive_crk: vec![Field::Email],
        ..options()
    }
}

#[test]
fn the_delimiter_is_what_is_between_the_words() {
    for (header, delimiter) in [
        ("email,crk", ','),
        ("email;crk", ';'),
        ("email\tcrk", '\t'),
        ("\"email\";\"crk\"", ';'),
        // More commas than semicolons, and yet.
        ("email;crk;\"a,b,c,d\"", ';'),
        ("email;crk;a,b,c,d", ';'),
        ("\"x;y\",crk,email", ','),
        ("sep=,\nemail,crk,a;b;c;d", ','),
        ("\"sep=|\"\r\nemail|crk", '|'),
        ("SEP=\t\nemail\tcrk", '\t'),
    ] {
        let list = open(options(), header);
        let Syntax::Csv { delimiter: found, .. } = &list.layout.syntax else {
            panic!("{header}");
        };
        assert_eq!(char::from(*found), delimiter, "{header}");
    }
    let asked = Options {
        delimiter: Some(b'|'),
        ..options()
    };
    let mut list = open(asked, "sep=;\nemail|crk|x\na@example.com|k;1|\n");
    assert_eq!(told(&rows(&mut list)), [row!(3, email: "a@example.com", crk: "k;1")]);
    assert!(refused(options(), "a,b;c,d;e\n").contains("--delimiter"));
}

#[test]
fn the_flags_values_are_read() {
    assert_eq!(delimiter(";").unwrap(), b';');
    assert_eq!(delimiter("tab").unwrap(), b'\t');
    for wrong in ["", ";;", "\"", "a", "1", " ", "\n", "ł"] {
        assert!(delimiter(wrong).is_err(), "{wrong:?}");
        let asked = Options {
            delimiter: wrong.bytes().next(),
            ..options()
        };
        if wrong.len() == 1 {
            assert!(refused(asked, "email,crk\n").starts_with("--delimiter"), "{wrong:?}");
        }
    }
    assert_eq!(encoding("cp1250"), Ok(WINDOWS_1250));
    assert_eq!(encoding("Windows-1250"), Ok(WINDOWS_1250));
    assert!(encoding("iso-2022-kr").is_err(), "a label that decodes nothing");
    assert!(encoding("latin").is_err());
}

#[test]
fn a_header_of_one_word_is_enough() {
    let mut list = open(crk_of_email(), "E-mail\na@example.com\n");
    assert_eq!(
        told(&rows(&mut list)),
        [row!(2, email: "a@example.com", crk: "d1-4af3f6e7398725bb13ba43bf7e63eb28")]
    );
    assert_eq!(
        list.describe().to_string(),
        "CSV in UTF-8, with `,` between columns\ncolumn 1 (E-mail): email\ncollector_id: c-1\ncrk: made of email"
    );
}

#[test]
fn the_format_is_the_flags_or_the_names_or_the_contents() {
    let json = "\n \t{\"email\":\"a@example.com\",\"crk\":\"k\"}\n";
    let csv = "email,crk\na@example.com,k\n";
    assert_eq!(open(options(), json).format(), Format::Ndjson);
    assert_eq!(open(options(), csv).format(), Format::Csv);
    let directory = tempfile::tempdir().unwrap();
    for (name, contents, format) in [
        ("list.CSV", csv, Some(Format::Csv)),
        ("list.tsv", csv, Some(Format::Csv)),
        ("list.txt", csv, Some(Format::Csv)),
        ("list.ndjson", csv, Some(Format::Ndjson)),
        ("list.jsonl", json, Some(Format::Ndjson)),
        ("list.json", json, Some(Format::Ndjson)),
        ("list.dat", json, Some(Format::Ndjson)),
        ("list.txt", json, None),
    ] {
        let path = directory.path().join(name);
        std::fs::write(&path, contents).unwrap();
        let opened = List::open(options(), Source::File(path));
        match format {
            Some(format) => assert_eq!(opened.unwrap().format(), format, "{name}"),
            None => assert!(matches!(opened, Err(Error::Json { line: 2 }))),
        }
    }
    let asked = Options {
        format: Some(Format::Ndjson),
        ..options()
    };
    assert_eq!(
        told(&rows(&mut open(asked.clone(), "7\n"))),
        [bad!(1, "is not a JSON object")]
    );
    let with_delimiter = Options {
        delimiter: Some(b';'),
        ..asked
    };
    assert_eq!(refused(with_delimiter, json), "--delimiter is for CSV alone");
}

#[test]
fn flags_come_before_what_a_word_may_mean() {
    let mut list = open(
        mapped(&["Work E-mail=email", "#4=custom1", "Phone="]),
        "email,work-e-mail,crk,,phone,notes\na@example.com,b@example.com,k-1,x,7,n\n",
    );
    assert_eq!(
        told(&rows(&mut list)),
        [row!(2, email: "b@example.com", crk: "k-1", custom1: "x")]
    );
    assert_eq!(
        list.describe().to_string(),
        "CSV in UTF-8, with `,` between columns\ncolumn 1 (email): ignored\ncolumn 2 (work-e-mail): email\n\
         column 3 (crk): crk\ncolumn 4 (no name): custom1\ncolumn 5 (phone): ignored\ncolumn 6 (notes): ignored\n\
         collector_id: c-1"
    );
    // A column of no name behind the last of a name is there if a flag says so.
    let mut list = open(mapped(&["#3=custom1"]), "email,crk,,\na@example.com,k-1,x,\n");
    assert_eq!(
        told(&rows(&mut list)),
        [row!(2, email: "a@example.com", crk: "k-1", custom1: "x")]
    );
    // The very name comes before one that is alike, and a name before a number.
    let mut list = open(
        mapped(&["Note=custom1", "#1=custom2"]),
        "email,crk,NOTE,Note,#1,1\na@example.com,k-1,A,B,C,D\n",
    );
    assert_eq!(
        told(&rows(&mut list)),
        [row!(2, email: "a@example.com", crk: "k-1", custom1: "B", custom2: "C")]
    );
}

#[test]
fn mappings_that_name_no_column_or_several_are_refused() {
    for (map, wanted) in [
        (
            &["x=custom1"][..],
            "--map: there is no column x. The columns are: column 1 (email), column 2 (crk)",
        ),
        (&["#0=custom1"], "--map: there is no column #0."),
        (&["#9=custom1"], "--map: there is no column #9."),
        (&["!=custom1"], "--map: there is no column !."),
        (
            &["A B=custom1"],
            "--map: A B can be any of these: column 3 (a-b), column 4 (ab). Give its number",
        ),
        (&["a-b=custom1", "#3=custom2"], "--map: column 3 (a-b) is named twice"),
        (
            &["a-b=custom1", "ab=custom1"],
            "custom1 is given by more than one column: column 3 (a-b), column 4 (ab).",
        ),
    ] {
        let text = refused(mapped(map), "email,crk,a-b,ab,\n");
        assert!(text.starts_with(wanted), "{text}");
    }
}

#[test]
fn two_columns_of_one_field_are_refused() {
    let text = refused(options(), "E-mail;crk;e_mail\n");
    assert!(
        text.starts_with("email is given by more than one column: column 1 (E-mail), column 3 (e_mail)."),
        "{text}"
    );
    assert!(text.contains("--map '#3='"));
    // Of columns that nobody needs there may be several.
    assert!(List::open(options(), spooled("email;crk;note;note;;;x\n")).is_ok());
}

#[test]
fn what_a_row_needs_has_a_column_or_a_flag() {
    let text = refused(options(), "Adres;Imię;crk\n");
    assert!(
        text.contains("column 1 (Adres), column 2 (Imię), column 3 (crk)"),
        "{text}"
    );
    assert!(text.contains("--map 'COLUMN=email'"), "{text}");

    let text = refused(options(), "email;Zamówienie\n");
    assert!(
        text.contains("without a second e-mail") && text.contains("column 2 (Zamówienie)"),
        "{text}"
    );
    assert!(
        text.contains("--map 'COLUMN=crk'") && text.contains("--derive-crk email"),
        "{text}"
    );

    let text = refused(crk_of_email(), "email;Response Key\n");
    assert!(
        text.contains("column 2 (Response Key)") && text.contains("--map '#2='"),
        "{text}"
    );

    let no_collector = Options::default();
    assert!(refused(no_collector.clone(), "email;crk\n").contains("--collector"));
    assert!(List::open(no_collector, spooled("email;crk;collector_id\n")).is_ok());
    let wrong_collector = Options {
        collector: Some("no spaces".into()),
        ..options()
    };
    assert!(refused(wrong_collector, "email;crk\n").starts_with("--collector must be 1 to 64"));

    let of_nothing = Options {
        derive_crk: vec![Field::Email, Field::Custom1],
        ..options()
    };
    assert_eq!(refused(of_nothing, "email\n"), "--derive-crk: no column gives custom1");
}

#[test]
fn a_list_without_a_header_is_told_without_its_contents() {
    for options in [options(), mapped(&["Imię=first_name"])] {
        for text in [
            "anna@example.com;Anna;k-1\n",
            "Anna;anna@example.com\n",
            "Anna,Nowak;\"anna@example.com\"\n",
        ] {
            let text = refused(options.clone(), text);
            assert_eq!(
                text,
                "line 1 has an @, so it looks like a person's data: the first line has to name the columns"
            );
        }
    }
    // A header may have one, too.
    assert!(List::open(options(), spooled("email;crk;notes (@)\n")).is_ok());
}

#[test]
fn empty_lists() {
    for text in ["", "\n\r\n", "\u{feff}", ";;;\n", "sep=;\n"] {
        assert!(
            matches!(List::open(options(), spooled(text)), Err(Error::Empty)),
            "{text:?}"
        );
    }
    for text in ["email,crk", "email,crk\n", "\u{feff}sep=,\r\nemail,crk\r\n\r\n"] {
        let mut list = open(options(), text);
        assert_eq!(rows(&mut list).len(), 0);
        let wanted = text.replace("\r\n\r\n", "\r\n");
        assert_eq!(copied(&mut list, |_| true), wanted.as_bytes());
    }
    let json = Options {
        format: Some(Format::Ndjson),
        ..options()
    };
    assert_eq!(rows(&mut open(json, "")).len(), 0);
}

#[test]
fn quotes_of_a_header_pair() {
    for text in ["email,\"crk\n1,2\n", "email,a\"\nb\",crk\n"] {
        assert!(
            matches!(
                List::open(options(), spooled(text)),
                Err(Error::HeaderQuotes { line: 1 })
            ),
            "{text:?}"
        );
    }
    let asked = Options {
        delimiter: Some(b','),
        ..options()
    };
    assert_eq!(
        refused(asked, "\nemail,\"crk\"x\n"),
        "the quotes in the header, line 2, do not pair"
    );
}

#[test]
fn the_collector_is_the_flags_or_the_rows() {
    let text = "email,crk,collector_id\na@example.com,k-1,\nb@example.com,k-2,c-1\nc@example.com,k-3,c-2\n";
    assert_eq!(
        told(&rows(&mut open(options(), text))),
        [
            row!(2, email: "a@example.com", crk: "k-1"),
            row!(3, email: "b@example.com", crk: "k-2"),
            bad!(4, "collector_id is not that of --collector"),
        ]
    );
    let read = rows(&mut open(Options::default(), text));
    assert_eq!(told(&read[..1]), [bad!(2, "collector_id is required")]);
    assert_eq!(read[2].content.as_ref().unwrap().collector_id, "c-2");
}

#[test]
fn rows_have_a_crk_of_their_own_or_a_made_one() {
    let of_custom = Options {
        derive_crk: vec![Field::Custom1],
        ..options()
    };
    let read = rows(&mut open(
        of_custom,
        "email,custom1\na@example.com,7\nb@example.com,\nnobody,7\n",
    ));
    assert!(read[0].crk.starts_with("d1-") && read[0].crk.len() == 35);
    assert_eq!(
        told(&read[1..2]),
        [bad!(3, "crk can't be made: the fields of --derive-crk are empty")]
    );
    assert_eq!(read[2].crk, read[0].crk, "also of a bad row it is told");
    let reason = read[2].content.as_ref().unwrap_err();
    assert!(
        reason.starts_with("email is not an e-mail address") && !reason.contains("nobody"),
        "{reason}"
    );

    let json = "{\"email\":\"a@example.com\",\"crk\":\"k\"}\n{\"email\":\"a@example.com\",\"crk\":\"\"}\n";
    let read = rows(&mut open(crk_of_email(), json));
    assert_eq!(told(&read[..1]), [bad!(1, "crk is given, and --derive-crk as well")]);
    assert!(read[1].content.is_ok());
    let read = rows(&mut open(options(), "{\"email\":\"a@example.com\"}\n"));
    assert_eq!(told(&read), [bad!(1, "crk is required")]);
}

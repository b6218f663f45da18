//! Long records, changed files, streams.

use super::{records::MAX_RECORD, *};

#[test]
fn a_quote_that_is_never_closed_does_not_load_the_file() {
    let rest = "b@example.com,k-2,plain\n".repeat(100_000);
    let text = format!("email,crk,custom1\nok@example.com,k-0,\na@example.com,k-1,\"stray\n{rest}");
    assert!(text.len() > 2 * MAX_RECORD);
    let mut list = open(options(), text);
    let mut rows = list.rows().unwrap();
    assert!(rows.next().unwrap().unwrap().content.is_ok());
    let error = rows.next().unwrap().err().unwrap();
    assert!(matches!(error, Error::LongRecord { line: 3 }), "{error}");
    assert!(error.to_string().contains("a quote that is never closed?"));
    assert!(rows.bytes() < 2 * MAX_RECORD as u64);
    assert!(rows.next().is_none());

    let text = format!("email,\"crk\n{rest}");
    assert!(matches!(
        List::open(options(), spooled(text)),
        Err(Error::LongRecord { line: 1 })
    ));
}

#[test]
fn a_line_of_the_bound_is_read_and_one_byte_more_is_not() {
    let json = |length: usize| {
        let rest = "{\"email\":\"a@example.com\",\"crk\":\"k\",\"custom1\":\"\"}\n";
        format!(
            "{{}}\n{}",
            rest.replace("\"\"}", &format!("\"{}\"}}", "x".repeat(length - rest.len())))
        )
    };
    let mut list = open(options(), json(MAX_RECORD));
    let read = rows(&mut list);
    assert_eq!(told(&read[1..]), [bad!(2, "custom1 must be at most 2048 characters")]);
    let mut list = open(options(), json(MAX_RECORD + 1));
    let last = list.rows().unwrap().last();
    assert!(matches!(last, Some(Err(Error::LongLine { line: 2 }))));
}

#[test]
fn a_stream_is_read_once_and_a_file_again() {
    let text = "email,crk\na@example.com,k-1\n";
    let mut list = List::open(options(), Source::Stream(Box::new(text.as_bytes()))).unwrap();
    assert_eq!(list.fingerprint().unwrap(), None);
    assert_eq!(rows(&mut list).len(), 1);
    assert!(matches!(list.rows(), Err(Error::Once)));

    let mut list = open(options(), text);
    let (mut one, mut other) = (list.rows().unwrap(), list.rows().unwrap());
    for rows in [&mut one, &mut other] {
        assert_eq!(rows.next().unwrap().unwrap().line, 2);
    }
    assert!(one.next().is_none() && other.next().is_none());
}

#[test]
fn a_list_goes_to_another_thread() {
    let mut list = open(options(), "email,crk\na@example.com,k-1\n");
    let rows = list.rows().unwrap();
    assert_eq!(std::thread::spawn(move || rows.count()).join().unwrap(), 1);
    assert!(std::thread::spawn(move || list.rows().is_ok()).join().unwrap());
}

#[test]
fn a_file_that_changes_is_noticed() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("list.csv");
    std::fs::write(&path, "email,crk\na@example.com,k-1\n").unwrap();
    let mut list = List::open(options(), Source::File(path.clone())).unwrap();
    let before = list.fingerprint().unwrap();
    assert_eq!(before.unwrap().length, 28);
    assert_eq!(rows(&mut list).len(), 1);
    assert_eq!(list.fingerprint().unwrap(), before);

    let mut file = File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::End(0)).unwrap();
    file.write_all(b"b@example.com,k-2\n").unwrap();
    assert_ne!(list.fingerprint().unwrap(), before);

    // As long as before, at another time.
    file.set_len(28).unwrap();
    let time = before.unwrap().modified.unwrap() + std::time::Duration::from_secs(1);
    file.set_modified(time).unwrap();
    let now = list.fingerprint().unwrap().unwrap();
    assert_eq!(now.length, 28);
    assert_ne!(Some(now), before);

    file.seek(SeekFrom::Start(0)).unwrap();
    file.write_all(b"crk,email\n").unwrap();
    assert!(matches!(list.rows(), Err(Error::Changed)));

    // Another file of the name is another file.
    std::fs::write(&path, "email,crk\na@example.com,k-1\n").unwrap();
    let mut list = List::open(options(), Source::File(path.clone())).unwrap();
    let _first = list.rows().unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "nothing\n").unwrap();
    assert_eq!(rows(&mut list).len(), 1);
}

#[test]
fn what_can_not_be_opened_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("no such list.csv");
    let error = List::open(options(), Source::File(path)).err().unwrap();
    assert!(
        error.to_string().contains("no such list.csv can't be opened"),
        "{error}"
    );
    let error = List::open(options(), Source::File(directory.path().into()))
        .err()
        .unwrap();
    assert!(matches!(error, Error::Open { .. } | Error::Read(_)), "{error}");
}

#[test]
fn what_can_not_be_written_back_is_named() {
    // Big5 has characters that are read and never written.
    let bytes = b"email,crk,custom1\na@example.com,k-1,\nb@example.com,k-2,\x87\x40\n";
    let big5 = Options {
        encoding: Some(encoding("big5").unwrap()),
        ..options()
    };
    let mut list = open(big5, bytes);
    assert!(rows(&mut list).iter().all(|row| row.content.is_ok()));
    assert_eq!(
        copied(&mut list, |line| line == 2),
        b"email,crk,custom1\na@example.com,k-1,\n"
    );
    let error = copy_rows(&mut list, |_| true, Vec::new()).unwrap_err();
    assert!(matches!(error, Error::Unwritable { line: 3, .. }), "{error}");
}

#[test]
fn an_encoding_with_states_ends_in_its_first() {
    let bytes = b"email,crk\na@example.com,\x1b$B$\"\x1b(B\n";
    let japanese = Options {
        encoding: Some(encoding("iso-2022-jp").unwrap()),
        ..options()
    };
    let mut list = open(japanese.clone(), bytes);
    assert_eq!(told(&rows(&mut list)), [row!(2, email: "a@example.com", crk: "あ")]);
    assert_eq!(copied(&mut list, |_| true), bytes);
    let mut list = open(japanese, &bytes[..bytes.len() - 1]);
    assert_eq!(copied(&mut list, |_| true), &bytes[..bytes.len() - 1]);
}

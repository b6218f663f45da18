//! A list as a whole.

use super::*;

fn checked(options: Options, text: &str) -> (Checked, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut progress = Vec::new();
    let rows = open(options, text).rows().unwrap();
    let checked = check(rows, &mut |_| {}, &mut |problem| problems.push(problem), &mut |now| {
        progress.push(now)
    })
    .unwrap();
    let last = progress.last().unwrap();
    assert_eq!((last.rows, last.bytes), (checked.rows, text.len() as u64));
    assert!(progress.is_sorted_by_key(|now| (now.rows, now.bytes)));
    (checked, problems)
}

fn bad(line: u64, reason: &str) -> Problem {
    Problem::Bad {
        line,
        reason: reason.into(),
    }
}

fn conflict(line: u64, first: u64) -> Problem {
    Problem::Conflict { line, first }
}

fn repeated_email(line: u64, first: u64) -> Problem {
    Problem::RepeatedEmail { line, first }
}

#[test]
fn a_good_list_has_no_problems() {
    let (counts, problems) = checked(options(), "email,crk\na@example.com,k-1\n\nb@example.com,k-2\n,\n");
    assert_eq!(problems, []);
    let wanted = Checked {
        rows: 2,
        empty: 2,
        ..Checked::default()
    };
    assert_eq!(counts, wanted);
}

#[test]
fn everything_is_told_in_the_order_of_lines() {
    let text = "email,crk,first_name\n\
        a@example.com,k-1,Anna\n\
        b@example.com,k-2,Ben\n\
        not an address,k-3,\n\
        a@example.com,k-1,Anna\n\
        b@example.com,k-2,Benjamin\n\
        A@Example.com,k-4,Anna\n\
        c@example.com,k-1,Cleo\n\
        a@example.com,k-5,Anna\n\
        a@example.com,k-4,Anna\n\
        d@example.com,,\n\
        not an address,k-3,\n\
        c@example.com,k-6,Cleo\n";
    let (counts, problems) = checked(options(), text);
    let not_an_address = "email is not an e-mail address: Missing separator character '@'.";
    assert_eq!(
        problems,
        [
            bad(4, not_an_address),
            bad(11, "crk is required"),
            bad(12, not_an_address),
            conflict(6, 3),
            conflict(8, 2),
            conflict(10, 7),
            repeated_email(7, 2),
            repeated_email(9, 2),
            repeated_email(10, 2),
            repeated_email(13, 8),
        ]
    );
    let wanted = Checked {
        rows: 12,
        empty: 0,
        bad: 3,
        conflicts: 3,
        repeats: 1,
        repeated_emails: 4,
    };
    assert_eq!(counts, wanted);
    let told: String = problems.iter().map(|problem| format!("{problem}\n")).collect();
    assert!(told.contains("line 6: the crk of line 3, with other data\n"), "{told}");
    assert!(
        told.contains("line 7: the e-mail address of line 2, with another crk\n"),
        "{told}"
    );
    for value in ["example", "Anna", "k-", "address,"] {
        assert!(!told.to_lowercase().contains(value), "{told}");
    }
}

#[test]
fn collectors_have_their_own_keys_and_addresses() {
    let text = "email,crk,collector_id\na@example.com,k-1,c-1\na@example.com,k-1,c-2\nb@example.com,k-1,c-3\n";
    let (counts, problems) = checked(Options::default(), text);
    assert_eq!(problems, []);
    assert_eq!(counts.rows, 3);
}

#[test]
fn an_address_in_other_case_has_the_same_made_key_and_is_a_conflict() {
    let derived = Options {
        derive_crk: vec![Field::Email],
        ..options()
    };
    let (counts, problems) = checked(derived, "email\na@example.com\na@example.com\nA@example.com\n");
    assert_eq!(problems, [conflict(4, 2)]);
    assert_eq!((counts.repeats, counts.conflicts, counts.repeated_emails), (1, 1, 0));
}

#[test]
fn what_ends_the_reading_ends_the_check() {
    let rows = open(options(), "email,crk\na@example.com,k-1\nb@example.com,\"\n")
        .rows()
        .unwrap();
    let error = check(rows, &mut |_| {}, &mut |_| {}, &mut |_| {}).unwrap_err();
    assert!(matches!(error, Error::OpenQuote { line: 3 }), "{error}");
}

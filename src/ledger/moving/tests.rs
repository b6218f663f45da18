use std::slice;

use super::*;
use crate::{
    clock::Timestamp,
    invitation::{Fingerprint, Reason},
    ledger::LastError,
};

fn record(state: State) -> Record {
    let is_added = state == State::Added;
    Record {
        key: Key::new("c", "k"),
        fingerprint: Fingerprint([7; 32]),
        state,
        attempts: 2,
        created_at: Timestamp(1),
        updated_at: Timestamp(5),
        added_at: is_added.then_some(Timestamp(5)),
        last_error: (!is_added && state != State::Pending).then_some(LastError {
            reason: Reason::SurveylabBadRequest,
            http_status: Some(400),
        }),
        notification: is_added.then(|| "Action processed correctly".into()),
    }
}

fn summary(records: &[Record]) -> Summary {
    let mut summing = Summing::default();
    records.iter().for_each(|record| summing.add(record));
    summing.end()
}

#[test]
fn a_claim_is_in_doubt_from_its_moment_on() {
    let pending = record(State::Pending);
    let moved = moved(pending.clone()).unwrap();
    let doubt = LastError {
        reason: Reason::OutcomeInDoubt,
        http_status: None,
    };
    assert_eq!(
        moved,
        Record {
            state: State::InDoubt,
            last_error: Some(doubt),
            ..pending
        }
    );
}

#[test]
fn all_else_is_moved_as_it_is_or_not_at_all() {
    for state in [State::Added, State::Failed, State::InDoubt] {
        assert_eq!(moved(record(state)).unwrap(), record(state));
    }
    let refused = [
        Record {
            last_error: None,
            ..record(State::Failed)
        },
        Record {
            key: Key::new("c", "k\0"),
            ..record(State::Added)
        },
    ];
    for record in refused {
        let key = record.key.clone();
        assert!(matches!(moved(record), Err(Error::Record { key: named, .. }) if named == key));
    }
    let strange = Record {
        notification: Some("a\0b".into()),
        ..record(State::Added)
    };
    assert_eq!(moved(strange).unwrap().notification.as_deref(), Some("a\u{fffd}b"));
}

#[test]
fn any_change_of_any_record_changes_the_digest() {
    let failed = record(State::Failed);
    let added = record(State::Added);
    let changes: [fn(&mut Record); 9] = [
        |record| record.key = Key::new("ck", ""),
        |record| record.key = Key::new("", "ck"),
        |record| record.fingerprint.0[31] ^= 1,
        |record| record.state = State::InDoubt,
        |record| record.attempts += 1,
        |record| record.created_at.0 += 1,
        |record| record.updated_at.0 += 1,
        |record| record.last_error.as_mut().unwrap().http_status = None,
        |record| record.notification = Some(String::new()),
    ];
    let mut seen = vec![
        summary(&[]),
        summary(slice::from_ref(&failed)),
        summary(slice::from_ref(&added)),
        summary(&[failed.clone(), failed.clone()]),
    ];
    for change in changes {
        let mut changed = failed.clone();
        change(&mut changed);
        seen.push(summary(&[changed]));
    }
    let mut other_reason = failed;
    other_reason.last_error.as_mut().unwrap().reason = Reason::SurveylabForbidden;
    seen.push(summary(&[other_reason]));
    for (index, one) in seen.iter().enumerate() {
        for other in &seen[index + 1..] {
            assert_ne!(one.digest().to_string(), other.digest().to_string());
        }
    }
    assert_eq!(seen[2].digest().to_string().len(), 64);
    assert_eq!((seen[2].keys.added, seen[1].keys.failed), (1, 1));
}

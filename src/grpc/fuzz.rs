//! Targets of [`crate::fuzz`]: what a gRPC caller writes.

use std::time::Duration;

use prost::Message as _;
use tonic::metadata::MetadataMap;

use super::{convert, deadline, page_token};
use crate::{
    clock::Clock,
    fuzz::lines,
    invitation::{Invitation, Key, collector_id, violations_of_key},
    ledger::State,
    proto,
};

/// A message off the wire, and what it is made into.
pub fn add_request(data: &[u8]) -> Option<(proto::AddRespondentRequest, Invitation)> {
    let message = proto::AddRespondentRequest::decode(data).ok()?;
    Some((message.clone(), convert::invitation(message)))
}

/// The other messages off the wire: each becomes something that a ledger can be asked, or a list of what is wrong, no
/// field twice.
pub fn messages(data: &[u8]) {
    if let Ok(message) = proto::ListInvitationsRequest::decode(data) {
        let page_is_ours = message.page_token.is_empty() || page_token::decode(&message.page_token).is_some();
        let is_right = [
            message.collector_id.is_empty() || collector_id(&message.collector_id).is_none(),
            (0..=4).contains(&message.state),
            message.page_size >= 0,
            page_is_ours,
        ];
        match convert::query(message.clone()) {
            Ok(query) => {
                assert_eq!(is_right, [true; 4]);
                let size = usize::try_from(message.page_size).unwrap_or_default();
                assert_eq!(query.limit, if size == 0 { 100 } else { size.min(1000) });
                let state = [
                    None,
                    Some(State::Pending),
                    Some(State::Added),
                    Some(State::Failed),
                    Some(State::InDoubt),
                ];
                assert_eq!(state.get(message.state as usize), Some(&query.state));
                assert_eq!(query.collector_id.unwrap_or_default(), message.collector_id);
                assert_eq!(query.after.is_some(), !message.page_token.is_empty());
            }
            Err(violations) => {
                let fields: Vec<_> = violations.iter().map(|violation| violation.field).collect();
                let wrong = ["collector_id", "state", "page_size", "page_token"]
                    .into_iter()
                    .zip(is_right)
                    .filter_map(|(field, is_right)| (!is_right).then_some(field));
                assert_eq!(fields, wrong.collect::<Vec<_>>());
            }
        }
    }
    if let Ok(message) = proto::ResolveInvitationRequest::decode(data) {
        assert_eq!(
            convert::resolution(message.resolution).is_ok(),
            matches!(message.resolution, 1 | 2)
        );
        let key = convert::key(message.collector_id.clone(), message.crk.clone());
        if let Ok(key) = key {
            assert_eq!((key.collector_id(), key.crk()), (&*message.collector_id, &*message.crk));
        }
    }
}

/// A page token: what is understood is what [`page_token::encode`] writes, to the letter, and names a key that can be. As
/// two lines, a key: its token leads back to it.
pub fn page_token(data: &[u8]) {
    if let Ok(token) = str::from_utf8(data)
        && let Some(key) = page_token::decode(token)
    {
        assert_eq!(violations_of_key(&key), []);
        assert_eq!(page_token::encode(&key), token);
    }
    if let Some(([collector_id], crk)) = lines(data)
        && let Ok(crk) = str::from_utf8(crk)
    {
        let key = Key::new(collector_id, crk);
        if violations_of_key(&key).is_empty() {
            assert_eq!(page_token::decode(&page_token::encode(&key)), Some(key));
        }
    }
}

/// A `grpc-timeout`: by the grammar of gRPC over HTTP/2, or nothing at all.
pub fn grpc_timeout(data: &[u8]) {
    let Ok(value) = data.try_into() else { return };
    let mut metadata = MetadataMap::new();
    metadata.insert("grpc-timeout", value);
    let clock = Clock::system();
    let before = clock.now();
    let deadline = deadline::of(&metadata, &clock);
    let after = clock.now();
    match (deadline, timeout(data)) {
        (Some(at), Some(timeout)) => {
            assert!(
                before + timeout <= at && at <= after + timeout,
                "{}",
                data.escape_ascii()
            )
        }
        (at, timeout) => assert_eq!((at, timeout), (None, None), "{}", data.escape_ascii()),
    }
}

/// "Timeout → TimeoutValue TimeoutUnit", the value of at most eight digits.
fn timeout(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    let mut value = 0_u64;
    for digit in digits {
        value = value * 10 + u64::from(digit.checked_sub(b'0').filter(|digit| *digit <= 9)?);
        if value > 99_999_999 {
            return None;
        }
    }
    let unit = match unit {
        b'H' => Duration::from_secs(3600),
        b'M' => Duration::from_secs(60),
        b'S' => Duration::from_secs(1),
        b'm' => Duration::from_millis(1),
        b'u' => Duration::from_micros(1),
        b'n' => Duration::from_nanos(1),
        _ => return None,
    };
    let is_value = matches!(digits.len(), 1..=8);
    is_value.then(|| unit * u32::try_from(value).unwrap_or(u32::MAX))
}

//! Where a listing goes on: the last key that was shown. Opaque to callers.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::invitation::{Key, violations_of_key};

/// Told apart by the first byte, should the form ever change.
const VERSION: u8 = 1;

pub fn encode(last: &Key) -> String {
    let collector_id = last.collector_id();
    let mut bytes = vec![VERSION, u8::try_from(collector_id.len()).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(collector_id.as_bytes());
    bytes.extend_from_slice(last.crk().as_bytes());
    URL_SAFE_NO_PAD.encode(bytes)
}

/// `None` if it was not made by [`encode`].
pub fn decode(token: &str) -> Option<Key> {
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (&[VERSION, length], rest) = bytes.split_first_chunk()? else {
        return None;
    };
    let (collector_id, crk) = rest.split_at_checked(length.into())?;
    let key = Key::new(str::from_utf8(collector_id).ok()?, str::from_utf8(crk).ok()?);
    violations_of_key(&key).is_empty().then_some(key)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn comes_back(collector_id in "[A-Za-z0-9_-]{1,64}", crk in "[a-zżółć/+ ]{0,30}[a-z]") {
            let key = Key::new(collector_id, crk.trim());
            prop_assert_eq!(decode(&encode(&key)), Some(key));
        }

        #[test]
        fn never_panics(token in ".*", bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            decode(&token);
            decode(&URL_SAFE_NO_PAD.encode(bytes));
        }
    }
}

use std::fmt;

/// Bytes in hexadecimal digits.
pub fn hex(bytes: &[u8]) -> impl fmt::Display {
    fmt::from_fn(move |f| bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}")))
}

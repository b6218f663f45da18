//! What a token is, SurveyLab's or a caller's: each is part of a line of a request.

use secrecy::{ExposeSecret as _, SecretString};

/// What a token must be.
pub const NOT_A_TOKEN: &str = "the token must be one line of visible ASCII characters, at most 1024";

/// The token that a text holds, if it is one.
pub fn of(text: &str) -> Option<SecretString> {
    let token = SecretString::from(text.trim());
    let plain = token.expose_secret();
    let is_token = !plain.is_empty() && plain.len() <= 1024 && plain.bytes().all(|b| b.is_ascii_graphic());
    is_token.then_some(token)
}

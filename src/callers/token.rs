//! Bearer tokens, and the hashes by which they are known.

use std::fmt;

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use rand::{TryRng as _, rngs::SysRng};
use secrecy::{ExposeSecret as _, SecretString, zeroize::Zeroizing};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

/// Says what it is to people, and to tools that look for secrets where none belong.
pub(super) const PREFIX: &str = "slg_";
const SCHEME: &str = "sha256:";
const RANDOM_BYTES: usize = 32;
/// 256 bits in base64url without padding.
const TEXT_LENGTH: usize = 43;

/// A new token: 256 random bits.
pub struct Token(SecretString);

impl Token {
    /// Fails if the system gives no random numbers.
    pub fn generate() -> Result<Self, impl std::error::Error> {
        let mut bits = Zeroizing::new([0; RANDOM_BYTES]);
        SysRng.try_fill_bytes(bits.as_mut_slice()).map(|()| {
            let text = Zeroizing::new(URL_SAFE_NO_PAD.encode(bits.as_slice()));
            Self(format!("{PREFIX}{}", text.as_str()).into())
        })
    }

    /// The token itself, to be shown once.
    pub fn expose(&self) -> &str {
        self.0.expose_secret()
    }

    pub fn hash(&self) -> TokenHash {
        TokenHash::of_text(self.expose().as_bytes())
    }
}

/// SHA-256 of a token, as the callers' file keeps it.
///
/// A plain hash, not one of those made slow for passwords: those defend words that people choose. Nobody finds 256 random
/// bits by trying, and a slow hash would be paid by each call. So only tokens of our own form are looked at.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TokenHash([u64; 4]);

impl TokenHash {
    /// Of what a caller brought; `None` of what can't be a token, by its form alone.
    pub fn of(text: &[u8]) -> Option<Self> {
        let random = text.strip_prefix(PREFIX.as_bytes())?;
        let is_base64url = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
        (random.len() == TEXT_LENGTH && random.iter().all(is_base64url)).then(|| Self::of_text(text))
    }

    fn of_text(text: &[u8]) -> Self {
        let digest = Sha256::digest(text);
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(digest.chunks_exact(8)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        Self(words)
    }

    /// As it is written in the file: `sha256:` and 64 hexadecimal digits.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = text.strip_prefix(SCHEME)?;
        if digits.len() != 64 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return None;
        }
        let mut words = [0; 4];
        for (word, at) in words.iter_mut().zip((0..64).step_by(16)) {
            *word = u64::from_str_radix(digits.get(at..at + 16)?, 16).ok()?;
        }
        Some(Self(words))
    }

    /// In a time that tells nothing of where they differ.
    pub fn matches(&self, other: &Self) -> Choice {
        let words = self.0.iter().zip(&other.0);
        // One barrier against the compiler's short cuts instead of four: they are what it costs.
        let differing = words.fold(0, |differing, (one, other)| differing | (one ^ other));
        differing.ct_eq(&0)
    }
}

impl fmt::Display for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d] = self.0;
        write!(f, "{SCHEME}{a:016x}{b:016x}{c:016x}{d:016x}")
    }
}

impl fmt::Debug for TokenHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenHash")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_the_hash_that_other_tools_compute() {
        let token = format!("{PREFIX}{}", "A".repeat(43));
        // printf %s slg_AAA… | sha256sum
        let hash = "sha256:f06d8cb7f16926f49ab5f20af198a77400e88a320f6cf96f811c24d00ff4e73a";
        let computed = TokenHash::of(token.as_bytes()).unwrap().to_string();
        assert_eq!(computed, hash);
    }

    #[test]
    fn new_tokens_differ_and_are_of_the_form_that_is_looked_at() {
        let [one, other] = [(); 2].map(|()| Token::generate().unwrap());
        assert_ne!(one.expose(), other.expose());
        for token in [&one, &other] {
            let hash = TokenHash::of(token.expose().as_bytes()).unwrap();
            assert!(hash == token.hash() && TokenHash::parse(&hash.to_string()) == Some(hash));
        }
        assert!(bool::from(one.hash().matches(&one.hash())));
        assert!(!bool::from(one.hash().matches(&other.hash())));
    }

    #[test]
    fn hashes_that_differ_in_one_bit_do_not_match() {
        let hash = Token::generate().unwrap().hash();
        for word in 0..4 {
            for bit in 0..64 {
                let mut other = hash;
                other.0[word] ^= 1 << bit;
                assert!(!bool::from(hash.matches(&other)), "{word} {bit}");
            }
        }
    }

    #[test]
    fn what_has_another_form_is_neither_a_token_nor_a_hash() {
        let good = "A".repeat(43);
        for wrong in [
            String::new(),
            good.clone(),
            format!("slg_{}", &good[1..]),
            format!("slg_{good}A"),
            format!("SLG_{good}"),
            format!("slg_{}=", &good[1..]),
            format!("slg_{} ", &good[1..]),
        ] {
            assert!(TokenHash::of(wrong.as_bytes()).is_none(), "{wrong}");
        }
        for wrong in [
            "",
            "sha256:",
            "sha256:+00000000000000000000000000000000000000000000000000000000000000f",
            &format!("sha256:{}", "0".repeat(63)),
            &format!("sha256:{}", "0".repeat(65)),
            &format!("sha512:{}", "0".repeat(64)),
            &"0".repeat(64),
            &format!("sha256:{}ż", "0".repeat(62)),
        ] {
            assert!(TokenHash::parse(wrong).is_none(), "{wrong}");
        }
    }
}

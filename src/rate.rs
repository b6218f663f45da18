//! A rate as people write it: `5/s`, `120/m`, `1000/h`.

use std::{fmt, str::FromStr, time::Duration};

const UNITS: [(&str, Duration); 3] = [
    ("s", Duration::from_secs(1)),
    ("m", Duration::from_secs(60)),
    ("h", Duration::from_secs(3_600)),
];

/// Beyond a million a second the period's whole nanoseconds would be a coarse approximation.
const MAX_PER_SECOND: u64 = 1_000_000;

/// So many in so much time; never zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    per: Duration,
}

/// A text that is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    #[error("expected a number per s, m or h, such as 2/s or 120/m")]
    Form,
    #[error("a rate must not be zero")]
    Zero,
    #[error("a rate is at most {MAX_PER_SECOND} a second")]
    TooHigh,
}

impl Rate {
    pub fn count(self) -> u32 {
        self.count
    }

    pub fn per(self) -> Duration {
        self.per
    }

    /// On average, for people and monitors; what is kept to is [`period`](Self::period).
    pub fn per_second(self) -> f64 {
        f64::from(self.count) / self.per.as_secs_f64()
    }

    /// The time between two at an even pace. Rounded up to a nanosecond: a limit may be kept a hair too well, never
    /// broken.
    pub fn period(self) -> Duration {
        let nanos = self.per.as_nanos().div_ceil(u128::from(self.count));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

impl FromStr for Rate {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let (count, unit) = text.trim().split_once('/').ok_or(Error::Form)?;
        let per = UNITS
            .iter()
            .find(|(name, _)| *name == unit.trim_start())
            .ok_or(Error::Form)?
            .1;
        let digits = count.trim_end();
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(Error::Form);
        }
        let count: u32 = digits.parse().map_err(|_| Error::TooHigh)?;
        if count == 0 {
            return Err(Error::Zero);
        }
        if u64::from(count) > MAX_PER_SECOND * per.as_secs() {
            return Err(Error::TooHigh);
        }
        Ok(Self { count, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = UNITS
            .iter()
            .find(|(_, per)| *per == self.per)
            .map_or("s", |(name, _)| name);
        write!(f, "{}/{unit}", self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_and_writes_what_people_write() {
        for (text, written, nanos) in [
            ("5/s", "5/s", 200_000_000),
            ("120/m", "120/m", 500_000_000),
            (" 1000 / h ", "1000/h", 3_600_000_000),
            ("3/s", "3/s", 333_333_334),
            ("1000000/s", "1000000/s", 1_000),
        ] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!(rate.to_string(), written);
            assert_eq!(rate.period(), Duration::from_nanos(nanos), "{text}");
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for text in [
            "", "5", "/s", "5/", "5/d", "5/S", "-5/s", "+5/s", "5.5/s", "five/s", "5//s", "5/s/s",
        ] {
            assert_eq!(text.parse::<Rate>(), Err(Error::Form), "{text:?}");
        }
        assert_eq!("0/s".parse::<Rate>(), Err(Error::Zero));
        assert_eq!("1000001/s".parse::<Rate>(), Err(Error::TooHigh));
        assert_eq!("99999999999/h".parse::<Rate>(), Err(Error::TooHigh));
    }
}

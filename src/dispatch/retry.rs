//! When to try again what SurveyLab did not process.

use std::time::Duration;

use rand::RngExt as _;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(10);
/// `Retry-After` is trusted up to here.
const ASKED_MAX: Duration = Duration::from_secs(3600);

/// How long to wait after the `failures`th failure in a row: full jitter (a random part of a bound that doubles), and not
/// less than SurveyLab asked for.
pub fn backoff(failures: u32, asked: Option<Duration>) -> Duration {
    let bound = FIRST
        .saturating_mul(2u32.saturating_pow(failures.saturating_sub(1)))
        .min(LONGEST);
    let jittered = bound.mul_f64(rand::rng().random_range(0.0..=1.0));
    jittered.max(asked.unwrap_or_default().min(ASKED_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stays_below_a_bound_that_doubles_up_to_ten_seconds() {
        for (failures, bound) in [
            (1, 200),
            (2, 400),
            (3, 800),
            (6, 6_400),
            (7, 10_000),
            (u32::MAX, 10_000),
        ] {
            let longest = (0..1_000).map(|_| backoff(failures, None)).max().unwrap();
            let bound = Duration::from_millis(bound);
            assert!(longest <= bound && longest > bound / 2, "{failures}: {longest:?}");
        }
    }

    #[test]
    fn honours_what_was_asked_up_to_an_hour() {
        assert_eq!(backoff(1, Some(Duration::from_secs(30))), Duration::from_secs(30));
        assert_eq!(backoff(1, Some(Duration::MAX)), Duration::from_secs(3600));
    }
}

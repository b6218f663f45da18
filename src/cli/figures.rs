//! Numbers as people read them.

use std::time::Duration;

/// As long as the rows that are left take at a rate.
pub fn time_left(rows: u64, per_second: f64) -> String {
    // Counts of rows are far below 2^52.
    let seconds = (rows as f64 / per_second).min(f64::from(u32::MAX));
    span_text(Duration::from_secs_f64(seconds.ceil()))
}

/// With as many digits as a person wants, rounded up: what is left is never told too short.
pub fn span_text(span: Duration) -> String {
    let tenths = span.as_millis().div_ceil(100);
    if tenths < 100 {
        return match (tenths / 10, tenths % 10) {
            (whole, 0) => format!("{whole} s"),
            (whole, tenth) => format!("{whole}.{tenth} s"),
        };
    }
    let seconds = span.as_millis().div_ceil(1000);
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else {
        format!("{seconds} s")
    }
}

/// A rate as a person reads it.
pub fn rate(per_second: f64) -> String {
    if per_second >= 100.0 {
        // Rounded, and far below 2^52.
        grouped(per_second.round() as u64)
    } else {
        let text = format!("{per_second:.2}");
        text.trim_end_matches('0').trim_end_matches('.').to_string()
    }
}

/// The configured rate and the learned one, both in the unit that suits the configured one.
pub fn rates(configured: f64, learned: f64) -> String {
    let (unit, per_unit) = if configured >= 1.0 {
        ("s", 1.0)
    } else if configured * 60.0 >= 1.0 {
        ("m", 60.0)
    } else {
        ("h", 3600.0)
    };
    let rate = |per_second: f64| format!("{}/{unit}", (per_second * per_unit * 100.0).round() / 100.0);
    let (configured, learned) = (rate(configured), rate(learned));
    if learned == configured {
        format!("rate {configured}")
    } else {
        format!("rate {configured}, learned {learned}")
    }
}

/// With a space after each three digits.
pub fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_as_people_read_them() {
        assert_eq!(
            ["0", "999", "1 000", "1 234 567"],
            [0, 999, 1_000, 1_234_567].map(grouped).each_ref().map(String::as_str)
        );
        assert_eq!(
            ["2", "1.4", "0.03", "12 346"],
            [2.0, 1.4, 0.033, 12_345.6].map(rate).each_ref().map(String::as_str)
        );
        assert_eq!(time_left(7_200, 2.0), "1 h 0 min");
        assert_eq!(time_left(1, 100.0), "1 s");
        assert_eq!(time_left(1_000_000, 2.0), "5 d 18 h");
    }

    #[test]
    fn rates_are_told_in_a_unit_that_suits_them() {
        for (configured, learned, text) in [
            (2.0, 2.0, "rate 2/s"),
            (3.0, 2.1, "rate 3/s, learned 2.1/s"),
            (1.0, 0.7, "rate 1/s, learned 0.7/s"),
            (0.5, 0.35, "rate 30/m, learned 21/m"),
            (1000.0 / 3600.0, 1000.0 / 3600.0, "rate 16.67/m"),
            (1.0 / 3600.0, 0.7 / 3600.0, "rate 1/h, learned 0.7/h"),
            (100_000.0, 100_000.0, "rate 100000/s"),
        ] {
            assert_eq!(rates(configured, learned), text);
        }
    }

    #[test]
    fn spans_are_told_with_few_digits_and_never_too_short() {
        for (millis, text) in [
            (0, "0 s"),
            (1, "0.1 s"),
            (4_500, "4.5 s"),
            (9_900, "9.9 s"),
            (9_901, "10 s"),
            (11_001, "12 s"),
            (59_001, "1 min 0 s"),
            (185_000, "3 min 5 s"),
            (7_380_000, "2 h 3 min"),
            (266_400_000, "3 d 2 h"),
        ] {
            assert_eq!(span_text(Duration::from_millis(millis)), text, "{millis}");
        }
    }
}

//! Numbers as people read them.

use std::time::Duration;

/// As long as the rows that are left take at a rate.
pub fn time_left(rows: u64, per_second: f64) -> String {
    // Counts of rows are far below 2^52.
    let seconds = (rows as f64 / per_second).min(f64::from(u32::MAX));
    let rounded = Duration::from_secs_f64(seconds).as_secs().max(1);
    // Nobody waits for the seconds of an hour.
    let grain = if rounded >= 3_600 { 60 } else { 1 };
    humantime::format_duration(Duration::from_secs(rounded.div_ceil(grain) * grain)).to_string()
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
        assert_eq!(time_left(7_200, 2.0), "1h");
        assert_eq!(time_left(1, 100.0), "1s");
        assert_eq!(time_left(1_000_000, 2.0), "5days 18h 54m");
    }
}

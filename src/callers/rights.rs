//! What a caller may do.

use crate::method::Method;

/// A set of methods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Methods(u8);

impl Methods {
    /// What every caller may do, if nothing else is said.
    pub fn of_callers() -> Self {
        Method::ALL
            .into_iter()
            .filter(|method| !method.is_for_operators())
            .collect()
    }

    pub fn of_operators() -> Self {
        Method::ALL
            .into_iter()
            .filter(|method| method.is_for_operators())
            .collect()
    }

    pub fn and(self, others: Self) -> Self {
        Self(self.0 | others.0)
    }

    pub fn contains(self, method: Method) -> bool {
        self.0 & bit(method) != 0
    }

    pub fn iter(self) -> impl Iterator<Item = Method> {
        Method::ALL.into_iter().filter(move |method| self.contains(*method))
    }
}

impl FromIterator<Method> for Methods {
    fn from_iter<I: IntoIterator<Item = Method>>(methods: I) -> Self {
        Self(methods.into_iter().fold(0, |set, method| set | bit(method)))
    }
}

fn bit(method: Method) -> u8 {
    1 << method as u8
}

/// A part of the account's rate, in hundredths of a percent: from 1 to 10 000.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u16);

impl Share {
    pub const WHOLE: u32 = 10_000;

    /// `20%` or `12.5%`, with at most two decimals; more than nothing, and at most 100%.
    pub fn parse(text: &str) -> Option<Self> {
        let number = text.strip_suffix('%')?;
        let (whole, decimals) = number.split_once('.').unwrap_or((number, "0"));
        let are_digits = |text: &str| !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        if !are_digits(whole) || !are_digits(decimals) || whole.len() > 3 || decimals.len() > 2 {
            return None;
        }
        let decimals: u32 = format!("{decimals:0<2}").parse().ok()?;
        let hundredths = whole.parse::<u32>().ok()? * 100 + decimals;
        let hundredths = u16::try_from(hundredths).ok()?;
        (1..=Self::WHOLE)
            .contains(&hundredths.into())
            .then_some(Self(hundredths))
    }

    /// More than 0, at most 1.
    pub fn fraction(self) -> f64 {
        f64::from(self.0) / f64::from(Self::WHOLE)
    }

    /// For sums that are exact.
    pub fn hundredths_of_a_percent(self) -> u32 {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_more_than_nothing_and_at_most_everything() {
        let fraction = |text: &str| Share::parse(text).map(Share::fraction);
        assert_eq!(fraction("20%"), Some(0.2));
        assert_eq!(fraction("12.5%"), Some(0.125));
        assert_eq!(fraction("0.01%"), Some(0.0001));
        assert_eq!(fraction("100%"), Some(1.0));
        for wrong in [
            "",
            "%",
            "20",
            "0%",
            "0.0%",
            "100.01%",
            "101%",
            "-1%",
            "+1%",
            "1.%",
            ".5%",
            "1.234%",
            "1e1%",
            "20 %",
            "99999999999%",
        ] {
            assert_eq!(fraction(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn listing_and_resolving_are_operators_rights() {
        let names = |methods: Methods| methods.iter().map(Method::name).collect::<Vec<_>>();
        assert_eq!(
            names(Methods::of_callers()),
            ["AddRespondent", "StreamAddRespondent", "GetInvitation", "GetStatus"]
        );
        assert_eq!(names(Methods::of_operators()), ["ListInvitations", "ResolveInvitation"]);
        assert_eq!(Methods::of_callers().and(Methods::of_operators()).iter().count(), 6);
    }
}

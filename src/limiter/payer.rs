use super::Lane;

/// What one permit costs a payer whose share is the whole rate, in virtual time.
const UNIT: u64 = 1 << 32;
/// A share is counted in parts of a million, at least one.
const PARTS: f64 = 1e6;
/// What is left for those without a share, however much the shares come to.
const REST_MIN: f64 = 0.01;

/// Whose part of the rate a request is paid from: a caller's own share, or what the shares leave.
///
/// A share says how the permits, and the places to wait for them, are divided while there are not enough for all; it is no
/// upper bound. All payers without a share are one group, whose requests go in the order of their [`Lane`]s, whoever pays for
/// them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payer {
    /// `None` is nobody in particular.
    id: Option<u32>,
    has_share: bool,
    /// Of one permit: the inverse of the share.
    price: u64,
}

impl Payer {
    /// Where callers are not told apart.
    pub const ANONYMOUS: Self = Self::rest(UNIT);

    /// The caller of that id, which stays the same for as long as requests of it may wait.
    ///
    /// `share` is its share of the rate, above 0 up to 1, if it has one. `all_shares` is the sum of what all callers have,
    /// of those too who do not call: the rest of the rate is for the callers without a share, and at least a hundredth of
    /// it. Where the shares come to more than 1 each stands for less, in the same proportion.
    pub fn new(id: u32, share: Option<f64>, all_shares: f64) -> Self {
        let weight = share.unwrap_or_else(|| (1.0 - all_shares).max(REST_MIN));
        let parts = (weight.min(1.0) * PARTS).round() as u64;
        Self {
            id: Some(id),
            has_share: share.is_some(),
            price: UNIT * PARTS as u64 / parts.max(1),
        }
    }

    /// Nobody in particular among those without a share, whose permits cost so much.
    pub(super) const fn rest(price: u64) -> Self {
        Self {
            id: None,
            has_share: false,
            price,
        }
    }

    pub fn id(self) -> Option<u32> {
        self.id
    }

    /// Do requests of both wait for the same turns?
    pub fn is_in_one_group_with(self, other: Self) -> bool {
        self.own() == other.own()
    }

    /// The id of a caller with a share of its own.
    pub(super) fn own(self) -> Option<u32> {
        self.id.filter(|_| self.has_share)
    }

    pub(super) fn price(self) -> u64 {
        self.price
    }

    /// Its part of what is shared out as the rate is, rounded up.
    pub(super) fn part_of(self, whole: usize) -> usize {
        let part = (whole as u128 * u128::from(UNIT)).div_ceil(self.price.into());
        usize::try_from(part).unwrap_or(usize::MAX)
    }
}

/// Where a request waits: whose it is, and in which of its payer's lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    pub payer: Payer,
    pub lane: Lane,
}

impl From<Lane> for Queue {
    fn from(lane: Lane) -> Self {
        Self {
            payer: Payer::ANONYMOUS,
            lane,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_permit_costs_the_inverse_of_the_share() {
        assert_eq!(Payer::new(1, Some(1.0), 1.0).price(), UNIT);
        assert_eq!(Payer::new(1, Some(0.25), 0.75).price(), 4 * UNIT);
        // The others have what is left, and never nothing.
        assert_eq!(Payer::new(2, None, 0.75).price(), 4 * UNIT);
        assert_eq!(Payer::new(2, None, 0.0).price(), UNIT);
        assert_eq!(Payer::new(2, None, 1.5).price(), 100 * UNIT);
    }

    #[test]
    fn a_part_is_a_share_and_never_nothing() {
        for (share, part) in [(1.0, 10), (0.25, 3), (0.1, 1), (0.000_001, 1)] {
            assert_eq!(Payer::new(1, Some(share), share).part_of(10), part, "{share}");
        }
        assert_eq!(Payer::ANONYMOUS.part_of(usize::MAX), usize::MAX);
    }

    #[test]
    fn no_share_is_worth_more_than_all_or_nothing_at_all() {
        for share in [0.0, -1.0, 1e-9, 1.5, f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let price = Payer::new(1, Some(share), share).price();
            assert!((UNIT..=UNIT * 1_000_000).contains(&price), "{share}: {price}");
            let price = Payer::new(2, None, share).price();
            assert!((UNIT..=100 * UNIT).contains(&price), "{share}: {price}");
        }
    }
}

//! Time, injected. Durations come from tokio's clock, which tests can pause; dates from a wall clock that may jump,
//! so nothing is ever measured with it.

use std::{
    future::pending,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

pub use tokio::time::Instant;
use tokio::time::sleep_until;

/// Both clocks of the process.
#[derive(Clone)]
pub struct Clock {
    wall: Arc<dyn Fn() -> SystemTime + Send + Sync>,
}

impl Clock {
    pub fn system() -> Self {
        Self::with_wall(SystemTime::now)
    }

    /// A clock with another wall clock, for tests.
    pub fn with_wall(wall: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self { wall: Arc::new(wall) }
    }

    /// Never goes back; follows tokio's pause.
    pub fn now(&self) -> Instant {
        Instant::now()
    }

    /// The date, which may jump.
    pub fn wall(&self) -> SystemTime {
        (self.wall)()
    }

    /// The date as ledgers keep it.
    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from(self.wall())
    }
}

/// Waits for a moment that may never come.
pub async fn until(moment: Option<Instant>) {
    match moment {
        Some(moment) => sleep_until(moment).await,
        None => pending().await,
    }
}

/// Microseconds since 1970-01-01 UTC, as ledgers keep it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub i64);

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        let micros = match time.duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_micros()).unwrap_or(i64::MAX),
            Err(before) => i64::try_from(before.duration().as_micros()).map_or(i64::MIN, |micros| -micros),
        };
        Self(micros)
    }
}

impl From<Timestamp> for SystemTime {
    fn from(Timestamp(micros): Timestamp) -> Self {
        let magnitude = Duration::from_micros(micros.unsigned_abs());
        let time = if micros < 0 {
            UNIX_EPOCH.checked_sub(magnitude)
        } else {
            UNIX_EPOCH.checked_add(magnitude)
        };
        time.unwrap_or(UNIX_EPOCH)
    }
}

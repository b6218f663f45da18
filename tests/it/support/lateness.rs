//! How late this machine lets tasks run.

use std::time::Duration;

use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{Instant, MissedTickBehavior, interval},
};

/// A measurement under way: by so much a time of arrival may be wrong.
pub struct Lateness(JoinHandle<()>, watch::Receiver<Duration>);

impl Lateness {
    pub fn measure() -> Self {
        let (sender, receiver) = watch::channel(Duration::ZERO);
        let task = tokio::spawn(async move {
            let period = Duration::from_millis(1);
            let mut ticks = interval(period);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                let due = ticks.tick().await;
                let late = Instant::now() - due;
                sender.send_if_modified(|worst| {
                    let worse = late > *worst;
                    *worst = late.max(*worst);
                    worse
                });
            }
        });
        Self(task, receiver)
    }

    pub fn worst(self) -> Duration {
        self.0.abort();
        *self.1.borrow()
    }
}

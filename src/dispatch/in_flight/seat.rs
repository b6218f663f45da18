use std::sync::{Arc, atomic::Ordering};

use tokio::sync::watch;

use super::{Flight, InFlight, Progress};
use crate::{
    dispatch::{Answer, Outcome},
    ledger::Doubt,
};

/// A caller's interest in a flight. Dropping it withdraws the interest.
pub struct Seat {
    doubt: Doubt,
    /// Not given back yet.
    is_taken: bool,
    in_flight: Arc<InFlight>,
    flight: Arc<Flight>,
    progress: watch::Receiver<Progress>,
}

impl Seat {
    pub(super) fn new(in_flight: &Arc<InFlight>, flight: &Arc<Flight>, doubt: Doubt) -> Self {
        Self {
            doubt,
            is_taken: true,
            in_flight: in_flight.clone(),
            flight: flight.clone(),
            progress: flight.progress.subscribe(),
        }
    }

    pub fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Waits for the answer; `None` if the flight ended without one.
    pub async fn answer(&mut self) -> Option<Answer> {
        let ended = |progress: &Progress| matches!(progress, Progress::Done(_) | Progress::Gone);
        let progress = self.progress.wait_for(ended).await.map(|progress| progress.clone());
        match progress {
            Ok(Progress::Done(answer)) => Some(self.credit(answer)),
            _ => None,
        }
    }

    /// Waits until nothing is on the wire, and tells what is then.
    pub async fn off_the_wire(&mut self) -> Progress {
        let off = |progress: &Progress| !progress.is_on_the_wire();
        let progress = self.progress.wait_for(off).await.map(|progress| progress.clone());
        match progress {
            Ok(Progress::Done(answer)) => Progress::Done(self.credit(answer)),
            Ok(progress) => progress,
            Err(_) => Progress::Gone,
        }
    }

    /// Withdraws the interest while nothing can be on the wire: from then on nothing goes there for this caller. False, and
    /// nothing done, where something can be, or the flight has ended.
    pub fn withdraw(&mut self) -> bool {
        let withdrawn = self.in_flight.leave(&self.flight, self.doubt, |seats| !seats.committed);
        self.is_taken &= !withdrawn;
        withdrawn
    }

    /// Exactly one of those who waited for the request has added the respondent.
    fn credit(&self, answer: Answer) -> Answer {
        match answer {
            Ok(Outcome::Added(added)) if self.flight.credited.swap(true, Ordering::Relaxed) => {
                Ok(Outcome::Duplicate(added))
            }
            other => other,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if self.is_taken {
            self.in_flight.leave(&self.flight, self.doubt, |_| true);
        }
    }
}

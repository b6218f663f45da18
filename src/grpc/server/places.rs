//! The connections that are open, up to a number, and which of them makes room for another.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio_util::sync::CancellationToken;

use crate::clock::Instant;

/// Calls of one connection that are under way beyond those that HTTP/2 counts: one that its caller resets is none to
/// HTTP/2 at once, but takes memory until its task has noticed.
const MAX_UNNOTICED: usize = 4096;
/// Calls of one connection that were reset before they had an answer, less those that had one, and less those that are
/// forgiven with time. Far above what clients cause that cancel their calls by the hundred, or whose deadlines all pass
/// while SurveyLab hangs, and a bound for one that only does that (CVE-2023-44487).
const MAX_ABANDONED: u64 = 10_000;
const FORGIVEN_PER_SECOND: u64 = 500;
/// Calls of one connection without valid credentials, less those that are forgiven with time. A client with an old token
/// needs fewer to notice, and one that only tries tokens is not worth its lines in the log.
const MAX_WITHOUT_CREDENTIALS: u64 = 20;
const SECONDS_TO_FORGIVE_ONE: u64 = 10;
/// Connections beyond the maximum, where all have calls under way: so that a short call, or a health check, gets through.
/// A newcomer takes the place of the oldest of them.
const SPARE: usize = 16;

/// Room for so many connections. Cheap to clone.
///
/// When all places are taken, a newcomer gets that of the connection that has been without a call for longest: an
/// honest client hardly misses it, as it connects again with its next call, and those who only sit there never lock
/// anyone out. Where there is none, it gets a spare place, which is the next newcomer's once all of these are taken. The
/// others are never ended with a call under way.
#[derive(Clone)]
pub struct Places {
    max_connections: usize,
    max_calls: usize,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    open: HashMap<u64, Open>,
    /// Counts up; orders the moments at which connections became idle, and names them.
    next: u64,
}

struct Open {
    calls: usize,
    abandoned: Count,
    without_credentials: Count,
    /// When its last call ended, or when it was opened.
    idle_since: u64,
    leave: CancellationToken,
}

/// A count of which some are forgiven with time.
struct Count {
    count: u64,
    /// So many in so many seconds.
    forgiven: (u64, u64),
    /// Up to when they were forgiven.
    since: Instant,
}

/// A connection's place, free again when this is dropped.
pub struct Place {
    id: u64,
    places: Places,
    /// Cancelled when the connection must end at once: the place has gone to another, or its calls are too many.
    pub leave: CancellationToken,
    /// There was no other place.
    pub is_spare: bool,
}

/// Begins the calls of one connection.
#[derive(Clone)]
pub struct Calls {
    connection: u64,
    places: Places,
}

/// A call under way, until this is dropped.
pub struct Call(Calls);

/// A call that has no answer yet. Dropped without one it counts as abandoned.
pub struct Unanswered {
    calls: Calls,
    is_answered: bool,
}

impl Places {
    /// `max_streams` is what HTTP/2 allows of calls at once on one connection.
    pub fn new(max_connections: usize, max_streams: usize) -> Self {
        Self {
            max_connections,
            max_calls: max_streams.saturating_add(MAX_UNNOTICED),
            state: Arc::default(),
        }
    }

    /// A place, if need be that of another connection.
    pub fn take(&self) -> Place {
        let mut state = self.lock();
        let mut is_spare = false;
        if state.open.len() >= self.max_connections {
            let idle = state.open.iter().filter(|(_, open)| open.calls == 0);
            let longest_idle = idle.min_by_key(|(_, open)| open.idle_since).map(|(id, _)| *id);
            is_spare = longest_idle.is_none();
            if let Some(id) = longest_idle.or_else(|| state.oldest_spare(self.max_connections))
                && let Some(open) = state.open.remove(&id)
            {
                open.leave.cancel();
            }
        }
        let id = state.tick();
        let leave = CancellationToken::new();
        let open = Open {
            calls: 0,
            abandoned: Count::forgiving(FORGIVEN_PER_SECOND, 1),
            without_credentials: Count::forgiving(1, SECONDS_TO_FORGIVE_ONE),
            idle_since: id,
            leave: leave.clone(),
        };
        state.open.insert(id, open);
        Place {
            id,
            places: self.clone(),
            leave,
            is_spare,
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn tick(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// The oldest connection beyond the first `max`, if no further one may be opened beside them.
    fn oldest_spare(&self, max: usize) -> Option<u64> {
        if self.open.len() < max + SPARE {
            return None;
        }
        let mut ids: Vec<u64> = self.open.keys().copied().collect();
        ids.sort_unstable();
        ids.get(max).copied()
    }
}

impl Open {
    fn end(&self, why: &str) {
        if !self.leave.is_cancelled() {
            tracing::warn!(why, "a connection is ended");
            self.leave.cancel();
        }
    }
}

impl Count {
    fn forgiving(number: u64, seconds: u64) -> Self {
        Self {
            count: 0,
            forgiven: (number, seconds),
            since: Instant::now(),
        }
    }

    /// Tells how many there are then.
    fn add(&mut self) -> u64 {
        self.forgive();
        self.count += 1;
        self.count
    }

    fn take(&mut self) {
        self.forgive();
        self.count = self.count.saturating_sub(1);
    }

    fn forgive(&mut self) {
        let (number, seconds) = self.forgiven;
        let times = self.since.elapsed().as_secs() / seconds;
        if times > 0 {
            self.since = Instant::now();
            self.count = self.count.saturating_sub(times.saturating_mul(number));
        }
    }
}

impl Place {
    pub fn calls(&self) -> Calls {
        Calls {
            connection: self.id,
            places: self.places.clone(),
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.lock().open.remove(&self.id);
    }
}

impl Calls {
    pub fn begin(&self) -> Call {
        if let Some(open) = self.places.lock().open.get_mut(&self.connection) {
            open.calls += 1;
            if open.calls > self.places.max_calls {
                open.end("too many calls that were reset are not worked off");
            }
        }
        Call(self.clone())
    }

    /// Notes a call without valid credentials; too many of them end the connection.
    pub fn without_credentials(&self) {
        let mut state = self.places.lock();
        let Some(open) = state.open.get_mut(&self.connection) else {
            return;
        };
        if open.without_credentials.add() > MAX_WITHOUT_CREDENTIALS {
            // Without a word: those who try would write the log.
            open.leave.cancel();
        }
    }

    pub fn unanswered(&self) -> Unanswered {
        Unanswered {
            calls: self.clone(),
            is_answered: false,
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let mut state = self.0.places.lock();
        let now = state.tick();
        // Its connection may have ended before it.
        if let Some(open) = state.open.get_mut(&self.0.connection) {
            open.calls -= 1;
            open.idle_since = now;
        }
    }
}

impl Unanswered {
    pub fn answered(mut self) {
        self.is_answered = true;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        let mut state = self.calls.places.lock();
        // Its connection may have ended before it.
        let Some(open) = state.open.get_mut(&self.calls.connection) else {
            return;
        };
        if self.is_answered {
            open.abandoned.take();
        } else if open.abandoned.add() > MAX_ABANDONED {
            open.end("too many calls were opened only to be reset");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newcomer_gets_the_place_of_the_longest_idle() {
        let places = Places::new(3, 10);
        let [first, second, third] = [(); 3].map(|()| places.take());
        // The first one was busy a moment ago, the second one is.
        drop(first.calls().begin());
        let call = second.calls().begin();
        let fourth = places.take();
        let left = || [&first, &second, &third, &fourth].map(|place| place.leave.is_cancelled());
        assert_eq!(left(), [false, false, true, false]);
        let fifth = places.take();
        assert_eq!(left(), [true, false, true, false]);
        drop(call);
        drop(fifth);
        assert_eq!(left(), [true, false, true, false]);
    }

    #[test]
    fn with_a_call_on_every_connection_newcomers_share_the_spare_places() {
        let places = Places::new(2, 10);
        let [first, second] = [(); 2].map(|()| places.take());
        let _calls = [first.calls().begin(), second.calls().begin()];
        let newcomers = (0..SPARE).map(|_| places.take());
        let (spares, held): (Vec<Place>, Vec<Call>) = newcomers
            .map(|place| {
                let call = place.calls().begin();
                (place, call)
            })
            .unzip();
        assert!(!first.is_spare && !second.is_spare && spares.iter().all(|place| place.is_spare));
        let left = || spares.iter().filter(|place| place.leave.is_cancelled()).count();
        assert_eq!(left(), 0);
        // With calls on all of these as well, the oldest spare one goes.
        let newcomer = places.take();
        let _call = newcomer.calls().begin();
        assert!(left() == 1 && spares[0].leave.is_cancelled());
        assert!(places.take().is_spare && spares[1].leave.is_cancelled());
        assert!(!first.leave.is_cancelled() && !second.leave.is_cancelled());
        // What ends late of a connection that is gone changes nothing.
        drop(held);
        drop(spares);
        assert!(!first.leave.is_cancelled() && !second.leave.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_only_abandons_calls_must_leave() {
        let places = Places::new(2, 10);
        let [patient, hasty] = [(); 2].map(|()| places.take());
        for _ in 0..MAX_ABANDONED {
            drop(hasty.calls().unanswered());
            drop(patient.calls().unanswered());
        }
        patient.calls().unanswered().answered();
        drop(patient.calls().unanswered());
        assert!(!patient.leave.is_cancelled() && !hasty.leave.is_cancelled());
        drop(hasty.calls().unanswered());
        assert!(!patient.leave.is_cancelled() && hasty.leave.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn deadlines_that_pass_for_minutes_end_no_connection() {
        let places = Places::new(1, 10);
        let place = places.take();
        for _ in 0..300 {
            for _ in 0..FORGIVEN_PER_SECOND {
                drop(place.calls().unanswered());
            }
            tokio::time::advance(std::time::Duration::from_secs(1)).await;
        }
        assert!(!place.leave.is_cancelled());
    }

    #[tokio::test(start_paused = true)]
    async fn who_keeps_calling_without_credentials_must_leave() {
        let places = Places::new(2, 10);
        let [slow, fast] = [(); 2].map(|()| places.take());
        for _ in 0..MAX_WITHOUT_CREDENTIALS {
            slow.calls().without_credentials();
            fast.calls().without_credentials();
        }
        assert!(!slow.leave.is_cancelled() && !fast.leave.is_cancelled());
        fast.calls().without_credentials();
        assert!(!slow.leave.is_cancelled() && fast.leave.is_cancelled());
        for _ in 0..100 {
            tokio::time::advance(std::time::Duration::from_secs(SECONDS_TO_FORGIVE_ONE)).await;
            slow.calls().without_credentials();
        }
        assert!(!slow.leave.is_cancelled());
        slow.calls().without_credentials();
        assert!(slow.leave.is_cancelled());
    }

    #[test]
    fn who_begins_calls_faster_than_they_are_worked_off_must_leave() {
        let places = Places::new(1, 10);
        let place = places.take();
        let calls: Vec<Call> = (0..places.max_calls).map(|_| place.calls().begin()).collect();
        assert!(!place.leave.is_cancelled());
        let _one_more = place.calls().begin();
        assert!(place.leave.is_cancelled());
        drop(calls);
    }
}

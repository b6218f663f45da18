//! A task that owns one connection and does what is asked of it in batches, each batch one transaction and one round
//! trip: group commit across callers, as in the embedded ledger.

mod step;
mod transaction;

use std::{
    collections::{HashSet, VecDeque},
    mem,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{sync::mpsc, time::timeout};

pub(super) use self::step::{Asked, Resolve, Settle, Step};
use self::transaction::{Failure, Session};
use super::{lease::Lease, link::Link, write::Writing};
use crate::{
    clock::Instant,
    ledger::Error,
    metrics::{self, Access},
};

/// How many callers may have something waiting before further ones wait for a place.
const QUEUE: usize = 4_096;
/// The most steps that share a transaction. More would make the first of them wait for the last.
const MAX_BATCH: usize = 1_024;
/// How often claims that were disowned are looked for when nothing else is asked.
const LOOK_AGAIN: Duration = Duration::from_secs(1);

#[expect(clippy::large_enum_variant, reason = "nearly all are steps")]
enum Message {
    Step(Step),
    Stop,
}

/// The handle of the task, which ends when it was told to, or when this is dropped.
pub(super) struct Writer {
    queue: mpsc::Sender<Message>,
    healthy: Arc<AtomicBool>,
}

impl Writer {
    /// The handle, and the task to spawn.
    pub(super) fn new(link: Link<Writing>, lease: Arc<Lease>) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, asked) = mpsc::channel(QUEUE);
        let healthy = Arc::new(AtomicBool::new(true));
        let task = Task {
            session: Session::new(link, lease),
            failed: false,
            healthy: healthy.clone(),
        };
        (Self { queue, healthy }, task.serve(asked))
    }

    /// Has a step done and waits for its answer.
    pub(super) async fn ask<S, A>(&self, step: S, kind: impl FnOnce(Asked<S, A>) -> Step) -> Result<A, Error> {
        let (asked, answered) = Asked::new(step);
        let message = Message::Step(kind(asked));
        self.queue.send(message).await.map_err(|_| Error::closed())?;
        answered.await.map_err(|_| Error::closed())?
    }

    /// Did the last batch succeed, and can there be another?
    pub(super) fn is_healthy(&self) -> bool {
        self.healthy.load(Ordering::Acquire) && !self.queue.is_closed()
    }

    /// Lets the task finish what it was asked so far, and end.
    pub(super) async fn stop(&self) {
        // Fails if the task takes nothing any more, which is what is wanted.
        let _ = self.queue.send(Message::Stop).await;
    }
}

/// The task's side of a writer.
struct Task {
    session: Session,
    /// It was logged that batches fail.
    failed: bool,
    healthy: Arc<AtomicBool>,
}

impl Task {
    async fn serve(mut self, mut asked: mpsc::Receiver<Message>) {
        let mut messages = Vec::new();
        let mut waiting = VecDeque::new();
        loop {
            if waiting.is_empty() {
                let coming = asked.recv_many(&mut messages, MAX_BATCH);
                let came = if self.session.has_disowned() {
                    timeout(LOOK_AGAIN, coming).await.ok()
                } else {
                    Some(coming.await)
                };
                match came {
                    Some(0) => return,
                    Some(_) => {}
                    None => {
                        // It tells of no failure that the next step would not tell of.
                        let _later = self.session.transact(&mut []).await;
                        continue;
                    }
                }
            } else {
                while waiting.len() + messages.len() < MAX_BATCH
                    && let Ok(message) = asked.try_recv()
                {
                    messages.push(message);
                }
            }
            for message in messages.drain(..) {
                match message {
                    Message::Step(step) => waiting.push_back(step),
                    Message::Stop => asked.close(),
                }
            }
            let batch = next_batch(&mut waiting);
            for step in self.run(batch).await.into_iter().rev() {
                waiting.push_front(step);
            }
        }
    }

    /// Answers the steps of a batch; gives back those that have to be done again.
    async fn run(&mut self, batch: Vec<Step>) -> Vec<Step> {
        let (sociable, alone): (Vec<_>, Vec<_>) = batch.into_iter().partition(Step::is_sociable);
        let mut parts: Vec<Vec<Step>> = alone.into_iter().map(|step| vec![step]).collect();
        parts.push(sociable);
        let mut again = Vec::new();
        while let Some(mut part) = parts.pop() {
            if part.is_empty() {
                continue;
            }
            let begin = Instant::now();
            match self.session.transact(&mut part).await {
                Ok(()) => {
                    metrics::committed(part.len(), begin.elapsed());
                    self.works();
                }
                // In halves, so that the one bad step is found in few transactions, and has only itself refused.
                Err(failure) if failure.is_of_one_step() && part.len() > 1 => {
                    parts.push(part.split_off(part.len() / 2));
                    parts.push(part);
                    continue;
                }
                Err(failure) => {
                    self.fails(&failure);
                    part.iter_mut().for_each(|step| step.refuse(failure.why()));
                }
            }
            again.extend(part.into_iter().filter_map(Step::finish));
        }
        again
    }

    fn works(&mut self) {
        self.healthy.store(true, Ordering::Release);
        if mem::take(&mut self.failed) {
            tracing::info!("the ledger works again");
        }
    }

    fn fails(&mut self, failure: &Failure) {
        self.healthy.store(false, Ordering::Release);
        metrics::ledger_failed(Access::Write);
        if !mem::replace(&mut self.failed, true) {
            tracing::error!(error = failure.why(), "the ledger failed");
        }
    }
}

/// Takes the steps of the next batch, of each key the first, in the order of keys.
fn next_batch(waiting: &mut VecDeque<Step>) -> Vec<Step> {
    let mut keys = HashSet::new();
    let mut batch = Vec::new();
    let mut later = VecDeque::new();
    for step in waiting.drain(..) {
        let is_first = step.key().is_none_or(|key| keys.insert(key.clone()));
        if is_first && batch.len() < MAX_BATCH {
            batch.push(step);
        } else {
            later.push_back(step);
        }
    }
    *waiting = later;
    batch.sort_by(|one, other| one.key().cmp(&other.key()));
    batch
}

//! Lives through a plan on paused time.

use std::{sync::Arc, time::Duration};

use futures_util::future::join_all;
use tokio::{
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::{
    super::world::ms,
    history::{CallId, End, Event, History},
    plan::{Action, Asked, Kind, Plan},
    simulation::{Caller, Line, World, invitation, key, pause},
};
use crate::{
    clock::{Clock, Instant},
    dispatch::{Dispatcher, Outcome, Settings},
    ledger::{Doubt, Resolution},
    limiter::{self, Lane, Limiter, StreamId},
};

/// How long a unary call without a deadline waits.
pub const MAX_WAIT: Duration = Duration::from_secs(60);

/// Longer than anything takes in a world that is well: a plan makes some 50 requests, one a minute at the least.
const EVER: Duration = Duration::from_secs(6 * 3600);

/// Keys from here on are no plan's.
const PROBES: u8 = 100;
/// The last of them.
const MENDS: u8 = u8::MAX;

struct Process {
    line: Line,
    dispatcher: Dispatcher,
    limiter: Limiter,
    pacer: JoinHandle<()>,
    calls: Vec<(CallId, JoinHandle<()>)>,
    resolutions: Vec<JoinHandle<()>>,
    closed: bool,
}

impl Process {
    fn start(world: &Arc<World>, plan: &Plan, number: usize) -> Self {
        let account = plan.account;
        let (limiter, pacer) = Limiter::new(limiter::Settings {
            rate: account.rate.parse().unwrap(),
            burst: account.burst,
            rested: Duration::MAX,
            max_in_flight: account.max_in_flight,
            max_queue: account.max_queue,
        });
        let settings = Settings {
            max_attempts: account.max_attempts,
            max_wait: MAX_WAIT,
            on_server_error: account.on_server_error,
            breaker_after: account.breaker_after,
        };
        let line = Line::new(world.clone(), number);
        let ends = Arc::new(line.clone());
        Self {
            dispatcher: Dispatcher::new(ends.clone(), ends, limiter.clone(), Clock::system(), settings),
            line,
            limiter,
            pacer: tokio::spawn(pacer.run()),
            calls: Vec::new(),
            resolutions: Vec::new(),
            closed: false,
        }
    }

    fn call(&mut self, id: CallId, asked: Asked) {
        let (dispatcher, line) = (self.dispatcher.clone(), self.line.clone());
        let call = tokio::spawn(async move {
            let request = dispatcher.prepare(invitation(asked.key, asked.data)).unwrap();
            let lane = asked.stream.map_or(Lane::Unary, |id| Lane::Stream(StreamId(id.into())));
            let deadline = asked.deadline.map(|after| Instant::now() + after);
            let call = dispatcher.call(request, asked.doubt, lane, deadline);
            line.note(Event::Called(id, asked));
            let caller = Caller {
                line,
                id,
                answered: false,
            };
            let answer = match asked.kind {
                Kind::Add => dispatcher.add(&call).await,
                Kind::Check => dispatcher.check(&call).await,
            };
            caller.answered(answer);
        });
        self.calls.push((id, call));
    }

    fn resolve(&mut self, number: u8, resolution: Resolution) {
        let dispatcher = self.dispatcher.clone();
        self.resolutions.push(tokio::spawn(async move {
            // What comes of it is in the history.
            let _ = dispatcher.resolve(&key(number), resolution).await;
        }));
    }

    fn close(&mut self) {
        if !self.closed {
            self.line.note(Event::Closed);
            self.dispatcher.close();
            self.closed = true;
        }
    }

    /// Waits for all calls, and notes those that nobody answers.
    async fn answered(&mut self, end: &mut End) {
        for (id, call) in std::mem::take(&mut self.calls) {
            match timeout(EVER, call).await {
                Ok(ended) => end.panics += usize::from(ended.is_err_and(|error| error.is_panic())),
                Err(_) => end.unanswered.push(id),
            }
        }
        for resolution in std::mem::take(&mut self.resolutions) {
            end.panics += usize::from(resolution.await.is_err_and(|error| error.is_panic()));
        }
    }

    /// Ends in order: what is on the wire has `drain` to come back.
    async fn stop(mut self, drain: Duration, end: &mut End) {
        self.close();
        let drained = timeout(drain, self.dispatcher.drained()).await.is_ok();
        if !drained {
            self.line.note(Event::CutOff);
            self.dispatcher.cut_off().await;
        }
        self.answered(end).await;
        self.line.closed().await;
        if drained {
            end.pending.extend(self.line.world.pending());
        }
        end.undrained |= !drained && drain >= EVER;
        end.panics += usize::from(self.pacer.await.is_err());
        self.line.world.reopen(self.line.process, false);
    }

    async fn die(self) {
        self.line.note(Event::Died);
        self.line.sever();
        for (_, call) in &self.calls {
            call.abort();
        }
        for resolution in &self.resolutions {
            resolution.abort();
        }
        self.dispatcher.close();
        self.dispatcher.cut_off().await;
        join_all(self.calls.into_iter().map(|(_, call)| call)).await;
        self.line.closed().await;
        self.line.world.reopen(self.line.process, true);
    }
}

pub async fn run(plan: &Plan) -> History {
    let world = World::new(plan.clone());
    let mut end = End::default();
    let mut process = Process::start(&world, plan, 0);
    let mut calls = 0;
    for step in &plan.steps {
        pause(step.after).await;
        world.hiccup().await;
        match step.action {
            Action::Call(asked) => {
                process.call(calls, asked);
                calls += 1;
            }
            Action::Leave(which) => {
                if let Some((_, call)) = which.checked_rem(calls).and_then(|id| {
                    let mut calls = process.calls.iter();
                    calls.find(|(other, _)| *other == id)
                }) {
                    call.abort();
                }
            }
            Action::Resolve(key, resolution) => process.resolve(key, resolution),
            Action::Fail(fault) => world.fail(fault),
            Action::Pace(before, after) => world.pace(before, after),
            Action::Close => process.close(),
            Action::Stop(_) | Action::Kill => {
                let next = Process::start(&world, plan, process.line.process + 1);
                let last = std::mem::replace(&mut process, next);
                match step.action {
                    Action::Stop(drain) => last.stop(drain, &mut end).await,
                    _ => last.die().await,
                }
            }
        }
    }
    world.heal();
    if process.closed {
        let next = Process::start(&world, plan, process.line.process + 1);
        std::mem::replace(&mut process, next).stop(EVER, &mut end).await;
    }
    settle_down(&mut process, &mut end).await;
    probe(&mut process, plan, &mut end).await;
    audit(&mut process, calls, &mut end).await;
    world.effects().await;
    end.pending.extend(world.pending());
    process.stop(EVER, &mut end).await;
    History {
        account: plan.account,
        entries: world.take_entries(),
        end,
    }
}

/// Waits until all calls are answered, and what their callers left behind has landed.
async fn settle_down(process: &mut Process, end: &mut End) {
    process.answered(end).await;
    // A request takes up to 30 s, and 5 attempts of it some more for what SurveyLab asks to wait.
    sleep(Duration::from_secs(600)).await;
    if process.dispatcher.core.breaker.standing().is_some() {
        // SurveyLab adds by now; somebody has to ask.
        let request = process.dispatcher.prepare(invitation(MENDS, 0)).unwrap();
        let call = process
            .dispatcher
            .call(request, Doubt::Hold, Lane::Stream(StreamId(0)), None);
        let _told_by_the_next_line = process.dispatcher.add(&call).await;
    }
    end.turned_away = process.dispatcher.core.breaker.standing().is_some();
    let at = process.limiter.snapshot();
    end.waiting = at.waiting_unary + at.waiting_streams;
    end.in_flight = at.in_flight;
    end.on_the_wire = process.dispatcher.on_the_wire();
}

/// With a full bucket and nothing else to do, as many calls as the account allows at once are added at once.
async fn probe(process: &mut Process, plan: &Plan, end: &mut End) {
    let account = plan.account;
    let rate: crate::rate::Rate = account.rate.parse().unwrap();
    // The pause, then the rate's way back, and then a bucket to be filled.
    let pause = process.limiter.snapshot().pause;
    sleep(pause + Duration::from_secs(1_200) + rate.period() * (account.burst + 1)).await;
    // One token less than the burst: the bucket keeps up to one back.
    let tokens = usize::try_from(account.burst - 1).unwrap().max(1);
    let count = tokens.min(account.max_in_flight).min(account.max_queue);
    let probes: Vec<_> = (PROBES..).take(count).collect();
    let calls = probes.into_iter().map(|number| {
        let dispatcher = process.dispatcher.clone();
        tokio::spawn(async move {
            let request = dispatcher.prepare(invitation(number, 0)).unwrap();
            let call = dispatcher.call(request, Doubt::Hold, Lane::Unary, None);
            // A request takes 100 ms.
            let answer = timeout(ms(110), dispatcher.add(&call)).await;
            matches!(answer, Ok(Ok(Outcome::Added(_))))
        })
    });
    for call in calls.collect::<Vec<_>>() {
        end.late_probes += usize::from(!call.await.unwrap_or(false));
    }
}

/// Asks for every key of the plan once more, with each of its data.
async fn audit(process: &mut Process, first: CallId, end: &mut End) {
    let asked = (0..9).flat_map(|key| [0, 1].map(|data| (key, data)));
    for ((key, data), id) in asked.zip(first..) {
        let asked = Asked {
            kind: Kind::Add,
            key,
            data,
            stream: None,
            deadline: None,
            doubt: Doubt::Hold,
        };
        process.call(id, asked);
        process.answered(end).await;
    }
}

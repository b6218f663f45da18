use std::{
    future::poll_fn,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use proptest::prelude::*;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::{advance, sleep, sleep_until, timeout},
};

use super::*;
use crate::{
    limiter::{Lane, Permit, Refused, StreamId, TooLate},
    rate::Rate,
};
use model::{Database, Network};

mod model;
mod row;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

const fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn settings(rate: &str, burst: u32) -> Settings {
    Settings {
        rate: rate.parse().unwrap(),
        burst,
        rested: Duration::MAX,
        max_in_flight: 1_000_000,
        max_queue: 1_000_000,
    }
}

fn database(settings: &Settings) -> Database {
    Database::new(Terms::new(settings.rate.period(), settings.burst))
}

/// Starts a replica; it ends with its limiter's closing, or with the runtime.
fn replica(settings: Settings, client: impl Slices + 'static) -> Limiter {
    let (limiter, pacer, lease) = Limiter::shared(settings, client);
    tokio::spawn(pacer.run());
    tokio::spawn(lease.run());
    limiter
}

async fn take(limiter: &Limiter) -> Permit {
    let mut permit = limiter.acquire(Lane::Unary, None).await.unwrap();
    permit.token().await.unwrap();
    permit
}

/// Takes the token, and tells when: from before the last look at the tokens, as a thread that loses its processor right after
/// would have taken it later than it did.
async fn token(permit: &mut Permit) -> Option<Instant> {
    let mut looked = Instant::now();
    let mut taking = pin!(permit.token());
    let taken = poll_fn(|context| {
        looked = Instant::now();
        taking.as_mut().poll(context)
    });
    taken.await.is_ok().then_some(looked)
}

/// The greatest number by which any window of times exceeds burst + rate·W.
fn excess(times: &[Instant], burst: u32, period: Duration) -> f64 {
    let Some(first) = times.first() else { return f64::MIN };
    let mut least = f64::MAX;
    let mut worst = f64::MIN;
    for (index, time) in times.iter().enumerate() {
        let above = index as f64 - (*time - *first).as_secs_f64() / period.as_secs_f64();
        least = least.min(above);
        worst = worst.max(above - least + 1.0 - f64::from(burst));
    }
    worst
}

/// Keeps `many` requests waiting at a replica, whose claims take up to `claim`, and tells when each leaves.
fn saturate(
    limiter: &Limiter,
    name: usize,
    many: usize,
    claim: Duration,
    sent: &mpsc::UnboundedSender<(usize, Instant)>,
) -> Vec<JoinHandle<()>> {
    let work = |index: usize| {
        let (limiter, sent) = (limiter.clone(), sent.clone());
        async move {
            let mut random = StdRng::seed_from_u64(index as u64);
            loop {
                let Ok(mut permit) = limiter.acquire(Lane::Stream(StreamId(index as u64)), None).await else {
                    return;
                };
                if !claim.is_zero() {
                    sleep(claim.mul_f64(random.random_range(0.1..1.0))).await;
                }
                if let Some(at) = token(&mut permit).await {
                    let _over = sent.send((name, at));
                }
            }
        }
    };
    (0..many).map(|index| tokio::spawn(work(index))).collect()
}

/// Lets replicas that all have work send for `length`. Times of each, and all in order.
async fn race(
    settings: Settings,
    networks: &[Network],
    claim: Duration,
    length: Duration,
) -> (Vec<usize>, Vec<Instant>) {
    let database = database(&settings);
    let (sent, mut sends) = mpsc::unbounded_channel();
    let limiters: Vec<_> = networks
        .iter()
        .enumerate()
        .map(|(name, network)| replica(settings, database.client(*network, name as u64)))
        .collect();
    let begin = Instant::now();
    let mut work = Vec::new();
    for (name, limiter) in limiters.iter().enumerate() {
        work.extend(saturate(limiter, name, 1_500, claim, &sent));
    }
    sleep(length).await;
    for task in work {
        task.abort();
    }
    for limiter in &limiters {
        limiter.close();
    }
    drop(sent);
    let mut counts = vec![0; networks.len()];
    let mut times = Vec::new();
    while let Some((name, at)) = sends.recv().await {
        if at <= begin + length {
            counts[name] += 1;
            times.push(at);
        }
    }
    times.sort();
    (counts, times)
}

#[tokio::test(start_paused = true)]
async fn replicas_use_the_rate_up_together_and_never_exceed_it() {
    for (rate, burst, length) in [
        ("50/s", 10, 60),
        ("1000/s", 120, 10),
        ("5000/s", 600, 4),
        ("2/s", 5, 600),
        ("120/m", 3, 600),
    ] {
        for claim in [ms(0), ms(15)] {
            let settings = settings(rate, burst);
            let period = settings.rate.period();
            let (counts, times) = race(settings, &[Network::FAST; 3], claim, s(length)).await;
            let over = excess(&times, burst, period);
            assert!(over < 1e-6, "{rate}: {over}");
            let ideal = length as f64 / period.as_secs_f64();
            let used = times.len() as f64 / ideal;
            assert!(used >= 0.98, "{rate}, claims of {claim:?}: {used}");
            let least = *counts.iter().min().unwrap() as f64 / times.len() as f64;
            assert!(least > 0.25, "{rate}: {counts:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_lone_call_costs_one_statement_and_one_round_trip() {
    let settings = settings("2/s", 5);
    let client = database(&settings).client(Network::FAST, 1);
    let asks = client.asks.clone();
    let limiter = replica(settings, client);
    for calls in 1..=5 {
        let begin = Instant::now();
        drop(take(&limiter).await);
        assert!(
            begin.elapsed() <= 2 * Network::FAST.way + ms(2),
            "{:?}",
            begin.elapsed()
        );
        assert_eq!(*asks.lock().unwrap(), calls);
        sleep(s(10)).await;
        assert_eq!(*asks.lock().unwrap(), calls, "nobody asks for an idle replica");
    }
}

/// Tokens live from the statement on, however long the connection for it took.
#[tokio::test(start_paused = true)]
async fn the_first_statement_over_a_slow_connection_is_worth_as_much_as_any() {
    let settings = settings("2/s", 5);
    let mut client = database(&settings).client(Network::FAST, 1);
    client.connects = s(3);
    let asks = client.asks.clone();
    let limiter = replica(settings, client);
    drop(take(&limiter).await);
    assert_eq!(*asks.lock().unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_steady_use_far_below_the_rate_does_not_pay_a_round_trip_each() {
    let settings = settings("1000/s", 200);
    let network = Network {
        way: ms(10),
        ..Network::FAST
    };
    let client = database(&settings).client(network, 1);
    let asks = client.asks.clone();
    let limiter = replica(settings, client);
    let mut waited = 0;
    for _ in 0..2_000 {
        let begin = Instant::now();
        drop(take(&limiter).await);
        waited += usize::from(begin.elapsed() > ms(1));
        sleep(ms(5)).await;
    }
    assert!(*asks.lock().unwrap() < 500, "{asks:?}");
    assert!(waited < 100, "{waited}");
}

#[tokio::test(start_paused = true)]
async fn who_has_no_work_any_more_leases_no_more() {
    let settings = settings("1000/s", 200);
    let client = database(&settings).client(Network::FAST, 1);
    let asks = client.asks.clone();
    let limiter = replica(settings, client);
    let (sent, _sends) = mpsc::unbounded_channel();
    let work = saturate(&limiter, 0, 500, ms(0), &sent);
    sleep(s(2)).await;
    work.iter().for_each(JoinHandle::abort);
    // The statement under way, and one for what was used since the one before.
    let before = *asks.lock().unwrap();
    sleep(s(10)).await;
    let more = *asks.lock().unwrap() - before;
    assert!(more <= 2, "{more}");
}

/// The database looked at its clock somewhere between the statement's sending and its answer.
#[tokio::test(start_paused = true)]
async fn a_token_is_used_neither_before_its_time_nor_after_its_end_wherever_the_clock_was_read() {
    let terms = Terms::new(ms(100), 10);
    let mut row = model::Row::new(terms, 0, Duration::ZERO);
    // The tokens come in 100 ms, 200 ms and so on.
    let ask = Ask {
        wanted: 3,
        horizon: ms(350),
        report: None,
    };
    let answer = row.apply(ask.wanted, 350_000, None, 0);
    assert_eq!(answer.granted, 3);
    let asked = answer.asked;
    advance(ms(40)).await;
    let came = Instant::now();
    let mut leases = Leases::new(terms);
    assert_eq!(leases.receive(&ask, &answer, came), 3);
    let earliest = [came + ms(100), came + ms(200), came + ms(300)];
    assert_eq!([1, 2, 3].map(|n| leases.nth(n, came)), earliest.map(Some));
    assert_eq!(leases.take(earliest[0] - ms(1)), Err(earliest[0]));
    assert_eq!(leases.take(earliest[0]), Ok(()));
    // The second one's last moment is counted from the sending.
    let end = asked + ms(200) + terms.validity;
    assert_eq!(leases.nth(1, end - ms(1)), Some(earliest[1]));
    assert_eq!(leases.nth(1, end), Some(earliest[2]));
    let last = asked + ms(300) + terms.validity;
    assert!(leases.take(last).is_err());
    assert_eq!(leases.nth(1, last), None);
}

#[tokio::test(start_paused = true)]
async fn an_idle_replica_holds_nothing_that_a_busy_one_could_use() {
    let settings = settings("100/s", 30);
    let database = database(&settings);
    let idle = replica(settings, database.client(Network::FAST, 1));
    let busy = replica(settings, database.client(Network::FAST, 2));
    let (sent, mut sends) = mpsc::unbounded_channel();
    for task in saturate(&idle, 0, 50, ms(0), &sent) {
        sends.recv().await.unwrap();
        task.abort();
    }
    let begin = Instant::now();
    let _work = saturate(&busy, 1, 50, ms(0), &sent);
    let mut count = 0;
    while let Some((name, at)) = sends.recv().await {
        if at > begin + s(5) {
            break;
        }
        count += usize::from(name == 1);
    }
    // 5 s of the rate, but for what the other one has just leased.
    assert!(count >= 480, "{count}");
}

#[tokio::test(start_paused = true)]
async fn a_pause_and_the_learned_rate_are_everybodys() {
    let settings = settings("10/s", 3);
    let database = database(&settings);
    let one = replica(settings, database.client(Network::FAST, 1));
    let other = replica(settings, database.client(Network::FAST, 2));
    let met = take(&one).await;
    // The other one has work: a permit that is not sent yet, and some who wait.
    let mut unsent = other.acquire(Lane::Unary, None).await.unwrap();
    let (sent, mut sends) = mpsc::unbounded_channel();
    let _work = saturate(&other, 1, 20, ms(0), &sent);
    let begin = Instant::now();
    met.rate_limited(Some(s(30)));
    let impatient = timeout(s(1), other.acquire(Lane::Unary, Some(begin + s(20))));
    assert!(matches!(impatient.await, Ok(Err(Refused::WaitTooLong { after })) if after > s(28)));
    assert_eq!(unsent.token().await, Err(TooLate));
    drop(unsent);
    assert!((other.snapshot().learned_rate - 7.0).abs() < 1e-9);
    assert_eq!(one.snapshot().learned_rate, other.snapshot().learned_rate);
    let mut times = Vec::new();
    while let Some((_, at)) = sends.recv().await {
        times.push(at - begin);
        if at > begin + s(38) {
            break;
        }
    }
    assert!(times.iter().all(|at| *at <= s(1) || *at >= s(30)), "{times:?}");
    let first_ten_seconds = times.iter().filter(|at| **at >= s(31) && **at < s(38)).count();
    assert!((47..=50).contains(&first_ten_seconds), "{first_ten_seconds}");
    // Three steps of ten seconds, and both are where they were.
    sleep_until(begin + s(62)).await;
    drop(take(&one).await);
    for limiter in [&one, &other] {
        assert!((limiter.snapshot().learned_rate - 10.0).abs() < 1e-9);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_429_to_one_burst_of_several_replicas_cut_the_rate_once() {
    let settings = settings("100/s", 20);
    let database = database(&settings);
    let limiters = [1, 2, 3].map(|seed| replica(settings, database.client(Network::FAST, seed)));
    let mut permits = Vec::new();
    for _ in 0..3 {
        for limiter in &limiters {
            permits.push(take(limiter).await);
        }
    }
    for permit in permits {
        permit.rate_limited(Some(s(2)));
    }
    sleep(s(3)).await;
    for limiter in &limiters {
        drop(take(limiter).await);
        assert!(
            (limiter.snapshot().learned_rate - 70.0).abs() < 1e-9,
            "{:?}",
            limiter.snapshot()
        );
    }
    assert_eq!((database.row().epoch, database.row().share), (1, 700_000));
}

#[tokio::test(start_paused = true)]
async fn without_the_database_only_what_was_leased_is_sent_and_all_goes_on_when_it_is_back() {
    let settings = settings("100/s", 30);
    let database = database(&settings);
    let limiter = replica(settings, database.client(Network::FAST, 1));
    let (sent, mut sends) = mpsc::unbounded_channel();
    let _work = saturate(&limiter, 0, 50, ms(0), &sent);
    for _ in 0..200 {
        sends.recv().await.unwrap();
    }
    database.set_up(false);
    let begin = Instant::now();
    let validity = Terms::new(settings.rate.period(), settings.burst).validity;
    sleep(s(30)).await;
    let mut last = begin;
    while let Ok((_, at)) = sends.try_recv() {
        last = at;
    }
    assert!(last <= begin + HORIZON + validity + ms(5), "{:?}", last - begin);
    // Who comes meanwhile waits up to its bound, and no longer.
    let bounded = limiter.acquire(Lane::Unary, Some(Instant::now() + s(2))).await;
    assert!(matches!(bounded, Err(Refused::WaitTooLong { .. })));
    database.set_up(true);
    let back = Instant::now();
    let (_, at) = sends.recv().await.unwrap();
    assert!(at - back <= RETRY_MAX + ms(10), "{:?}", at - back);
}

#[tokio::test(start_paused = true)]
async fn a_row_that_forgot_what_was_learned_is_believed() {
    let settings = settings("100/s", 30);
    let database = database(&settings);
    let limiter = replica(settings, database.client(Network::FAST, 1));
    for _ in 0..2 {
        take(&limiter).await.rate_limited(Some(s(1)));
        sleep(s(2)).await;
    }
    assert_eq!(database.row().epoch, 2);
    database.make_anew();
    drop(take(&limiter).await);
    assert!((limiter.snapshot().learned_rate - 100.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn a_replica_that_is_killed_costs_no_more_than_it_had_leased() {
    let settings = settings("1000/s", 200);
    let database = database(&settings);
    let (sent, mut sends) = mpsc::unbounded_channel();
    let survivor = replica(settings, database.client(Network::FAST, 1));
    let (victim, pacer, lease) = Limiter::shared(settings, database.client(Network::FAST, 2));
    let mut killed: Vec<_> = vec![tokio::spawn(pacer.run()), tokio::spawn(lease.run())];
    killed.extend(saturate(&victim, 0, 500, ms(0), &sent));
    let _work = saturate(&survivor, 1, 500, ms(0), &sent);
    sleep(s(2)).await;
    let begin = Instant::now();
    killed.iter().for_each(JoinHandle::abort);
    sleep(s(2)).await;
    let mut count = 0;
    while let Ok((_, at)) = sends.try_recv() {
        count += usize::from(at > begin);
    }
    // Two seconds of the rate, but for a slice.
    assert!(count >= 1_900, "{count}");
}

#[tokio::test(start_paused = true)]
async fn too_long_a_wait_is_refused_at_once() {
    let settings = settings("1/s", 2);
    let database = database(&settings);
    let limiter = replica(settings, database.client(Network::FAST, 1));
    for _ in 0..2 {
        drop(take(&limiter).await);
    }
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { drop(take(&limiter).await) })
        })
        .collect();
    sleep(ms(20)).await;
    let begin = Instant::now();
    let refused = limiter.acquire(Lane::Unary, Some(begin + s(4))).await.err();
    assert!(
        matches!(refused, Some(Refused::WaitTooLong { after }) if after > s(5) && after < s(7)),
        "{refused:?}"
    );
    assert_eq!(Instant::now(), begin);
    assert!(limiter.acquire(Lane::Unary, Some(begin + s(7))).await.is_ok());
    assert!(waiting.iter().all(JoinHandle::is_finished));
}

#[tokio::test(start_paused = true)]
async fn one_that_waits_beside_others_learns_what_part_of_the_rate_is_its() {
    let settings = settings("20/s", 5);
    let database = database(&settings);
    let limiters = [1, 2, 3, 4].map(|seed| replica(settings, database.client(Network::FAST, seed)));
    let (sent, _sends) = mpsc::unbounded_channel();
    let _work: Vec<_> = limiters
        .iter()
        .flat_map(|limiter| saturate(limiter, 0, 20, ms(0), &sent))
        .collect();
    sleep(s(30)).await;
    // 20 before it at a quarter of 20/s. Alone it would be one second.
    let wait = limiters[0].snapshot().stream_wait;
    assert!(wait > ms(2_000) && wait < ms(8_000), "{wait:?}");
}

#[tokio::test(start_paused = true)]
async fn places_in_flight_that_are_taken_lease_nothing() {
    let settings = Settings {
        max_in_flight: 2,
        ..settings("100/s", 30)
    };
    let database = database(&settings);
    let limiter = replica(settings, database.client(Network::FAST, 1));
    let held = [take(&limiter).await, take(&limiter).await];
    let (sent, mut sends) = mpsc::unbounded_channel();
    let _work = saturate(&limiter, 0, 10, ms(0), &sent);
    sleep(s(1)).await;
    let before = database.row();
    sleep(s(60)).await;
    assert_eq!(database.row(), before);
    drop(held);
    sends.recv().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_closed_limiter_ends_its_lease_task() {
    let settings = settings("1/h", 1);
    let database = database(&settings);
    let (limiter, pacer, lease) = Limiter::shared(settings, database.client(Network::FAST, 1));
    let mut tasks = JoinSet::new();
    tasks.spawn(pacer.run());
    tasks.spawn(lease.run());
    let permit = take(&limiter).await;
    let waits = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(Lane::Unary, None).await.err() }
    });
    sleep(s(5)).await;
    // What it met last is still told to the others.
    permit.rate_limited(Some(s(60)));
    limiter.close();
    assert_eq!(waits.await.unwrap(), Some(Refused::ShuttingDown));
    timeout(s(2), tasks.join_all()).await.unwrap();
    assert_eq!(database.row().epoch, 1);
}

/// A replica of the property test: how its database answers, and what work it has when.
#[derive(Clone, Debug)]
struct Plan {
    way: u64,
    lost: u32,
    /// Milliseconds of work and of rest in turn.
    phases: Vec<(u64, u64)>,
    many: usize,
    claim: u64,
}

fn plan() -> impl Strategy<Value = Plan> {
    let phases = prop::collection::vec((1u64..2_000, 0u64..1_000), 1..4);
    (
        1u64..20,
        prop_oneof![Just(0u32), 3u32..20],
        phases,
        1usize..60,
        0u64..20,
    )
        .prop_map(|(way, lost, phases, many, claim)| Plan {
            way,
            lost,
            phases,
            many,
            claim,
        })
}

async fn play(settings: Settings, plans: Vec<Plan>) -> Vec<Instant> {
    let database = database(&settings);
    let (sent, mut sends) = mpsc::unbounded_channel();
    let mut replicas = JoinSet::new();
    let ended = Arc::new(AtomicUsize::new(0));
    for (index, plan) in plans.into_iter().enumerate() {
        let network = Network {
            way: ms(plan.way),
            lost: plan.lost,
        };
        let limiter = replica(settings, database.client(network, index as u64));
        let (sent, ended) = (sent.clone(), ended.clone());
        replicas.spawn(async move {
            for (work, rest) in plan.phases {
                let tasks = saturate(&limiter, index, plan.many, ms(plan.claim), &sent);
                sleep(ms(work)).await;
                tasks.iter().for_each(JoinHandle::abort);
                sleep(ms(rest)).await;
            }
            ended.fetch_add(1, Ordering::Relaxed);
            limiter.close();
        });
    }
    drop(sent);
    let mut times = Vec::new();
    while let Some((_, at)) = sends.recv().await {
        times.push(at);
    }
    times.sort();
    times
}

fn paused() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever replicas do, whatever becomes of answers, and however small the burst is: no window carries too much.
    #[test]
    fn no_window_carries_more_than_the_account_allows(
        rate in 1u32..3_000, burst in 1u32..400, plans in prop::collection::vec(plan(), 1..5),
    ) {
        let settings = settings(&format!("{rate}/s"), burst);
        let times = paused().block_on(play(settings, plans));
        let over = excess(&times, burst, settings.rate.period());
        prop_assert!(over < 1e-6, "{over} of {}", times.len());
    }

    /// With work at any of them the rate is used up, as long as the burst leaves room to share it.
    #[test]
    fn the_rate_is_used_up_while_any_replica_has_work(
        rate in 5u32..3_000, more in 1.0f64..4.0, ways in prop::collection::vec(1u64..10, 1..5), claim in 0u64..20,
    ) {
        let text = format!("{rate}/s");
        let parsed: Rate = text.parse().unwrap();
        // What the rate adds in 120 ms and more.
        let burst = 2 + (parsed.per_second() * 0.12 * more) as u32;
        let settings = settings(&text, burst);
        let networks: Vec<_> = ways.iter().map(|way| Network { way: ms(*way), lost: 0 }).collect();
        let length = s(5);
        let (_, times) = paused().block_on(race(settings, &networks, ms(claim), length));
        let used = times.len() as f64 / (parsed.per_second() * length.as_secs_f64());
        prop_assert!(used >= 0.98, "{used}");
        prop_assert!(excess(&times, burst, parsed.period()) < 1e-6);
    }
}

/// While the pacer waits for the lease task's answer, a claim that took less time than those before makes what is held enough.
/// Then the lease task has nothing to ask for, and the pacer must hear of it: no answer will come.
#[tokio::test(start_paused = true)]
async fn who_waits_for_an_answer_is_not_forgotten_when_none_is_needed_any_more() {
    let settings = settings("2000/s", 500);
    let database = database(&settings);
    let (limiter, pacer, mut lease) = Limiter::shared(settings, database.client(Network::FAST, 1));
    tokio::spawn(pacer.run());
    limiter.lock().claim_time = ms(45);
    let ask = |wanted| Ask {
        wanted,
        horizon: HORIZON,
        report: None,
    };
    let answer = lease.slices.lease(&ask(2)).await.unwrap();
    let came = Instant::now();
    assert_eq!(limiter.receive(&ask(2), &answer, came), 2);
    let life = answer.asked + answer.validity - came;

    advance(life - ms(46)).await;
    let mut permit = limiter.try_acquire(Lane::Unary).unwrap();
    advance(ms(2)).await;
    // The other token ends before a claim would be done.
    let waits = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(Lane::Unary, None).await.is_ok() }
    });
    tokio::task::yield_now().await;
    assert!(matches!(limiter.lease_turn(came), Turn::Ask(Ask { wanted: 1.., .. })));
    // And others have taken all that could be had.
    limiter.receive(&ask(1), &Answer { granted: 0, ..answer }, Instant::now());
    tokio::task::yield_now().await;
    permit.token().await.unwrap();
    assert!(matches!(limiter.lease_turn(came), Turn::Rest));
    assert!(timeout(ms(1), waits).await.expect("nobody woke the pacer").unwrap());
}

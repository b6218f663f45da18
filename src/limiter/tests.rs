use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{advance, sleep},
};

use super::*;

mod shares;

const fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
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

fn start(settings: Settings) -> Limiter {
    let (limiter, pacer) = Limiter::new(settings);
    tokio::spawn(pacer.run());
    limiter
}

/// Lets one wait, and tells its name when it got a permit.
fn wait(
    limiter: &Limiter,
    queue: impl Into<Queue>,
    name: usize,
    got: &mpsc::UnboundedSender<(usize, Instant)>,
) -> JoinHandle<()> {
    let (limiter, queue, got) = (limiter.clone(), queue.into(), got.clone());
    tokio::spawn(async move {
        take(&limiter, queue).await;
        got.send((name, Instant::now())).unwrap();
    })
}

/// Uses a permit up to its token.
async fn take(limiter: &Limiter, queue: impl Into<Queue>) -> Permit {
    let mut permit = limiter.acquire(queue, None).await.unwrap();
    permit.token().await.unwrap();
    permit
}

async fn settle() {
    for _ in 0..20 {
        tokio::task::yield_now().await;
    }
}

async fn permits(limiter: &Limiter, count: usize) -> Vec<Instant> {
    let (got, mut gets) = mpsc::unbounded_channel();
    for name in 0..count {
        wait(limiter, Lane::Unary, name, &got);
    }
    let mut times = Vec::new();
    for expected in 0..count {
        let (name, at) = gets.recv().await.unwrap();
        assert_eq!(name, expected, "first come, first served");
        times.push(at);
    }
    times
}

/// The greatest number by which any window of arrivals exceeds burst + rate·W.
fn excess(times: &[Instant], burst: f64, period: Duration) -> f64 {
    let mut worst = f64::MIN;
    for (i, from) in times.iter().enumerate() {
        for (j, to) in times.iter().enumerate().skip(i) {
            let allowed = burst + (*to - *from).as_secs_f64() / period.as_secs_f64();
            worst = worst.max((j - i + 1) as f64 - allowed);
        }
    }
    worst
}

#[tokio::test(start_paused = true)]
async fn the_rate_is_exact_and_never_exceeded() {
    for (rate, burst, count) in [
        ("100/s", 5, 300),
        ("2/s", 5, 40),
        ("120/m", 1, 20),
        ("1000/h", 3, 12),
        ("1/h", 3, 6),
        ("50/s", 10, 500),
    ] {
        let limiter = start(settings(rate, burst));
        let begin = Instant::now();
        let times = permits(&limiter, count).await;
        let period = rate.parse::<Rate>().unwrap().period();
        assert!(excess(&times, f64::from(burst), period) < 1e-6, "{rate}");
        // What the capacity keeps back for jitter comes late once: at most 20 ms of the rate.
        let ideal = period * (count as u32 - burst);
        let took = *times.last().unwrap() - begin;
        let late = took.saturating_sub(ideal);
        let allowed = ms(21) + ideal.mul_f64(0.005);
        assert!(late <= allowed, "{rate}: {took:?} instead of {ideal:?}");
        limiter.close();
    }
}

#[tokio::test(start_paused = true)]
async fn a_slow_rate_gives_its_whole_burst_at_once() {
    for (rate, burst) in [("1/h", 3), ("1/h", 1_000), ("1/m", 2), ("1000/h", 3)] {
        let limiter = start(settings(rate, burst));
        let begin = Instant::now();
        let times = permits(&limiter, burst as usize).await;
        let took = *times.last().unwrap() - begin;
        // What is kept back for jitter.
        assert!(took <= ms(25), "{rate}, burst {burst}: {took:?}");
        limiter.close();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_is_for_everyone_and_the_rate_is_cut() {
    let limiter = start(settings("10/s", 1));
    let mut permit = take(&limiter, Lane::Unary).await;
    let begin = Instant::now();
    permit.rate_limited(Some(Duration::from_secs(7)));
    assert_eq!(permit.token().await, Err(TooLate));
    let times = permits(&limiter, 3).await;
    assert_eq!(times[0] - begin, Duration::from_secs(7));
    let spacing = (times[2] - times[1]).as_secs_f64();
    assert!((spacing - 0.1 / 0.7).abs() < 0.002, "{spacing}");
    assert!((limiter.snapshot().learned_rate - 7.0).abs() < 1e-9);
    // Back at the configured rate after three steps of ten seconds each.
    sleep(Duration::from_secs(31)).await;
    let times = permits(&limiter, 3).await;
    assert!((times[2] - times[1]).as_secs_f64() < 0.102);
    assert!((limiter.snapshot().learned_rate - 10.0).abs() < 1e-9);
}

#[tokio::test(start_paused = true)]
async fn who_waits_goes_on_at_once_when_the_rate_rises() {
    let limiter = start(settings("1/h", 1));
    let permit = take(&limiter, Lane::Unary).await;
    let begin = Instant::now();
    permit.rate_limited(Some(Duration::from_secs(1)));
    let times = permits(&limiter, 1).await;
    // At 70 % for good it would be 5 142 s.
    assert!(times[0] - begin < Duration::from_secs(3700), "{:?}", times[0] - begin);
}

#[tokio::test(start_paused = true)]
async fn too_long_a_wait_is_refused_at_once() {
    let limiter = start(settings("1/s", 1));
    let (got, mut gets) = mpsc::unbounded_channel();
    for name in 0..3 {
        wait(&limiter, Lane::Unary, name, &got);
    }
    settle().await;
    let begin = Instant::now();
    // One went at once, two wait: the next one's turn is in three seconds.
    let refused = limiter.acquire(Lane::Unary, Some(begin + ms(2_900))).await.err();
    assert_eq!(Instant::now(), begin);
    assert_eq!(refused, Some(Refused::WaitTooLong { after: ms(3_000) }));
    let given = limiter.acquire(Lane::Unary, Some(begin + ms(3_050))).await;
    assert!(given.is_ok());
    for _ in 0..3 {
        gets.recv().await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_refuses_those_it_makes_hopeless() {
    let limiter = start(settings("1/s", 1));
    let permit = take(&limiter, Lane::Unary).await;
    let begin = Instant::now();
    let hopeless = tokio::spawn({
        let limiter = limiter.clone();
        async move { limiter.acquire(Lane::Unary, Some(begin + ms(5_000))).await.err() }
    });
    let patient = tokio::spawn({
        let limiter = limiter.clone();
        async move {
            limiter
                .acquire(Lane::Unary, Some(begin + ms(90_000)))
                .await
                .map(|_| Instant::now())
        }
    });
    settle().await;
    permit.rate_limited(Some(Duration::from_secs(60)));
    let refused = hopeless.await.unwrap().unwrap();
    assert_eq!(refused, Refused::WaitTooLong { after: ms(60_000) });
    assert_eq!(Instant::now(), begin);
    assert_eq!(patient.await.unwrap().unwrap() - begin, ms(60_000));
}

#[tokio::test(start_paused = true)]
async fn one_withdrawn_costs_no_token() {
    let limiter = start(settings("1/s", 1));
    drop(take(&limiter, Lane::Unary).await);
    let (got, mut gets) = mpsc::unbounded_channel();
    let first = wait(&limiter, Lane::Unary, 1, &got);
    settle().await;
    wait(&limiter, Lane::Unary, 2, &got);
    settle().await;
    advance(ms(500)).await;
    first.abort();
    let begin = Instant::now();
    let (name, at) = gets.recv().await.unwrap();
    assert_eq!(name, 2);
    assert!(at - begin <= ms(501));
    assert_eq!(limiter.snapshot().waiting_unary, 0);
}

#[tokio::test(start_paused = true)]
async fn the_queue_is_bounded() {
    let limiter = start(Settings {
        max_queue: 2,
        ..settings("1/s", 1)
    });
    drop(take(&limiter, Lane::Unary).await);
    let (got, _gets) = mpsc::unbounded_channel();
    wait(&limiter, Lane::Unary, 1, &got);
    wait(&limiter, Lane::Stream(StreamId(1)), 2, &got);
    settle().await;
    let refused = limiter.acquire(Lane::Unary, None).await.err();
    assert_eq!(refused, Some(Refused::QueueFull { after: ms(2_000) }));
}

#[tokio::test(start_paused = true)]
async fn who_comes_back_goes_before_those_who_came_later_and_the_queue_is_not_full_for_it() {
    let limiter = start(Settings {
        max_queue: 2,
        ..settings("1/s", 1)
    });
    drop(take(&limiter, Lane::Unary).await);
    let arrival = Arrival::default();
    let permit = limiter.acquire_again(&arrival, Lane::Unary, None).await.unwrap();
    let (got, mut gets) = mpsc::unbounded_channel();
    wait(&limiter, Lane::Unary, 1, &got);
    wait(&limiter, Lane::Unary, 2, &got);
    settle().await;
    // As where a pause begins before its token is taken.
    permit.rate_limited(Some(ms(10_000)));
    drop(permit);
    let begin = Instant::now();
    let soon = Some(begin + ms(5_000));
    let hopeless = limiter.acquire_again(&arrival, Lane::Unary, soon).await.err();
    assert!(matches!(hopeless, Some(Refused::WaitTooLong { .. })));
    assert_eq!(begin.elapsed(), ms(0));
    let mut permit = limiter.acquire_again(&arrival, Lane::Unary, None).await.unwrap();
    permit.token().await.unwrap();
    assert!(gets.try_recv().is_err());
    assert_eq!(gets.recv().await.unwrap().0, 1);
    assert_eq!(gets.recv().await.unwrap().0, 2);
}

#[tokio::test(start_paused = true)]
async fn places_in_flight_are_bounded() {
    let limiter = start(Settings {
        max_in_flight: 2,
        ..settings("100/s", 100)
    });
    let first = limiter.acquire(Lane::Unary, None).await.unwrap();
    let _second = limiter.acquire(Lane::Unary, None).await.unwrap();
    let soon = Some(Instant::now() + ms(500));
    assert!(matches!(
        limiter.acquire(Lane::Unary, soon).await,
        Err(Refused::WaitTooLong { .. })
    ));
    drop(first);
    assert!(limiter.acquire(Lane::Unary, None).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn closing_refuses_all() {
    let limiter = start(settings("1/h", 1));
    drop(take(&limiter, Lane::Unary).await);
    let waiting: Vec<_> = (0..3)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move { limiter.acquire(Lane::Unary, None).await.err() })
        })
        .collect();
    settle().await;
    limiter.close();
    for waiter in waiting {
        assert_eq!(waiter.await.unwrap(), Some(Refused::ShuttingDown));
    }
    assert_eq!(
        limiter.acquire(Lane::Unary, None).await.err(),
        Some(Refused::ShuttingDown)
    );
}

#[tokio::test(start_paused = true)]
async fn unary_overtakes_ten_thousand_stream_items() {
    let limiter = start(settings("100/s", 1));
    let (got, mut gets) = mpsc::unbounded_channel();
    for name in 0..10_000 {
        wait(&limiter, Lane::Stream(StreamId(name as u64 % 2)), name, &got);
    }
    for _ in 0..50 {
        gets.recv().await.unwrap();
    }
    let begin = Instant::now();
    drop(take(&limiter, Lane::Unary).await);
    assert!(begin.elapsed() <= ms(11), "{:?}", begin.elapsed());
}

/// However long the claims take, requests leave no faster than the bucket allows, and the rate is used up.
#[tokio::test(start_paused = true)]
async fn claims_of_any_length_change_neither_the_bound_nor_the_rate() {
    for (rate, burst, claims) in [
        ("100/s", 5, [0, 3, 40, 1, 20]),
        ("100/s", 1, [5, 5, 6, 5, 4]),
        ("1000/s", 5, [10, 12, 8, 10, 11]),
        ("2/s", 5, [0, 30, 0, 0, 2]),
    ] {
        let limiter = start(settings(rate, burst));
        let (sent, mut sends) = mpsc::unbounded_channel();
        let count = 400;
        for index in 0..count {
            let (limiter, sent) = (limiter.clone(), sent.clone());
            tokio::spawn(async move {
                let mut permit = limiter.acquire(Lane::Unary, None).await.unwrap();
                sleep(ms(claims[index % claims.len()])).await;
                permit.token().await.unwrap();
                sent.send(Instant::now()).unwrap();
            });
        }
        let mut times = Vec::new();
        for _ in 0..count {
            times.push(sends.recv().await.unwrap());
        }
        let period = rate.parse::<Rate>().unwrap().period();
        assert!(excess(&times, f64::from(burst), period) < 1e-6, "{rate}");
        // The middle: what the first claims taught is known by then, and the last ones' own time is not in it.
        let took = (times[count * 3 / 4] - times[count / 4]).as_secs_f64();
        let ideal = period.as_secs_f64() * (count / 2) as f64;
        let used = ideal / took;
        // A bucket of one token loses what tokio's timers are late, up to a millisecond each time.
        let least = if burst == 1 { 0.85 } else { 0.995 };
        assert!(used > least, "{rate} burst {burst}: {used}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_is_not_used_costs_no_token() {
    let limiter = start(settings("1/h", 2));
    drop(limiter.acquire(Lane::Unary, None).await.unwrap());
    drop(limiter.acquire(Lane::Unary, None).await.unwrap());
    let begin = Instant::now();
    drop(take(&limiter, Lane::Unary).await);
    assert_eq!(Instant::now(), begin);
}

#[tokio::test(start_paused = true)]
async fn the_rate_rises_and_the_bucket_fills_while_nobody_waits() {
    let limiter = start(settings("12/m", 3));
    let permit = take(&limiter, Lane::Unary).await;
    permit.rate_limited(Some(Duration::from_secs(1)));
    drop(permit);
    sleep(Duration::from_secs(120)).await;
    assert!((limiter.snapshot().learned_rate - 0.2).abs() < 1e-9);
    let begin = Instant::now();
    for _ in 0..3 {
        drop(take(&limiter, Lane::Unary).await);
    }
    assert!(begin.elapsed() <= ms(21), "{:?}", begin.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_rise_takes_nothing_out_of_the_bucket() {
    let mut bucket = Bucket::new(Duration::from_secs(1), 10, Duration::MAX);
    bucket.cut(Duration::from_secs(2));
    advance(Duration::from_secs(9)).await;
    bucket.raise(Duration::from_secs(1));
    let now = Instant::now();
    assert_eq!(bucket.earliest(4, now), now);
    assert!(bucket.earliest(5, now) - now <= ms(501));
    for _ in 0..4 {
        assert_eq!(bucket.take(), Ok(()));
    }
    assert!(bucket.take().unwrap_err() - now <= ms(501));
}

#[tokio::test(start_paused = true)]
async fn the_waits_of_a_snapshot_come_true() {
    for lane in [Lane::Unary, Lane::Stream(StreamId(9))] {
        let limiter = start(settings("10/s", 2));
        let (got, mut gets) = mpsc::unbounded_channel();
        for _ in 0..30 {
            wait(&limiter, Lane::Unary, 0, &got);
        }
        for stream in 0..12 {
            wait(&limiter, Lane::Stream(StreamId(stream % 3)), 0, &got);
        }
        settle().await;
        let (begin, snapshot) = (Instant::now(), limiter.snapshot());
        let foretold = match lane {
            Lane::Unary => snapshot.unary_wait,
            Lane::Stream(_) => snapshot.stream_wait,
        };
        wait(&limiter, lane, 1, &got);
        let at = loop {
            if let Some((1, at)) = gets.recv().await {
                break at;
            }
        };
        let took = at - begin;
        assert!(
            took.abs_diff(foretold) <= ms(20),
            "{lane:?}: {took:?} instead of {foretold:?}"
        );
        assert!(took > ms(2_500), "{took:?}");
        limiter.close();
    }
}

#[tokio::test(start_paused = true)]
async fn a_snapshot_tells_what_is_there_and_what_is_taken() {
    let limiter = start(Settings {
        max_in_flight: 7,
        max_queue: 11,
        ..settings("1/s", 3)
    });
    let quiet = limiter.snapshot();
    assert_eq!((quiet.configured_rate, quiet.learned_rate), (1.0, 1.0));
    assert_eq!((quiet.burst, quiet.max_in_flight, quiet.max_queue), (3, 7, 11));
    assert_eq!((quiet.pause, quiet.unary_wait, quiet.stream_wait), Default::default());
    // But for what is kept back for jitter.
    assert!(quiet.tokens > 2.9 && quiet.tokens <= 3.0, "{}", quiet.tokens);

    // The right to a token counts as the token itself.
    let right = limiter.acquire(Lane::Unary, None).await.unwrap();
    let taken = take(&limiter, Lane::Unary).await;
    let busy = limiter.snapshot();
    assert_eq!(busy.in_flight, 2);
    assert!((busy.tokens - (quiet.tokens - 2.0)).abs() < 0.01, "{}", busy.tokens);
    taken.rate_limited(Some(Duration::from_secs(9)));
    drop((right, taken));
    let paused = limiter.snapshot();
    assert_eq!((paused.in_flight, paused.pause), (0, Duration::from_secs(9)));
    assert!((paused.learned_rate - 0.7).abs() < 1e-9);
    assert_eq!(paused.tokens, 0.0);
    // By then the bucket has filled again.
    assert_eq!((paused.unary_wait, paused.stream_wait), (paused.pause, paused.pause));
}

//! Permits of the limiter, where the rate holds up nobody.

use std::{cell::OnceCell, time::Duration};

use criterion::{BenchmarkId, Criterion};
use surveylab_gateway::{
    limiter::{Lane, Limiter, Settings},
    rate::Rate,
};
use tokio::runtime::Runtime;

use crate::callers::Callers;

/// Each call takes a permit, its token, and gives it back.
pub fn permits(criterion: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let mut group = criterion.benchmark_group("limiter: permits");
    for (name, count) in [
        ("1 caller", 1),
        ("64 callers", 64),
        ("10000 callers, nearly all waiting", 10_000),
    ] {
        let callers = Callers {
            runtime: &runtime,
            count,
        };
        callers.configure(&mut group);
        let started = OnceCell::new();
        group.bench_function(BenchmarkId::from_parameter(name), |bencher| {
            let limiter = started.get_or_init(|| limiter(&runtime));
            bencher.iter_custom(|times| {
                let limiter = limiter.clone();
                callers.call(times, move || permit(limiter.clone()))
            });
        });
        if let Some(limiter) = started.into_inner() {
            limiter.close();
        }
    }
    group.finish();
}

async fn permit(limiter: Limiter) {
    let mut permit = limiter.acquire(Lane::Unary, None).await.expect("a permit");
    permit.token().await.expect("a token");
    permit.answered();
}

fn limiter(runtime: &Runtime) -> Limiter {
    let settings = Settings {
        // The highest there is; a full bucket makes up for what more than that is asked for.
        rate: "1000000/s".parse::<Rate>().expect("a rate"),
        burst: 1_000_000,
        rested: Duration::from_secs(60),
        max_in_flight: 32,
        max_queue: 100_000,
    };
    let (limiter, pacer) = Limiter::new(settings);
    runtime.spawn(pacer.run());
    limiter
}

//! Many callers of one thing at once.

use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, SamplingMode, Throughput, measurement::WallTime};
use tokio::{runtime::Runtime, task::JoinSet};

/// A part that many call, and the runtime they call it on.
pub struct Callers<'a> {
    pub runtime: &'a Runtime,
    pub count: usize,
}

impl Callers<'_> {
    /// For benchmarks of which one iteration is a call by each of them.
    pub fn configure(&self, group: &mut BenchmarkGroup<'_, WallTime>) {
        group
            .throughput(Throughput::Elements(self.count as u64))
            // Else the first samples are so short that much of them is the beginning and the end, where fewer call.
            .sampling_mode(SamplingMode::Flat)
            .sample_size(10);
    }

    /// How long it takes until each of them has called so often. None waits for another before its next call.
    pub fn call<F, Call>(&self, times: u64, call: Call) -> Duration
    where
        F: Future<Output = ()> + Send,
        Call: Fn() -> F + Clone + Send + 'static,
    {
        self.runtime.block_on(async {
            let begin = Instant::now();
            let mut tasks = JoinSet::new();
            for _ in 0..self.count {
                let call = call.clone();
                tasks.spawn(async move {
                    for _ in 0..times {
                        call().await;
                    }
                });
            }
            tasks.join_all().await;
            begin.elapsed()
        })
    }
}

//! How exactly the rate is kept, and how fully used, with 10 000 calls waiting: by when requests come to SurveyLab.

use std::{
    thread,
    time::{Duration, Instant},
};

use crate::{
    Options,
    support::{
        Failure, files,
        gateway::Setup,
        load::{Args as Load, Method},
        stub::Stub,
    },
    table::{Table, Target},
};

const CALLERS: usize = 10_000;
/// A connection of gRPC carries at most 1 024 calls (--max-streams).
const CONNECTIONS: usize = 10;

struct Case {
    per_second: u32,
    burst: u32,
    /// Of what the options say: a slow rate takes longer to show anything.
    times: f64,
}

/// Bursts of the default, and of 20 ms where that is more.
const CASES: [Case; 6] = [
    Case {
        per_second: 2,
        burst: 5,
        times: 3.0,
    },
    Case {
        per_second: 50,
        burst: 5,
        times: 1.0,
    },
    Case {
        per_second: 1_000,
        burst: 5,
        times: 1.0,
    },
    Case {
        per_second: 1_000,
        burst: 20,
        times: 1.0,
    },
    Case {
        per_second: 5_000,
        burst: 5,
        times: 1.0,
    },
    Case {
        per_second: 5_000,
        burst: 100,
        times: 1.0,
    },
];

pub fn measure(options: &Options) -> Result<Table, Failure> {
    let mut table = Table::new(format!("Rate, {CALLERS} calls waiting"));
    for case in &CASES {
        let name = format!("{}/s, burst {}", case.per_second, case.burst);
        let Measured {
            arrivals,
            least_waiting,
        } = run(case, options.seconds * case.times).map_err(|error| format!("{name}: {error}"))?;
        let used = used(&arrivals, case).ok_or_else(|| format!("{name}: too few requests came"))?;
        eprintln!("rate, {name}: {:.2} % used", used * 100.0);
        table.limit(
            format!("{name}: used of the rate"),
            (used * 100.0, "%"),
            Target::AtLeast(99.5),
            format!("{} requests; {least_waiting:.0} waiting at least", arrivals.len()),
        );
        let (excess, window) = excess(&arrivals, case);
        table.limit(
            format!("{name}: most in any window, beyond burst + rate·W"),
            (excess, "requests"),
            Target::AtMost(0.0),
            format!("within {:.1} ms", window * 1e3),
        );
    }
    Ok(table)
}

struct Measured {
    /// In nanoseconds since the first.
    arrivals: Vec<u64>,
    least_waiting: f64,
}

fn run(case: &Case, seconds: f64) -> Result<Measured, Failure> {
    let directory = files::scratch("rate-")?;
    let stub = Stub::start(&["--record"])?;
    let rate = format!("{}/s", case.per_second);
    let setup = Setup {
        options: &[
            "--rate",
            &rate,
            "--burst",
            &case.burst.to_string(),
            // The last of them waits for an hour and a half at 2/s.
            "--max-wait",
            "1day",
            // The rate alone is to hold them back.
            "--max-in-flight",
            "1024",
        ],
        ..Setup::new(stub.address, directory.path())
    };
    let gateway = setup.start()?;
    let load = Load {
        in_flight: CALLERS,
        connections: CONNECTIONS,
        // Until it is killed: its last call would end long after.
        seconds: 86_400.0,
        ..Load::new(gateway.address, Method::Unary, &gateway.process)
    };
    let mut load = load.start()?;
    let waiting = || gateway.metric("surveylab_gateway_waiting_requests");

    let begin = Instant::now();
    while waiting()? < CALLERS as f64 * 0.98 {
        if begin.elapsed() > Duration::from_secs(30) {
            return Err(format!("only {} calls wait: {}", waiting()?, gateway.last_words()).into());
        }
        thread::sleep(Duration::from_millis(100));
    }
    let mut least_waiting = f64::INFINITY;
    let begin = Instant::now();
    while begin.elapsed().as_secs_f64() < seconds {
        thread::sleep(Duration::from_millis(500));
        least_waiting = least_waiting.min(waiting()?);
    }
    if load.has_ended()? {
        return Err(format!("the load failed: {}", gateway.last_words()).into());
    }
    let arrivals = stub.arrivals()?;
    stub.requests()?;
    Ok(Measured {
        arrivals,
        least_waiting,
    })
}

/// The share of the rate that is used once the burst is spent and all callers are there: from one request to a later
/// one, so that no part of a token more or less counts at either end.
fn used(arrivals: &[u64], case: &Case) -> Option<f64> {
    const SETTLED: u64 = 2_000_000_000;
    let begin = arrivals.first()? + SETTLED;
    let steady = arrivals.get(case.burst as usize..)?;
    let steady = &steady[steady.partition_point(|at| *at < begin)..];
    let (first, last) = (steady.first()?, steady.last()?);
    let due = (last - first) as f64 / 1e9 * f64::from(case.per_second);
    (steady.len() > 1).then(|| (steady.len() - 1) as f64 / due)
}

/// How many more came in the worst window than burst + rate·W, negative if there were always fewer; and its W in seconds.
fn excess(arrivals: &[u64], case: &Case) -> (f64, f64) {
    // A window worth counting begins and ends with a request. From the i-th to the j-th there are j - i + 1, and with
    // ahead(i) = i - rate·t(i) that is ahead(j) - ahead(i) + 1 beyond rate·W: the least ahead(i) so far is the worst.
    let mut least = (f64::INFINITY, 0.0);
    let mut worst = (f64::NEG_INFINITY, 0.0);
    for (number, at) in arrivals.iter().enumerate() {
        let at = *at as f64 / 1e9;
        let ahead = number as f64 - at * f64::from(case.per_second);
        if ahead < least.0 {
            least = (ahead, at);
        }
        let beyond = ahead - least.0 + 1.0 - f64::from(case.burst);
        if beyond > worst.0 {
            worst = (beyond, at - least.1);
        }
    }
    worst
}

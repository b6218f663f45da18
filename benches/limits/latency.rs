//! What the gateway adds to a SurveyLab of 100 ms, at half of the rate that it can do.
//!
//! A timer of 1 ms and the network are in the time of the stub and the load themselves. So the same requests go to the
//! stub directly, at the same rate, and what is told is the difference. The pass-through shows what of it is gRPC's and
//! HTTP's.

use crate::{
    Options, disk,
    support::{
        Failure, bare, files,
        gateway::{self, Setup},
        load::{Args as Load, Method, Report},
        process::Process,
        statistics::{median, percentile},
        stub::Stub,
    },
    table::{Table, Target},
};

const IN_FLIGHT: usize = 1_024;

pub fn measure(options: &Options) -> Result<Table, Failure> {
    let directory = files::scratch("latency-")?;
    let mut syncs = disk::fdatasyncs(directory.path())?;
    let stub = Stub::start(&["--latency", "100"])?;
    let load = |target, method, process: &Process, seed, rate| Load {
        in_flight: IN_FLIGHT,
        seconds: options.seconds,
        seed,
        rate,
        ..Load::new(target, method, process)
    };

    let mut rounds = Vec::new();
    let mut most = 0.0;
    let mut rate = None;
    for round in 0..options.rounds.max(1) {
        let seed = u64::from(round) * 4;
        let directory = files::scratch("latency-")?;
        let setup = Setup {
            options: &gateway::UNLIMITED,
            ..Setup::new(stub.address, directory.path())
        };
        let gateway = setup.start()?;
        let rate = match rate {
            Some(rate) => rate,
            None => {
                most = load(gateway.address, Method::Unary, &gateway.process, seed, None)
                    .run()?
                    .per_second;
                eprintln!("latency: {most:.0}/s at most");
                *rate.insert(most / 2.0)
            }
        };
        let through = load(gateway.address, Method::Unary, &gateway.process, seed + 1, Some(rate)).run()?;
        drop(gateway);
        let direct = load(stub.address, Method::Http, &stub.process, seed + 2, Some(rate)).run()?;
        let (bare, listen) = bare::start(stub.address)?;
        let bare = load(listen, Method::Unary, &bare, seed + 3, Some(rate)).run()?;
        eprintln!(
            "latency, round {round}: p50 {:.2} ms, directly {:.2} ms, pass-through {:.2} ms",
            through.p50, direct.p50, bare.p50
        );
        rounds.push(Round { through, direct, bare });
    }
    stub.requests()?;
    syncs.append(&mut disk::fdatasyncs(directory.path())?);
    syncs.sort_by(f64::total_cmp);
    Ok(table(&rounds, most, &syncs))
}

struct Round {
    through: Report,
    direct: Report,
    bare: Report,
}

fn table(rounds: &[Round], most: f64, syncs: &[f64]) -> Table {
    let middle = |figure: &dyn Fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let all = |report: fn(&Round) -> &Report| {
        let [p50, p99] = [|report: &Report| report.p50, |report: &Report| report.p99]
            .map(|percentile| middle(&|round| percentile(report(round))));
        format!("p50 {p50:.2} ms, p99 {p99:.2} ms")
    };
    let bound = 2.0 * percentile(syncs, 0.5) + 1.0;
    let rate = middle(&|round| round.through.per_second);
    let mut table = Table::new(format!(
        "Latency added to 100 ms, {rate:.0}/s, half of {most:.0}/s; medians of {} rounds",
        rounds.len()
    ));
    table.fdatasyncs(syncs, ", while nothing else was measured");
    table.limit(
        "added, p50",
        (middle(&|round| round.through.p50 - round.direct.p50), "ms"),
        Target::Below(bound),
        format!(
            "gateway {}; stub directly {}",
            all(|round| &round.through),
            all(|round| &round.direct)
        ),
    );
    table.limit(
        "added, p99",
        (middle(&|round| round.through.p99 - round.direct.p99), "ms"),
        Target::Below(3.0 * bound),
        "",
    );
    table.note(
        "added by the pass-through, p50",
        (middle(&|round| round.bare.p50 - round.direct.p50), "ms"),
        all(|round| &round.bare),
    );
    table.note(
        "added by the pass-through, p99",
        (middle(&|round| round.bare.p99 - round.direct.p99), "ms"),
        "",
    );
    table
}

//! How much memory the gateway takes: idle, in a long stream, and with many callers who say nothing.

use std::{ops::Range, thread, time::Duration};

use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    Options,
    support::{
        Failure, files,
        gateway::{self, Setup},
        load::{Args as Load, Method},
        statistics::median,
        stub::Stub,
    },
    table::{Table, Target},
};

const CALLERS: usize = 1_000;

/// In MiB. Flat is what grows by less from the second tenth of the time to the last: so much the allocator keeps
/// (`keep_memory` in `src/main.rs`), and caches are full by then.
const FLAT: f64 = 4.0;

pub fn measure(options: &Options) -> Result<Table, Failure> {
    let mut table = Table::new("Resident memory");
    idle(&mut table)?;
    stream(&mut table, options.rows)?;
    callers(&mut table)?;
    Ok(table)
}

/// A gateway as it comes is started with this, and given time to become idle.
const REST: Duration = Duration::from_secs(2);

fn idle(table: &mut Table) -> Result<(), Failure> {
    let directory = files::scratch("memory-")?;
    let stub = Stub::start(&[])?;
    let gateway = Setup::new(stub.address, directory.path()).start()?;
    thread::sleep(REST);
    let memory = gateway.process.memory()?;
    table.limit("idle, nothing asked yet", (memory, "MiB"), Target::Below(20.0), "");
    Ok(())
}

fn stream(table: &mut Table, rows: u64) -> Result<(), Failure> {
    let directory = files::scratch("memory-")?;
    let stub = Stub::start(&[])?;
    let setup = Setup {
        options: &gateway::UNLIMITED,
        ..Setup::new(stub.address, directory.path())
    };
    let gateway = setup.start()?;
    let load = Load {
        in_flight: 256,
        calls: Some(rows),
        warm_up: 0.0,
        ..Load::new(gateway.address, Method::Stream, &gateway.process)
    };
    let mut samples = Vec::new();
    let report = load.run_beside(Duration::from_millis(50), || {
        samples.push(gateway.process.memory()?);
        Ok(())
    })?;
    let requests = stub.requests()?;
    if requests != rows {
        return Err(format!("SurveyLab got {requests} requests for {rows} rows").into());
    }
    let tenth = samples.len() / 10;
    let of = |range: Range<usize>| median(samples.get(range).unwrap_or_default().to_vec());
    let (early, late) = (of(tenth..tenth * 2), of(samples.len() - tenth..samples.len()));
    table.limit(
        format!("a stream of {rows} rows, peak"),
        (gateway.process.peak_memory()?, "MiB"),
        Target::Below(80.0),
        format!("{:.0} rows/s", report.per_second),
    );
    table.limit(
        "the same, growth from its second tenth to its last",
        (late - early, "MiB"),
        Target::Below(FLAT),
        format!(
            "{early:.1} MiB, then {late:.1} MiB; median of {tenth} of {} samples each",
            samples.len()
        ),
    );
    Ok(())
}

/// Each has made one call and keeps its connection.
fn callers(table: &mut Table) -> Result<(), Failure> {
    let directory = files::scratch("memory-")?;
    let stub = Stub::start(&[])?;
    let setup = Setup {
        // By default there are places for 256.
        options: &["--max-connections", &CALLERS.to_string()],
        ..Setup::new(stub.address, directory.path())
    };
    let gateway = setup.start()?;
    let before = gateway.process.memory()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let endpoint = Endpoint::from_shared(format!("http://{}", gateway.address))?;
        let mut channels = Vec::new();
        for _ in 0..CALLERS {
            channels.push(endpoint.connect().await?);
        }
        ask_all(&channels).await?;
        tokio::time::sleep(REST).await;
        let memory = gateway.process.memory()?;
        table.limit(
            format!("{CALLERS} idle callers"),
            (memory, "MiB"),
            Target::Below(100.0),
            format!(
                "{:.1} KiB each; peak {:.1} MiB",
                (memory - before) * 1024.0 / CALLERS as f64,
                gateway.process.peak_memory()?
            ),
        );
        // All were connected at once, and none lost its place to another.
        ask_all(&channels).await
    })
}

async fn ask_all(channels: &[Channel]) -> Result<(), Failure> {
    for channel in channels {
        HealthClient::new(channel.clone())
            .check(HealthCheckRequest::default())
            .await?;
    }
    Ok(())
}

//! Logs, on stderr; and the export of spans.

use std::{
    io::{IsTerminal as _, stderr},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

use crate::config::{AccessLog, LogFormat};

pub use export::Error;
use export::Export;
use lines::Lines;

mod export;
mod lines;

/// The target of access lines, one for each call.
pub const ACCESS: &str = "access";

/// For the last spans and access lines, at the end of the process.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// What is written and sent beside the work. To be closed, so that the last of it is not lost.
pub struct Telemetry {
    lines: Option<Lines>,
    export: Option<Export>,
}

/// Starts logging and, where the environment names a collector, the export of spans. The log's filter comes from
/// `RUST_LOG`, or is `info`. To be called within the runtime, in which spans are sent.
///
/// Below INFO only the gateway itself may speak, whatever the filter says: HTTP clients and servers print URLs and
/// headers there, and the URL of a request holds the API token and personal data.
pub fn init(format: Option<LogFormat>, access: AccessLog) -> Result<Telemetry, Error> {
    let export = Export::from_environment()?;
    let format = format.unwrap_or(if stderr().is_terminal() {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let lines = match access {
        AccessLog::On => Some(Lines::start().map_err(Error::Lines)?),
        AccessLog::Off => None,
    };
    // One filter for each output: of two, one in the other, `tracing::enabled!` would take one's word for both.
    let ordinary = filter_fn(|event| event.target() != ACCESS && may_be_logged(event));
    let log = layer(format, stderr).with_filter(filter().and(ordinary));
    let access = lines.clone().map(|lines| {
        let is_access = filter_fn(|event| event.target() == ACCESS);
        layer(format, lines).with_filter(filter().and(is_access))
    });
    // An error means that a logger is there already, which is as good.
    let _already = tracing_subscriber::registry().with(log).with(access).try_init();
    Ok(Telemetry { lines, export })
}

impl Telemetry {
    /// Sends and writes what is left, in bounded time: neither a collector nor a reader of the log holds the end up.
    pub async fn close(self) {
        let Self { lines, export } = self;
        let closed = spawn_blocking(move || {
            if let Some(export) = export {
                export.close(CLOSE_TIMEOUT);
            }
            if let Some(lines) = lines {
                lines.close(CLOSE_TIMEOUT);
            }
        });
        // The second time is for what the first one's end takes; past it nothing is waited for.
        let _late = timeout(2 * CLOSE_TIMEOUT, closed).await;
    }
}

fn filter() -> EnvFilter {
    EnvFilter::builder()
        .with_default_directive(Level::INFO.into())
        .from_env_lossy()
}

fn layer<S, W>(format: LogFormat, writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    match format {
        LogFormat::Text => fmt::layer()
            .with_writer(writer)
            .with_ansi(stderr().is_terminal())
            .boxed(),
        LogFormat::Json => fmt::layer().with_writer(writer).json().flatten_event(true).boxed(),
    }
}

fn may_be_logged(event: &Metadata<'_>) -> bool {
    *event.level() <= Level::INFO || event.target().starts_with(env!("CARGO_CRATE_NAME"))
}

//! Logs, on stderr; and the export of spans.

use std::{
    env,
    io::{IsTerminal as _, stderr},
    panic,
    sync::atomic::{AtomicU8, Ordering},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::timeout};
use tracing::{Level, Metadata, Subscriber, level_filters::LevelFilter};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt as _, filter_fn},
    fmt::{self, MakeWriter},
    layer::SubscriberExt as _,
    registry::LookupSpan,
    util::SubscriberInitExt as _,
};

pub use export::Error;
use export::Export;
use lines::Lines;

mod export;
mod lines;

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum AccessLog {
    On,
    Off,
}

/// The target of access lines, one for each call.
pub const ACCESS: &str = "access";

/// Which access lines there are. `tracing::enabled!` must not be asked: with a filter of its own for each output, its answer is
/// taken for the next event's, which would be lost (tracing-subscriber 0.3, `FilterState`).
static ACCESS_LINES: AtomicU8 = AtomicU8::new(NO_LINES);
const NO_LINES: u8 = 0;
const LINES_OF_CALLS: u8 = 1;
const LINES_OF_ITEMS: u8 = 2;

/// Does each call get a line?
pub fn logs_calls() -> bool {
    ACCESS_LINES.load(Ordering::Relaxed) >= LINES_OF_CALLS
}

/// Does each item of a stream get one, too?
pub fn logs_items() -> bool {
    ACCESS_LINES.load(Ordering::Relaxed) >= LINES_OF_ITEMS
}

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
    let filter = filter()?;
    let ordinary = filter_fn(|event| event.target() != ACCESS && may_be_logged(event));
    let log = layer(format, stderr).with_filter(filter.clone().and(ordinary));
    let access = lines.clone().map(|lines| {
        let is_access = filter_fn(|event| event.target() == ACCESS);
        layer(format, lines).with_filter(filter.clone().and(is_access))
    });
    if access.is_some() {
        let details = filter.max_level_hint().is_none_or(|most| most >= LevelFilter::DEBUG);
        let lines = if details { LINES_OF_ITEMS } else { LINES_OF_CALLS };
        ACCESS_LINES.store(lines, Ordering::Relaxed);
    }
    let registry = tracing_subscriber::registry().with(log);
    // A `None` is no filtered layer, but one that wants everything: each span of the HTTP server would be made for it.
    // An error means that a logger is there already, which is as good.
    let _already = match access {
        Some(access) => registry.with(access).try_init(),
        None => registry.try_init(),
    };
    // std's own hook prints the panic's words, which may be of a request.
    panic::set_hook(Box::new(|panic| {
        let at = panic.location().map(ToString::to_string);
        tracing::error!(at, "a panic; please report it as a bug");
    }));
    Ok(Telemetry { lines, export })
}

impl Telemetry {
    /// Sends and writes what is left, in bounded time: neither a collector nor a reader of the log holds the end up.
    pub async fn close(self) {
        let Self { lines, export } = self;
        if lines.is_none() && export.is_none() {
            return;
        }
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

fn filter() -> Result<EnvFilter, Error> {
    let directives = match env::var(EnvFilter::DEFAULT_ENV) {
        Ok(directives) => directives,
        Err(env::VarError::NotPresent) => String::new(),
        Err(env::VarError::NotUnicode(_)) => return Err(Error::Filter),
    };
    let filter = EnvFilter::builder().with_default_directive(Level::INFO.into());
    filter.parse(directives).map_err(|_| Error::Filter)
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

//! Logs, on stderr.

use std::io::{IsTerminal as _, stderr};

use tracing::{Level, Metadata};
use tracing_subscriber::{
    EnvFilter, Layer as _, filter::filter_fn, fmt, layer::SubscriberExt as _, util::SubscriberInitExt as _,
};

use crate::config::LogFormat;

/// Starts logging. The filter comes from `RUST_LOG`, or is `info`.
///
/// Below INFO only the gateway itself may speak, whatever the filter says: HTTP clients and servers print URLs and
/// headers there, and the URL of a request holds the API token and personal data.
pub fn init(format: Option<LogFormat>) {
    let format = format.unwrap_or(if stderr().is_terminal() {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let filter = EnvFilter::builder()
        .with_default_directive(Level::INFO.into())
        .from_env_lossy();
    let output = match format {
        LogFormat::Text => fmt::layer()
            .with_writer(stderr)
            .with_ansi(stderr().is_terminal())
            .boxed(),
        LogFormat::Json => fmt::layer().with_writer(stderr).json().flatten_event(true).boxed(),
    };
    // An error means that a logger is there already, which is as good.
    let _already = tracing_subscriber::registry()
        .with(output.with_filter(filter).with_filter(filter_fn(may_be_logged)))
        .try_init();
}

fn may_be_logged(event: &Metadata<'_>) -> bool {
    *event.level() <= Level::INFO || event.target().starts_with(env!("CARGO_CRATE_NAME"))
}

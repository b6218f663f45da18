//! The signals that end the process.

use std::{io, process};

use tokio::{
    select,
    signal::unix::{Signal, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;

/// Cancelled by the first SIGTERM or SIGINT. A second one ends the process at once, as people expect of Ctrl-C.
///
/// Also keeps SIGXFSZ from killing it: a write beyond a file size limit is to fail like one on a full disk.
pub fn on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let too_large = signal(SignalKind::from_raw(SIGXFSZ))?;
    let token = CancellationToken::new();
    let shutdown = token.clone();
    // Ends with the process; nobody awaits it, as it has no result.
    tokio::spawn(async move {
        let _kept = too_large;
        first(&mut terminate, &mut interrupt).await;
        shutdown.cancel();
        first(&mut terminate, &mut interrupt).await;
        tracing::warn!("a second signal: ending at once");
        process::exit(EXIT_FORCED);
    });
    Ok(token)
}

/// As a shell reports a process ended by SIGINT.
const EXIT_FORCED: i32 = 130;

const SIGXFSZ: i32 = 25;

async fn first(terminate: &mut Signal, interrupt: &mut Signal) {
    select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
}

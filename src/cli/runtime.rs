use std::{io, panic, process};

use tokio::runtime::{Builder, Runtime};

use super::{Exit, output::fail};

/// The runtime of every command. Ends the process with one line where tokio can't have its threads: it panics there, and
/// while that unwinds waits for ever for those it has.
///
/// # Errors
///
/// When the system refuses anything else that it needs.
pub fn runtime() -> io::Result<Runtime> {
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|panic| {
        let why = panic.payload_as_str().unwrap_or("no runtime");
        process::exit(fail(Exit::TryAgain, &format!("can't start: {why}")) as i32);
    }));
    let runtime = Builder::new_multi_thread().enable_all().build();
    panic::set_hook(hook);
    runtime
}

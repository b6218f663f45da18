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
    keep_memory();
    let hook = panic::take_hook();
    panic::set_hook(Box::new(|panic| {
        let why = panic.payload_as_str().unwrap_or("no runtime");
        process::exit(fail(Exit::TryAgain, &format!("can't start: {why}")) as i32);
    }));
    let runtime = Builder::new_multi_thread().enable_all().build();
    panic::set_hook(hook);
    runtime
}

/// Has glibc's allocator keep a few MiB of what is free. By its defaults it gives back all beyond 128 KiB again and again
/// under load, and each time the system stops every thread: an eighth of a stream's CPU time (docs/performance.md).
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    const KEPT: libc::c_int = 4 << 20;
    for parameter in [libc::M_TRIM_THRESHOLD, libc::M_MMAP_THRESHOLD] {
        // SAFETY: it only sets a number, and no other thread runs yet. Refused, it changes nothing.
        unsafe { libc::mallopt(parameter, KEPT) };
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_memory() {}

//! Access lines, written by a thread of their own: a reader of the log that stops reading must not stop calls, and one
//! write for many lines takes a fraction of what one write a line does.

use std::{
    io::{self, Write, stderr},
    mem,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

use tracing_subscriber::fmt::MakeWriter;

/// Lines that may wait for their reader; further ones are lost, and counted.
const MOST: usize = 4 * 1024 * 1024;

/// For so long lines are gathered before they are written.
const GATHER: Duration = Duration::from_millis(20);

/// Cheap to clone: all clones are one.
#[derive(Clone)]
pub struct Lines {
    shared: Arc<Shared>,
}

struct Shared {
    pending: Mutex<Pending>,
    changed: Condvar,
}

#[derive(Default)]
struct Pending {
    text: Vec<u8>,
    lost: u64,
    closing: bool,
    /// All was written after the closing.
    closed: bool,
}

impl Lines {
    pub fn start() -> io::Result<Self> {
        let lines = Self::new();
        let writer = lines.clone();
        thread::Builder::new()
            .name("access-log".into())
            .spawn(move || writer.write_all_to(stderr))?;
        Ok(lines)
    }

    fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                pending: Mutex::default(),
                changed: Condvar::new(),
            }),
        }
    }

    /// Waits until all is written, for no longer than `patience`.
    pub fn close(&self, patience: Duration) {
        let mut pending = self.lock();
        pending.closing = true;
        self.shared.changed.notify_all();
        let _waited = self
            .shared
            .changed
            .wait_timeout_while(pending, patience, |pending| !pending.closed);
    }

    fn write_all_to<W: Write>(&self, open: impl Fn() -> W) {
        let mut text = Vec::new();
        loop {
            let mut pending = self.lock();
            pending = self.wait_while(pending, |pending| pending.text.is_empty() && !pending.closing);
            if !pending.closing {
                // Only an end wakes it early.
                let gathered = self
                    .shared
                    .changed
                    .wait_timeout_while(pending, GATHER, |pending| !pending.closing);
                pending = gathered.unwrap_or_else(PoisonError::into_inner).0;
            }
            mem::swap(&mut pending.text, &mut text);
            let lost = mem::take(&mut pending.lost);
            if text.is_empty() {
                pending.closed = true;
                self.shared.changed.notify_all();
                return;
            }
            drop(pending);
            // A log that can't be written has nobody who could be told.
            let _nobody_reads = open().write_all(&text);
            text.clear();
            if lost > 0 {
                tracing::warn!(lost, "access lines were lost: the log is read too slowly");
            }
        }
    }

    fn wait_while<'a>(
        &self,
        pending: MutexGuard<'a, Pending>,
        holds: impl Fn(&Pending) -> bool,
    ) -> MutexGuard<'a, Pending> {
        let waited = self.shared.changed.wait_while(pending, |pending| holds(pending));
        waited.unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.shared.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The formatter writes a line at once.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut pending = self.lock();
        if pending.text.len() + line.len() > MOST {
            pending.lost += 1;
            return Ok(line.len());
        }
        let was_empty = pending.text.is_empty();
        pending.text.extend_from_slice(line);
        drop(pending);
        if was_empty {
            self.shared.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    /// A log whose reader takes a line when it likes.
    struct Slow<'a> {
        began: Sender<Vec<u8>>,
        go_on: &'a Receiver<()>,
    }

    impl Write for Slow<'_> {
        fn write(&mut self, text: &[u8]) -> io::Result<usize> {
            self.began.send(text.to_vec()).unwrap();
            self.go_on.recv().unwrap();
            Ok(text.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_log_that_nobody_reads_holds_nobody_up_and_takes_bounded_memory() {
        let lines = Lines::new();
        let (began, writes) = channel();
        let (reader, go_on) = channel();
        let writer = thread::spawn({
            let lines = lines.clone();
            move || {
                let slow = || Slow {
                    began: began.clone(),
                    go_on: &go_on,
                };
                lines.write_all_to(slow);
            }
        });
        (&lines).write_all(b"first\n").unwrap();
        assert_eq!(writes.recv().unwrap(), b"first\n");
        // Nobody reads on, and it still takes lines, up to its bound.
        let line = [b'x'; 1024];
        for _ in 0..2 * MOST / line.len() {
            (&lines).write_all(&line).unwrap();
        }
        {
            let pending = lines.lock();
            assert_eq!(pending.text.len(), MOST);
            assert_eq!(pending.lost as usize, MOST / line.len());
        }
        lines.close(Duration::from_millis(1));
        assert!(!lines.lock().closed);
        reader.send(()).unwrap();
        assert_eq!(writes.recv().unwrap().len(), MOST);
        reader.send(()).unwrap();
        lines.close(Duration::from_secs(60));
        assert!(lines.lock().closed);
        writer.join().unwrap();
    }
}

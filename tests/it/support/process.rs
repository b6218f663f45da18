//! Any command of the binary, running for as long as a test needs it.

use std::{
    io::{BufRead as _, BufReader, Read},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
};

use tokio::sync::mpsc;

use super::{gateway::BINARY, watch::soon};

/// A process and what it prints, on whichever of stdout and stderr. Killed when dropped.
pub struct Process {
    child: Child,
    lines: mpsc::UnboundedReceiver<String>,
}

impl Process {
    /// Runs the binary in a directory, with these arguments and nothing else in the environment.
    pub fn spawn(arguments: &[&str], env: &[(&str, &str)], directory: &Path) -> Self {
        let mut child = Command::new(BINARY)
            .args(arguments)
            .env_clear()
            .envs(env.iter().copied())
            .current_dir(directory)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (sender, lines) = mpsc::unbounded_channel();
        forward(child.stdout.take().unwrap(), sender.clone());
        forward(child.stderr.take().unwrap(), sender);
        Self { child, lines }
    }

    /// The next line that contains `text`. Panics if the process ends without one.
    pub async fn line_with(&mut self, text: &str) -> String {
        loop {
            let line = soon(self.lines.recv()).await;
            let line = line.unwrap_or_else(|| panic!("it ended without a line with {text:?}"));
            if line.contains(text) {
                return line;
            }
        }
    }

    pub fn signal(&self, name: &str) {
        let signalled = Command::new("kill").args(["-s", name, &self.id().to_string()]).status();
        assert!(signalled.unwrap().success());
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Has it ended by itself?
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Waits for its end: the exit code, and what was printed since the last look.
    pub async fn end(mut self) -> (Option<i32>, Vec<String>) {
        let mut rest = Vec::new();
        while let Some(line) = soon(self.lines.recv()).await {
            rest.push(line);
        }
        (self.child.wait().unwrap().code(), rest)
    }

    /// The same after a SIGTERM.
    pub async fn terminate(self) -> (Option<i32>, Vec<String>) {
        self.end_with("TERM").await
    }

    /// The same after another signal.
    pub async fn end_with(self, signal: &str) -> (Option<i32>, Vec<String>) {
        self.signal(signal);
        self.end().await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn forward(pipe: impl Read + Send + 'static, lines: mpsc::UnboundedSender<String>) {
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if lines.send(line).is_err() {
                return;
            }
        }
    });
}

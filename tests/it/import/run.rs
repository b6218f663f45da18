//! Running the import.

use std::{
    fs,
    io::Write as _,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;
use tokio::task::spawn_blocking;

use crate::support::{call::COLLECTOR, gateway::BINARY, process::Process, watch::soon};

/// A directory with a list in it.
pub struct Import {
    directory: TempDir,
}

impl Import {
    pub fn of(list: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("list.csv"), list).unwrap();
        Self { directory }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// The results, in the order of the list.
    pub fn results(&self) -> Vec<Vec<String>> {
        results(&self.path("list.csv.results.csv"))
    }

    /// `import list.csv` with more flags, to its end.
    pub async fn run(&self, gateway: SocketAddr, flags: &[&str]) -> Run {
        soon(self.begin("list.csv", gateway, flags, Stdio::null()).wait()).await
    }

    /// `import -` with more flags, to its end.
    pub async fn run_with_input(&self, gateway: SocketAddr, flags: &[&str], input: &str) -> Run {
        let mut running = self.begin("-", gateway, flags, Stdio::piped());
        let mut stdin = running.0.stdin.take().unwrap();
        // One that is refused does not read.
        let _unread = stdin.write_all(input.as_bytes());
        drop(stdin);
        soon(running.wait()).await
    }

    /// `import list.csv` with more flags, running beside the test.
    pub fn spawn(&self, gateway: SocketAddr, flags: &[&str]) -> Process {
        let arguments = arguments("list.csv", gateway, flags);
        let arguments: Vec<_> = arguments.iter().map(String::as_str).collect();
        Process::spawn(&arguments, &[], self.directory.path())
    }

    fn begin(&self, list: &str, gateway: SocketAddr, flags: &[&str], stdin: Stdio) -> Running {
        let child = Command::new(BINARY)
            .args(arguments(list, gateway, flags))
            .env_clear()
            .current_dir(self.directory.path())
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        Running(child)
    }
}

/// The rows of a results file, in the order of the list.
pub fn results(path: &Path) -> Vec<Vec<String>> {
    let mut csv = csv::Reader::from_path(path).unwrap();
    let mut rows: Vec<Vec<String>> = csv
        .records()
        .map(|row| row.unwrap().iter().map(str::to_string).collect())
        .collect();
    rows.sort_by_key(|row| row[0].parse::<u64>().unwrap());
    rows
}

fn arguments(list: &str, gateway: SocketAddr, flags: &[&str]) -> Vec<String> {
    let mut arguments = ["import", list, "--collector", COLLECTOR, "--target"]
        .map(String::from)
        .to_vec();
    arguments.push(gateway.to_string());
    arguments.extend(flags.iter().map(ToString::to_string));
    arguments
}

struct Running(Child);

impl Running {
    async fn wait(self) -> Run {
        let output = spawn_blocking(move || self.0.wait_with_output().unwrap())
            .await
            .unwrap();
        Run {
            code: output.status.code(),
            stdout: String::from_utf8(output.stdout).unwrap(),
            stderr: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

/// How a command ended.
pub struct Run {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl From<(Option<i32>, Vec<String>)> for Run {
    /// Of what was printed together.
    fn from((code, lines): (Option<i32>, Vec<String>)) -> Self {
        let stderr = lines.join("\n");
        Self {
            code,
            stdout: stderr.clone(),
            stderr,
        }
    }
}

impl Run {
    #[track_caller]
    pub fn ended(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{}\n{}", self.stdout, self.stderr);
    }
}

//! The gateway as a process of its own: settings, signals, crashes and logs are real.

use std::{
    fs::File,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    os::unix::process::ExitStatusExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::{client::legacy::Client as Http, rt::TokioExecutor};
use surveylab_gateway::{
    proto::invitation_service_client::InvitationServiceClient,
    sandbox::{Config, Fault, Gate, Sandbox},
};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tonic::transport::Channel;

use super::watch::until;

/// The binary under test.
pub const BINARY: &str = env!("CARGO_BIN_EXE_surveylab-gateway");

/// Names another binary to be run as the gateway: one with a bug planted, to see that the tests find it.
const OTHER_BINARY: &str = "GATEWAY_UNDER_TEST";

/// The token that the gateway is given, for sandboxes that check it and for tests that look for leaks.
pub const TOKEN: &str = "t0ken-c4nary-5ecret";

/// How a test wants its gateway. By default fast enough that no test waits for the rate limit.
#[derive(Clone)]
pub struct Options {
    flags: Vec<String>,
    env: Vec<(String, String)>,
    /// Runs the binary under this command, such as a shell that sets limits first.
    wrapper: Vec<String>,
}

impl Options {
    pub fn new() -> Self {
        Self {
            flags: Vec::new(),
            env: Vec::new(),
            wrapper: Vec::new(),
        }
        .flag("--rate", "100000/s")
        .flag("--burst", "1000")
    }

    /// Sets a flag; of two the later one holds.
    pub fn flag(mut self, name: &str, value: impl ToString) -> Self {
        self.flags.retain(|flag| !flag.starts_with(&format!("{name}=")));
        self.flags.push(format!("{name}={}", value.to_string()));
        self
    }

    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.into(), value.to_string()));
        self
    }

    pub fn wrapper(mut self, command: &[&str]) -> Self {
        self.wrapper = command.iter().map(ToString::to_string).collect();
        self
    }
}

/// A running gateway, killed when dropped.
pub struct Gateway {
    child: Child,
    log: Arc<Mutex<String>>,
    /// Ends with the process, once its last line is in the log.
    reader: Option<JoinHandle<()>>,
    pub grpc: SocketAddr,
    pub admin: SocketAddr,
    pub directory: Arc<TempDir>,
    surveylab_url: String,
    options: Options,
}

impl Gateway {
    /// A gateway in front of a sandbox, with a ledger of its own.
    pub async fn start(sandbox: &Sandbox) -> Self {
        Self::with(Options::new(), sandbox).await
    }

    pub async fn with(options: Options, sandbox: &Sandbox) -> Self {
        Self::in_front_of(&sandbox.url(), options).await
    }

    /// A gateway in front of any URL.
    pub async fn in_front_of(url: &str, options: Options) -> Self {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::spawn(url.into(), options, directory).await
    }

    /// The same gateway again, over the same ledger, once this one has ended.
    pub async fn restart(self) -> Self {
        self.restart_with(|options| options).await
    }

    pub async fn restart_with(mut self, change: impl FnOnce(Options) -> Options) -> Self {
        self.kill();
        let options = change(std::mem::replace(&mut self.options, Options::new()));
        Self::spawn(self.surveylab_url.clone(), options, self.directory.clone()).await
    }

    /// The same gateway again, with one more variable in its environment, once this one has ended; or how it ended before it
    /// listened, and its log.
    pub async fn again(&self, name: &str, value: &str) -> Result<Self, (ExitStatus, String)> {
        let mut options = self.options.clone();
        options.env.retain(|(other, _)| other != name);
        let options = options.env(name, value);
        Self::try_spawn(self.surveylab_url.clone(), options, self.directory.clone()).await
    }

    /// A gateway that may end before it listens: then how it ended, and its log.
    pub async fn try_in_front_of(url: &str, options: Options) -> Result<Self, (ExitStatus, String)> {
        let directory = Arc::new(tempfile::tempdir().unwrap());
        Self::try_spawn(url.into(), options, directory).await
    }

    async fn spawn(url: String, options: Options, directory: Arc<TempDir>) -> Self {
        let spawned = Self::try_spawn(url, options, directory).await;
        spawned.unwrap_or_else(|(status, log)| panic!("the gateway ended, {status}:\n{log}"))
    }

    async fn try_spawn(url: String, options: Options, directory: Arc<TempDir>) -> Result<Self, (ExitStatus, String)> {
        let mut command = command(&options.wrapper);
        command
            .arg("serve")
            .args([
                "--listen=127.0.0.1:0",
                "--admin-listen=127.0.0.1:0",
                "--log-format=json",
            ])
            .arg(format!("--surveylab-url={url}"))
            .args(&options.flags)
            .env_clear()
            .env("SURVEYLAB_API_TOKEN", TOKEN)
            .envs(options.env.iter().map(|(name, value)| (name, value)))
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();

        // Read for as long as the process lives: the pipe must not fill up, and the log is evidence.
        let log = Arc::new(Mutex::new(String::new()));
        let (listening, addresses) = oneshot::channel();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let reader = thread::spawn({
            let log = log.clone();
            move || {
                let mut listening = Some(listening);
                for line in lines.lines().map_while(Result::ok) {
                    {
                        let mut log = log.lock().unwrap();
                        log.push_str(&line);
                        log.push('\n');
                    }
                    if let Some(addresses) = listening_line(&line)
                        && let Some(listening) = listening.take()
                    {
                        let _ = listening.send(addresses);
                    }
                }
            }
        });
        let Ok((grpc, admin)) = addresses.await else {
            let status = child.wait().unwrap();
            return Err((status, log.lock().unwrap().clone()));
        };
        Ok(Self {
            child,
            log,
            reader: Some(reader),
            grpc,
            admin,
            directory,
            surveylab_url: url,
            options,
        })
    }

    /// A client on a connection of its own.
    pub async fn client(&self) -> InvitationServiceClient<Channel> {
        InvitationServiceClient::new(self.channel().await)
    }

    /// The same of a gateway that may be gone.
    pub async fn try_client(&self) -> Result<InvitationServiceClient<Channel>, tonic::transport::Error> {
        let channel = Channel::from_shared(format!("http://{}", self.grpc)).unwrap();
        Ok(InvitationServiceClient::new(channel.connect().await?))
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Channel::from_shared(format!("http://{}", self.grpc)).unwrap();
        endpoint.connect().await.unwrap()
    }

    /// SIGKILL: no line of the process runs any more.
    pub fn kill(&mut self) -> ExitStatus {
        self.child.kill().unwrap();
        self.child.wait().unwrap()
    }

    pub fn signal(&self, name: &str) {
        let signalled = Command::new("kill")
            .args(["-s", name, &self.child.id().to_string()])
            .status();
        assert!(signalled.unwrap().success());
    }

    /// Waits for the process to end by itself, and stays to be started again.
    pub async fn wait(&mut self) {
        until("the process ends", async || self.child.try_wait().unwrap().is_some()).await;
    }

    /// Waits for the process to end by itself.
    pub async fn ended(self) -> ExitStatus {
        self.once_ended().await.1
    }

    /// The same gateway again, once this one has ended by itself.
    pub async fn restart_when_ended(self) -> Self {
        self.once_ended().await.0.restart().await
    }

    /// What is left of the gateway when it has ended by itself: its log and its files.
    pub async fn once_ended(mut self) -> (Self, ExitStatus) {
        let ended = tokio::task::spawn_blocking(move || {
            let status = self.child.wait().unwrap();
            if let Some(reader) = self.reader.take() {
                reader.join().unwrap();
            }
            (self, status)
        });
        ended.await.unwrap()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// All that was logged so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Every file that the process left in its directory, with its contents.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        files(self.directory.path())
    }

    /// The answer of the admin port: status and body.
    pub async fn admin(&self, path: &str) -> (u16, String) {
        let http = Http::builder(TokioExecutor::new()).build_http::<Empty<Bytes>>();
        let url = format!("http://{}{path}", self.admin).parse().unwrap();
        let response = http.get(url).await.unwrap();
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.into()).unwrap())
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- the gateway's log\n{}", self.log());
        }
    }
}

fn files(directory: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
    files
        .map(|entry| (entry.path(), std::fs::read(entry.path()).unwrap()))
        .collect()
}

fn command(wrapper: &[String]) -> Command {
    let binary = std::env::var(OTHER_BINARY).unwrap_or_else(|_| BINARY.into());
    match wrapper.split_first() {
        None => Command::new(binary),
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments).arg(binary);
            command
        }
    }
}

/// The addresses in the log line that says that the ports are open.
fn listening_line(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: serde_json::Value = serde_json::from_str(line).ok()?;
    if line["message"] != "listening" {
        return None;
    }
    Some((
        line["grpc"].as_str()?.parse().ok()?,
        line["admin"].as_str()?.parse().ok()?,
    ))
}

/// The signal that ended a process, if one did.
pub fn ended_by(status: ExitStatus) -> Option<i32> {
    status.signal()
}

/// Runs the binary to its end: exit code, stdout, stderr.
pub async fn run(arguments: &[&str], env: &[(&str, &str)]) -> (Option<i32>, String, String) {
    let mut command = Command::new(BINARY);
    command
        .args(arguments)
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::null());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// A sandbox that sends a second e-mail for a second request, as SurveyLab may: what must never happen shows.
pub async fn surveylab() -> Sandbox {
    surveylab_with(|_| {}).await
}

pub async fn surveylab_with(change: impl FnOnce(&mut Config)) -> Sandbox {
    let mut config = Config {
        api_token: Some(TOKEN.to_string().into()),
        on_repeat: surveylab_gateway::sandbox::OnRepeat::SendAgain,
        ..Config::default()
    };
    change(&mut config);
    Sandbox::start(config).await.unwrap()
}

/// One that holds every request until the gate opens.
pub async fn holding() -> (Sandbox, Gate) {
    let sandbox = surveylab().await;
    let gate = Gate::new();
    sandbox.add_fault(Fault::hold(&gate));
    (sandbox, gate)
}

/// An empty file, to be made unreadable, full or wrong by a test.
pub fn touch(path: &Path) {
    File::create(path).unwrap();
}

//! A PostgreSQL server of the tests' own. Also used by the unit tests, so it knows nothing of the gateway.

use std::{
    env, fs,
    io::{PipeWriter, pipe},
    net::TcpListener,
    os::unix::{
        fs::{PermissionsExt as _, chown},
        process::CommandExt as _,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use tempfile::TempDir;

pub const USER: &str = "gateway";
pub const PASSWORD: &str = "p@ss/wörd";
const PASSWORD_ENCODED: &str = "p%40ss%2Fw%C3%B6rd";
/// Debian's and everybody's number of `nobody`: PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// A running server: on a socket without a password, on 127.0.0.1 with one. It ends, and its files go, with this value,
/// or with the process, however that ends.
pub struct Server {
    programs: PathBuf,
    directory: PathBuf,
    pub port: u16,
    guard: Child,
    alive: Option<PipeWriter>,
}

/// The server that all tests of this process share.
pub fn shared() -> &'static Server {
    static SERVER: OnceLock<Server> = OnceLock::new();
    SERVER.get_or_init(|| Server::start(&[]))
}

impl Server {
    /// A server with these settings (`name=value`) on top of the usual ones.
    pub fn start(settings: &[&str]) -> Self {
        let programs = programs();
        let directory = TempDir::with_prefix("postgres-").unwrap().keep();
        if is_root() {
            chown(&directory, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        let (watched, alive) = pipe().unwrap();
        // Ends the server when this process has closed its end of the pipe: by dropping it, or by ending.
        let mut guard = Command::new("/bin/sh");
        guard
            .args([
                "-c",
                "read -r _; \"$1\" -D \"$2/data\" -m immediate -w stop; rm -rf \"$2\"",
                "guard",
            ])
            .arg(programs.join("pg_ctl"))
            .arg(&directory)
            .stdin(watched)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // Ctrl-C ends the tests, and by that the server.
            .process_group(0);
        as_nobody(&mut guard);
        let mut server = Self {
            programs,
            directory,
            port: 0,
            guard: guard.spawn().unwrap(),
            alive: Some(alive),
        };
        server.init(settings);
        // Another process may take the port before the server does.
        for _ in 0..5 {
            server.port = free_port();
            if server.try_start() {
                return server;
            }
        }
        panic!("PostgreSQL does not start: {}", server.log());
    }

    fn init(&self, settings: &[&str]) {
        let password = self.directory.join("password");
        fs::write(&password, PASSWORD).unwrap();
        fs::set_permissions(&password, fs::Permissions::from_mode(0o644)).unwrap();
        // A collation that is not bytewise: what depends on the order of text has to say so.
        let mut init = self.program("initdb");
        init.args([
            "--encoding=UTF8",
            "--locale=C.UTF-8",
            "--locale-provider=icu",
            "--icu-locale=en-US",
        ])
        .args([
            "--auth-local=trust",
            "--auth-host=scram-sha-256",
            "--no-sync",
            "--username",
            USER,
        ])
        .arg("--pwfile")
        .arg(&password)
        .arg("-D")
        .arg(self.data());
        run(&mut init);
        let mut config = format!(
            "listen_addresses = '127.0.0.1'\nunix_socket_directories = '{}'\nmax_connections = 400\n\
             shared_buffers = 32MB\n",
            self.directory.display()
        );
        for setting in settings {
            config.push_str(setting);
            config.push('\n');
        }
        fs::write(self.data().join("conf"), &config).unwrap();
        fs::set_permissions(self.data().join("conf"), fs::Permissions::from_mode(0o644)).unwrap();
        let file = self.data().join("postgresql.conf");
        let given = fs::read_to_string(&file).unwrap();
        fs::write(&file, format!("{given}\ninclude 'conf'\n")).unwrap();
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn log(&self) -> String {
        fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.join(name));
        command.current_dir(&self.directory).stdin(Stdio::null());
        as_nobody(&mut command);
        command
    }

    fn try_start(&self) -> bool {
        let status = self
            .program("pg_ctl")
            .arg("-D")
            .arg(self.data())
            .arg("-l")
            .arg(self.directory.join("log"))
            .args(["-w", "-o", &format!("-p {}", self.port), "start"])
            .stdout(Stdio::null())
            .status();
        status.unwrap().success()
    }

    /// Ends it as a crash does: no client is told, and nothing is written that was not written before.
    pub fn kill(&self) {
        let mut stop = self.program("pg_ctl");
        run(stop.arg("-D").arg(self.data()).args(["-m", "immediate", "-w", "stop"]));
    }

    /// Starts it again where it was.
    pub fn start_again(&self) {
        assert!(self.try_start(), "PostgreSQL does not start again: {}", self.log());
    }

    /// The process that accepts connections: stopped, it takes them and never answers.
    pub fn pid(&self) -> u32 {
        let file = fs::read_to_string(self.data().join("postmaster.pid")).unwrap();
        file.lines().next().unwrap().parse().unwrap()
    }

    /// Has it speak TLS from now on, with this certificate and its key.
    pub fn secure(&self, certificate: &str, key: &str) {
        for (file, text) in [("server.crt", certificate), ("server.key", key)] {
            let file = self.data().join(file);
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            if is_root() {
                chown(&file, Some(NOBODY), Some(NOBODY)).unwrap();
            }
        }
        self.psql("postgres", "ALTER SYSTEM SET ssl = on");
        let mut reload = self.program("pg_ctl");
        run(reload
            .arg("-D")
            .arg(self.data())
            .args(["-w", "restart"])
            .stdout(Stdio::null())
            .stderr(Stdio::null()));
    }

    /// A new, empty database.
    pub fn database(&self) -> Database<'_> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let name = format!("test_{}", NUMBER.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"));
        Database { server: self, name }
    }

    /// Has the server do something as its owner, and tells what it answered: lines of columns with `|` between.
    pub fn psql(&self, database: &str, sql: &str) -> String {
        let output = self
            .program("psql")
            .env_clear()
            .arg("-h")
            .arg(&self.directory)
            .args(["-p", &self.port.to_string(), "-U", USER, "-d", database])
            .args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-c", sql])
            .output()
            .unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        assert!(output.status.success(), "{sql}: {}", text(output.stderr));
        text(output.stdout).trim_end().into()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.alive.take());
        let _ = self.guard.wait();
    }
}

/// A database of one test's own, dropped with this value.
pub struct Database<'a> {
    pub server: &'a Server,
    pub name: String,
}

impl Database<'_> {
    /// How to get in over TCP.
    pub fn url(&self) -> String {
        self.url_by(&format!("127.0.0.1:{}", self.server.port))
    }

    /// How to get in by other hosts, such as relays.
    pub fn url_by(&self, hosts: &str) -> String {
        format!("postgres://{USER}:{PASSWORD_ENCODED}@{hosts}/{}", self.name)
    }

    /// How to get in by the socket, where no password is asked for.
    pub fn socket_url(&self) -> String {
        let directory = self.server.directory.display();
        // libpq's way to name a socket's port is the same as for TCP.
        let host = directory.to_string().replace('/', "%2F");
        format!("postgres://{USER}@{host}:{}/{}", self.server.port, self.name)
    }

    pub fn sql(&self, sql: &str) -> String {
        self.server.psql(&self.name, sql)
    }
}

impl Drop for Database<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.server
                .psql("postgres", &format!("DROP DATABASE {} WITH (FORCE)", self.name));
        }
    }
}

/// Can there be one?
pub fn is_installed() -> bool {
    find_programs().is_some()
}

fn programs() -> PathBuf {
    find_programs().expect(
        "no PostgreSQL server is installed: apt-get install postgresql (15 or later), or put its initdb on PATH",
    )
}

/// The newest server's programs.
fn find_programs() -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut versions: Vec<_> = versions.map(|entry| entry.path()).collect();
    versions.sort_by_key(|path| version(path));
    let debian = versions.into_iter().rev().map(|version| version.join("bin"));
    let others = [
        "/usr/local/pgsql/bin",
        "/usr/pgsql/bin",
        "/opt/homebrew/opt/postgresql/bin",
    ]
    .map(PathBuf::from);
    debian.chain(env::split_paths(&path)).chain(others).find(|programs| {
        ["initdb", "pg_ctl", "psql"]
            .iter()
            .all(|name| programs.join(name).is_file())
    })
}

fn version(path: &Path) -> u32 {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.parse().unwrap_or(0)
}

fn is_root() -> bool {
    // SAFETY: it only returns a number.
    unsafe { libc::geteuid() == 0 }
}

fn as_nobody(command: &mut Command) {
    if is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

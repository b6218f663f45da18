//! Processes under measurement: started, found ready, read from /proc, killed.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

/// Killed when dropped.
pub struct Process {
    child: Child,
}

impl Process {
    pub fn start(command: &mut Command) -> io::Result<Self> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        Ok(Self { child })
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The first line that it prints.
    pub fn line(&mut self) -> io::Result<String> {
        let stdout = self.child.stdout.take().ok_or(io::ErrorKind::BrokenPipe)?;
        let mut stdout = BufReader::new(stdout);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        // Whatever else it prints must not fill the pipe.
        thread::spawn(move || io::copy(&mut stdout, &mut io::sink()));
        Ok(line.trim().to_owned())
    }

    /// Waits until it accepts connections.
    pub fn listens(&mut self, address: SocketAddr) -> io::Result<()> {
        let begin = Instant::now();
        loop {
            if TcpStream::connect(address).is_ok() {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                return Err(io::Error::other(format!("it ended: {status}")));
            }
            if begin.elapsed() > Duration::from_secs(30) {
                return Err(io::Error::other("it does not listen"));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub fn has_ended(&mut self) -> io::Result<bool> {
        Ok(self.child.try_wait()?.is_some())
    }

    /// Waits for its end, and gives all that it printed.
    pub fn output(mut self) -> io::Result<String> {
        let mut output = String::new();
        if let Some(mut stdout) = self.child.stdout.take() {
            stdout.read_to_string(&mut output)?;
        }
        match self.child.wait()? {
            status if status.success() => Ok(output),
            status => Err(io::Error::other(format!("it failed: {status}"))),
        }
    }

    /// The memory it has, in MiB.
    pub fn memory(&self) -> io::Result<f64> {
        self.mebibytes("VmRSS:")
    }

    /// The most memory it had so far, in MiB.
    pub fn peak_memory(&self) -> io::Result<f64> {
        self.mebibytes("VmHWM:")
    }

    fn mebibytes(&self, name: &str) -> io::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
        Ok(kib.ok_or(io::ErrorKind::InvalidData)? / 1024.0)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // An error means that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds of CPU that a process has used.
pub fn cpu_seconds(id: u32) -> io::Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{id}/stat"))?;
    // Its name, in parentheses, may hold spaces: proc(5).
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    // USER_HZ is 100 on every Linux that Rust runs on.
    Ok(ticks / 100.0)
}

/// An address that is free now.
pub fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}

/// What an HTTP server answers with, which closes the connection after it.
pub fn get(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut socket = TcpStream::connect(server)?;
    write!(
        socket,
        "GET {path} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").ok_or(io::ErrorKind::InvalidData)?;
    Ok(body.to_owned())
}

/// Lets this process and those it starts open as many files as they are allowed to: thousands of connections take more
/// than what many systems give at first.
pub fn raise_file_limit() {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: both calls get a valid structure. Refused, they change nothing.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) == 0 {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
        }
    }
}

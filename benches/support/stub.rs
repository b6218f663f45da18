//! A SurveyLab that adds everybody, after a fixed time: the least HTTP/1.1 that a client needs, on one thread, so that it
//! takes little of the machine from those under test. It counts keys that come more than once, and can tell when each
//! request came.

use std::{
    cell::RefCell,
    collections::{HashSet, hash_map::DefaultHasher},
    env, fmt,
    hash::{Hash as _, Hasher as _},
    io,
    net::SocketAddr,
    process::Command,
    rc::Rc,
    str::FromStr,
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{self, LocalSet},
    time::sleep,
};

use super::{
    Failure,
    process::{Process, get},
};

pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 63\r\n\r\n\
    {\"status\":true,\"notification\":\"Action processed correctly\"}    ";
/// Asked for this path, it tells how many requests there were, and how many of them repeated a key.
const COUNTS: &[u8] = b"GET /counts ";
/// Asked for this one, it tells its [`Arrivals`].
const ARRIVALS: &[u8] = b"GET /arrivals ";

#[derive(Default)]
struct Counts {
    requests: u64,
    repeated: u64,
    keys: HashSet<u64>,
    /// If they are to be recorded.
    arrivals: Option<Arrivals>,
}

/// When requests came.
#[derive(Default)]
pub struct Arrivals {
    /// In nanoseconds since the stub began.
    pub at: Vec<u64>,
    /// The longest time, in nanoseconds, for which the stub did not run although it should have. Requests that come
    /// meanwhile seem to come at once at its end.
    pub longest_stall: u64,
}

/// A stub in a process of its own.
pub struct Stub {
    pub process: Process,
    pub address: SocketAddr,
}

impl Stub {
    pub fn start(options: &[&str]) -> Result<Self, Failure> {
        let mut process = Process::start(Command::new(env::current_exe()?).arg("stub").args(options))?;
        let address = process.line()?.parse()?;
        Ok(Self { process, address })
    }

    pub fn arrivals(&self) -> io::Result<Arrivals> {
        get(self.address, "/arrivals")?.parse().map_err(io::Error::other)
    }
}

#[derive(clap::Args)]
pub struct Args {
    /// Milliseconds from a request to its answer.
    #[arg(long, default_value_t = 0)]
    latency: u64,
    /// Records when requests come.
    #[arg(long)]
    record: bool,
}

/// Serves on a free port, which it prints, until it is killed.
pub fn run(args: &Args) -> io::Result<()> {
    let latency = Duration::from_millis(args.latency);
    let begin = Instant::now();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let counts = Rc::new(RefCell::new(Counts::default()));
        if args.record {
            counts.borrow_mut().arrivals = Some(Arrivals::default());
            task::spawn_local(watch_stalls(counts.clone()));
        }
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            // A peer that is stopped leaves its connections as they are.
            task::spawn_local(serve(socket, latency, begin, counts.clone()));
        }
    })
}

async fn serve(
    mut socket: TcpStream,
    latency: Duration,
    begin: Instant,
    counts: Rc<RefCell<Counts>>,
) -> io::Result<()> {
    let mut read = Vec::with_capacity(16 * 1024);
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        let told = {
            let counts = counts.borrow();
            match &counts.arrivals {
                _ if read.starts_with(COUNTS) => Some(format!("{} {}", counts.requests, counts.repeated)),
                Some(arrivals) if read.starts_with(ARRIVALS) => Some(arrivals.to_string()),
                _ => None,
            }
        };
        if let Some(body) = told {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(head.as_bytes()).await?;
            return socket.write_all(body.as_bytes()).await;
        }
        counts.borrow_mut().count(key(&read[..end]), begin);
        if !latency.is_zero() {
            sleep(latency).await;
        }
        socket.write_all(ANSWER).await?;
        read.drain(..end);
    }
}

/// From the first request on: what happens while everything starts tells nothing.
async fn watch_stalls(counts: Rc<RefCell<Counts>>) {
    // tokio's timers are that exact.
    const TICK: Duration = Duration::from_millis(1);
    loop {
        let begin = Instant::now();
        sleep(TICK).await;
        let stall = begin.elapsed().saturating_sub(TICK).as_nanos() as u64;
        if let Some(arrivals) = &mut counts.borrow_mut().arrivals
            && !arrivals.at.is_empty()
        {
            arrivals.longest_stall = arrivals.longest_stall.max(stall);
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.longest_stall)?;
        self.at.iter().try_for_each(|at| write!(f, " {at}"))
    }
}

impl FromStr for Arrivals {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stall, at) = text.split_once(' ').unwrap_or((text, ""));
        Ok(Self {
            at: at.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>()?,
            longest_stall: stall.parse()?,
        })
    }
}

impl Counts {
    fn count(&mut self, key: &[u8], begin: Instant) {
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.at.push(begin.elapsed().as_nanos() as u64);
        }
        let mut hasher = DefaultHasher::new();
        key.hash(&mut hasher);
        self.requests += 1;
        self.repeated += u64::from(!self.keys.insert(hasher.finish()));
    }
}

/// The value of `crk` in a request line; all of the request if there is none.
fn key(request: &[u8]) -> &[u8] {
    let Some(begin) = request.windows(5).position(|bytes| bytes == b"&crk=") else {
        return request;
    };
    let value = &request[begin + 5..];
    let end = value.iter().position(|byte| matches!(byte, b'&' | b' '));
    &value[..end.unwrap_or(value.len())]
}

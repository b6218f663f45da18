//! A SurveyLab that adds everybody, after a fixed time: the least HTTP/1.1 that a client needs, on one thread, so that it
//! takes little of the machine from those under test. It counts keys that come more than once, and can tell when each
//! request came.

use std::{
    cell::RefCell,
    collections::{HashSet, hash_map::DefaultHasher},
    env,
    hash::{Hash as _, Hasher as _},
    io,
    net::SocketAddr,
    process::Command,
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{self, LocalSet},
    time::sleep,
};

use super::{
    Failure,
    arrival::{note_arrivals, receive},
    process::{Process, get},
};

/// What it says of everybody.
pub const NOTIFICATION: &str = "Action processed correctly";
pub const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 63\r\n\r\n\
    {\"status\":true,\"notification\":\"Action processed correctly\"}    ";
/// Asked for this path, it tells how many requests there were, and how many of them repeated a key.
const COUNTS: &[u8] = b"GET /counts ";
/// Asked for this one, it tells when they came, if it records that.
const ARRIVALS: &[u8] = b"GET /arrivals ";
/// The end of an empty body in chunks, which Envoy gives a GET.
const NO_CHUNKS: &[u8] = b"0\r\n\r\n";

#[derive(Default)]
struct Counts {
    requests: u64,
    repeated: u64,
    keys: HashSet<u64>,
    /// In nanoseconds since 1970, in no order, if they are to be recorded.
    arrivals: Option<Vec<u64>>,
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

    /// How many requests came, if none of them repeated a key.
    pub fn requests(&self) -> Result<u64, Failure> {
        let told = get(self.address, "/counts")?;
        let (requests, repeated) = told.split_once(' ').ok_or("no counts")?;
        match repeated {
            "0" => Ok(requests.parse()?),
            _ => Err(format!("SurveyLab got {repeated} keys more than once").into()),
        }
    }

    /// When requests came, in nanoseconds since the first; the kernel's times, so that nothing seems to come at once only
    /// because the stub did not get to run.
    pub fn arrivals(&self) -> Result<Vec<u64>, Failure> {
        let told = get(self.address, "/arrivals")?;
        let mut arrivals: Vec<u64> = told.split_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        arrivals.sort_unstable();
        let first = arrivals.first().copied().unwrap_or_default();
        arrivals.iter_mut().for_each(|at| *at -= first);
        Ok(arrivals)
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
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        println!("{}", listener.local_addr()?);
        let counts = Rc::new(RefCell::new(Counts::default()));
        if args.record {
            note_arrivals(&listener)?;
            counts.borrow_mut().arrivals = Some(Vec::new());
        }
        loop {
            let (socket, _) = listener.accept().await?;
            socket.set_nodelay(true)?;
            // A peer that is stopped leaves its connections as they are.
            task::spawn_local(serve(socket, latency, counts.clone()));
        }
    })
}

async fn serve(mut socket: TcpStream, latency: Duration, counts: Rc<RefCell<Counts>>) -> io::Result<()> {
    let mut read = Vec::with_capacity(16 * 1024);
    let is_recorded = counts.borrow().arrivals.is_some();
    let mut at = 0;
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            let more = if is_recorded {
                read.reserve(1024);
                let more;
                (more, at) = receive(&socket, &mut read).await?;
                more
            } else {
                socket.read_buf(&mut read).await?
            };
            if more == 0 {
                return Ok(());
            }
        };
        let request = &read[..end];
        let told = {
            let counts = counts.borrow();
            match &counts.arrivals {
                _ if request.starts_with(COUNTS) => Some(format!("{} {}", counts.requests, counts.repeated)),
                Some(arrivals) if request.starts_with(ARRIVALS) => Some(
                    arrivals
                        .iter()
                        .fold(String::new(), |told, at| told + &at.to_string() + " "),
                ),
                _ => None,
            }
        };
        if let Some(body) = told {
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
            socket.write_all(head.as_bytes()).await?;
            return socket.write_all(body.as_bytes()).await;
        }
        if request != NO_CHUNKS {
            counts.borrow_mut().count(key(request), at);
            if !latency.is_zero() {
                sleep(latency).await;
            }
            socket.write_all(ANSWER).await?;
        }
        read.drain(..end);
    }
}

impl Counts {
    fn count(&mut self, key: &[u8], at: u64) {
        if let Some(arrivals) = &mut self.arrivals {
            arrivals.push(at);
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

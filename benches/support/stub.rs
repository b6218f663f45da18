//! A SurveyLab that adds everybody, after a fixed time: the least HTTP/1.1 that a client needs, on one thread, so that it
//! takes little of the machine from those under test. It counts keys that come more than once.

use std::{
    cell::RefCell,
    collections::{HashSet, hash_map::DefaultHasher},
    hash::{Hash as _, Hasher as _},
    io,
    rc::Rc,
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    task::{self, LocalSet},
    time::sleep,
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 63\r\n\r\n\
    {\"status\":true,\"notification\":\"Action processed correctly\"}    ";
/// Asked for this path, it tells how many requests there were, and how many of them repeated a key.
const COUNTS: &[u8] = b"GET /counts ";
/// The end of an empty body in chunks, which Envoy gives a GET.
const NO_CHUNKS: &[u8] = b"0\r\n\r\n";

#[derive(Default)]
struct Counts {
    requests: u64,
    repeated: u64,
    keys: HashSet<u64>,
}

#[derive(clap::Args)]
pub struct Args {
    /// Milliseconds from a request to its answer.
    #[arg(long, default_value_t = 0)]
    latency: u64,
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
    loop {
        let end = loop {
            if let Some(end) = read.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
            if socket.read_buf(&mut read).await? == 0 {
                return Ok(());
            }
        };
        if read.starts_with(COUNTS) {
            let body = {
                let counts = counts.borrow();
                format!("{} {}", counts.requests, counts.repeated)
            };
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            socket.write_all(answer.as_bytes()).await?;
        } else if read[..end] != *NO_CHUNKS {
            counts.borrow_mut().count(key(&read[..end]));
            if !latency.is_zero() {
                sleep(latency).await;
            }
            socket.write_all(ANSWER).await?;
        }
        read.drain(..end);
    }
}

impl Counts {
    fn count(&mut self, key: &[u8]) {
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

//! An HTTP server spoken by hand, which counts what arrives.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::oneshot,
    task::JoinHandle,
};

/// All that a peer saw.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    pub connections: usize,
    /// Heads of requests, each with its empty line.
    pub requests: Vec<String>,
    /// What was read as it is.
    pub bytes: Vec<u8>,
}

pub struct Peer {
    address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    last: oneshot::Sender<SocketAddr>,
    accepting: JoinHandle<()>,
}

pub struct Connection {
    stream: TcpStream,
    unread: Vec<u8>,
    seen: Arc<Mutex<Seen>>,
}

impl Peer {
    /// Runs `handle` for each connection, with its index. A connection that it returns is read to its end, further
    /// requests on it counted.
    pub async fn start<F>(handle: impl Fn(usize, Connection) -> F + Send + 'static) -> Self
    where
        F: Future<Output = Option<Connection>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let seen = Arc::new(Mutex::new(Seen::default()));
        let (last, mut is_last) = oneshot::channel();
        let accepting = tokio::spawn({
            let seen = seen.clone();
            async move {
                let mut handlers = Vec::new();
                let mut last = None;
                loop {
                    let (stream, from) = listener.accept().await.unwrap();
                    last = last.or_else(|| is_last.try_recv().ok());
                    if last == Some(from) {
                        break;
                    }
                    let index = {
                        let mut seen = seen.lock().unwrap();
                        seen.connections += 1;
                        seen.connections - 1
                    };
                    let connection = Connection {
                        stream,
                        unread: Vec::new(),
                        seen: seen.clone(),
                    };
                    let handled = handle(index, connection);
                    handlers.push(tokio::spawn(async move {
                        if let Some(mut kept) = handled.await {
                            while kept.request().await.is_some() {}
                        }
                    }));
                }
                for handler in handlers {
                    handler.await.unwrap();
                }
            }
        });
        Self {
            address,
            seen,
            last,
            accepting,
        }
    }

    pub fn url(&self) -> String {
        format!("http://{}/api.php", self.address)
    }

    /// Takes every connection made so far (they are accepted in their order, and a last one is made here), waits until
    /// all have ended, and tells what was seen. The client must be gone.
    pub async fn finish(self) -> Seen {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        self.last.send(socket.local_addr().unwrap()).unwrap();
        let _last = socket.connect(self.address).await.unwrap();
        self.accepting.await.unwrap();
        self.seen.lock().unwrap().clone()
    }
}

impl Connection {
    /// The next request's head, counted; `None` when the client has closed.
    pub async fn request(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.unread.windows(4).position(|window| window == b"\r\n\r\n") {
                let rest = self.unread.split_off(end + 4);
                let request = String::from_utf8(std::mem::replace(&mut self.unread, rest)).unwrap();
                self.seen.lock().unwrap().requests.push(request.clone());
                return Some(request);
            }
            if !self.read().await {
                return None;
            }
        }
    }

    /// Counts what has arrived, without waiting for more.
    pub fn requests_by_now(&mut self) {
        while matches!(self.stream.try_read_buf(&mut self.unread), Ok(1..)) {}
        let text = String::from_utf8_lossy(&self.unread);
        let requests = text.split_inclusive("\r\n\r\n").map(String::from);
        self.seen.lock().unwrap().requests.extend(requests);
    }

    /// Whatever comes next.
    pub async fn bytes(&mut self) {
        self.read().await;
        self.seen.lock().unwrap().bytes.append(&mut self.unread);
    }

    async fn read(&mut self) -> bool {
        matches!(self.stream.read_buf(&mut self.unread).await, Ok(1..))
    }

    pub async fn say(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).await.unwrap();
    }

    /// Whether the client still listens.
    pub async fn try_say(&mut self, bytes: &[u8]) -> bool {
        self.stream.write_all(bytes).await.is_ok()
    }

    /// Closes with RST instead of FIN.
    pub fn reset(self) {
        let socket = socket2::SockRef::from(&self.stream);
        socket.set_linger(Some(std::time::Duration::ZERO)).unwrap();
    }
}

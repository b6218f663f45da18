//! A relay that cuts a connection at the COMMIT of a batch that names a certain key, or answers that batch itself.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream, tcp::OwnedWriteHalf},
    sync::Notify,
};

/// What the server gets to know of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// All but the COMMIT, and the end of the connection.
    BeforeCommit,
    /// The COMMIT, which it carries out; its answer goes nowhere.
    AfterCommit,
    /// The COMMIT, and not that the other side is gone.
    Unnoticed,
    /// The COMMIT, which it carries out; what comes back is an error of the relay's own, as of a pooler.
    Answered(Mistake),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Mistake {
    /// Where among the answers it comes.
    pub place: Place,
    pub severity: &'static str,
    pub code: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    First,
    AfterBegin,
}

impl Mistake {
    /// Its messages, of a letter, a length that counts itself, and fields.
    fn messages(self) -> Vec<u8> {
        let begun: &[u8] = b"C\0\0\0\x0aBEGIN\0Z\0\0\0\x05T";
        let mut messages = match self.place {
            Place::First => Vec::new(),
            Place::AfterBegin => begun.to_vec(),
        };
        let Self { severity, code, .. } = self;
        let fields = format!("S{severity}\0V{severity}\0C{code}\0Mserver conn crashed?\0\0");
        messages.push(b'E');
        messages.extend(u32::try_from(fields.len() + 4).expect("is short").to_be_bytes());
        messages.extend(fields.as_bytes());
        messages
    }
}

/// Relays, and cuts once when it is armed.
pub(super) struct Relay {
    pub address: SocketAddr,
    plan: Arc<Mutex<Option<Cut>>>,
    /// The cut was made.
    pub made: Arc<Notify>,
}

/// In a key, it marks the batches to cut at.
pub(super) const MARK: &str = "cut-here";

const COMMIT: &[u8] = b"COMMIT\0";

impl Relay {
    pub(super) async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let address = listener.local_addr().expect("has one");
        let made = Arc::new(Notify::new());
        let plan = Arc::new(Mutex::new(None));
        let (armed, told) = (plan.clone(), made.clone());
        tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.expect("accepts");
                let server = TcpStream::connect(target).await.expect("connects");
                tokio::spawn(relay(client, server, armed.clone(), told.clone()));
            }
        });
        Self { address, plan, made }
    }

    /// The next marked batch is cut.
    pub(super) fn arm(&self, cut: Cut) {
        *self.plan.lock().expect("is not poisoned") = Some(cut);
    }
}

async fn relay(client: TcpStream, server: TcpStream, plan: Arc<Mutex<Option<Cut>>>, made: Arc<Notify>) {
    let (mut from_client, to_client) = client.into_split();
    let (mut from_server, mut to_server) = server.into_split();
    let answers: Arc<tokio::sync::Mutex<Option<OwnedWriteHalf>>> = Arc::new(tokio::sync::Mutex::new(Some(to_client)));
    let answering = {
        let answers = answers.clone();
        tokio::spawn(async move {
            let mut bytes = vec![0; 1 << 16];
            while let Ok(length @ 1..) = from_server.read(&mut bytes).await {
                if let Some(client) = answers.lock().await.as_mut() {
                    let _gone = client.write_all(&bytes[..length]).await;
                }
            }
            drop(answers.lock().await.take());
        })
    };
    let mut batch = Vec::new();
    let mut bytes = vec![0; 1 << 16];
    while let Ok(length @ 1..) = from_client.read(&mut bytes).await {
        let begin = batch.len();
        batch.extend_from_slice(&bytes[..length]);
        let commit = find(&batch, COMMIT);
        let cut = commit.and_then(|at| {
            let is_marked = find(&batch[..at], MARK.as_bytes()).is_some();
            let cut = is_marked.then(|| plan.lock().expect("is not poisoned").take())?;
            Some((cut?, at))
        });
        let Some((cut, at)) = cut else {
            if commit.is_some() {
                batch.clear();
            }
            if to_server.write_all(&bytes[..length]).await.is_err() {
                break;
            }
            continue;
        };
        // The answers of this batch reach nobody.
        let mut client = answers.lock().await.take();
        if cut == Cut::BeforeCommit {
            // Its message begins with a letter and a length.
            let before = at.saturating_sub(5).saturating_sub(begin);
            to_server.write_all(&bytes[..before]).await.expect("takes it");
        } else {
            to_server.write_all(&bytes[..length]).await.expect("takes it");
        }
        if cut != Cut::Unnoticed {
            // The server does what it got before it notices, as the end comes behind that.
            to_server.shutdown().await.expect("ends");
            answering.await.expect("ends");
        }
        if let (Cut::Answered(mistake), Some(client)) = (cut, &mut client) {
            client.write_all(&mistake.messages()).await.expect("takes it");
        }
        drop((client, from_client));
        made.notify_one();
        if cut == Cut::Unnoticed {
            // As if a network had parted them: neither side's end reaches the other.
            std::future::pending::<()>().await;
        }
        return;
    }
}

fn find(bytes: &[u8], sought: &[u8]) -> Option<usize> {
    bytes.windows(sought.len()).position(|window| window == sought)
}

//! A TCP relay: one address for a gateway that is started again on other ports, and a place where connections are cut.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    select,
    sync::Notify,
    task::JoinHandle,
};

pub struct Relay {
    pub address: SocketAddr,
    target: Arc<Mutex<SocketAddr>>,
    cut: Arc<Notify>,
    accepting: JoinHandle<()>,
}

impl Relay {
    pub async fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let target = Arc::new(Mutex::new(target));
        let cut = Arc::new(Notify::new());
        let accepting = tokio::spawn(accept(listener, target.clone(), cut.clone()));
        Self {
            address,
            target,
            cut,
            accepting,
        }
    }

    /// Connections from now on go there.
    pub fn turn_to(&self, target: SocketAddr) {
        *self.target.lock().unwrap() = target;
    }

    /// Drops every connection, with whatever is on its way.
    pub fn cut(&self) {
        self.cut.notify_waiters();
    }
}

async fn accept(listener: TcpListener, target: Arc<Mutex<SocketAddr>>, cut: Arc<Notify>) {
    loop {
        let Ok((mut from, _)) = listener.accept().await else {
            continue;
        };
        let address = *target.lock().unwrap();
        let cut = cut.clone();
        tokio::spawn(async move {
            let cut = cut.notified();
            let relayed = async {
                let mut to = TcpStream::connect(address).await?;
                from.set_nodelay(true)?;
                to.set_nodelay(true)?;
                copy_bidirectional(&mut from, &mut to).await
            };
            select! {
                () = cut => {}
                _ = relayed => {}
            }
        });
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.accepting.abort();
        self.cut.notify_waiters();
    }
}

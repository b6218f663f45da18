//! HTTP/2 connections. tonic's own `transport::Server` is not used: it ends a call with CANCELLED when the caller's
//! `grpc-timeout` passes, outside of every layer that could say something better.
//!
//! What peers may take is bounded by [`Limits`]. One connection holds at most `max_streams` calls, each with
//! `STREAM_WINDOW` bytes that are not read yet and a stream's window of results that are not taken, and all together
//! 4 MiB of messages that are half there (`receive`). docs/operations.md has the sum.

use std::{
    future::{pending, ready},
    io,
    time::Duration,
};

use futures_util::FutureExt as _;
use hyper::{rt::Executor, server::conn::http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    select,
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use self::places::{Calls, Place, Places};
use super::{peer::Peer, receive::Receive, tls};
use crate::{
    reload::Reloaded,
    socket::{self, Socket},
};

pub(super) mod places;
mod preface;

/// Resets of calls that have not even begun here; `places` bounds those of the others (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 4096;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Finds out peers that have gone without a word, or stop in the middle of a frame, so that their streams end.
const PING_EVERY: Duration = Duration::from_secs(30);
/// What a sender may have under way on one stream. Stock clients put each small message into a frame of its own, and h2
/// ends a connection with ENHANCE_YOUR_CALM once its unread frames, counted with 256 bytes each, exceed half the
/// connection's window (h2 0.4.20 `Counts::record_data_frame`; hyper has no setting for it). A list that waits for the
/// rate limit is nothing but unread frames: so a stream's window is small, which bounds what a connection can hold, and the
/// connection's is as large as it takes for each of its streams to be such a list.
const STREAM_WINDOW: u32 = 16 * 1024;

/// Some 400 frames fit into a stream's window, if their messages have 40 bytes.
fn connection_window(max_streams: u32) -> u32 {
    const EACH: u32 = 2 * 400 * (256 + 40);
    /// What HTTP/2 allows (RFC 9113, section 6.9.1).
    const MOST: u32 = (1 << 31) - 1;
    max_streams.saturating_mul(EACH).clamp(64 * 1024 * 1024, MOST)
}

/// Bytes of answers that one stream buffers beyond what its caller takes.
const SEND_BUFFER: usize = 64 * 1024;

/// Where callers connect.
pub struct Port {
    pub listener: TcpListener,
    /// `None`: in plain text.
    pub tls: Option<Reloaded<tls::Acceptor>>,
}

/// What peers may take.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub max_connections: usize,
    /// Calls at once on one connection. At most 100 000, as HTTP/2 windows end at 2 GiB.
    pub max_streams: u32,
    /// For the TLS handshake, for the HTTP/2 preface, for a message that has begun, for the answer to a ping, and for
    /// taking what is written.
    pub receive_timeout: Duration,
}

/// Runs a connection's tasks, one a call, where they are counted and awaited.
#[derive(Clone)]
struct Tracked {
    tasks: TaskTracker,
    calls: Calls,
}

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        let call = self.calls.begin();
        self.tasks.spawn(async move {
            future.await;
            drop(call);
        });
    }
}

/// Serves connections until `stop`; then accepts no more, lets calls under way end, and returns when all have.
pub async fn serve(port: Port, routes: Routes, limits: Limits, stop: CancellationToken, tasks: TaskTracker) {
    let Port { listener, tls } = port;
    let connections = TaskTracker::new();
    let max_streams = usize::try_from(limits.max_streams).unwrap_or(usize::MAX);
    let places = Places::new(limits.max_connections, max_streams);
    let mut is_full = false;
    loop {
        let stream = select! {
            () = stop.cancelled() => break,
            stream = socket::accept(&listener) => stream,
        };
        let place = places.take();
        if place.is_spare && !is_full {
            tracing::warn!("--max-connections are open, all with calls under way: further ones share a few places");
        }
        is_full = place.is_spare;
        let connection = Connection {
            routes: routes.clone(),
            limits,
            place,
            stop: stop.clone(),
            tasks: tasks.clone(),
        };
        let socket = Socket::new(stream, limits.receive_timeout);
        match &tls {
            None => {
                let connection = connection.run(ready(Ok((socket, None))));
                tasks.spawn(connections.track_future(connection));
            }
            Some(tls) => {
                let tls = tls.current();
                let handshake = async move { tls.accept(socket, limits.receive_timeout).await };
                tasks.spawn(connections.track_future(connection.run(handshake)));
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

struct Connection {
    routes: Routes,
    limits: Limits,
    place: Place,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Connection {
    /// `handshake` is what comes before HTTP/2.
    async fn run<S>(self, handshake: impl Future<Output = io::Result<(S, Option<Peer>)>>)
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let Self {
            routes,
            limits,
            place,
            stop,
            tasks,
        } = self;
        let patience = limits.receive_timeout;
        let begin = async {
            let (stream, peer) = handshake.await?;
            let stream = timeout(patience, preface::read(stream)).await??;
            io::Result::Ok((stream, peer))
        };
        let begun = select! {
            begun = begin => begun,
            () = place.leave.cancelled() => return,
            () = stop.cancelled() => return,
        };
        // Neither a late peer nor one that speaks something else is worth a word: it is no client.
        let Ok((stream, peer)) = begun else { return };
        let calls = place.calls();
        let connection = http2::Builder::new(Tracked { tasks, calls })
            .timer(TokioTimer::new())
            .max_concurrent_streams(limits.max_streams)
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_header_list_size(MAX_HEADER_BYTES)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(connection_window(limits.max_streams))
            .max_send_buf_size(SEND_BUFFER)
            .keep_alive_interval(PING_EVERY.min(patience))
            .keep_alive_timeout(patience)
            .serve_connection(
                TokioIo::new(stream),
                Receive::new(routes, patience, place.calls(), peer),
            );
        tokio::pin!(connection);
        let mut stopping = false;
        loop {
            let stopped = async {
                if stopping {
                    pending().await
                } else {
                    stop.cancelled().await
                }
            };
            select! {
                ended = &mut connection => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    return;
                }
                () = stopped => {
                    stopping = true;
                    connection.as_mut().graceful_shutdown();
                }
                () = place.leave.cancelled() => {
                    tracing::debug!("a connection had to leave");
                    // It is told, as far as the socket takes that at once.
                    connection.as_mut().graceful_shutdown();
                    let _ended = connection.as_mut().now_or_never();
                    return;
                }
            }
        }
    }
}

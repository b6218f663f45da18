//! HTTP/2 connections. tonic's own `transport::Server` is not used: it ends a call with CANCELLED when the caller's
//! `grpc-timeout` passes, outside of every layer that could say something better.

use std::{future::pending, io, time::Duration};

use hyper::{rt::Executor, server::conn::http2};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    time::sleep,
};
use tokio_util::{
    sync::CancellationToken,
    task::{TaskTracker, task_tracker::TaskTrackerToken},
};
use tonic::service::Routes;

/// Calls at once on one connection; more wait at the client.
const MAX_STREAMS: u32 = 4096;
/// Resets by the client that have not been worked off. Far above what a client that cancels its calls by the hundred
/// causes, and a bound for one that only does that (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 4096;
const MAX_HEADER_BYTES: u32 = 16 * 1024;
/// Finds out peers that have gone without a word, so that their streams end.
const PING_EVERY: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(20);
/// HTTP/2 clients speak first, and at once. hyper would wait for the others forever, even at a shutdown.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// What a sender may have under way on one stream. Stock clients put each small message into a frame of its own, and h2
/// ends a connection with ENHANCE_YOUR_CALM once its unread frames, counted with 256 bytes each, exceed half the
/// connection's window (h2 0.4.20 `Counts::record_data_frame`; hyper has no setting for it). A list that waits for the
/// rate limit is nothing but unread frames: so a stream's window is small, and the connection's holds it for every
/// stream, which leaves room for some 200 lists that wait on one connection.
const STREAM_WINDOW: u32 = 16 * 1024;
const CONNECTION_WINDOW: u32 = MAX_STREAMS * STREAM_WINDOW;

/// Runs hyper's tasks where they are counted and awaited.
#[derive(Clone)]
struct Tracked(TaskTracker);

impl<F> Executor<F> for Tracked
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(future);
    }
}

/// Serves connections until `stop`; then accepts no more, lets calls under way end, and returns when all have.
pub async fn serve(listener: TcpListener, routes: Routes, stop: CancellationToken, tasks: TaskTracker) {
    let connections = TaskTracker::new();
    loop {
        let stream = select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    wait_out(&error).await;
                    continue;
                }
            },
        };
        let token = connections.token();
        tasks.spawn(connection(stream, routes.clone(), stop.clone(), tasks.clone(), token));
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn connection(
    stream: TcpStream,
    routes: Routes,
    stop: CancellationToken,
    tasks: TaskTracker,
    _open: TaskTrackerToken,
) {
    let mut first_byte = [0];
    select! {
        // An error shows again at the first read.
        _ = stream.peek(&mut first_byte) => {}
        () = stop.cancelled() => return,
        () = sleep(FIRST_BYTE_TIMEOUT) => return,
    }
    // Answers are small, and nobody likes to wait 40 ms for one. If it fails the connection is broken anyway.
    let _broken = stream.set_nodelay(true);
    let connection = http2::Builder::new(Tracked(tasks))
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_header_list_size(MAX_HEADER_BYTES)
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(routes));
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
        }
    }
}

/// `accept` fails for a peer that is gone already (then the next one is worth a try), or because the process has too
/// many files open: then a moment's rest keeps this loop from burning a core until some are closed.
async fn wait_out(error: &io::Error) {
    match error.kind() {
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset => {}
        _ => {
            tracing::warn!(%error, "a connection could not be accepted");
            sleep(Duration::from_millis(100)).await;
        }
    }
}

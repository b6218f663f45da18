//! The HTTP face: `/metrics`, `/healthz` and `/readyz` for machines that watch, and at `/` the status page for the person on
//! call.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    middleware,
    response::IntoResponse,
    routing::get,
};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    select,
    sync::Semaphore,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    dispatch::{Dispatcher, Serving},
    grpc::Streams,
    metrics,
    socket::{self, Socket},
};

mod history;
mod holdings;
mod page;
mod shell;
mod state;

pub use history::History;
pub use holdings::Reading;
pub use state::About;

/// Connections at once. Further ones wait for one to end, which is soon: each is for one request, and a peer that
/// neither asks nor reads is dropped.
const MAX_CONNECTIONS: usize = 64;
/// Bytes of a request's head, at most.
const MAX_HEAD: usize = 16 * 1024;

/// What the paths show.
#[derive(Clone)]
pub struct Admin {
    pub dispatcher: Dispatcher,
    pub streams: Arc<Streams>,
    pub history: History,
    pub reading: Reading,
    pub about: About,
}

/// All paths of the admin port.
pub fn router(admin: Admin) -> Router {
    let page = page::router()
        .route("/status.json", get(state::status))
        .layer(middleware::from_fn(page::guard));
    Router::new()
        .merge(page)
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin)
}

/// Serves until `stop`. `patience` is for the head of a request to be complete, and for an answer to be taken.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    patience: Duration,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            // An error would mean that it was closed, which it never is.
            let place = places.clone().acquire_owned().await;
            (place, socket::accept(&listener).await)
        };
        let (place, stream) = select! {
            () = stop.cancelled() => return,
            accepted = accepted => accepted,
        };
        let connection = connection(stream, router.clone(), patience, stop.clone());
        tasks.spawn(async move {
            connection.await;
            drop(place);
        });
    }
}

async fn connection(stream: TcpStream, router: Router, patience: Duration, stop: CancellationToken) {
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(patience)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(
            TokioIo::new(Socket::new(stream, patience)),
            TowerToHyperService::new(router),
        );
    tokio::pin!(connection);
    // An error is a peer that left, was too slow, or spoke something else: nobody needs to know.
    select! {
        _ended = &mut connection => {}
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            let _ended = connection.await;
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    // Prometheus' text format, version 0.0.4.
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    let standing = admin.dispatcher.standing().await;
    metrics::show_serving(&standing.serving);
    metrics::show_limiter(&standing.limiter);
    metrics::show_ledger(&admin.dispatcher.census(), admin.about.clock.timestamp());
    metrics::show_streams(admin.streams.open(), admin.streams.begun());
    (format, metrics::render())
}

/// Ready while a call could be sent: not shutting down, and the ledger can write.
async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    let why = match admin.dispatcher.standing().await.serving {
        Serving::Yes => return (StatusCode::OK, "ready\n".into()),
        Serving::Draining => "shutting down".into(),
        Serving::LedgerUnavailable(why) => why,
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n"))
}

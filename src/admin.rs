//! The HTTP face for machines that watch: `/metrics`, `/healthz`, `/readyz`.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::IntoResponse,
    routing::get,
};

use crate::{dispatch::Dispatcher, limiter::Limiter, metrics};

/// What the paths show.
#[derive(Clone)]
pub struct Admin {
    pub dispatcher: Dispatcher,
    pub limiter: Limiter,
}

/// All paths of the admin port.
pub fn router(admin: Admin) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(admin)
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    // Prometheus' text format, version 0.0.4.
    let format = [(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")];
    (format, metrics::render(&admin.limiter.snapshot()))
}

/// Ready while a call could be sent: not shutting down, and the ledger can write.
async fn ready(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.dispatcher.ready().await {
        Ok(()) => (StatusCode::OK, "ready\n".into()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    }
}

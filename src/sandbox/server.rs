//! The server: sockets, connections, and which part answers which path.

use std::{error::Error as _, sync::Arc};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::ALLOW, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::{
    Core, admin,
    body::Body,
    webhook::{self, Cut},
};
use crate::socket;

/// Accepts connections until it is dropped.
pub(super) async fn accept(core: Arc<Core>, listener: TcpListener) {
    loop {
        let stream = socket::accept(&listener).await;
        core.spawn(serve(core.clone(), stream));
    }
}

async fn serve(core: Arc<Core>, stream: TcpStream) {
    // Without it a small answer may wait for the acknowledgement of the one before.
    let _ = stream.set_nodelay(true);
    let keep_alive = core.keep_alive;
    let service = service_fn(move |request| {
        let core = core.clone();
        async move { route(&core, request).await }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper runs it from the end of an answer too, so that it is the idle timeout as well.
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(stream), service);
    // An error is a cut on demand, or a client that left or spoke no HTTP: nobody needs to know.
    if let Err(error) = (&mut connection).await
        && error.source().and_then(|source| source.downcast_ref()) == Some(&Cut::Reset)
    {
        // It ends with a reset then. A failure leaves an ordinary close: the socket is gone already.
        let _ = connection.into_parts().io.into_inner().set_zero_linger();
    }
}

async fn route(core: &Arc<Core>, request: Request<Incoming>) -> Result<Response<Body>, Cut> {
    if !request.uri().path().ends_with("api.php") {
        return Ok(admin::answer(core, request).await);
    }
    if request.method() != Method::GET {
        let mut response = Response::new(Body::whole("api.php answers GET only\n".into()));
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
        response
            .headers_mut()
            .insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        return Ok(response);
    }
    webhook::receive(core, request.uri().query().unwrap_or_default()).await
}

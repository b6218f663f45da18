//! The server: sockets, connections, and which part answers which path.

use std::{
    error::Error as StdError,
    io::{self, IoSlice},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use hyper::{
    Method, Request, Response, StatusCode, body::Incoming, header::ALLOW, server::conn::http1, service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

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
    let resets = Arc::new(AtomicBool::new(false));
    let socket = Socket {
        stream,
        resets: resets.clone(),
    };
    let keep_alive = core.keep_alive;
    let service = service_fn(move |request| {
        let core = core.clone();
        async move { route(&core, request).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        // hyper runs it from the end of an answer too, so that it is the idle timeout as well.
        .header_read_timeout(keep_alive)
        .serve_connection(TokioIo::new(socket), service);
    tokio::pin!(connection);
    // An error is a cut on demand, or a client that left or spoke no HTTP: nobody needs to know.
    if let Err(error) = connection.as_mut().await
        && error.source().and_then(|source| source.downcast_ref()) == Some(&Cut::Reset)
    {
        resets.store(true, Ordering::Relaxed);
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

/// A socket that can be told to end with a reset.
struct Socket {
    stream: TcpStream,
    resets: Arc<AtomicBool>,
}

impl Drop for Socket {
    fn drop(&mut self) {
        if self.resets.load(Ordering::Relaxed) {
            // A failure leaves an ordinary close: the socket is gone already.
            let _ = self.stream.set_zero_linger();
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Socket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

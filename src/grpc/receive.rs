//! How requests come in: each message within a time, and all that are half there within a memory.

use std::{
    convert::Infallible,
    error::Error,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf as _, Bytes};
use futures_util::future::{BoxFuture, ready};
use hyper::{
    Request, Response,
    body::{Body as HttpBody, Frame, Incoming, SizeHint},
    service::Service,
};
use hyper_util::service::TowerToHyperService;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Sleep, sleep},
};
use tonic::{Status, body::Body, service::Routes};

use super::{
    MAX_MESSAGE, access_log::Arrival, authenticate::Door, peer::Peer, request_id, server::places::Calls, status,
};
use crate::{callers::Caller, method::Method};

/// Bytes that all large half-received messages of one connection may take together: room for 29 of the largest at once.
const MAX_UNFINISHED: usize = 4 * 1024 * 1024;

/// A message up to this length is not large: as every acceptable one, it fits into a stream's window, which bounds it. A list
/// that waits for the rate limit may hold half of one for hours.
const SMALL: u32 = 16 * 1024;

/// The methods beside the contract's whose request is a stream.
const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

/// The calls of one connection.
pub struct Receive {
    routes: TowerToHyperService<Routes>,
    timeout: Duration,
    unfinished: Arc<Semaphore>,
    calls: Calls,
    /// Where it comes from, for the access log.
    address: Option<SocketAddr>,
    /// Who is at the other end, by a certificate.
    peer: Option<Peer>,
    /// None where everyone may call.
    door: Option<Door>,
}

/// What is known of a connection before its first call.
pub(super) struct From {
    pub address: Option<SocketAddr>,
    /// By its certificate. Each request has it among its extensions.
    pub peer: Option<Peer>,
    /// None where everyone may call.
    pub door: Option<Door>,
}

impl Receive {
    /// `timeout` is for a unary request to be complete, and for each message of a stream once it has begun.
    pub(super) fn new(routes: Routes, timeout: Duration, calls: Calls, from: From) -> Self {
        Self {
            routes: TowerToHyperService::new(routes),
            timeout,
            unfinished: Arc::new(Semaphore::new(MAX_UNFINISHED)),
            calls,
            address: from.address,
            peer: from.peer,
            door: from.door,
        }
    }
}

impl Service<Request<Incoming>> for Receive {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let shape = Shape::of(request.uri().path());
        let Arrival { request_id, record } = Arrival::of(request.uri().path(), request.headers(), self.address);
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        let admitted = self.door.as_ref().map_or(Ok(()), |door| door.admit(&mut request));
        let unanswered = self.calls.unanswered();
        if let Err(refused) = admitted {
            unanswered.answered();
            if let Some(record) = record {
                if let Some(caller) = request.extensions().get::<Arc<Caller>>() {
                    record.called_by(caller);
                }
                record.ended(Some(&refused));
            }
            let mut response = refused.into_http();
            response.headers_mut().insert(request_id::HEADER, request_id);
            return Box::pin(ready(Ok(response)));
        }
        let mut request = request.map(|body| Inbound {
            body,
            shape,
            framing: Framing::default(),
            timeout: self.timeout,
            late: None,
            unfinished: self.unfinished.clone(),
            held: None,
        });
        if let Some(record) = &record {
            if let Some(caller) = request.extensions().get::<Arc<Caller>>() {
                record.called_by(caller);
            }
            request.extensions_mut().insert(record.clone());
        }
        let answer = self.routes.call(request);
        Box::pin(async move {
            let mut response = answer.await.map(with_details)?;
            unanswered.answered();
            response.headers_mut().insert(request_id::HEADER, request_id);
            if let Some(record) = record {
                record.responded(&response, shape == Shape::Stream);
            }
            Ok(response)
        })
    }
}

/// A unary request that tonic can't read is answered with a bare status. All others have their details already.
fn with_details(response: Response<Body>) -> Response<Body> {
    match response.extensions().get::<Status>() {
        Some(status) if status.details().is_empty() => status::unreadable(status).into_http(),
        _ => response,
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Shape {
    Unary,
    /// It may rest between two messages for as long as the caller likes.
    Stream,
}

impl Shape {
    fn of(path: &str) -> Self {
        if Method::at(path).is_some_and(Method::is_stream) || REFLECTION.contains(&path) {
            Self::Stream
        } else {
            Self::Unary
        }
    }
}

/// A request's body. It only counts time in which its reader waits for the peer: a stream that is not read while its
/// window is full is not late.
struct Inbound {
    body: Incoming,
    shape: Shape,
    framing: Framing,
    timeout: Duration,
    /// Runs while something is awaited.
    late: Option<Pin<Box<Sleep>>>,
    unfinished: Arc<Semaphore>,
    /// For the message that is half there: its whole length, as memory is reserved for that.
    held: Option<OwnedSemaphorePermit>,
}

impl Inbound {
    /// Looks at what has come in.
    fn receive(&mut self, data: &[u8]) -> Result<(), Status> {
        if self.framing.advance(data) == Progress::Complete {
            self.held = None;
            if self.shape == Shape::Stream {
                self.late = None;
            }
        }
        // One that is too large is refused by tonic as soon as it knows.
        let large = SMALL + 1..=MAX_MESSAGE as u32;
        let length = self.framing.unfinished().filter(|length| large.contains(length));
        if let Some(length) = length
            && self.held.is_none()
        {
            let held = self.unfinished.clone().try_acquire_many_owned(length);
            self.held = Some(held.map_err(|_full| status::too_many_unfinished())?);
        }
        Ok(())
    }

    fn is_awaited(&self) -> bool {
        self.shape == Shape::Unary || self.framing.is_within_a_message()
    }
}

impl HttpBody for Inbound {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => {
                let received = frame.data_ref().map_or(Ok(()), |data| self.receive(data));
                Poll::Ready(Some(received.map(|()| frame).map_err(Into::into)))
            }
            Poll::Ready(end) => Poll::Ready(end.map(|error| error.map_err(Into::into))),
            Poll::Pending if self.is_awaited() => {
                let timeout = self.timeout;
                let late = self.late.get_or_insert_with(|| Box::pin(sleep(timeout)));
                let late = late.as_mut().poll(cx);
                late.map(|()| Some(Err(status::receive_timeout().into())))
            }
            Poll::Pending => Poll::Pending,
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Where a request is in gRPC's framing: each message has a prefix, a flag and four bytes of length.
#[derive(Default)]
struct Framing {
    prefix: [u8; PREFIX],
    /// Bytes of the prefix that are there.
    filled: usize,
    /// Bytes of the message that are not.
    missing: u32,
}

const PREFIX: usize = 5;

/// Whether a message was completed.
#[derive(Debug, PartialEq, Eq)]
enum Progress {
    Complete,
    None,
}

impl Framing {
    fn advance(&mut self, mut data: &[u8]) -> Progress {
        let mut progress = Progress::None;
        while !data.is_empty() {
            if self.filled < PREFIX {
                self.prefix[self.filled] = data.get_u8();
                self.filled += 1;
                self.missing = self.length();
            } else {
                let missing = usize::try_from(self.missing).unwrap_or(usize::MAX);
                let count = missing.min(data.len());
                data.advance(count);
                self.missing -= u32::try_from(count).unwrap_or(self.missing);
            }
            if self.filled == PREFIX && self.missing == 0 {
                self.filled = 0;
                progress = Progress::Complete;
            }
        }
        progress
    }

    fn length(&self) -> u32 {
        let [_flag, length @ ..] = self.prefix;
        u32::from_be_bytes(length)
    }

    fn is_within_a_message(&self) -> bool {
        self.filled > 0
    }

    /// The whole length of the message that is half there, once it is known.
    fn unfinished(&self) -> Option<u32> {
        (self.filled == PREFIX).then(|| self.length())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    #[test]
    fn the_methods_that_take_streams_are_those_of_the_contracts() {
        for descriptors in [
            crate::proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ] {
            for file in FileDescriptorSet::decode(descriptors).unwrap().file {
                for service in &file.service {
                    for method in &service.method {
                        let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                        assert_eq!(Shape::of(&path) == Shape::Stream, method.client_streaming(), "{path}");
                    }
                }
            }
        }
    }

    proptest! {
        #[test]
        fn framing_follows_messages_however_they_are_cut(
            lengths in prop::collection::vec(0..40_usize, 1..8),
            pieces in prop::collection::vec(1..30_usize, 1..40),
        ) {
            let mut bytes = Vec::new();
            let mut ends = Vec::new();
            for length in &lengths {
                bytes.push(0);
                bytes.extend(u32::try_from(*length).unwrap().to_be_bytes());
                bytes.extend(vec![1; *length]);
                ends.push(bytes.len());
            }
            let mut framing = Framing::default();
            let mut at = 0;
            for piece in pieces.into_iter().cycle() {
                let next = (at + piece).min(bytes.len());
                let progress = framing.advance(&bytes[at..next]);
                let completed = ends.iter().any(|end| (at + 1..=next).contains(end));
                prop_assert_eq!(progress == Progress::Complete, completed);
                let begun = ends.iter().copied().filter(|end| *end <= next).max().unwrap_or(0);
                prop_assert_eq!(framing.is_within_a_message(), next > begun);
                let length = lengths.get(ends.iter().filter(|end| **end <= next).count());
                let is_known = next >= begun + PREFIX;
                let unfinished = is_known.then(|| u32::try_from(*length.unwrap()).unwrap());
                prop_assert_eq!(framing.unfinished(), unfinished);
                at = next;
                if at == bytes.len() {
                    break;
                }
            }
        }
    }
}

//! Peers that don't keep to the rules: frames written byte by byte, and calls cut into pieces.

use std::{collections::HashMap, net::SocketAddr};

use bytes::Bytes;
use h2::{SendStream, client::ResponseFuture};
use hyper::{HeaderMap, Request};
use prost::Message;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};
use tonic::Status;

use crate::support::{Error, Gateway, status_error, watch::soon};

pub const ADD: &str = "/surveylab.invitation.v1.InvitationService/AddRespondent";
pub const STREAM: &str = "/surveylab.invitation.v1.InvitationService/StreamAddRespondent";

/// Frame types and flags of RFC 9113, section 6.
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const NO_FLAGS: u8 = 0;
pub const END_HEADERS: u8 = 4;

/// Error codes of section 7.
pub const REFUSED_STREAM: u32 = 7;
pub const ENHANCE_YOUR_CALM: u32 = 11;

pub const MAGIC: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// A header without compression, not to be remembered (RFC 7541, section 6.2.2).
pub fn literal(name: &str, value: &str) -> Vec<u8> {
    let mut header = vec![0];
    for text in [name, value] {
        // Longer ones take more than one byte.
        assert!(text.len() < 127);
        header.push(u8::try_from(text.len()).unwrap());
        header.extend(text.as_bytes());
    }
    header
}

/// The headers of a call.
pub fn head(path: &str) -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", path),
        (":authority", "gateway"),
        ("te", "trailers"),
        ("content-type", "application/grpc"),
    ];
    headers.map(|(name, value)| literal(name, value)).concat()
}

/// Opens a call, and leaves its request open.
pub fn open(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &head(path))
}

/// The numbers of the streams that a client opens.
pub fn stream_ids() -> impl Iterator<Item = u32> {
    (1..).step_by(2)
}

/// A message as gRPC frames it.
pub fn message(message: &impl Message) -> Vec<u8> {
    prefixed(&message.encode_to_vec())
}

pub fn prefixed(body: &[u8]) -> Vec<u8> {
    let mut bytes = prefix(0, body.len());
    bytes.extend(body);
    bytes
}

pub fn prefix(flag: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![flag];
    bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    bytes
}

#[derive(Debug)]
pub struct Frame {
    pub kind: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// The error code of a RST_STREAM or a GOAWAY.
    pub fn error(&self) -> u32 {
        let at = if self.kind == GOAWAY { 4 } else { 0 };
        u32::from_be_bytes(self.payload[at..at + 4].try_into().unwrap())
    }
}

/// A connection of raw bytes.
pub struct Peer(pub TcpStream);

impl Peer {
    pub async fn silent(address: SocketAddr) -> Self {
        Self(soon(TcpStream::connect(address)).await.unwrap())
    }

    /// One that has said what an HTTP/2 client says first. Settings: identifier and value.
    pub async fn connect(gateway: &Gateway, settings: &[(u16, u32)]) -> Self {
        let mut payload = Vec::new();
        for (identifier, value) in settings {
            payload.extend(identifier.to_be_bytes());
            payload.extend(value.to_be_bytes());
        }
        let mut peer = Self::silent(gateway.grpc).await;
        peer.send(&[MAGIC, &frame(SETTINGS, NO_FLAGS, 0, &payload)].concat())
            .await;
        // The gateway's own settings, and the connection's window: before that only 64 KiB may be sent.
        let first = peer.next().await.unwrap();
        assert_eq!(first.kind, SETTINGS);
        assert!(peer.next_of(WINDOW_UPDATE).await.is_some());
        peer
    }

    pub async fn send(&mut self, bytes: &[u8]) {
        assert!(self.try_send(bytes).await, "the gateway has ended the connection");
    }

    /// False if the gateway has ended the connection.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        soon(self.0.write_all(bytes)).await.is_ok()
    }

    /// The next frame; `None` if the gateway has ended the connection.
    pub async fn next(&mut self) -> Option<Frame> {
        soon(async {
            let mut header = [0; 9];
            self.0.read_exact(&mut header).await.ok()?;
            let [a, b, c, kind, _flags, stream @ ..] = header;
            let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            Some(Frame {
                kind,
                stream: u32::from_be_bytes(stream),
                payload,
            })
        })
        .await
    }

    /// The next frame of a kind, past all others; `None` if the connection ends before one comes.
    pub async fn next_of(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next().await?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }

    /// Reads to the end that the gateway sets: how often each error code was said, by frame.
    pub async fn last_words(mut self) -> HashMap<(u8, u32), usize> {
        let mut errors = HashMap::new();
        while let Some(frame) = self.next().await {
            if [RST_STREAM, GOAWAY].contains(&frame.kind) {
                *errors.entry((frame.kind, frame.error())).or_default() += 1;
            }
        }
        errors
    }

    /// Returns once the gateway has ended the connection.
    pub async fn ended(self) {
        self.last_words().await;
    }
}

/// An HTTP/2 connection that keeps to its rules, for calls that don't keep to gRPC's.
pub struct Caller {
    requests: h2::client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A call whose request may be sent in any pieces.
pub struct Call {
    pub answer: ResponseFuture,
    pub request: SendStream<Bytes>,
}

impl Caller {
    pub async fn connect(gateway: &Gateway) -> Self {
        let stream = soon(TcpStream::connect(gateway.grpc)).await.unwrap();
        let (requests, connection) = soon(h2::client::handshake(stream)).await.unwrap();
        Self {
            requests,
            connection: tokio::spawn(connection),
        }
    }

    pub async fn open(&self, path: &str) -> Call {
        self.open_with(path, &HeaderMap::new()).await
    }

    pub async fn open_with(&self, path: &str, headers: &HeaderMap) -> Call {
        let mut request = Request::post(format!("http://gateway{path}")).body(()).unwrap();
        request
            .headers_mut()
            .insert("content-type", "application/grpc".parse().unwrap());
        request.headers_mut().insert("te", "trailers".parse().unwrap());
        request.headers_mut().extend(headers.clone());
        let mut requests = soon(self.requests.clone().ready()).await.unwrap();
        let (answer, request) = requests.send_request(request, false).unwrap();
        Call { answer, request }
    }

    /// A call with this request body, to its end.
    pub async fn call(&self, path: &str, body: Vec<u8>) -> Result<(), Error> {
        let mut call = self.open(path).await;
        call.send(body);
        call.half_close();
        call.end().await
    }

    pub fn has_ended(&self) -> bool {
        self.connection.is_finished()
    }
}

impl Call {
    /// Sends as flow control allows. What comes too late for a call that has ended goes nowhere.
    pub fn send(&mut self, bytes: Vec<u8>) {
        let _ended = self.request.send_data(bytes.into(), false);
    }

    pub fn half_close(&mut self) {
        let _ended = self.request.send_data(Bytes::new(), true);
    }

    pub fn cancel(mut self) {
        self.request.send_reset(h2::Reason::CANCEL);
    }

    /// The end of the call, past all messages of the answer.
    pub async fn end(self) -> Result<(), Error> {
        end(self.answer).await
    }

    /// The status of HTTP, where it is not gRPC that answers.
    pub async fn http_status(self) -> u16 {
        soon(self.answer).await.unwrap().status().as_u16()
    }
}

/// The end of a call, past all messages of the answer.
pub async fn end(answer: ResponseFuture) -> Result<(), Error> {
    let trailers = soon(async {
        let (head, mut body) = answer.await.unwrap().into_parts();
        assert_eq!(head.status, 200);
        if head.headers.contains_key("grpc-status") {
            return head.headers;
        }
        while let Some(data) = body.data().await {
            body.flow_control().release_capacity(data.unwrap().len()).unwrap();
        }
        body.trailers().await.unwrap().unwrap()
    })
    .await;
    let status = Status::from_header_map(&trailers).unwrap();
    if status.code() == tonic::Code::Ok {
        return Ok(());
    }
    Err(status_error(&status))
}

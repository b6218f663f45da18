//! Messages of a stream, to and from the wire.

use std::hint::black_box;

use bytes::Bytes;
use criterion::{BatchSize, Criterion, Throughput};
use futures_util::{FutureExt as _, stream};
use http_body_util::{BodyExt as _, Full};
use prost::Message;
use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, Outcome, StreamAddRespondentResponse,
    stream_add_respondent_response::Result as ItemResult,
};
use tonic::{
    Streaming,
    codec::{BufferSettings, EncodeBody},
};
use tonic_prost::{ProstDecoder, ProstEncoder};

use crate::support::{
    keys::{self, crk},
    stub::NOTIFICATION,
};

/// Messages of the codec's benchmarks.
const ITEMS: u64 = 1_000;

/// One message, without gRPC's framing.
pub fn messages(criterion: &mut Criterion) {
    one(criterion, "message: AddRespondentRequest", &request(1));
    one(criterion, "message: StreamAddRespondentResponse", &response(1));
}

fn one<M: Message + Default>(criterion: &mut Criterion, name: &str, message: &M) {
    let mut group = criterion.benchmark_group(name);
    group.bench_function("encode", |bencher| {
        bencher.iter(|| black_box(message).encode_to_vec());
    });
    let encoded = Bytes::from(message.encode_to_vec());
    group.bench_function("decode", |bencher| {
        bencher.iter(|| M::decode(black_box(encoded.clone())).expect("a message"));
    });
    group.finish();
}

/// The server's side of a stream, as tonic does it: bodies of requests to messages, and messages to bodies of results.
pub fn codec(criterion: &mut Criterion) {
    let requests = body((0..ITEMS).map(request).collect());
    let responses: Vec<_> = (0..ITEMS).map(response).collect();
    let mut group = criterion.benchmark_group("stream: 1000 items");
    group.throughput(Throughput::Elements(ITEMS));
    group.bench_function("decode the requests", |bencher| {
        bencher.iter(|| {
            let count = read(requests.clone()).now_or_never();
            assert_eq!(count, Some(ITEMS));
        });
    });
    group.bench_function("encode the results", |bencher| {
        bencher.iter_batched(|| responses.clone(), body, BatchSize::SmallInput);
    });
    group.finish();
}

async fn read(body: Bytes) -> u64 {
    let decoder = ProstDecoder::<AddRespondentRequest>::new(BufferSettings::default());
    let mut messages = Streaming::new_request(decoder, Full::new(body), None, None);
    let mut count = 0;
    while let Some(message) = messages.message().await.expect("a message") {
        black_box(message);
        count += 1;
    }
    count
}

/// A client's body and a server's differ by the trailers.
fn body<M: Message + 'static>(messages: Vec<M>) -> Bytes {
    let encoder = ProstEncoder::new(BufferSettings::default());
    let messages = stream::iter(messages.into_iter().map(Ok));
    let body = EncodeBody::new_client(encoder, messages, None, None);
    let whole = body.collect().now_or_never().expect("all is there");
    whole.expect("messages that can be encoded").to_bytes()
}

fn request(number: u64) -> AddRespondentRequest {
    keys::request(crk(0, number))
}

fn response(number: u64) -> StreamAddRespondentResponse {
    let crk = crk(0, number);
    let added = AddRespondentResponse {
        crk: crk.clone(),
        outcome: Outcome::Added.into(),
        added_at: Some(prost_types::Timestamp {
            seconds: 1_795_000_000,
            nanos: 123_456_000,
        }),
        notification: NOTIFICATION.into(),
        attempts: 1,
    };
    StreamAddRespondentResponse {
        sequence: number,
        crk,
        result: Some(ItemResult::Added(added)),
    }
}

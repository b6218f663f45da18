//! Every way a connection can end, against a peer that speaks by hand. Each test counts the copies of the request that
//! arrived.

mod peer;
mod tls;

use secrecy::SecretString;
use socket2::{Domain, Socket, Type};

use self::peer::{Connection, Peer};
use super::*;
use crate::invitation::{Key, Respondent};

const TOKEN: &str = "s3cret+token/of=the&account";
const EMAIL: &str = "jan.kowalski@example.com";
/// Longer than anything on loopback takes.
const PATIENT: Duration = Duration::from_secs(30);
/// For tests in which the timeout is the thing tested.
const SHORT: Duration = Duration::from_millis(200);
const ADDED: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":true}";

fn surveylab(url: &str, timeout: Duration) -> HttpSurveyLab {
    HttpSurveyLab::new(config(url, timeout)).unwrap()
}

fn config(url: &str, timeout: Duration) -> HttpConfig {
    HttpConfig {
        url: url.parse().unwrap(),
        token: SecretString::from(TOKEN).into(),
        upstream_timeout: timeout,
        connect_timeout: timeout,
        max_in_flight: 4,
        idle_timeout: Duration::from_secs(4),
        clock: Clock::system(),
    }
}

fn invitation() -> Invitation {
    let respondent = Respondent {
        email: EMAIL.into(),
        first_name: "Jan".into(),
        ..Respondent::default()
    };
    Invitation::new(Key::new("8379821739721", "ticket 1"), respondent)
}

async fn send(surveylab: &HttpSurveyLab) -> Answer {
    let request = surveylab.encode(invitation()).unwrap();
    let answer = surveylab.send(&request).await;
    let shown = format!("{answer:?} {surveylab:?} {request:?}");
    for secret in [TOKEN, EMAIL, "s3cret", "kowalski", "apiToken"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    answer
}

/// One request to a peer that treats its first connection so; the answer, and the requests that arrived.
async fn one<F>(timeout: Duration, handle: impl Fn(Connection) -> F + Send + 'static) -> (Answer, Vec<String>)
where
    F: Future<Output = Option<Connection>> + Send + 'static,
{
    let peer = Peer::start(move |_, connection| handle(connection)).await;
    let surveylab = surveylab(&peer.url(), timeout);
    let answer = send(&surveylab).await;
    drop(surveylab);
    (answer, peer.finish().await.requests)
}

fn added() -> Answer {
    Answer::Added {
        notification: String::new(),
    }
}

#[track_caller]
fn assert_in_doubt(answer: &Answer, status: Option<u16>) {
    match answer {
        Answer::InDoubt { http_status, cause } => {
            assert_eq!(*http_status, status, "{answer:?}");
            assert!(!cause.is_empty() && cause.chars().count() <= 300);
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn assert_unreachable(answer: &Answer, because: &str) {
    match answer {
        Answer::Unreachable { cause } => assert!(cause.starts_with(because), "{cause}"),
        other => panic!("{other:?}"),
    }
}

// What goes out

#[tokio::test]
async fn the_request_is_one_line_with_the_token_in_front() {
    let (answer, requests) = one(PATIENT, |mut c| async move {
        c.request().await;
        c.say(ADDED).await;
        Some(c)
    })
    .await;
    assert_eq!(answer, added());
    let [request] = &requests[..] else {
        panic!("{requests:?}")
    };
    let (line, headers) = request.split_once("\r\n").unwrap();
    assert_eq!(
        line,
        "GET /api.php?apiToken=s3cret%2Btoken%2Fof%3Dthe%26account&cId=8379821739721\
         &email=jan.kowalski%40example.com&crk=ticket%201&firstName=Jan HTTP/1.1"
    );
    let headers = headers.to_ascii_lowercase();
    assert!(headers.contains(&format!("user-agent: {USER_AGENT}\r\n")), "{headers}");
    for absent in [
        "referer",
        "accept-encoding",
        "authorization",
        "cookie",
        "transfer-encoding",
    ] {
        assert!(!headers.contains(absent), "{headers}");
    }
}

#[tokio::test]
async fn the_measured_line_is_the_line_that_goes_out() {
    let peer = Peer::start(|_, mut c| async move {
        c.request().await;
        c.say(ADDED).await;
        Some(c)
    })
    .await;
    let surveylab = surveylab(&peer.url(), PATIENT);
    let with_custom = |length| {
        let mut invitation = invitation();
        invitation.respondent.custom = std::array::from_fn(|i| if i < 4 { "x".repeat(length) } else { String::new() });
        invitation.respondent.custom[0].push('y');
        surveylab.encode(invitation)
    };
    let longest = (1_000..2_048)
        .rev()
        .find_map(|length| with_custom(length).ok())
        .unwrap();
    assert_eq!(surveylab.send(&longest).await, added());
    drop(surveylab);
    let requests = peer.finish().await.requests;
    let [request] = &requests[..] else {
        panic!("{} requests", requests.len())
    };
    let line = request.split("\r\n").next().unwrap().len();
    // Each step of the search adds four bytes.
    assert!((MAX_REQUEST_LINE - 4..MAX_REQUEST_LINE).contains(&line), "{line}");
}

#[test]
fn what_can_never_be_sent_is_refused_at_once() {
    let with_token = |token: &str| {
        HttpSurveyLab::new(HttpConfig {
            token: SecretString::from(token).into(),
            ..config("http://127.0.0.1/api.php", PATIENT)
        })
    };
    assert!(matches!(with_token(""), Err(Error::NoToken)));
    let error = with_token(&"s3cret".repeat(2_000)).unwrap_err();
    assert!(matches!(error, Error::NoRoom));
    assert!(!format!("{error} {error:?}").contains("s3cret"));
}

#[test]
fn proxy_variables_are_ignored() {
    const CHILD: &str = "SURVEYLAB_GATEWAY_TEST_PROXY";
    if std::env::var_os(CHILD).is_some() {
        return tokio::runtime::Runtime::new().unwrap().block_on(async {
            let (answer, requests) = one(PATIENT, |mut c| async move {
                c.request().await;
                c.say(ADDED).await;
                Some(c)
            })
            .await;
            assert_eq!((answer, requests.len()), (added(), 1));
            // Nobody listens there, neither directly nor through the proxy.
            let answer = send(&surveylab("https://127.0.0.1:1/api.php", PATIENT)).await;
            assert_unreachable(&answer, "no connection");
        });
    }
    // The environment belongs to the whole process, so another one has it.
    let proxy = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    proxy.set_nonblocking(true).unwrap();
    let url = format!("http://{}", proxy.local_addr().unwrap());
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    child
        .args([
            "--exact",
            "surveylab::http::tests::proxy_variables_are_ignored",
            "--nocapture",
        ])
        .env(CHILD, "1");
    for name in ["http_proxy", "https_proxy", "all_proxy"] {
        child.env(name, &url).env(name.to_ascii_uppercase(), &url);
    }
    let output = child.env_remove("no_proxy").env_remove("NO_PROXY").output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && shown.contains("1 passed"), "{shown}");
    assert!(
        proxy
            .accept()
            .is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
    );
}

// Not reached

fn bound() -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    let any: std::net::SocketAddr = "127.0.0.1:0".parse().unwrap();
    socket.bind(&any.into()).unwrap();
    socket
}

#[tokio::test]
async fn connect_refused() {
    // Bound and not listening: the port refuses, and nobody else gets it meanwhile.
    let socket = bound();
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let answer = send(&surveylab(&format!("http://{address}/api.php"), PATIENT)).await;
    assert_unreachable(&answer, "no connection: ");
}

#[tokio::test]
async fn name_not_resolved() {
    // A label has at most 63 bytes (RFC 1035, 2.3.4): the resolver knows without asking a network that may not answer.
    let url = format!("http://{}.invalid/api.php", "a".repeat(64));
    let answer = send(&surveylab(&url, PATIENT)).await;
    assert_unreachable(&answer, "the name was not resolved");
}

/// Its backlog is full and nobody accepts: Linux then drops further connections' SYN.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_connection_that_does_not_come_about_in_time() {
    let socket = bound();
    socket.listen(0).unwrap();
    let address = socket.local_addr().unwrap();
    let _filling: Vec<Socket> = (0..4)
        .map(|_| {
            let filling = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            filling.set_nonblocking(true).unwrap();
            let _ = filling.connect(&address);
            filling
        })
        .collect();
    let url = format!("http://{}/api.php", address.as_socket().unwrap());
    // The connect timeout given is as long as the whole: half of it is used, so the two can't be confused.
    let answer = send(&surveylab(&url, SHORT)).await;
    assert_unreachable(&answer, "no connection in time");
}

async fn tls(timeout: Duration, first_words: &'static [u8]) -> (Answer, Vec<u8>) {
    let peer = Peer::start(move |_, mut c| async move {
        c.bytes().await;
        if !first_words.is_empty() {
            c.say(first_words).await;
        }
        Some(c)
    })
    .await;
    let surveylab = surveylab(&peer.url().replace("http://", "https://"), timeout);
    let answer = send(&surveylab).await;
    drop(surveylab);
    let seen = peer.finish().await;
    assert!(seen.requests.is_empty());
    (answer, seen.bytes)
}

#[tokio::test]
async fn garbage_instead_of_tls() {
    for garbage in [
        &b"HTTP/1.1 400 Bad Request\r\n\r\n"[..],
        b"\x15\x03\x01\x00\x02\x02\x28",
        &[0; 64],
    ] {
        let (answer, bytes) = tls(PATIENT, garbage).await;
        assert_unreachable(&answer, "no connection: ");
        assert!(!bytes.windows(3).any(|w| w == b"GET" || w == b"cId"));
    }
}

#[tokio::test]
async fn a_tls_handshake_that_hangs() {
    let (answer, bytes) = tls(SHORT, b"").await;
    assert_unreachable(&answer, "no connection in time");
    assert!(!bytes.windows(3).any(|w| w == b"GET" || w == b"cId"));
}

// Broken off

/// Whether the request was written first is a race; the answer must be true either way.
#[tokio::test]
async fn closed_or_reset_at_once() {
    for round in 0..40 {
        let (answer, requests) = one(PATIENT, move |c| async move {
            if round % 2 == 0 {
                c.reset()
            } else {
                drop(c)
            }
            None
        })
        .await;
        assert!(requests.is_empty());
        match answer {
            Answer::Unreachable { cause } => assert!(cause.starts_with("the connection closed before"), "{cause}"),
            other => assert_in_doubt(&other, None),
        }
    }
}

#[tokio::test]
async fn closed_without_an_answer() {
    let (answer, requests) = one(PATIENT, |mut c| async move {
        c.request().await;
        None
    })
    .await;
    assert_in_doubt(&answer, None);
    assert_eq!(requests.len(), 1);
}

#[tokio::test]
async fn reset_without_an_answer_or_in_the_middle() {
    for (words, status) in [
        (&b""[..], None),
        (b"HTTP/1.1 200 OK\r\nconte", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\"", Some(200)),
    ] {
        let (answer, requests) = one(PATIENT, move |mut c| async move {
            c.request().await;
            c.say(words).await;
            c.reset();
            None
        })
        .await;
        // A reset may overtake what was said before it.
        match &answer {
            Answer::InDoubt { http_status, .. } => assert!(http_status.is_none() || *http_status == status),
            other => panic!("{other:?}"),
        }
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn closed_within_the_answer() {
    for (words, status) in [
        (&b"HTTP/1.1"[..], None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n", Some(200)),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n{\"status\":tr",
            Some(200),
        ),
        // All of the JSON, but not all that was promised.
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"status\":true}",
            Some(200),
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nf\r\n{\"status\":true}\r\n",
            Some(200),
        ),
        (
            b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
            Some(200),
        ),
    ] {
        let (answer, requests) = one(PATIENT, move |mut c| async move {
            c.request().await;
            c.say(words).await;
            None
        })
        .await;
        assert_in_doubt(&answer, status);
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn what_is_no_http_answer() {
    for words in [
        &b"{\"status\":true}\r\n\r\n"[..],
        b"HTTP/9.9 200 OK\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n{\"status\":true}",
        b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\ncontent-length: 16\r\n\r\n{\"status\":true}",
        b"\x00\x01\x02\r\n\r\n",
    ] {
        let (answer, requests) = one(PATIENT, move |mut c| async move {
            c.request().await;
            c.say(words).await;
            None
        })
        .await;
        assert_in_doubt(&answer, None);
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn endless_headers_and_endless_bodies_are_not_read_on() {
    for (head, piece, status) in [
        (
            &b"HTTP/1.1 200 OK\r\n"[..],
            &b"x-more: abcdefghijklmnopqrstuvwxyz\r\n"[..],
            None,
        ),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 99999999999\r\n\r\n",
            b"                ",
            Some(200),
        ),
        (b"HTTP/1.1 200 OK\r\n\r\n{", b"\"status\":true,          ", Some(200)),
    ] {
        let (answer, requests) = one(PATIENT, move |mut c| async move {
            c.request().await;
            c.say(head).await;
            // Until the client has closed the connection.
            while c.try_say(&piece.repeat(1_000)).await {}
            None
        })
        .await;
        assert_in_doubt(&answer, status);
        assert_eq!(requests.len(), 1);
    }
}

#[tokio::test]
async fn no_answer_in_time() {
    for (words, status) in [
        (&b""[..], None),
        (b"HTTP/1.1 200 OK\r\n", None),
        (b"HTTP/1.1 100 Continue\r\n\r\n", None),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 15\r\n\r\n", Some(200)),
        (
            b"HTTP/1.1 200 OK\r\ncontent-length: 16\r\n\r\n{\"status\":true}",
            Some(200),
        ),
    ] {
        let (answer, requests) = one(SHORT, move |mut c| async move {
            c.request().await;
            c.say(words).await;
            Some(c)
        })
        .await;
        assert_in_doubt(&answer, status);
        assert!(format!("{answer:?}").contains("no whole answer in time"));
        assert_eq!(requests.len(), 1);
    }
}

// Answers

async fn answer_to(words: &'static [u8]) -> Answer {
    let (answer, requests) = one(PATIENT, move |mut c| async move {
        c.request().await;
        c.say(words).await;
        Some(c)
    })
    .await;
    assert_eq!(requests.len(), 1);
    answer
}

#[tokio::test]
async fn whole_answers() {
    let informational = [
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n",
        ADDED,
    ]
    .concat();
    assert_eq!(answer_to(informational.leak()).await, added());
    assert_eq!(
        answer_to(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\n{\"status\r\n7\r\n\":true}\r\n0\r\n\r\n")
            .await,
        added()
    );
    let failed = Answer::ActionFailed {
        http_status: 201,
        notification: "[redacted] is known, [redacted] [redacted]".into(),
    };
    let body = "{\"status\":false,\"notification\":\"JAN.KOWALSKI@example.com is known, \
                jan.kowalski%40example.com s3cret%2Btoken%2Fof%3Dthe%26account\"}";
    let words = format!("HTTP/1.1 201 Created\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    assert_eq!(answer_to(words.leak().as_bytes()).await, failed);
    assert_in_doubt(&answer_to(b"HTTP/1.1 204 No Content\r\n\r\n").await, Some(204));
    assert_in_doubt(
        &answer_to(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n").await,
        Some(101),
    );
    assert_in_doubt(
        &answer_to(b"HTTP/1.1 502 Bad Gateway\r\ncontent-length: 15\r\n\r\n{\"status\":true}").await,
        Some(502),
    );
    assert_eq!(
        answer_to(b"HTTP/1.1 500 Oh\r\ncontent-length: 15\r\n\r\n{\"status\":true}").await,
        Answer::InternalError
    );
    // A status that decides by itself is not held up by a body that never comes.
    let retry_after = Some(Duration::from_secs(3));
    assert_eq!(
        answer_to(b"HTTP/1.1 429 Slow down\r\nretry-after: 3\r\ncontent-length: 99\r\n\r\n").await,
        Answer::RateLimited { retry_after }
    );
}

#[tokio::test]
async fn a_compressed_body_is_not_read() {
    // `{"status":true}`, compressed by gzip.
    const GZIP: &[u8] = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x02\x03\xab\x56\x2a\x2e\x49\x2c\x29\x2d\x56\xb2\
          \x2a\x29\x2a\x4d\xad\x05\x00\x4c\x0f\xb3\xa1\x0f\x00\x00\x00";
    let mut words = format!(
        "HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: {}\r\n\r\n",
        GZIP.len()
    )
    .into_bytes();
    words.extend_from_slice(GZIP);
    assert_in_doubt(&answer_to(words.leak()).await, Some(200));
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    for http_status in [301, 302, 303, 307, 308] {
        let peer = Peer::start(move |_, mut c| async move {
            c.request().await;
            let head = format!("HTTP/1.1 {http_status} Moved\r\nlocation: /elsewhere\r\ncontent-length: 0\r\n\r\n");
            c.say(head.as_bytes()).await;
            Some(c)
        })
        .await;
        let surveylab = surveylab(&peer.url(), PATIENT);
        assert_eq!(send(&surveylab).await, Answer::UnexpectedStatus { http_status });
        drop(surveylab);
        let seen = peer.finish().await;
        assert_eq!((seen.requests.len(), seen.connections), (1, 1));
    }
}

// Connections kept

#[tokio::test]
async fn a_connection_serves_again_unless_the_peer_says_close() {
    const CLOSE: &[u8] = b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 15\r\n\r\n{\"status\":true}";
    for (words, connections) in [(ADDED, 1), (CLOSE, 3)] {
        let peer = Peer::start(move |_, mut c| async move {
            while c.request().await.is_some() {
                c.say(words).await;
            }
            Some(c)
        })
        .await;
        let surveylab = surveylab(&peer.url(), PATIENT);
        for _ in 0..3 {
            assert_eq!(send(&surveylab).await, added());
            // The connection goes back to the pool in a task of its own.
            tokio::task::yield_now().await;
        }
        drop(surveylab);
        let seen = peer.finish().await;
        assert_eq!((seen.requests.len(), seen.connections), (3, connections));
    }
}

/// The peer closes or resets while the connection is idle. If the client has noticed by the next request, that goes
/// out on another connection; if not, it may be in doubt, but there is never a second copy.
#[tokio::test]
async fn closed_while_idle() {
    for round in 0..40 {
        let peer = Peer::start(move |index, mut c| async move {
            c.request().await;
            c.say(ADDED).await;
            if index > 0 {
                return Some(c);
            }
            if round % 2 == 0 {
                c.reset();
            }
            None
        })
        .await;
        let surveylab = surveylab(&peer.url(), PATIENT);
        // A reset may overtake the answer.
        let first = send(&surveylab).await;
        if first != added() {
            assert_in_doubt(
                &first,
                if matches!(first, Answer::InDoubt { http_status: None, .. }) {
                    None
                } else {
                    Some(200)
                },
            );
        }
        let second = send(&surveylab).await;
        drop(surveylab);
        let seen = peer.finish().await;
        match &second {
            Answer::Added { .. } => assert_eq!((seen.requests.len(), seen.connections), (2, 2)),
            Answer::InDoubt { .. } => assert_eq!((seen.requests.len(), seen.connections), (1, 1)),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn closed_upon_the_second_request() {
    for round in 0..20 {
        let peer = Peer::start(move |_, mut c| async move {
            c.request().await;
            c.say(ADDED).await;
            c.request().await;
            if round % 2 == 0 {
                c.reset();
            }
            None
        })
        .await;
        let surveylab = surveylab(&peer.url(), PATIENT);
        assert_eq!(send(&surveylab).await, added());
        tokio::task::yield_now().await;
        assert_in_doubt(&send(&surveylab).await, None);
        drop(surveylab);
        let seen = peer.finish().await;
        assert_eq!((seen.requests.len(), seen.connections), (2, 1));
    }
}

/// Many requests at once on several threads, while the peer breaks off in every manner. Whatever the races come to, no
/// request arrives twice, none that was called unreachable arrives, and each that was added arrived.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn under_load_no_request_arrives_twice_and_no_unreachable_one_arrives() {
    const REQUESTS: usize = 2_000;
    let peer = Peer::start(|index, mut c| async move {
        // 0 to 6 requests are answered before the connection ends in one of four ways.
        for _ in 0..index % 7 {
            c.request().await?;
            c.say(ADDED).await;
        }
        match index % 4 {
            // Upon a request.
            0 => drop(c.request().await),
            1 => {
                c.request().await;
                c.reset();
            }
            // While idle. What has arrived by then is counted.
            2 => c.requests_by_now(),
            _ => {
                c.requests_by_now();
                c.reset();
            }
        }
        None
    })
    .await;
    let surveylab = std::sync::Arc::new(surveylab(&peer.url(), PATIENT));
    let mut workers = tokio::task::JoinSet::new();
    for worker in 0..8 {
        let surveylab = surveylab.clone();
        workers.spawn(async move {
            let mut answers = Vec::new();
            for crk in (worker..REQUESTS).step_by(8).map(|n| format!("crk-{n}-")) {
                let mut invitation = invitation();
                invitation.key = Key::new("collector", crk.clone());
                let request = surveylab.encode(invitation).unwrap();
                answers.push((crk, surveylab.send(&request).await));
            }
            answers
        });
    }
    let answers = workers.join_all().await.concat();
    drop(surveylab);
    let mut arrived = std::collections::HashMap::<String, usize>::new();
    for request in peer.finish().await.requests {
        let crk = request
            .split("crk=")
            .nth(1)
            .and_then(|rest| rest.split('&').next())
            .unwrap();
        *arrived.entry(crk.to_owned()).or_default() += 1;
    }
    let mut kinds = [0; 3];
    for (crk, answer) in answers {
        let copies = arrived.get(&crk).copied().unwrap_or(0);
        let kind = match answer {
            Answer::Added { .. } => {
                assert_eq!(copies, 1, "{crk}");
                0
            }
            Answer::InDoubt { .. } => {
                assert!(copies <= 1, "{crk}");
                1
            }
            Answer::Unreachable { .. } => {
                assert_eq!(copies, 0, "{crk}");
                2
            }
            other => panic!("{other:?}"),
        };
        kinds[kind] += 1;
    }
    assert!(kinds[0] > 0 && kinds[1] > 0, "{kinds:?}");
}

/// What the peer says unasked on an idle connection must never be taken as the next request's answer.
#[tokio::test]
async fn an_answer_too_many() {
    let peer = Peer::start(|_, mut c| async move {
        c.request().await;
        c.say(&[ADDED, b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"].concat())
            .await;
        Some(c)
    })
    .await;
    let surveylab = surveylab(&peer.url(), PATIENT);
    assert_eq!(send(&surveylab).await, added());
    assert_eq!(send(&surveylab).await, added());
    drop(surveylab);
    let seen = peer.finish().await;
    assert_eq!((seen.requests.len(), seen.connections), (2, 2));
}

#[tokio::test]
async fn no_log_line_of_any_crate_holds_a_secret() {
    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let writer = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    tracing::trace!("begin");
    assert_eq!(answer_to(ADDED).await, added());
    let (answer, _) = one(PATIENT, |mut c| async move {
        c.request().await;
        None
    })
    .await;
    assert_in_doubt(&answer, None);
    drop(guard);
    let shown = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    assert!(shown.contains("begin"));
    for secret in ["s3cret", "kowalski", "apiToken"] {
        assert!(!shown.contains(secret), "{shown}");
    }
}

//! SurveyLab over HTTP/1: one request, sent at most once.
//!
//! What keeps it at once (reqwest 0.13.5, hyper-util 0.1.21, hyper 1.12.0):
//! - reqwest's own retries (`retry.rs`) are switched off, and so are redirects.
//! - hyper-util's `Client::send_request` (`client/legacy/client.rs`) can't be kept from trying again through reqwest,
//!   but does so only where hyper gives the request back (`TrySendError::take_message`) from a connection that had
//!   served before. hyper gives back only what its connection task never took from the queue (`client/dispatch.rs`
//!   `Envelope::drop`, `Sender::try_send`; `proto/h1/dispatch.rs` `Client::recv_msg`), so not a byte of it was
//!   written. Once it is taken, every failure is final (`message: None`).
//! - HTTP/1 ties an answer to its request by nothing but their order on the connection. hyper closes one on which
//!   something comes unasked; an answer too many that comes only after the next request has gone out can't be told from
//!   that one's by anybody who keeps connections. Who fronts SurveyLab with something that broken keeps none.
//! - HTTP/2, whose refused streams could be sent again, is neither offered nor spoken.

mod endpoint;
mod failure;
mod resolve;

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use reqwest::{Response, Url, header::RETRY_AFTER, redirect, retry};
use secrecy::{ExposeSecret, SecretString};

pub use self::endpoint::{Endpoint, EndpointError};
use super::{
    Answer, Request, SurveyLab,
    answer::{self, Body, Head, MAX_BODY},
    redact::Secrets,
    request::{self, MAX_REQUEST_LINE, percent_encoded},
};
use crate::{
    clock::Clock,
    invitation::{Invitation, Violation},
    metrics,
};

const USER_AGENT: &str = concat!("surveylab-gateway/", env!("CARGO_PKG_VERSION"));
const LINE_END: &str = " HTTP/1.1";

/// What `HttpSurveyLab` needs.
#[derive(Clone)]
pub struct HttpConfig {
    pub url: Endpoint,
    pub token: SecretString,
    /// Of one request, from its beginning to the end of the answer's body.
    pub upstream_timeout: Duration,
    /// Of name, TCP and TLS together. At most half the upstream timeout is used of it: were the whole to run out
    /// first, it would not tell whether a connection had been made, and what could be tried again would be in doubt.
    pub connect_timeout: Duration,
    /// How many requests there are at once: so many connections are kept for the next ones.
    pub max_in_flight: usize,
    /// For how long one is kept. Zero: each request gets one of its own.
    pub idle_timeout: Duration,
    pub clock: Clock,
}

/// Why there can be no client. Never holds the token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the API token is empty")]
    NoToken,
    #[error("the path of the URL and the API token leave no room in a request line of {MAX_REQUEST_LINE} bytes")]
    NoRoom,
    #[error("the HTTP client can't be set up: {0}")]
    Client(String),
}

/// SurveyLab's webhook.
pub struct HttpSurveyLab {
    client: reqwest::Client,
    url: Url,
    token: SecretString,
    /// `apiToken=…&`, percent-encoded.
    query_begin: SecretString,
    clock: Clock,
}

impl std::fmt::Debug for HttpSurveyLab {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HttpSurveyLab")
            .field("url", &self.url.as_str())
            .finish_non_exhaustive()
    }
}

impl HttpSurveyLab {
    pub fn new(config: HttpConfig) -> Result<Self, Error> {
        let token = config.token.expose_secret();
        if token.is_empty() {
            return Err(Error::NoToken);
        }
        let query_begin = SecretString::from(format!("apiToken={}&", percent_encoded(token)));
        let surveylab = Self {
            client: client(&config)?,
            url: config.url.url().clone(),
            token: config.token,
            query_begin,
            clock: config.clock,
        };
        if surveylab.around() >= MAX_REQUEST_LINE {
            return Err(Error::NoRoom);
        }
        Ok(surveylab)
    }

    /// The request line's length without the invitation.
    fn around(&self) -> usize {
        "GET ".len() + self.url.path().len() + "?".len() + self.query_begin.expose_secret().len() + LINE_END.len()
    }

    fn secrets<'a>(&'a self, request: &'a Request) -> Secrets<'a> {
        Secrets::of(self.token.expose_secret(), &request.invitation.respondent)
    }

    /// Where one request goes, token and all.
    pub(super) fn url_of(&self, request: &Request) -> Url {
        let mut url = self.url.clone();
        // Both parts hold only unreserved characters, `%`, `=` and `&`, which `Url` passes on as they are.
        url.set_query(Some(&[self.query_begin.expose_secret(), &request.query].concat()));
        url
    }

    /// What `send` makes of an answer, without a server that gives it: for the benchmark of the parts.
    #[doc(hidden)]
    pub fn classify(&self, request: &Request, http_status: u16, retry_after: Option<&[u8]>, body: Vec<u8>) -> Answer {
        let head = Head {
            http_status,
            retry_after,
        };
        answer::by_status(&head, self.clock.wall())
            .unwrap_or_else(|| answer::by_body(http_status, Body::Complete(body), &self.secrets(request)))
    }

    async fn get(&self, request: &Request) -> Answer {
        match self.client.get(self.url_of(request)).send().await {
            Ok(response) => self.answer(response, request).await,
            Err(error) => failure::of_send(error.without_url(), &self.secrets(request)),
        }
    }

    async fn answer(&self, response: Response, request: &Request) -> Answer {
        let http_status = response.status().as_u16();
        metrics::response(http_status);
        let head = Head {
            http_status,
            retry_after: response.headers().get(RETRY_AFTER).map(|value| value.as_bytes()),
        };
        // A body that decides nothing is not waited for: hyper keeps the connection if the body is there already
        // (`Conn::poll_drain_or_close_read`), and closes it if not.
        if let Some(answer) = answer::by_status(&head, self.clock.wall()) {
            return answer;
        }
        let secrets = self.secrets(request);
        let body = read_body(response, &secrets).await;
        answer::by_body(http_status, body, &secrets)
    }
}

impl SurveyLab for HttpSurveyLab {
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation> {
        request::encode(invitation, self.around())
    }

    fn send<'a>(&'a self, request: &'a Request) -> BoxFuture<'a, Answer> {
        Box::pin(self.get(request))
    }
}

/// Reads at most one piece past the limit, whatever `content-length` promises.
async fn read_body(mut response: Response, secrets: &Secrets<'_>) -> Body {
    let mut body = Vec::new();
    loop {
        match response.chunk().await {
            Ok(Some(chunk)) if body.len() + chunk.len() > MAX_BODY => return Body::TooLong,
            Ok(Some(chunk)) => body.extend_from_slice(&chunk),
            Ok(None) => return Body::Complete(body),
            Err(error) => {
                let cause = failure::cause(&error.without_url(), secrets);
                return Body::Broken { cause };
            }
        }
    }
}

fn client(config: &HttpConfig) -> Result<reqwest::Client, Error> {
    // reqwest takes the process's provider and panics without one. If another part has installed one, that is it.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .http1_only()
        .redirect(redirect::Policy::none())
        // The limit of none also spares a copy of each request that reqwest keeps for a retry.
        .retry(retry::never().max_retries_per_request(0))
        .referer(false)
        .no_proxy()
        .no_gzip()
        .no_brotli()
        .no_zstd()
        .no_deflate()
        .tcp_nodelay(true)
        .dns_resolver(Arc::new(resolve::Resolver::new()))
        .pool_idle_timeout(config.idle_timeout)
        .pool_max_idle_per_host(if config.idle_timeout.is_zero() {
            0
        } else {
            config.max_in_flight
        })
        .connect_timeout(config.connect_timeout.min(config.upstream_timeout / 2))
        .timeout(config.upstream_timeout);
    if !config.url.is_https() {
        // Without TLS nobody should need the machine's certificates, which a small container may not have.
        builder = builder.tls_certs_only([]);
    }
    builder
        .build()
        .map_err(|error| Error::Client(failure::chain(&error.without_url())))
}

#[cfg(test)]
mod tests;

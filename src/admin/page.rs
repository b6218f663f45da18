//! The status page's files, and what a browser is told about them.

use std::{net::IpAddr, sync::LazyLock};

use axum::{
    Router,
    extract::Request,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header, uri::Authority},
    middleware::Next,
    response::{IntoResponse, Response},
    routing::get,
};
use sha2::{Digest as _, Sha256};

use crate::hex::hex;

/// Nothing but the gateway's own files, and nothing written into the page itself.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

struct File {
    path: &'static str,
    kind: &'static str,
    text: &'static str,
}

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

const FILES: [File; 8] = [
    File {
        path: "/",
        kind: HTML,
        text: include_str!("page/index.html"),
    },
    File {
        path: "/page/page.css",
        kind: CSS,
        text: include_str!("page/page.css"),
    },
    File {
        path: "/page/page.js",
        kind: SCRIPT,
        text: include_str!("page/page.js"),
    },
    File {
        path: "/page/charts.js",
        kind: SCRIPT,
        text: include_str!("page/charts.js"),
    },
    File {
        path: "/page/icon.svg",
        kind: "image/svg+xml",
        text: include_str!("page/icon.svg"),
    },
    File {
        path: "/page/uPlot.js",
        kind: SCRIPT,
        text: include_str!("page/vendor/uPlot.iife.min.js"),
    },
    File {
        path: "/page/uPlot.css",
        kind: CSS,
        text: include_str!("page/vendor/uPlot.min.css"),
    },
    // Its licence asks to be with every copy.
    File {
        path: "/page/uPlot.LICENSE",
        kind: "text/plain; charset=utf-8",
        text: include_str!("page/vendor/uPlot.LICENSE"),
    },
];

/// In the order of `FILES`.
static TAGS: LazyLock<[HeaderValue; 8]> = LazyLock::new(|| FILES.each_ref().map(|file| tag(file.text)));

/// The paths of the files.
pub fn router<S: Clone + Send + Sync + 'static>() -> Router<S> {
    let mut router = Router::new();
    for (index, file) in FILES.iter().enumerate() {
        router = router.route(
            file.path,
            get(move |headers: HeaderMap| async move { answer(index, &headers) }),
        );
    }
    router
}

fn answer(index: usize, request: &HeaderMap) -> Response {
    let (file, tag) = (&FILES[index], &TAGS[index]);
    // A browser asks each time, and mostly hears that nothing has changed.
    let headers = [
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (header::ETAG, tag.clone()),
    ];
    if request.get(header::IF_NONE_MATCH) == Some(tag) {
        return (StatusCode::NOT_MODIFIED, headers).into_response();
    }
    let kind = [(header::CONTENT_TYPE, HeaderValue::from_static(file.kind))];
    (headers, kind, file.text).into_response()
}

fn tag(text: &str) -> HeaderValue {
    let hash = Sha256::digest(text);
    // Hex digits are always a header's value.
    HeaderValue::try_from(format!("\"{}\"", hex(&hash[..16]))).unwrap_or(HeaderValue::from_static("\"\""))
}

/// Answers only to hosts that no stranger's name can stand for, and says what a browser may do with the answer.
pub async fn guard(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    let mut response = if host.is_none_or(|host| host.to_str().is_ok_and(is_trusted)) {
        next.run(request).await
    } else {
        let why = "this host name is not answered to: use the IP address, localhost, or a name without a dot\n";
        (StatusCode::MISDIRECTED_REQUEST, why).into_response()
    };
    for (name, value) in [
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ] {
        response.headers_mut().insert(name, HeaderValue::from_static(value));
    }
    response
}

/// DNS rebinding: a page of a stranger's has its own name point here, and could then read what is shown, as to the browser it
/// is the same host. No stranger has an IP address for a name, nor one without a dot, nor one of those that are reserved for
/// local networks (RFC 6761, RFC 6762, ICANN's `internal`).
fn is_trusted(host: &str) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let host = authority.host();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let name = host.strip_suffix('.').unwrap_or(host).to_ascii_lowercase();
    let reserved = [".localhost", ".local", ".internal"];
    bare.unwrap_or(host).parse::<IpAddr>().is_ok()
        || (!name.is_empty() && !name.contains('.'))
        || reserved.iter().any(|domain| name.ends_with(domain))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hosts_that_no_stranger_can_have_are_trusted() {
        for host in [
            "127.0.0.1:9464",
            "10.0.0.7",
            "[::1]:9464",
            "localhost",
            "LOCALHOST:1",
            "gateway:9464",
            "gateway.svc.cluster.local:9464",
            "gateway.internal.",
        ] {
            assert!(is_trusted(host), "{host}");
        }
        for host in [
            "evil.example",
            "127.0.0.1.evil.example:9464",
            "localhost.evil.example",
            "evillocal.example",
            "user@evil.example",
            "",
            ".",
            "a b",
        ] {
            assert!(!is_trusted(host), "{host}");
        }
    }
}

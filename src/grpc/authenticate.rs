//! Who calls: each call's credentials are looked at once, before its body is read.
//!
//! Only health and reflection are open to everyone: what else there is, known or not, needs credentials, so that a
//! service that is added later is not open by having been forgotten here. A call to what does not exist is told so only
//! once it has shown who it is.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use hyper::{
    Request,
    header::{AUTHORIZATION, HeaderMap},
    http::Extensions,
};
use tonic::Status;

use super::{
    peer::Peer,
    server::places::Calls,
    status::{self, Forbidden},
};
use crate::{
    callers::{Caller, Callers, Credentials, Failure, Presented, TokenHash},
    clock::Instant,
    method::Method,
    metrics,
    reload::Reloaded,
};

/// Open to all: load balancers have no credentials, and the contract is no secret.
const OPEN: [&str; 3] = [
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// Knows the callers, and tells of those who are refused. One for all connections.
pub struct Guard {
    callers: Reloaded<Callers>,
    failures: Seldom,
    refusals: Seldom,
}

/// Who made a stream's call, to be asked again when the callers' file has changed.
#[derive(Clone)]
pub(super) struct Admission {
    pub credentials: Credentials,
    /// The callers at the time.
    pub callers: Arc<Callers>,
}

impl Guard {
    pub fn new(callers: Reloaded<Callers>) -> Self {
        Self {
            callers,
            failures: Seldom::default(),
            refusals: Seldom::default(),
        }
    }

    /// Whose credentials these are, by now.
    pub(super) fn caller(&self, credentials: &Credentials) -> Result<(Arc<Caller>, Arc<Callers>), Status> {
        let callers = self.callers.current();
        match callers.authenticate(credentials) {
            Ok(caller) => Ok((caller.clone(), callers)),
            Err(failure) => Err(self.failed(failure, None)),
        }
    }

    /// Has the callers' file changed since?
    pub(super) fn has_changed(&self, since: &Arc<Callers>) -> bool {
        !Arc::ptr_eq(&self.callers.current(), since)
    }

    /// Counts and tells that a call has no good credentials. The answer does not say why: that would help those who try.
    fn failed(&self, failure: Failure, peer: Option<SocketAddr>) -> Status {
        metrics::authentication_failed(failure.name());
        if let Some(left_out) = self.failures.say() {
            let peer = peer.map(tracing::field::display);
            tracing::warn!(
                why = failure.name(),
                peer,
                left_out,
                "a call without valid credentials was refused"
            );
        }
        status::unauthenticated()
    }

    /// Counts and tells that a caller may not do what it asks for.
    pub(super) fn forbid(&self, caller: &Caller, method: Method, what: Forbidden) -> Status {
        metrics::forbidden(&caller.name, method.name());
        if let Some(left_out) = self.refusals.say() {
            tracing::warn!(
                caller = caller.name,
                method = method.name(),
                what = what.name(),
                left_out,
                "a caller was refused what it may not do"
            );
        }
        status::forbidden(what)
    }
}

/// A connection's way in.
pub(super) struct Door {
    pub guard: Arc<Guard>,
    pub peer: Option<SocketAddr>,
    pub calls: Calls,
}

impl Door {
    /// Lets a call in and puts its `Arc<Caller>` into its extensions, or says with what to answer it.
    pub fn admit<B>(&self, request: &mut Request<B>) -> Result<(), Status> {
        let path = request.uri().path();
        if OPEN.iter().any(|open| path.starts_with(open)) {
            return Ok(());
        }
        let method = Method::at(path);
        let credentials = credentials(request.headers(), request.extensions());
        // Nothing behind this needs it any more, so nothing can tell it.
        request.headers_mut().remove(AUTHORIZATION);
        let callers = self.guard.callers.current();
        let caller = match callers.authenticate(&credentials) {
            Ok(caller) => caller.clone(),
            Err(failure) => {
                self.calls.without_credentials();
                return Err(self.guard.failed(failure, self.peer));
            }
        };
        request.extensions_mut().insert(caller.clone());
        let Some(method) = method else {
            return Err(Status::unimplemented(""));
        };
        if !caller.may_call(method) {
            return Err(self.guard.forbid(&caller, method, Forbidden::Method));
        }
        if method.is_stream() {
            request.extensions_mut().insert(Admission { credentials, callers });
        }
        Ok(())
    }
}

fn credentials(headers: &HeaderMap, extensions: &Extensions) -> Credentials {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let token = match (values.next(), values.next()) {
        (None, _) => Presented::Nothing,
        (Some(value), None) => match bearer(value.as_bytes()).and_then(TokenHash::of) {
            Some(hash) => Presented::Token(hash),
            None => Presented::Unreadable,
        },
        (Some(_), Some(_)) => Presented::Unreadable,
    };
    // A certificate without names is none: it says nothing of who has it.
    let peer = extensions.get::<Peer>().filter(|peer| !peer.names.is_empty());
    Credentials {
        token,
        names: peer.map(|peer| peer.names.clone()),
    }
}

/// RFC 6750, section 2.1, and RFC 9110, section 11.4: the scheme in any case, then one space or more.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    const SCHEME: &[u8] = b"bearer";
    let (scheme, rest) = value.split_at_checked(SCHEME.len())?;
    let token = rest.trim_ascii_start();
    (scheme.eq_ignore_ascii_case(SCHEME) && token.len() < rest.len()).then_some(token)
}

/// Lets one line a second into the log, and counts those left out: nobody fills the disk by being refused.
#[derive(Default)]
struct Seldom(Mutex<Said>);

#[derive(Default)]
struct Said {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    const EVERY: Duration = Duration::from_secs(1);

    /// How many were left out before this one; `None` if this one is, too.
    fn say(&self) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.last.is_some_and(|last| last.elapsed() < Self::EVERY) {
            said.left_out += 1;
            return None;
        }
        said.last = Some(Instant::now());
        Some(std::mem::take(&mut said.left_out))
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::{super::server::places::Places, *};
    use crate::callers::Token;

    /// A gateway's door, and what comes through it: a call with a token and names of a certificate.
    fn admitted(door: &Door, path: &str, token: Option<&Token>, names: &[&str]) -> Result<Option<String>, Status> {
        let mut request = Request::post(path).body(()).unwrap();
        if let Some(token) = token {
            let value = HeaderValue::try_from(format!("Bearer {}", token.expose())).unwrap();
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let names = names.iter().map(ToString::to_string).collect();
        request.extensions_mut().insert(Peer { names });
        door.admit(&mut request)?;
        let caller = request.extensions().get::<Arc<Caller>>();
        assert!(caller.is_none() || !request.headers().contains_key(AUTHORIZATION));
        Ok(caller.map(|caller| caller.name.clone()))
    }

    #[test]
    fn a_call_is_its_tokens_or_its_certificates_callers_and_of_both_if_both_are_there() {
        let [billing, other, nobodys] = [(); 3].map(|()| Token::generate().unwrap());
        let text = format!(
            "[[caller]]\nname = \"billing\"\ntokens = [\"{}\"]\nnames = [\"spiffe://company/billing\"]\n\
             [[caller]]\nname = \"other\"\ntokens = [\"{}\"]\nnames = [\"other.internal\"]\n",
            billing.hash(),
            other.hash()
        );
        let place = Places::new(1, 10).take();
        let door = Door {
            guard: Arc::new(Guard::new(Reloaded::fixed(Callers::of(&text).unwrap()))),
            peer: None,
            calls: place.calls(),
        };
        let who =
            |token, names: &[&str]| admitted(&door, Method::Add.path(), token, names).map_err(|status| status.code());
        assert_eq!(who(Some(&billing), &[]), Ok(Some("billing".into())));
        assert_eq!(who(None, &["spiffe://company/billing"]), Ok(Some("billing".into())));
        assert_eq!(
            who(Some(&billing), &["spiffe://company/billing"]),
            Ok(Some("billing".into()))
        );
        for (token, names) in [
            (None, &[][..]),
            (None, &["unknown.internal"]),
            (None, &["other.internal", "spiffe://company/billing"]),
            (Some(&nobodys), &[]),
            (Some(&nobodys), &["other.internal"]),
            (Some(&billing), &["other.internal"]),
            (Some(&billing), &["unknown.internal"]),
        ] {
            assert_eq!(who(token, names), Err(tonic::Code::Unauthenticated), "{names:?}");
        }
        let open = admitted(&door, "/grpc.health.v1.Health/Check", None, &[]).unwrap();
        assert_eq!(open, None);
        let listing = admitted(&door, Method::List.path(), Some(&billing), &[]);
        assert_eq!(listing.unwrap_err().code(), tonic::Code::PermissionDenied);
    }

    fn presented(values: &[&[u8]]) -> Presented {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(AUTHORIZATION, HeaderValue::from_bytes(value).unwrap());
        }
        credentials(&headers, &Extensions::new()).token
    }

    #[test]
    fn one_header_with_one_token_is_read_and_nothing_else() {
        let token = format!("slg_{}", "A".repeat(43));
        for good in [
            format!("Bearer {token}"),
            format!("bearer {token}"),
            format!("BEARER   {token}"),
        ] {
            assert!(matches!(presented(&[good.as_bytes()]), Presented::Token(_)), "{good}");
        }
        for wrong in [
            "",
            "Bearer",
            "Bearer ",
            &token,
            &format!("Basic {token}"),
            &format!("Bearer{token}"),
            &format!("Bearer {token} {token}"),
            &format!("Bearer {token},Bearer {token}"),
            &format!("Bearer {}", &token[1..]),
        ] {
            assert!(
                matches!(presented(&[wrong.as_bytes()]), Presented::Unreadable),
                "{wrong}"
            );
        }
        let good = format!("Bearer {token}");
        assert!(matches!(presented(&[good.as_bytes(); 2]), Presented::Unreadable));
        assert!(matches!(presented(&[]), Presented::Nothing));
        assert!(matches!(presented(&[b"Bearer \xff\xfe"]), Presented::Unreadable));
    }

    #[test]
    fn a_certificate_without_names_is_none() {
        let mut extensions = Extensions::new();
        assert!(credentials(&HeaderMap::new(), &extensions).names.is_none());
        extensions.insert(Peer { names: Arc::from([]) });
        assert!(credentials(&HeaderMap::new(), &extensions).names.is_none());
        extensions.insert(Peer {
            names: Arc::from(["a.internal".to_string()]),
        });
        let names = credentials(&HeaderMap::new(), &extensions).names;
        assert_eq!(names.as_deref(), Some(&["a.internal".to_string()][..]));
    }

    #[tokio::test(start_paused = true)]
    async fn of_many_refusals_one_a_second_is_told_with_the_number_of_the_others() {
        let seldom = Seldom::default();
        assert_eq!(seldom.say(), Some(0));
        for _ in 0..1000 {
            assert_eq!(seldom.say(), None);
        }
        tokio::time::advance(Seldom::EVERY).await;
        assert_eq!(seldom.say(), Some(1000));
        assert_eq!(seldom.say(), None);
    }
}

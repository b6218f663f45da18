//! Looking at a running gateway, and waiting for what gives no signal.

use std::time::Duration;

use surveylab_gateway::proto::{
    AddRespondentRequest, AddRespondentResponse, InvitationState, ListInvitationsRequest, ListInvitationsResponse,
};
use tokio::time::{Instant, sleep, timeout};

use super::{
    Error, Gateway,
    call::{Client, status_error},
};

/// After so long something never happens. No test measures time with it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A future that must end, so that a test fails instead of hanging.
pub async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future).await.expect("it never ended")
}

/// Looks again and again until it holds: only for what gives no signal.
pub async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds().await {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

/// A metric's value, all series with this label (`lane="unary"`, or empty for all) taken together.
pub async fn metric(gateway: &Gateway, name: &str, label: &str) -> f64 {
    let (status, text) = gateway.admin("/metrics").await;
    assert_eq!(status, 200);
    let series = text.lines().filter(|line| !line.starts_with('#'));
    let values = series.filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let rest = series.strip_prefix("surveylab_gateway_")?.strip_prefix(name)?;
        let is_it = rest.is_empty() || rest.starts_with('{');
        (is_it && rest.contains(label)).then(|| value.parse::<f64>().unwrap())
    });
    values.sum()
}

/// Requests that wait for a permit.
pub async fn waiting(gateway: &Gateway, lane: &str) -> f64 {
    metric(gateway, "waiting_requests", lane).await
}

/// Returns once so many requests wait for a permit, in this lane (`lane="stream"`) or in all.
pub async fn until_waiting(gateway: &Gateway, lane: &str, count: usize) {
    let what = format!("{count} requests wait ({lane})");
    until(&what, async || waiting(gateway, lane).await == count as f64).await;
}

/// Returns once nothing waits and nothing is on the wire.
pub async fn until_quiet(gateway: &Gateway) {
    until("nothing waits, nothing is on the wire", async || {
        waiting(gateway, "").await + metric(gateway, "requests_in_flight", "").await == 0.0
    })
    .await;
}

/// The process's resident memory, in bytes.
pub fn resident_memory(gateway: &Gateway) -> u64 {
    resident_memory_of(gateway.pid()).unwrap()
}

/// The same of any process; `None` if it has ended.
pub fn resident_memory_of(process: u32) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
    Some(kilobytes * 1024)
}

/// One unary call with a deadline.
pub async fn add_within(
    client: &Client,
    request: AddRespondentRequest,
    timeout: Duration,
) -> Result<AddRespondentResponse, Error> {
    let mut request = tonic::Request::new(request);
    request.set_timeout(timeout);
    let answer = client.clone().add_respondent(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| status_error(&status))
}

pub async fn page(client: &Client, request: ListInvitationsRequest) -> ListInvitationsResponse {
    client.clone().list_invitations(request).await.unwrap().into_inner()
}

/// The crks of all invitations in a state (`Unspecified`: in any), in the order of the listing.
pub async fn list(client: &Client, state: InvitationState) -> Vec<String> {
    let mut crks = Vec::new();
    let mut page_token = String::new();
    loop {
        let request = ListInvitationsRequest {
            state: state.into(),
            page_size: 1000,
            page_token,
            ..ListInvitationsRequest::default()
        };
        let page = page(client, request).await;
        crks.extend(page.invitations.into_iter().map(|invitation| invitation.crk));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return crks;
        }
    }
}

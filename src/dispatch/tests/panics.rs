//! A bug that panics in the middle of a request.

use futures_util::future::BoxFuture;

use super::{super::*, world::reason};
use crate::{invitation::Respondent, ledger::memory::Memory, limiter, surveylab};

/// Panics with the request on the wire.
struct Panics;

impl SurveyLab for Panics {
    fn encode(&self, invitation: Invitation) -> Result<Request, Violation> {
        let query = String::new();
        Ok(Request { invitation, query })
    }

    fn send<'a>(&'a self, _: &'a Request) -> BoxFuture<'a, surveylab::Answer> {
        Box::pin(async { panic!("a bug") })
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_on_the_wire_puts_its_key_in_doubt() {
    let (limiter, pacer) = Limiter::new(limiter::Settings {
        rate: "10/s".parse().unwrap(),
        burst: 5,
        rested: Duration::MAX,
        max_in_flight: 1,
        max_queue: 10,
    });
    tokio::spawn(pacer.run());
    let settings = Settings {
        max_attempts: 5,
        max_wait: Duration::from_secs(60),
        on_server_error: OnServerError::Retry,
        breaker_after: 20,
    };
    let ledger = Arc::new(Memory::default());
    let dispatcher = Dispatcher::new(Arc::new(Panics), ledger.clone(), limiter, Clock::system(), settings);
    let call = |crk: &str| {
        let respondent = Respondent {
            email: "a@example.com".into(),
            ..Respondent::default()
        };
        let request = dispatcher
            .prepare(Invitation::new(Key::new("c", crk), respondent))
            .unwrap();
        dispatcher.call(request, Doubt::Hold, Lane::Unary, None)
    };
    // One place in flight: the second call shows that it was given back.
    for crk in ["a", "b"] {
        assert_eq!(
            reason(dispatcher.add(&call(crk)).await),
            (Reason::OutcomeInDoubt, Sent::Unknown)
        );
        let record = ledger.look_up(&Key::new("c", crk)).await.unwrap().unwrap();
        assert_eq!(record.state, State::InDoubt);
    }
    assert_eq!(dispatcher.on_the_wire(), 0);
    dispatcher.close();
    dispatcher.drained().await;
}

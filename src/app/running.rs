use std::{future::pending, sync::Arc, time::Duration};

use tokio::{select, task::JoinHandle, time::timeout};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{Error, count, parts::Parts};
use crate::{
    activity::ACTIVITY,
    admin::{self, Admin},
    config::Config,
    dispatch::Dispatcher,
    grpc::{self, Guard, Health, Service, tls},
    ledger::Ledger,
    metrics,
    sandbox::Sandbox,
};

/// For the last answers, after the drain timeout has passed.
const FLUSH_TIMEOUT: Duration = Duration::from_millis(500);

/// A gateway that serves.
pub(super) struct Running {
    dispatcher: Dispatcher,
    ledger: Arc<dyn Ledger>,
    sandbox: Option<Sandbox>,
    health: Health,
    tasks: TaskTracker,
    /// Nothing new is sent.
    closing: CancellationToken,
    /// Everything ends.
    stop: CancellationToken,
    pacer: JoinHandle<()>,
    leases: Option<JoinHandle<()>>,
    server: JoinHandle<()>,
    admin: JoinHandle<()>,
}

pub(super) async fn start(config: &Config, parts: Parts) -> Result<Running, Error> {
    let args = &config.args;
    let Parts {
        clock,
        callers,
        tls,
        token,
        ledger,
        sandbox,
        limiter,
        pacer,
        leases,
        dispatcher,
        listeners,
    } = parts;
    let tasks = TaskTracker::new();
    let closing = CancellationToken::new();
    let stop = CancellationToken::new();
    let health = Health::new().await;
    let guard = callers.clone().map(|callers| Arc::new(Guard::new(callers)));
    let about = grpc::About {
        started_at: clock.timestamp(),
        ledger: config.ledger.kind(),
        sandbox: sandbox.is_some(),
    };
    let service = Service {
        dispatcher: dispatcher.clone(),
        clock: clock.clone(),
        stream_window: count(args.stream_window),
        closing: closing.clone(),
        tasks: tasks.clone(),
        streams: Arc::default(),
        guard: guard.clone(),
        about,
    };
    let streams = service.streams.clone();
    let routes = grpc::routes(service, &health, args.reflection)?;

    let pacer = tasks.spawn(pacer.run());
    let leases = leases.map(|leases| tasks.spawn(leases.run()));
    tasks.spawn(metrics::upkeep(stop.clone()));
    tasks.spawn(token.watch(stop.clone()));
    if let Some(callers) = callers {
        tasks.spawn(callers.watch(stop.clone()));
    }
    if let Some(tls) = tls.clone() {
        tasks.spawn(tls::tend(tls, clock.clone(), stop.clone()));
    }
    let grpc = listeners.grpc.local_addr().unwrap_or(args.listen);
    let server = tasks.spawn(grpc::server::serve(
        grpc::server::Port {
            listener: listeners.grpc,
            tls,
        },
        grpc::server::Face { routes, guard },
        grpc::server::Limits {
            max_connections: count(args.max_connections),
            max_streams: args.max_streams.get(),
            receive_timeout: args.receive_timeout,
        },
        stop.clone(),
        tasks.clone(),
    ));
    let history = admin::History::new(&ACTIVITY, limiter);
    let reading = admin::Reading::new(ledger.clone());
    tasks.spawn(history.clone().run(stop.clone()));
    tasks.spawn(reading.clone().run(stop.clone()));
    let admin = admin::router(Admin {
        dispatcher: dispatcher.clone(),
        streams,
        history,
        reading,
        about: admin::About {
            gateway: about,
            grpc: config.tls.is_none().then_some(grpc),
            clock,
        },
    });
    let admin = tasks.spawn(admin::serve(
        listeners.admin,
        admin,
        args.receive_timeout,
        stop.clone(),
        tasks.clone(),
    ));
    Ok(Running {
        dispatcher,
        ledger,
        sandbox,
        health,
        tasks,
        closing,
        stop,
        pacer,
        leases,
        server,
        admin,
    })
}

impl Running {
    /// Until `shutdown`, or until a task ends that does not end before it is told to: without it the process is of no use.
    pub async fn until(&mut self, shutdown: CancellationToken) -> Option<Error> {
        select! {
            () = shutdown.cancelled() => None,
            _ = &mut self.pacer => Some(Error::Ended("pacer")),
            () = ended_if_any(&mut self.leases) => Some(Error::Ended("lease of the rate")),
            _ = &mut self.server => Some(Error::Ended("gRPC server")),
            _ = &mut self.admin => Some(Error::Ended("admin server")),
        }
    }

    /// Finishes what is on the wire, for as long as `patience`, and ends.
    pub async fn drain(self, patience: Duration) {
        let Self {
            dispatcher,
            mut health,
            tasks,
            closing,
            stop,
            ..
        } = self;
        tracing::info!(timeout = ?patience, on_the_wire = dispatcher.on_the_wire(), "shutting down");
        let drained = timeout(patience, async {
            // First refuse and finish, while clients can still see why; then close the connections.
            health.draining().await;
            dispatcher.close();
            closing.cancel();
            dispatcher.drained().await;
            health.gone().await;
            stop.cancel();
            tasks.close();
            tasks.wait().await;
        })
        .await;
        if drained.is_err() {
            let on_the_wire = dispatcher.on_the_wire();
            if on_the_wire > 0 {
                tracing::warn!(
                    on_the_wire,
                    "the drain timeout passed: what is still on the wire will be in doubt"
                );
            } else {
                tracing::warn!("the drain timeout passed: connections that did not end are cut");
            }
            stop.cancel();
            tasks.close();
        }
        dispatcher.cut_off().await;
        if drained.is_err() {
            // Those that were cut off can still be told so.
            let _too_late = timeout(FLUSH_TIMEOUT, tasks.wait()).await;
        }
        self.ledger.close().await;
        if let Some(sandbox) = self.sandbox {
            tracing::info!("sandbox: {}", sandbox.report());
            sandbox.stop().await;
        }
    }
}

/// The end of a task that not every gateway has.
async fn ended_if_any(task: &mut Option<JoinHandle<()>>) {
    match task {
        Some(task) => drop(task.await),
        None => pending().await,
    }
}

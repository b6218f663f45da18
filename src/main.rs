use std::{env, ffi::OsStr};

use clap::{CommandFactory as _, Parser as _};
use surveylab_gateway::{
    app,
    cli::{self, Cli, Command, Exit, output::fail, runtime::runtime, usage},
    config::{Config, ServeArgs},
    metrics, shutdown, telemetry,
};

/// glibc's allocator gives memory back to the system over and over under load, which stops every thread each time: an
/// eighth of a stream's CPU time was spent on that (docs/performance.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> Exit {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => match usage::line(
            &error,
            &Cli::command(),
            env::args_os().nth(1).as_deref().and_then(OsStr::to_str),
        ) {
            Some(line) => return fail(Exit::Usage, &line),
            None => error.exit(),
        },
    };
    match runtime() {
        Ok(runtime) => {
            let exit = runtime.block_on(run(cli.command));
            // Does not wait for a name that is still being resolved.
            runtime.shutdown_background();
            exit
        }
        Err(error) => fail(Exit::TryAgain, &format!("can't start: {error}")),
    }
}

async fn run(command: Command) -> Exit {
    match command {
        Command::Serve(args) => serve(*args).await,
        Command::Sandbox(args) => sandbox(args).await,
        Command::Add(args) => cli::add::run(args).await,
        Command::Invitations(command) => cli::invitations::run(command).await,
        Command::Ledger(args) => cli::ledger::run(args),
        Command::Healthcheck(args) => cli::healthcheck::run(args).await,
    }
}

async fn serve(args: ServeArgs) -> Exit {
    let config = match Config::try_from(args) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Usage, &error.to_string()),
    };
    telemetry::init(config.args.log.log_format);
    let shutdown = match shutdown::on_signal() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
    };
    if let Err(error) = metrics::install() {
        return fail(Exit::TryAgain, &format!("can't record metrics: {error}"));
    }
    match app::run(config, shutdown).await {
        Ok(()) => Exit::Ok,
        Err(error) if error.is_of_a_setting() => fail(Exit::Usage, &error.to_string()),
        Err(error) => fail(Exit::TryAgain, &error.to_string()),
    }
}

async fn sandbox(args: cli::sandbox::SandboxArgs) -> Exit {
    let shutdown = match shutdown::on_signal() {
        Ok(shutdown) => shutdown,
        Err(error) => return fail(Exit::TryAgain, &format!("can't handle signals: {error}")),
    };
    match cli::sandbox::run(args, shutdown).await {
        Ok(()) => Exit::Ok,
        Err(error) => fail(Exit::TryAgain, &error.to_string()),
    }
}

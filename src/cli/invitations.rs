//! `invitations`: what a running gateway knows of keys, and settling those in doubt.

use std::io::{self, Write as _};

use clap::{Args, Subcommand, ValueEnum};
use tonic::Status;

use super::{
    Exit,
    client::{Client, ClientArgs, Output, invitation_json, last_error, report, state_name, time_text, wrong},
    output::say,
};
use crate::{
    grpc::code_name,
    proto::{
        GetInvitationRequest, Invitation, InvitationState, ListInvitationsRequest, Resolution, ResolveInvitationRequest,
    },
};

/// Look at invitations in a running gateway's ledger, and settle those in doubt.
///
/// Exit codes: 0 done; 1 not done now, the same command again may help; 2 wrong flags; 3 refused: no such key, or not in
/// doubt.
#[derive(Subcommand, Clone, Debug)]
pub enum InvitationsCommand {
    /// List them by collector, then crk.
    List(ListArgs),
    /// Show one.
    Get(GetArgs),
    /// Settle one that is in doubt, once you have looked it up in SurveyLab.
    Resolve(ResolveArgs),
}

#[derive(Args, Clone, Debug)]
pub struct ListArgs {
    /// Only this collector.
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub collector: String,

    /// Only this state.
    #[arg(long, value_enum)]
    pub state: Option<StateName>,

    /// At most so many; without it, all of them.
    #[arg(long, value_name = "COUNT")]
    pub limit: Option<usize>,

    /// Print JSON, one line each.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Args, Clone, Debug)]
pub struct GetArgs {
    /// SurveyLab's collector id (cId).
    #[arg(long, value_name = "ID")]
    pub collector: String,

    /// The invitation's response key.
    #[arg(long, value_name = "KEY")]
    pub crk: String,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub client: ClientArgs,
}

#[derive(Args, Clone, Debug)]
pub struct ResolveArgs {
    #[command(flatten)]
    pub get: GetArgs,

    /// What you found in SurveyLab: the respondent is there (the key becomes added), or is not (it may be used again).
    #[arg(long = "as", value_enum, value_name = "RESOLUTION")]
    pub resolution: ResolutionName,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum StateName {
    Pending,
    Added,
    Failed,
    InDoubt,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum ResolutionName {
    Added,
    NotAdded,
}

/// Asks, and prints the answer.
pub async fn run(command: InvitationsCommand) -> Exit {
    let client = match &command {
        InvitationsCommand::List(args) => args.client.open(),
        InvitationsCommand::Get(args) => args.client.open(),
        InvitationsCommand::Resolve(args) => args.get.client.open(),
    };
    let client = match client {
        Ok(client) => client,
        Err(error) => return wrong(&error),
    };
    match command {
        InvitationsCommand::List(args) => {
            let output = Output::from_flag(args.json);
            match list(&client, args, output).await {
                Ok(()) => Exit::Ok,
                Err(error) => report(&error, output),
            }
        }
        InvitationsCommand::Get(args) => {
            let output = Output::from_flag(args.json);
            show(get(&client, args).await, output)
        }
        InvitationsCommand::Resolve(args) => {
            let output = Output::from_flag(args.get.json);
            show(resolve(&client, args).await, output)
        }
    }
}

async fn list(client: &Client, args: ListArgs, output: Output) -> Result<(), Status> {
    let state = match args.state {
        None => InvitationState::Unspecified,
        Some(StateName::Pending) => InvitationState::Pending,
        Some(StateName::Added) => InvitationState::Added,
        Some(StateName::Failed) => InvitationState::Failed,
        Some(StateName::InDoubt) => InvitationState::InDoubt,
    };
    let mut invitations = client.invitations().await?;
    let mut left = args.limit.unwrap_or(usize::MAX);
    let mut page_token = String::new();
    let mut shown = 0;
    while left > 0 {
        let request = ListInvitationsRequest {
            collector_id: args.collector.clone(),
            state: state.into(),
            page_size: i32::try_from(left.min(1000)).unwrap_or(1000),
            page_token,
        };
        let page = invitations
            .list_invitations(client.request(request))
            .await?
            .into_inner();
        left = left.saturating_sub(page.invitations.len());
        if print_page(&page.invitations, shown == 0, output).is_err() {
            // Whoever read the list has seen enough.
            return Ok(());
        }
        shown += page.invitations.len();
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    if shown == 0 && output == Output::Human {
        say(format_args!("none"));
    }
    Ok(())
}

async fn get(client: &Client, args: GetArgs) -> Result<Invitation, Status> {
    let mut invitations = client.invitations().await?;
    let request = client.request(GetInvitationRequest {
        collector_id: args.collector,
        crk: args.crk,
    });
    Ok(invitations.get_invitation(request).await?.into_inner())
}

async fn resolve(client: &Client, args: ResolveArgs) -> Result<Invitation, Status> {
    let ResolveArgs { get: args, resolution } = args;
    let resolution = match resolution {
        ResolutionName::Added => Resolution::Added,
        ResolutionName::NotAdded => Resolution::NotAdded,
    };
    let mut invitations = client.invitations().await?;
    let request = client.request(ResolveInvitationRequest {
        collector_id: args.collector,
        crk: args.crk,
        resolution: resolution.into(),
    });
    Ok(invitations.resolve_invitation(request).await?.into_inner())
}

fn print_page(page: &[Invitation], first: bool, output: Output) -> io::Result<()> {
    let mut out = io::stdout().lock();
    for (index, invitation) in page.iter().enumerate() {
        match output {
            Output::Json => writeln!(out, "{}", invitation_json(invitation))?,
            Output::Human => {
                if first && index == 0 {
                    writeln!(
                        out,
                        "{}",
                        row(["COLLECTOR", "CRK", "STATE", "ATTEMPTS", "UPDATED", "LAST ERROR"])
                    )?;
                }
                let error = last_error(invitation).map_or_else(String::new, |error| reason(&error));
                writeln!(
                    out,
                    "{}",
                    row([
                        &invitation.collector_id,
                        &invitation.crk,
                        state_name(invitation),
                        &invitation.attempts.to_string(),
                        &time_text(invitation.updated_at).unwrap_or_default(),
                        &error,
                    ])
                )?;
            }
        }
    }
    Ok(())
}

fn row([collector, crk, state, attempts, updated, error]: [&str; 6]) -> String {
    let row = format!("{collector:<20}  {crk:<24}  {state:<8}  {attempts:>8}  {updated:<24}  {error}");
    row.trim_end().to_string()
}

fn show(invitation: Result<Invitation, Status>, output: Output) -> Exit {
    let invitation = match invitation {
        Ok(invitation) => invitation,
        Err(error) => return report(&error, output),
    };
    if output == Output::Json {
        say(format_args!("{}", invitation_json(&invitation)));
        return Exit::Ok;
    }
    let line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            say(format_args!("{name:<11} {value}"));
        }
    };
    line("collector", Some(invitation.collector_id.clone()));
    line("crk", Some(invitation.crk.clone()));
    line("state", Some(state_name(&invitation).into()));
    line("attempts", Some(invitation.attempts.to_string()));
    line("created", time_text(invitation.created_at));
    line("updated", time_text(invitation.updated_at));
    line("added", time_text(invitation.added_at));
    line("last error", last_error(&invitation).map(|error| reason(&error)));
    Exit::Ok
}

fn reason(error: &Status) -> String {
    use tonic_types::StatusExt as _;
    let Some(info) = error.get_details_error_info() else {
        return code_name(error.code()).into();
    };
    match info.metadata.get("http_status") {
        Some(status) => format!("{} (HTTP {status})", info.reason),
        None => info.reason,
    }
}

//! `add`: one respondent, through a running gateway.

use clap::Args;
use serde_json::json;

use super::{
    Exit,
    client::{ClientArgs, Output, report, time_text, wrong},
    field::Field,
    output::{fail, say},
};
use crate::proto::{AddRespondentRequest, AddRespondentResponse, Outcome};

/// Add one respondent through a running gateway.
///
/// Exit codes: 0 added, or added before; 1 not done now, the same command again is safe and may help; 2 wrong flags;
/// 3 refused; 4 in doubt: look it up in SurveyLab, then `invitations resolve` or --resend-in-doubt.
#[derive(Args, Clone, Debug)]
pub struct AddArgs {
    /// SurveyLab's collector id (cId).
    #[arg(long, value_name = "ID")]
    pub collector: String,

    /// The respondent's e-mail address.
    #[arg(long, value_name = "ADDRESS")]
    pub email: String,

    /// Response key, unique for each invitation of a collector: the idempotency key.
    #[arg(long, value_name = "KEY")]
    pub crk: String,

    /// Any data; shown in the survey's reports.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    pub referrer: String,

    /// Survey language, such as en or pt-BR.
    #[arg(long, value_name = "CODE", default_value = "", hide_default_value = true)]
    pub language: String,

    /// The respondent's phone number.
    #[arg(long, value_name = "NUMBER", default_value = "", hide_default_value = true)]
    pub phone: String,

    /// The respondent's first name.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub first_name: String,

    /// The respondent's last name.
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    pub last_name: String,

    /// One of the eight custom fields, such as --custom 3=gold; may be given several times.
    #[arg(long = "custom", value_name = "N=TEXT", value_parser = custom)]
    pub custom: Vec<(Field, String)>,

    /// Send again although an earlier attempt may have reached SurveyLab.
    #[arg(long)]
    pub resend_in_doubt: bool,

    /// Check the input and the ledger, and send nothing.
    #[arg(long)]
    pub validate_only: bool,

    /// Print JSON.
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub client: ClientArgs,
}

fn custom(text: &str) -> Result<(Field, String), &'static str> {
    let wrong = "expected N=TEXT with N from 1 to 8";
    let (number, value) = text.split_once('=').ok_or(wrong)?;
    let index = number.parse::<usize>().ok().and_then(|number| number.checked_sub(1));
    let field = index.and_then(|index| Field::CUSTOM.get(index)).ok_or(wrong)?;
    Ok((*field, value.to_string()))
}

/// Makes the call, and prints what came of it.
pub async fn run(args: AddArgs) -> Exit {
    let output = Output::from_flag(args.json);
    let client = match args.client.open() {
        Ok(client) => client,
        Err(error) => return wrong(&error),
    };
    let mut fields: Vec<Field> = args.custom.iter().map(|(field, _)| *field).collect();
    fields.sort_unstable();
    if !fields.is_sorted_by(|a, b| a < b) {
        return fail(Exit::Usage, "--custom: a field is given twice");
    }
    let answer = async {
        let mut invitations = client.invitations().await?;
        invitations.add_respondent(client.request(request(args))).await
    };
    match answer.await {
        Ok(response) => {
            print(&response.into_inner(), output);
            Exit::Ok
        }
        Err(error) => report(&error, output),
    }
}

fn request(args: AddArgs) -> AddRespondentRequest {
    let mut request = AddRespondentRequest {
        collector_id: args.collector,
        email: args.email,
        crk: args.crk,
        referrer: args.referrer,
        language: args.language,
        phone: args.phone,
        first_name: args.first_name,
        last_name: args.last_name,
        resend_in_doubt: args.resend_in_doubt,
        validate_only: args.validate_only,
        ..Default::default()
    };
    for (field, value) in args.custom {
        *field.get_mut(&mut request) = value;
    }
    request
}

fn print(response: &AddRespondentResponse, output: Output) {
    let added_at = time_text(response.added_at);
    if output == Output::Json {
        let mut value = json!({ "crk": response.crk, "outcome": response.outcome().as_str_name() });
        if added_at.is_some() {
            value["addedAt"] = json!(added_at);
            value["notification"] = json!(response.notification);
            value["attempts"] = json!(response.attempts);
        }
        say(format_args!("{value}"));
        return;
    }
    let crk = &response.crk;
    let at = added_at.unwrap_or_default();
    match response.outcome() {
        Outcome::Added => say(format_args!(
            "added: {crk} at {at}; SurveyLab said: {}",
            response.notification
        )),
        Outcome::Duplicate => say(format_args!("duplicate: {crk} was added at {at}; nothing was sent")),
        Outcome::WouldAdd => say(format_args!("would add: {crk}; nothing was sent")),
        Outcome::Unspecified => say(format_args!("answered: {crk}")),
    }
}

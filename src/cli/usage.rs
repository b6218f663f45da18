//! Wrong flags and settings, told in one line that names them.

use std::fmt::Write as _;

use clap::{
    Command, Error,
    error::{ContextKind, ContextValue, ErrorKind},
};

/// The line for an error of clap's, or `None` if what it prints is wanted as it is (help, version).
pub fn line(error: &Error, command: &Command, subcommand: Option<&str>) -> Option<String> {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand
        | ErrorKind::MissingSubcommand => return None,
        ErrorKind::UnknownArgument => {
            if let Some(name) = name_in_front(error, ContextKind::InvalidArg) {
                return Some(format!("unexpected argument '{name}' found"));
            }
        }
        ErrorKind::InvalidSubcommand => {
            if let Some(name) = name_in_front(error, ContextKind::InvalidSubcommand) {
                return Some(format!("unrecognized subcommand '{name}'"));
            }
        }
        _ => {}
    }
    let text = error.to_string();
    let text = text.split("\n\n").next().unwrap_or_default();
    let mut line = text
        .lines()
        .map(|line| line.trim().trim_start_matches("error: "))
        .collect::<Vec<_>>()
        .join(" ");

    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return Some(line);
    };
    let name = flag
        .split([' ', '='])
        .next()
        .unwrap_or_default()
        .trim_start_matches("--");
    let arg = subcommand
        .and_then(|subcommand| command.find_subcommand(subcommand))
        .and_then(|command| {
            command
                .get_arguments()
                .find(|arg| arg.get_long() == Some(name) || (arg.is_positional() && arg.to_string() == *flag))
        });
    let Some(arg) = arg else { return Some(line) };
    if arg.is_hide_env_values_set() {
        // The value may hold a password.
        let why = std::error::Error::source(error).map_or_else(String::new, |why| format!(": {why}"));
        line = format!("invalid value for '{flag}'{why}");
    }
    if let Some(variable) = arg.get_env() {
        let _infallible = write!(line, " (in the environment: {})", variable.to_string_lossy());
    }
    Some(line)
}

/// The name in `name=value`: behind `--` a flag is an argument like any other, and its value may hold a password. Of a URL
/// the scheme, as it may hold one, too.
fn name_in_front(error: &Error, kind: ContextKind) -> Option<String> {
    let Some(ContextValue::String(argument)) = error.get(kind) else {
        return None;
    };
    let (name, _) = argument.split_once('=').unwrap_or((argument, ""));
    let name = match name.split_once("://") {
        Some((scheme, _)) => format!("{scheme}://…"),
        None if name.len() == argument.len() => return None,
        None => name.into(),
    };
    Some(name.escape_debug().to_string())
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn a_flag_behind_two_dashes_does_not_show_its_value() {
        for (arguments, wanted) in [
            (
                &["serve", "--", "--surveylab-url=https://host/?apiToken=s3cret"][..],
                "unexpected argument '--surveylab-url' found",
            ),
            (
                &["sandbox", "--", "--ledger=postgres://user:s3cret@host/db"],
                "unexpected argument '--ledger' found",
            ),
            (
                &["serve", "postgres://user:s3cret@host/db?sslmode=require"],
                "unexpected argument 'postgres://…' found",
            ),
            (
                &["migrate-ledger", "sqlite:a.db", "postgres:user:s3cret@host"],
                "invalid value for '<POSTGRES>': the URL does not begin with postgres:// (in the environment: GATEWAY_LEDGER)",
            ),
            (
                &["migrate-ledger", "postgres://user:s3cret@host/db", "sqlite:a.db"],
                "invalid value for '<SQLITE>': expected sqlite:PATH",
            ),
        ] {
            let error = Cli::try_parse_from([&["surveylab-gateway"], arguments].concat()).unwrap_err();
            let line = line(&error, &Cli::command(), arguments.first().copied());
            assert_eq!(line.as_deref(), Some(wanted));
        }
    }
}

//! What an import says at its end, and the list of what failed.

use std::{collections::HashSet, path::Path};

use super::{
    Failure, ImportArgs, Sent,
    list::{self, List},
    results::{AskAgain, Outcome, Results},
    send::Ended,
};
use crate::{
    cli::{
        Exit,
        figures::{grouped, rate, time_left},
        new_file::{Existing, NewFile},
        output::{complain, fail, say},
    },
    proto::GetStatusRequest,
};

/// The last lines of an import, for a person.
pub(super) fn tell(sent: &Sent, total: Option<u64>, results: Option<&Path>) {
    let Sent { ended, tally, .. } = sent;
    let of_all = total.map(|total| format!(" of {}", grouped(total))).unwrap_or_default();
    say(format_args!(
        "{}{of_all} rows have a result: {} added, {} duplicate, {} failed, {} in doubt",
        grouped(tally.all()),
        grouped(tally.added),
        grouped(tally.duplicate),
        grouped(tally.failed),
        grouped(tally.in_doubt)
    ));
    for (outcome, name) in [(Outcome::Failed, "failed"), (Outcome::InDoubt, "in doubt")] {
        for (reason, count) in tally.reasons(outcome) {
            say(format_args!("  {} {name}: {reason}", grouped(count)));
        }
    }
    if let Some(results) = results {
        say(format_args!("results: {}", results.display()));
    }
    if tally.in_doubt > 0 {
        say(format_args!(
            "in doubt: look each up in SurveyLab, then `surveylab-gateway invitations resolve`, and run this again with \
             --retry-in-doubt"
        ));
    }
    match ended {
        Ended::Done => {}
        Ended::Interrupted => complain(format_args!("interrupted: the same command goes on from here")),
        Ended::Stopped(why) => complain(format_args!(
            "surveylab-gateway: not finished: {why}\nThe same command goes on from here"
        )),
    }
}

/// What a dry run found out, and for how long the list would take.
pub(super) async fn tell_of_dry_run(args: &ImportArgs, sent: &Sent) -> Exit {
    let Sent {
        ended,
        tally,
        would_add,
    } = sent;
    let would_add = *would_add;
    say(format_args!(
        "{} would be added, {} are duplicates, {} in doubt, {} would fail; nothing was sent",
        grouped(would_add),
        grouped(tally.duplicate),
        grouped(tally.in_doubt),
        grouped(tally.failed)
    ));
    for (reason, count) in tally.reasons(Outcome::Failed) {
        say(format_args!("  {} would fail: {reason}", grouped(count)));
    }
    if let Ended::Interrupted | Ended::Stopped(_) = ended {
        let why = match ended {
            Ended::Stopped(why) => why.as_str(),
            _ => "interrupted",
        };
        return fail(Exit::TryAgain, &format!("not finished: {why}"));
    }
    // An older gateway does not tell its rate.
    if would_add > 0
        && let Ok(client) = args.client.open()
        && let Ok(mut gateway) = client.invitations().await
        && let Ok(status) = gateway.get_status(client.request(GetStatusRequest {})).await
    {
        let learned = status.into_inner().learned_rate;
        if learned > 0.0 {
            say(format_args!(
                "that takes {} at {}/s, if nobody else uses the rate",
                time_left(would_add, learned),
                rate(learned)
            ));
        }
    }
    tally.exit()
}

/// Writes the rows that failed into a file of their own, and says so.
pub(super) fn write_failed(mut list: List, results: &Path, path: &Path) -> Result<String, Failure> {
    let again = AskAgain {
        failed: false,
        in_doubt: false,
    };
    let (_kept, earlier) = Results::open(results, again)?;
    let failed: HashSet<u64> = earlier.failed().collect();
    if failed.is_empty() {
        return Ok("no row failed: --failed was not written".into());
    }
    let wrong = |error: &dyn std::fmt::Display| Failure::try_again(format!("--failed: {error}"));
    let file = NewFile::create(path, Existing::Replace).map_err(|error| wrong(&error))?;
    let rows = list::copy_rows(&mut list, |line| failed.contains(&line), file.file()).map_err(|error| wrong(&error))?;
    file.publish().map_err(|error| wrong(&error))?;
    Ok(format!("{} rows that failed: {}", grouped(rows), path.display()))
}

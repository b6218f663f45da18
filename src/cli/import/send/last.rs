//! What became of rows that may be on the wire when the import ends early.

use std::{mem, time::Duration};

use tokio::{
    sync::mpsc,
    time::{Instant, timeout_at},
};
use tonic::Status;

use super::{Item, Sending, WINDOW, stream::open};
use crate::cli::import::answer::{self, Answer};

/// For what is on the wire when the import is interrupted: longer than the gateway waits for SurveyLab by default.
const LAST_ANSWERS: Duration = Duration::from_secs(60);

impl Sending<'_> {
    /// The stream is closed, which withdraws what waited in the gateway; what was on the wire goes its way. Asks what became of
    /// it, sending nothing: the gateway answers for such a key once its outcome is known.
    pub(super) async fn ask_for_the_last(&mut self) {
        let mut last: Vec<Item> = mem::take(&mut self.under_way).into_values().collect();
        if last.is_empty() {
            return;
        }
        self.stop = None;
        self.progress.note(&format!(
            "waiting for what may be on the wire, {} at most; Ctrl-C again ends at once",
            humantime::format_duration(LAST_ANSWERS)
        ));
        let end = Instant::now() + LAST_ANSWERS;
        for item in &mut last {
            item.request.validate_only = true;
        }
        let ask = async {
            let (requests, taken) = mpsc::channel(WINDOW);
            // The same connection, if it is still there: on it the gateway learns of the stream's end before this.
            let (_, mut answers) = open(self.setup.client, self.channel.take(), taken).await?;
            for item in &last {
                // As many as the channel holds; an error is told by the answers.
                let _ended = requests.send(item.request.clone()).await;
            }
            drop(requests);
            while let Some(answer) = answers.message().await? {
                let item = usize::try_from(answer.sequence).ok().and_then(|at| last.get(at));
                if let Some(item) = item
                    && let Some(Answer::Final(record)) = answer::read(item.line, answer)
                {
                    self.finish(record).await;
                }
            }
            Ok::<_, Status>(())
        };
        // Without an answer a row has no result, and the next run asks for it.
        let _unanswered = timeout_at(end, ask).await;
    }
}

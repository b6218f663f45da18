use super::*;

impl Postgres {
    /// Ends as the process would: whatever is under way stays as it is. Returns when nothing of it runs any more.
    pub(in crate::ledger) async fn die(self) {
        let (work, tasks) = (self.work.clone(), self.tasks.clone());
        drop(self);
        for tracker in [work, tasks] {
            tracker.close();
            tracker.wait().await;
        }
    }
}

//! Tells systemd how it stands, where that is who started the process: a unit with `Type=notify` counts as started only
//! once the ports are open, and the ledger with them.

use sd_notify::NotifyState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It listens.
    Ready,
    /// It drains.
    Stopping,
}

/// Tells; without systemd (no `NOTIFY_SOCKET`) it does nothing.
pub fn tell(state: State) {
    let state = match state {
        State::Ready => NotifyState::Ready,
        State::Stopping => NotifyState::Stopping,
    };
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd can't be told how the gateway stands");
    }
}

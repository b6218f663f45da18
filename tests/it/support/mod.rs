//! What the tests share: a gateway process, its SurveyLab, and short ways to call and to read answers.

pub mod call;
pub mod certificates;
pub mod collector;
pub mod deadline;
pub mod gateway;
pub mod lateness;
#[allow(dead_code, reason = "shared with the unit tests, which use other parts of it")]
pub mod postgres;
pub mod process;
pub mod relay;
pub mod shim;
pub mod watch;

pub use call::{Error, added, adding, calling, request, status_error};
pub use gateway::{Gateway, Options, holding};

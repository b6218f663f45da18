//! What the benchmarks of whole processes share: a SurveyLab as cheap as can be, and a load that checks every answer.

pub mod load;
pub mod place;
pub mod process;
pub mod stub;

//! `import`: a whole list, through a running gateway.

pub mod list;

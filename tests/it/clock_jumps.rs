//! The wall clock set back and forth under load.

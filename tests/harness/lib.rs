//! What the scenarios share: whole systems that start, answer and end with the test.
//!
//! [`real`] starts the real binaries against a real engine and registry.

pub mod real;

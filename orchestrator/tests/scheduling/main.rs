//! The way of a promotion from request to end, with the store on SQLite and agents that are played by the tests: one module per
//! group of rules.

mod cancel;
mod lanes;
mod releases;
mod restart;
mod waves;
mod world;

//! The operator API over the real port and the admin socket, with SQLite in a folder of its own.

mod authorization;
mod inventory;
mod process;
mod support;

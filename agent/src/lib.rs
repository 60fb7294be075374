//! The agent of Sealift: carries out signed orders on its host and proves what it did.
//!
//! Above: [`session`] talks to the orchestrator, [`identity`] says who the agent is. Below: [`workshop`] takes orders, [`runner`]
//! carries one out, [`step`] decides what comes next, [`host`] does it, [`journal`] and [`outbox`] remember.

pub mod agent;
pub mod assignments;
pub mod backoff;
pub mod bindings;
pub mod causes;
pub mod clock_offset;
pub mod compose;
pub mod config;
pub mod connect;
pub mod credentials;
pub mod doctor;
pub mod enrol;
pub mod facts;
pub mod files;
pub mod hanging;
pub mod health;
pub mod host;
pub mod identity;
pub mod journal;
pub mod kill;
pub mod labels;
pub mod logs;
pub mod observe;
pub mod outbox;
pub mod policy;
pub mod program;
pub mod proof;
pub mod prune;
pub mod purge;
pub mod runner;
#[cfg(test)]
mod samples;
pub mod session;
pub mod step;
pub mod stickers;
pub mod work;
pub mod workshop;

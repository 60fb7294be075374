//! The domain of Sealift: words, states, decisions and formats as pure functions over data.
//!
//! Nothing here does I/O, reads a clock or draws random numbers; nothing here knows gRPC, SQL or the Docker API. The words are
//! those of the product page: one meaning each.

pub mod agent_manifest;
pub mod any_manifest;
pub mod audit;
pub mod bounds;
pub mod canonical;
pub mod compose;
pub mod compose_manifest;
pub mod condition;
pub mod decision;
pub mod digest;
pub mod drift;
pub mod dsse;
pub mod error;
pub mod evidence;
pub mod external;
pub mod failure;
pub mod gate_reason;
pub mod gates;
pub mod hook;
pub mod id;
pub mod inventory;
pub mod job;
pub mod join_token;
pub mod keys;
pub mod lane;
pub mod maintenance;
pub mod manifest;
pub mod name;
pub mod observation;
pub mod order;
pub mod outcome;
pub mod phases;
pub mod plan;
pub mod program;
pub mod promotion;
pub mod recipe;
pub mod release;
pub mod remedy;
pub mod role;
pub mod rollback;
pub mod rollout;
pub mod spiffe;
pub mod sticker;
pub mod strategy;
pub mod swap;
pub mod task;
pub mod time;
pub mod trust;
pub mod variables;

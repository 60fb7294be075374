//! Where wire meets domain: total conversions, one file per aggregate. Decoding checks and names the field at fault; encoding
//! cannot fail.

pub mod decision;
pub mod external;
pub mod failure;
pub mod job;
pub mod lane;
pub mod plan;
pub mod promotion;
pub mod recipe;
pub mod release;
pub mod remediation;
pub mod state;
pub mod time;
pub mod transition;

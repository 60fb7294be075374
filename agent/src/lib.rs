//! The agent of Sealift: carries out signed orders on its host and proves what it did.

pub mod assignments;
pub mod backoff;
pub mod identity;
pub mod session;
pub mod work;

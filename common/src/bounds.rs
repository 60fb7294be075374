//! Every bound on input in one place: sizes in bytes, counts in items. The edges (gRPC, files) check against these.

/// Largest message that either end of a gRPC connection accepts or sends.
pub const MESSAGE_BYTES: usize = 4 * 1024 * 1024;
/// Largest program of an agent.
pub const PROGRAM_BYTES: u64 = 512 * 1024 * 1024;
/// Largest compose manifest.
pub const MANIFEST_BYTES: usize = 1024 * 1024;
/// Most services in one release.
pub const SERVICES: usize = 64;
/// Most entries in any one list or map of a service (environment, ports, labels ...).
pub const SERVICE_ENTRIES: usize = 512;
/// Longest single text inside a manifest (an environment value, a command argument).
pub const MANIFEST_TEXT_BYTES: usize = 64 * 1024;
/// Most variables of an environment.
pub const VARIABLES: usize = 256;
/// Longest value of a variable.
pub const VARIABLE_BYTES: usize = 4 * 1024;
/// Most platforms that one image may be built for.
pub const PLATFORMS: usize = 64;
/// Most hooks of a release.
pub const HOOKS: usize = 16;
/// Most log bytes kept of one hook, so that one that talks much leaves room for the others and the services.
pub const HOOK_LOG_BYTES: usize = 128 * 1024;
/// Most profiles of a release for compose hosts.
pub const PROFILES: usize = 32;
/// Most targets in one environment that one job may address.
pub const TARGETS_PER_JOB: usize = 10_000;
/// Most labels on a target.
pub const LABELS: usize = 64;
/// Longest label value.
pub const LABEL_VALUE_BYTES: usize = 256;
/// Longest free text (comment, reason, summary, display name).
pub const TEXT_BYTES: usize = 1024;
/// Default and largest page of a list.
pub const PAGE_DEFAULT: u32 = 50;
/// Largest page of a list; a larger wish is lowered to it.
pub const PAGE_MAX: u32 = 500;
/// Largest signed envelope (order, evidence packet) in bytes.
pub const ENVELOPE_BYTES: usize = 2 * 1024 * 1024;
/// Most containers in one observation of a target.
pub const OBSERVED_CONTAINERS: usize = 512;
/// Most events of the engine in one observation of a target; of more, the newest are kept.
pub const OBSERVED_EVENTS: usize = 32;
/// Most log bytes kept of one attempt, [`LOG_LINE_OVERHEAD`] for each line among them; what is over is marked as truncated.
pub const ATTEMPT_LOG_BYTES: usize = 1024 * 1024;
/// What each line of a log counts for beside its text, so that empty lines are not free.
pub const LOG_LINE_OVERHEAD: usize = 64;
/// Longest line of a log.
pub const LOG_LINE_BYTES: usize = 8 * 1024;
/// Most reports in one batch from an agent.
pub const REPORT_BATCH: usize = 256;
/// Most acts of remediation for one project on one target within a day.
pub const REMEDY_TRIES: u32 = 10;
/// Most attempts that a task may have.
pub const ATTEMPTS: u32 = 10;
/// Allowances that a packet names.
pub const ALLOWANCES: usize = 256;
/// Bytes of what one allowance is about.
pub const ALLOWANCE_BYTES: usize = 256;

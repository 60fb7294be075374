//! The wire contract of Sealift: generated messages and services, and the descriptors that reflection serves.
//!
//! Domain code never sees these types: the `convert` modules are where wire meets domain.

pub mod convert;

/// What operators and CI systems call.
#[expect(
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes,
    reason = "generated code"
)]
pub mod v1 {
    tonic::include_proto!("sealift.v1");
    include!(concat!(env!("OUT_DIR"), "/sealift.v1.serde.rs"));
}

/// What agents call.
pub mod agent {
    /// Version 1.
    #[expect(
        clippy::all,
        clippy::pedantic,
        clippy::allow_attributes,
        reason = "generated code"
    )]
    pub mod v1 {
        tonic::include_proto!("sealift.agent.v1");
        include!(concat!(env!("OUT_DIR"), "/sealift.agent.v1.serde.rs"));
    }
}

/// The encoded `FileDescriptorSet` of all protos, for reflection and for the tests that walk it.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

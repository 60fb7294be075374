//! Compiles the protos without a system protoc: protox reads them, tonic-prost-build writes the services, pbjson the JSON forms.

use std::{env, error::Error, fs, path::PathBuf};

use prost::Message as _;

const FILES: &[&str] = &[
    "sealift/agent/v1/gateway.proto",
    "sealift/v1/agent.proto",
    "sealift/v1/audit.proto",
    "sealift/v1/common.proto",
    "sealift/v1/component.proto",
    "sealift/v1/drift.proto",
    "sealift/v1/environment.proto",
    "sealift/v1/evidence.proto",
    "sealift/v1/hold.proto",
    "sealift/v1/job.proto",
    "sealift/v1/maintenance.proto",
    "sealift/v1/promotion.proto",
    "sealift/v1/recipe.proto",
    "sealift/v1/release.proto",
    "sealift/v1/rollback.proto",
    "sealift/v1/server.proto",
    "sealift/v1/state.proto",
    "sealift/v1/status.proto",
    "sealift/v1/target.proto",
    "sealift/v1/user.proto",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=sealift");
    let descriptors = protox::compile(FILES, ["."])?;
    let bytes = descriptors.encode_to_vec();
    fs::write(
        PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"),
        &bytes,
    )?;

    tonic_prost_build::configure()
        .compile_well_known_types(true)
        .extern_path(".google.protobuf", "::pbjson_types")
        .compile_fds(descriptors)?;
    pbjson_build::Builder::new()
        .register_descriptors(&bytes)?
        .build(&[".sealift"])?;
    Ok(())
}

//! Rebuilds the crate when a migration is added: the embedded folder is not a source file that Cargo watches.

fn main() {
    println!("cargo:rerun-if-changed=../../migrations");
}

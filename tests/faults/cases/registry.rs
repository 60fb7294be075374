//! F6: the registry is down, hangs, breaks off, lies, or is slow while an image is pulled. Nothing may be touched before the pull
//! has ended well.

use std::net::ToSocketAddrs as _;

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::real::{compose, image};

use crate::{
    proxy::{Deed, Peer, Proxy},
    stage::{Stage, TARGET},
};

/// A registry's name for what an order pins.
const BY_DIGEST: &str = "/manifests/sha256:";

/// An image's reference at another registry.
fn at(reference: &str, port: u16) -> Result<String> {
    let (_, path) = reference.split_once('/').context("a reference has a registry")?;
    Ok(format!("127.0.0.1:{port}/{path}"))
}

/// A registry in front of the real one.
async fn registry(reference: &str) -> Result<Proxy> {
    let (real, _) = reference.split_once('/').context("a reference has a registry")?;
    let real = real
        .to_socket_addrs()?
        .next()
        .context("the registry has an address")?;
    Proxy::tcp(Peer::Tcp(real)).await
}

/// Pulls fail; the old set is never stopped.
pub async fn fails_in_a_pull(stage: &mut Stage) -> Result<()> {
    let old = stage.release("OK_1").await?;
    stage.join().await?;
    stage.deploy(old).await?;
    let reference = image("OK_2")?;
    let wrongs = [
        ("down", None, &["REGISTRY_UNAVAILABLE"][..]),
        (
            "status 500",
            Some(Deed::Status(500)),
            &["REGISTRY_UNAVAILABLE", "REGISTRY_MISBEHAVED", "ENGINE_ERROR"],
        ),
        ("status 401", Some(Deed::Status(401)), &["REGISTRY_DENIED"]),
        (
            "breaks off",
            Some(Deed::Cut(30)),
            &["REGISTRY_UNAVAILABLE", "REGISTRY_MISBEHAVED"],
        ),
        ("lies", Some(Deed::Flip), &["DIGEST_MISMATCH"]),
        (
            "hangs",
            Some(Deed::Silence),
            &["REGISTRY_UNAVAILABLE", "ENGINE_TIMEOUT"],
        ),
    ];
    for (name, deed, codes) in wrongs {
        let proxy = registry(&reference).await?;
        let new = stage.release_of(&compose(&at(&reference, proxy.port)?)).await?;
        let before = stage.system.running(TARGET).await?;
        // The orchestrator has seen it; now the host pulls.
        match deed {
            Some(deed) => proxy.next(99, "GET", BY_DIGEST, deed),
            None => drop(proxy),
        }
        // One that hangs is given up when the order says so; the others answer long before.
        let deadline = if matches!(deed, Some(Deed::Silence)) {
            "4s"
        } else {
            "20s"
        };
        let promotion = stage
            .begin(new, &["--pull-deadline", deadline, "--max-attempts", "1"])
            .await?;
        let failed = stage.fails(&promotion, codes, old).await;
        failed.with_context(|| name)?;
        let after = stage.system.running(TARGET).await?;
        ensure!(before == after, "{name}: the old set was touched");
    }
    stage.note(format!("{} ways", wrongs.len()));
    Ok(())
}

/// A slow registry is waited for.
pub async fn slow(stage: &mut Stage) -> Result<()> {
    let old = stage.release("OK_1").await?;
    stage.join().await?;
    stage.deploy(old).await?;
    let reference = image("OK_2")?;
    let proxy = registry(&reference).await?;
    let new = stage.release_of(&compose(&at(&reference, proxy.port)?)).await?;
    proxy.next(99, "GET", "/v2/", Deed::Slow(4_000));
    stage.deploy(new).await?;
    ensure!(proxy.done() > 0, "nothing was pulled");
    Ok(())
}

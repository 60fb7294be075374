//! F7: disks that are full.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Result, ensure};

use crate::{
    engine::{Engine, command},
    stage::Stage,
};

/// How long an agent is left alone with a disk that is full, if it says nothing.
const FULL: Duration = Duration::from_secs(15);
/// How long it may take to go on when there is room again.
const ROOM: Duration = Duration::from_secs(20);

/// Fills a disk to the last byte.
fn fill(folder: &Path) -> Result<PathBuf> {
    let path = folder.join("filler");
    let mut file = fs::File::create(&path)?;
    let mut piece = vec![0_u8; 1024 * 1024];
    while !piece.is_empty() {
        match file.write_all(&piece) {
            Ok(()) => {}
            Err(_) => piece.truncate(piece.len() / 2),
        }
    }
    Ok(path)
}

/// The disk with the agent's state is full.
pub async fn of_the_agent(stage: &mut Stage) -> Result<()> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let folder = stage.system.folder().join("agents");
    fs::create_dir_all(&folder)?;
    let place = folder.to_string_lossy().into_owned();
    command("mount", &["-t", "tmpfs", "-o", "size=12m", "tmpfs", &place]).await?;
    stage.mounts.push(folder.clone());
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    let before = stage.system.running(crate::stage::TARGET).await?;
    let filler = fill(&folder)?;
    let promotion = stage.begin(new, &["--max-attempts", "1"]).await?;
    // Whether it says so or goes down: it does not do what it cannot write down.
    stage.over_or_stuck(&promotion, agent, FULL).await;
    let during = stage.system.running(crate::stage::TARGET).await?;
    stage.note(if before == during {
        "old set untouched"
    } else {
        "in the middle"
    });
    fs::remove_file(filler)?;
    if !stage.system.agents[agent].is_running() {
        stage.system.start_agent(agent, &[]).await?;
    }
    // An agent whose journal failed takes no more work until it is started again; others find that there is room.
    stage.over_or_stuck(&promotion, agent, ROOM).await;
    if !stage.is_over(&promotion).await? {
        stage.system.agents[agent].kill().await?;
        stage.system.start_agent(agent, &[]).await?;
    }
    stage.either(&promotion, new, old).await?;
    stage.deploy(new).await
}

/// The engine's disk is full.
pub async fn of_the_engine(stage: &mut Stage) -> Result<()> {
    let folder = stage.system.folder().join("disk");
    let file = stage.system.folder().join("disk.img");
    fs::create_dir_all(&folder)?;
    fs::File::create(&file)?.set_len(120 * 1024 * 1024)?;
    let (image, place) = (
        file.to_string_lossy().into_owned(),
        folder.to_string_lossy().into_owned(),
    );
    command("mkfs.ext4", &["-q", "-m", "0", &image]).await?;
    command("mount", &["-o", "loop", &image, &place]).await?;
    stage.mounts.push(folder.clone());
    // On a disk of its own, which the stage could not know before.
    let engine = Engine::start(Some(&folder)).await?;
    stage.system.engine = Some(engine.address());
    stage.engine = Some(engine);
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    stage.join().await?;
    stage.deploy(old).await?;
    let before = stage.system.running(crate::stage::TARGET).await?;
    let filler = fill(&folder)?;
    let promotion = stage.begin(new, &["--max-attempts", "1"]).await?;
    stage.fails(&promotion, &["DISK_FULL"], old).await?;
    ensure!(
        stage.system.running(crate::stage::TARGET).await? == before,
        "the old set was touched"
    );
    fs::remove_file(filler)?;
    stage.deploy(new).await
}

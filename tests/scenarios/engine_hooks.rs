//! Hooks with the real programs: the agent is killed in each of their phases, with `SEALIFT_TEST_FULL=1` at each of their steps; the
//! hook is taken up again or run again, and the target ends with the old or the new set, whole (F1, R10).

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::{
    phases::{self, HOOKS},
    real::{Database, System, compose, eventually, image},
};

const TARGET: &str = "staging/web-1";

fn with_hooks(web: &str, tool: &str, late: &str) -> String {
    format!(
        "{}x-sealift:\n  hooks:\n    - {{name: migrate, when: pre_deploy, image: '{tool}', command: [environment]}}\n    \
         - {{name: smoke, when: post_deploy, image: '{tool}', command: {late}}}\n",
        compose(web)
    )
}

#[tokio::test]
async fn f1_r10_killed_in_every_phase_of_a_hook_the_target_ends_whole() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    let agent = system.target(TARGET).await?;
    let (ok_1, ok_2) = (image("OK_1")?, image("OK_2")?);
    let good = "[get, 'web:8080']";
    for (number, text) in [
        (1, with_hooks(&ok_1, &ok_1, good)),
        (2, with_hooks(&ok_2, &ok_1, good)),
        (3, with_hooks(&ok_2, &ok_1, "[exit, '3']")),
    ] {
        system.release_of(&text, number).await?;
    }
    let shown = system.sealift(&["release", "get", "shop/web#1"]).await?;
    ensure!(
        shown.contains("migrate") && shown.contains("pre_deploy"),
        "{shown}"
    );
    let (code, said) = system.promote(1, "staging", &[]).await?;
    ensure!(code == 0, "the first promotion ended with {code}:\n{said}");

    let mut current = 1;
    for point in phases::chosen(HOOKS, phases::is_full()) {
        // The first passage is the pre_deploy hook's, the second the post_deploy hook's.
        for (passage, release) in [(1, 3 - current), (2, 3)] {
            let killed = crash_at(&mut system, agent, &format!("{point}:{passage}"), release).await;
            let deployed = killed.with_context(|| {
                format!(
                    "killed at {point}:{passage}; agent log:\n{}\n{}",
                    system.agents[agent].log(),
                    system.orchestrator_log()
                )
            })?;
            ensure!(deployed == (release != 3), "killed at {point}:{passage}");
            if deployed {
                current = release;
            }
            let images = system.running_images(TARGET).await?;
            let shown = system
                .json(&["release", "get", &format!("shop/web#{current}")])
                .await?;
            let wanted = shown["components"][0]["digest"]
                .as_str()
                .context("digest")?
                .to_owned();
            ensure!(
                images.len() == 1 && images[0].ends_with(&wanted),
                "killed at {point}:{passage}: {images:?} run, not {wanted}"
            );
        }
    }
    system.end().await
}

/// Promotes, sees the agent die, starts it again, and gives whether the release was deployed.
async fn crash_at(system: &mut System, agent: usize, point: &str, release: u64) -> Result<bool> {
    system.agents[agent].kill().await?;
    system
        .start_agent(agent, &[("SEALIFT_AGENT_KILL_AT", point)])
        .await?;
    let alias = format!("shop/web#{release}");
    let promotion = system
        .json(&[
            "promote",
            &alias,
            "--to",
            "staging",
            "--min-healthy",
            "500ms",
            "--healthy-deadline",
            "20s",
        ])
        .await?;
    let status = system.agents[agent].ended().await?;
    ensure!(!status.success(), "the agent ended by itself with {status}");
    system.spawn_agent(agent, &[])?;
    let id = promotion["uid"].as_str().context("uid")?.to_owned();
    eventually("the promotion ends", async || {
        let seen = system.json(&["promotion", "get", &id]).await?;
        Ok(match seen["state"].as_str() {
            Some("STATE_DEPLOYED") => Some(true),
            Some("STATE_FAILED") => Some(false),
            _ => None,
        })
    })
    .await
}

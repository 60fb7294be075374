//! What ARCHITECTURE.md and the house rules claim, checked against the tree.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

/// Which of our crates each crate may use, and which crates of others it must never see.
const BOUNDARIES: &[(&str, &[&str], &[&str])] = &[
    (
        "sealift-common",
        &[],
        &["tokio", "tonic", "prost", "sqlx", "bollard", "reqwest", "rustls"],
    ),
    ("sealift-proto", &["sealift-common"], &["sqlx", "bollard"]),
    (
        "sealift-store",
        &["sealift-common"],
        &["tonic", "prost", "bollard"],
    ),
    (
        "sealift-orchestrator",
        &["sealift-common", "sealift-proto", "sealift-store"],
        &["sqlx", "bollard"],
    ),
    ("sealift-agent", &["sealift-common", "sealift-proto"], &["sqlx"]),
    (
        "sealift-cli",
        &["sealift-common", "sealift-proto"],
        &["sqlx", "bollard"],
    ),
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn packages() -> Result<BTreeMap<String, Value>> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()?;
    ensure!(
        output.status.success(),
        "cargo metadata: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    packages
        .iter()
        .map(|package| {
            Ok((
                package["name"].as_str().context("name")?.to_owned(),
                package.clone(),
            ))
        })
        .collect()
}

/// Dependencies that reach the product: not those of tests and build scripts.
fn dependencies(package: &Value) -> BTreeSet<String> {
    let all = package["dependencies"].as_array().cloned().unwrap_or_default();
    all.iter()
        .filter(|dependency| dependency["kind"].is_null())
        .filter_map(|dependency| dependency["name"].as_str().map(str::to_owned))
        .collect()
}

fn sources() -> Result<Vec<(String, String)>> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "*.rs"])
        .current_dir(root())
        .output()?;
    ensure!(output.status.success(), "git ls-files failed");
    String::from_utf8(output.stdout)?
        .split('\0')
        .filter(|name| !name.is_empty() && root().join(name).exists())
        .map(|name| Ok((name.to_owned(), fs::read_to_string(root().join(name))?)))
        .collect()
}

#[test]
fn crates_see_only_what_they_may() -> Result<()> {
    let packages = packages()?;
    for (name, ours, forbidden) in BOUNDARIES {
        let dependencies = dependencies(packages.get(*name).with_context(|| format!("no crate {name}"))?);
        for dependency in &dependencies {
            ensure!(
                !dependency.starts_with("sealift-") || ours.contains(&dependency.as_str()),
                "{name} must not use {dependency}"
            );
            ensure!(
                !forbidden.contains(&dependency.as_str()),
                "{name} must not see {dependency}"
            );
        }
    }
    Ok(())
}

#[test]
fn every_crate_is_bounded_and_takes_the_workspace_lints() -> Result<()> {
    for (name, package) in packages()? {
        let known = name == "sealift-e2e" || BOUNDARIES.iter().any(|(known, ..)| *known == name);
        ensure!(known, "{name} is not in the table of crates");
        let manifest = package["manifest_path"].as_str().context("manifest path")?;
        let text = fs::read_to_string(manifest)?;
        ensure!(
            text.contains("[lints]\nworkspace = true"),
            "{name} does not take the workspace's lints"
        );
    }
    Ok(())
}

#[test]
fn sql_lives_in_the_store_and_the_engine_api_in_one_place() -> Result<()> {
    for (name, text) in sources()? {
        if name.starts_with("tests/") || name.contains("/tests/") {
            continue;
        }
        let names = |word: &str| {
            text.lines()
                .any(|line| !line.trim_start().starts_with("//") && line.contains(word))
        };
        ensure!(
            !names("sqlx::") || name.starts_with("orchestrator/store/"),
            "{name} uses sqlx"
        );
        ensure!(
            !names("bollard::") || name.starts_with("agent/src/host/docker"),
            "{name} uses bollard"
        );
    }
    Ok(())
}

#[test]
fn source_files_stay_readable() -> Result<()> {
    let long: Vec<_> = sources()?
        .into_iter()
        .filter(|(_, text)| text.lines().count() > 600)
        .map(|(name, _)| name)
        .collect();
    ensure!(
        long.is_empty(),
        "over 600 lines, so more than one concern: {long:?}"
    );
    Ok(())
}

/// Every path in backticks that begins with one of our folders, `{a,b}` meaning both.
fn paths_in(text: &str) -> BTreeSet<String> {
    const FOLDERS: [&str; 11] = [
        "agent/",
        "cli/",
        "common/",
        "deploy/",
        "docs/",
        "migrations/",
        "orchestrator/",
        "proto/",
        "tests/",
        ".ci/",
        ".config/",
    ];
    text.split('`')
        .skip(1)
        .step_by(2)
        .filter(|path| {
            FOLDERS.iter().any(|folder| path.starts_with(folder)) && !path.contains([' ', '*', '<'])
        })
        .flat_map(expand)
        .collect()
}

fn expand(path: &str) -> Vec<String> {
    let Some((head, rest)) = path.split_once('{') else {
        return vec![path.to_owned()];
    };
    let Some((choices, tail)) = rest.split_once('}') else {
        return vec![path.to_owned()];
    };
    choices
        .split(',')
        .flat_map(|choice| expand(&format!("{head}{choice}{tail}")))
        .collect()
}

#[test]
fn every_path_that_the_documents_name_exists() -> Result<()> {
    for document in ["ARCHITECTURE.md", "README.md"] {
        let text = fs::read_to_string(root().join(document)).with_context(|| document.to_owned())?;
        let paths = paths_in(&text);
        for path in &paths {
            // `file.rs::item` names something inside the file.
            let (file, item) = path
                .split_once("::")
                .map_or((path.as_str(), None), |(file, item)| (file, Some(item)));
            let full = root().join(file);
            ensure!(full.exists(), "{document} names {path}, which does not exist");
            if let Some(item) = item {
                ensure!(
                    fs::read_to_string(&full)?.contains(item),
                    "{document} names {path}, but {file} has no {item}"
                );
            }
        }
        if document == "ARCHITECTURE.md" {
            ensure!(
                paths.len() > 40,
                "ARCHITECTURE.md names only {} paths",
                paths.len()
            );
        }
    }
    Ok(())
}

#[test]
fn every_crate_is_described() -> Result<()> {
    let text = fs::read_to_string(root().join("ARCHITECTURE.md"))?;
    for name in packages()?.keys() {
        ensure!(
            text.contains(&format!("`{name}`")),
            "ARCHITECTURE.md does not mention {name}"
        );
    }
    Ok(())
}

#[test]
fn every_rule_has_a_test_that_names_it() -> Result<()> {
    let all: String = sources()?.into_iter().map(|(_, text)| text).collect();
    for rule in [1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 15, 16] {
        let (first, later) = (format!("r{rule}_"), format!("_r{rule}_"));
        // The name of a function, not a mention in a comment.
        let named = all
            .lines()
            .filter(|line| !line.trim_start().starts_with("//"))
            .filter_map(|line| line.split("fn ").nth(1))
            .any(|name| {
                name.starts_with(&first) || name.split('(').next().is_some_and(|name| name.contains(&later))
            });
        ensure!(named, "no test names rule R{rule}");
    }
    Ok(())
}

#[test]
fn links_between_documents_lead_somewhere() -> Result<()> {
    let output = Command::new("git")
        .args(["ls-files", "-z", "*.md"])
        .current_dir(root())
        .output()?;
    for document in String::from_utf8(output.stdout)?
        .split('\0')
        .filter(|name| !name.is_empty())
    {
        let path = root().join(document);
        if !path.exists() {
            continue;
        }
        let text = fs::read_to_string(&path)?;
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let file = link.split('#').next().unwrap_or_default();
            if file.is_empty() || file.contains("://") {
                continue;
            }
            let folder = path.parent().context("a document has a folder")?;
            ensure!(
                folder.join(file).exists(),
                "{document} links to {link}, which does not exist"
            );
        }
    }
    Ok(())
}

//! The packaged settings file beside the settings that there are.

#![expect(clippy::unwrap_used, reason = "a test")]

use sealift_agent::config::Settings;

const PACKAGED: &str = include_str!("../../deploy/config/sealift-agent.toml");

/// The names that a table may hold: reading refuses any other, and says which it knows.
fn names(section: &str) -> Vec<String> {
    let header = if section.is_empty() {
        String::new()
    } else {
        format!("[{section}]\n")
    };
    let refused = toml::from_str::<Settings>(&format!("{header}no_such_name = 1")).unwrap_err();
    let (_, known) = refused.message().split_once("expected ").unwrap();
    known.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn is_table(name: &str) -> bool {
    toml::from_str::<Settings>(&format!("[{name}]")).is_ok()
}

/// The names that a table of the file has: with its default, or behind a comment's sign when it has none.
fn packaged(section: &str) -> Vec<String> {
    let mut within = String::new();
    let mut found = Vec::new();
    for line in PACKAGED.lines() {
        let line = line.trim_start_matches(['#', ' ']);
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            name.clone_into(&mut within);
            // A table below a table is one of its names.
            if let Some(rest) = name.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')) {
                found.extend(rest.split('.').next().map(str::to_owned));
            }
        } else if let Some((name, _)) = line.split_once(" = ")
            && within == section
        {
            found.push(name.to_owned());
        }
    }
    found
}

#[test]
fn the_packaged_file_names_every_setting() {
    let (sections, plain): (Vec<_>, Vec<_>) = names("").into_iter().partition(|name| is_table(name));
    assert!(
        sections.contains(&"compose".to_owned()) && sections.len() > 5,
        "{sections:?}"
    );
    for name in plain {
        assert!(packaged("").contains(&name), "{name} is not in the packaged file");
    }
    for section in sections {
        assert!(
            PACKAGED.lines().any(|line| line == format!("[{section}]")),
            "[{section}] is not in the packaged file"
        );
        for name in names(&section) {
            assert!(
                packaged(&section).contains(&name),
                "{section}.{name} is not in the packaged file"
            );
        }
    }
}

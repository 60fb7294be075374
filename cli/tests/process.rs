//! `sealift` as CI sees it: a process with exit codes, results on standard output and talk on standard error. What needs an
//! orchestrator is among the scenarios.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::{Command as Process, Output, Stdio},
};

use assert_cmd::{Command, cargo::cargo_bin};
use tempfile::TempDir;

/// Runs `sealift` in an empty home; it must end with `code`.
fn run(home: &Path, arguments: &[&str], code: i32) -> Output {
    let mut command = Command::new(cargo_bin!("sealift"));
    command.env("XDG_CONFIG_HOME", home).args(arguments);
    for name in ["SEALIFT_CONTEXT", "SEALIFT_CONTEXT_FILE", "SEALIFT_ENDPOINT"] {
        command.env_remove(name);
    }
    command.assert().code(code).get_output().clone()
}

/// A context file for an endpoint, with a certificate that nobody knows.
fn context(folder: &Path, endpoint: &str) -> PathBuf {
    let identity = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let certificate = identity.cert.pem();
    fs::write(folder.join("ca.pem"), &certificate).unwrap();
    fs::write(folder.join("cert.pem"), &certificate).unwrap();
    let key = folder.join("key.pem");
    fs::write(&key, identity.signing_key.serialize_pem()).unwrap();
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    let text = format!("endpoint = {endpoint:?}\nca = 'ca.pem'\ncertificate = 'cert.pem'\nkey = 'key.pem'\n");
    let file = folder.join("context.toml");
    fs::write(&file, text).unwrap();
    file
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn help_and_version_are_answers() {
    let home = TempDir::new().unwrap();
    for flag in ["--help", "--version"] {
        let output = run(home.path(), &[flag], 0);
        assert!(text(&output.stdout).contains("sealift"), "{flag}");
        assert!(output.stderr.is_empty(), "{flag}");
    }
}

#[test]
fn wrong_usage_ends_with_64_and_says_so_on_standard_error() {
    let home = TempDir::new().unwrap();
    for arguments in [
        &["--nonsense"][..],
        &["promote"],
        &["status", "-o", "xml"],
        &["promote", "a#1", "--to", "b", "--timeout", "soon"],
        // No context is selected.
        &["whoami"],
        &["context", "use", "nobody"],
        &["whoami", "--context", "a", "--context-file", "b"],
    ] {
        let output = run(home.path(), arguments, 64);
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(text(&output.stderr).starts_with("error: "), "{arguments:?}");
    }
}

#[test]
fn failures_of_this_machine_end_with_1_and_say_what_to_do() {
    let home = TempDir::new().unwrap();
    let missing = home.path().join("missing.toml");
    let arguments = ["whoami", "--context-file", missing.to_str().unwrap()];
    let said = text(&run(home.path(), &arguments, 1).stderr);
    assert!(said.contains("missing.toml") && said.contains("hint: "), "{said}");
}

#[test]
fn evidence_that_is_not_there_is_told_apart_from_evidence_that_does_not_verify() {
    let home = TempDir::new().unwrap();
    let nowhere = home.path().join("nowhere");
    let nowhere = nowhere.to_str().unwrap();
    let arguments = ["evidence", "verify", nowhere, "--trust", nowhere];
    let said = text(&run(home.path(), &arguments, 64).stderr);
    assert!(said.contains("nowhere") && said.contains("hint: "), "{said}");
}

#[test]
fn a_message_of_several_lines_is_printed_as_such_and_called_an_error_once() {
    let home = TempDir::new().unwrap();
    let file = context(home.path(), "https://127.0.0.1:1");
    let recipe = home.path().join("recipe.yaml");
    fs::write(&recipe, "limits:\n  nonsense: [1\n").unwrap();
    for command in [
        &["promote", "a#1", "--to", "b"][..],
        &["rollback", "b", "--reason", "slow"],
    ] {
        let mut arguments = command.to_vec();
        arguments.extend(["--recipe", recipe.to_str().unwrap()]);
        arguments.extend(["--context-file", file.to_str().unwrap()]);
        let output = Command::new(cargo_bin!("sealift"))
            .env("XDG_CONFIG_HOME", home.path())
            .args(arguments)
            .output()
            .unwrap();
        let said = text(&output.stderr);
        assert!(!said.contains('\u{fffd}'), "{said}");
        assert!(said.matches("error:").count() == 1, "{said}");
    }
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let home = TempDir::new().unwrap();
    let file = context(home.path(), "https://127.0.0.1:1");
    fs::set_permissions(home.path().join("key.pem"), fs::Permissions::from_mode(0o644)).unwrap();
    let arguments = ["whoami", "--context-file", file.to_str().unwrap()];
    let said = text(&run(home.path(), &arguments, 64).stderr);
    assert!(said.contains("chmod 600"), "{said}");
}

#[test]
fn an_orchestrator_that_cannot_be_reached_ends_with_6() {
    let home = TempDir::new().unwrap();
    let free = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let file = context(home.path(), &format!("https://{address}"));
    let arguments = ["whoami", "--context-file", file.to_str().unwrap()];
    let said = text(&run(home.path(), &arguments, 6).stderr);
    assert!(
        said.contains(&address.to_string()) && said.contains("hint: "),
        "{said}"
    );
}

#[test]
fn a_request_id_is_a_uuid_on_every_command_that_ci_repeats() {
    let home = TempDir::new().unwrap();
    let compose = home.path().join("compose.yaml");
    fs::write(&compose, "services: {web: {image: a}}\n").unwrap();
    let context = context(home.path(), "https://127.0.0.1:1");
    let source = format!("example.com/acme/shop/web@{}", "a".repeat(40));
    let (compose, context) = (compose.to_str().unwrap(), context.to_str().unwrap());
    for command in [
        &["promote", "a#1", "--to", "b"][..],
        &["rollback", "b", "--reason", "slow"],
        &["release", "create", "-f", compose, "--source", &source],
        &["release", "mark", "a#1", "stable", "--reason", "good"],
        &["promotion", "cancel", "x"],
        &["job", "pause", "x"],
        &["job", "resume", "x"],
        &["job", "abort", "x"],
        &["job", "skip", "x", "web-1", "--reason", "moves"],
        &["job", "retry", "x"],
        &["hold", "place", "b", "a", "--reason", "monday"],
        &["hold", "lift", "x"],
    ] {
        let with = |id: &str, code: i32| {
            let rest = ["--request-id", id, "--context-file", context];
            text(&run(home.path(), &[command, &rest].concat(), code).stderr)
        };
        let said = with("again", 64);
        assert!(said.contains("wanted a UUID"), "{command:?}: {said}");
        // It gets as far as there is somebody to ask.
        with("00000000-0000-4000-8000-000000000001", 6);
    }
}

/// What a command says that is told to end by Ctrl-C while it waits for an orchestrator.
fn interrupted(arguments: &[&str]) -> String {
    let home = TempDir::new().unwrap();
    // It is connected to, and then never answers.
    let silent = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let file = context(home.path(), &format!("https://{}", silent.local_addr().unwrap()));
    let child = Process::new(cargo_bin!("sealift"))
        .args(arguments)
        .arg("--context-file")
        .arg(file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let _held = silent.accept().unwrap();
    let killed = Process::new("kill")
        .args(["-INT", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(killed.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(output.stdout.is_empty());
    text(&output.stderr)
}

#[test]
fn ctrl_c_ends_with_130_and_says_that_the_work_goes_on_where_there_is_some() {
    assert!(interrupted(&["promotion", "watch", "x"]).contains("goes on"));
    assert_eq!(interrupted(&["status", "--watch"]).trim(), "");
}

#[test]
fn results_are_a_table_json_or_yaml() {
    let home = TempDir::new().unwrap();
    let file = context(home.path(), "https://127.0.0.1:1");
    let show = |format: &str| {
        let arguments = [
            "context",
            "show",
            "-o",
            format,
            "--context-file",
            file.to_str().unwrap(),
        ];
        text(&run(home.path(), &arguments, 0).stdout)
    };
    assert!(show("table").contains("ENDPOINT"));
    let json: serde_json::Value = serde_json::from_str(&show("json")).unwrap();
    assert_eq!(json["endpoint"], "https://127.0.0.1:1");
    let yaml: serde_json::Value = serde_saphyr::from_str(&show("yaml")).unwrap();
    assert_eq!(yaml, json);
}

#[test]
fn the_exit_codes_are_told() {
    let home = TempDir::new().unwrap();
    let table = text(&run(home.path(), &["exit-codes"], 0).stdout);
    for code in ["0", "1", "2", "3", "4", "5", "6", "64", "124", "130"] {
        let told = table
            .lines()
            .any(|line| line.split_whitespace().next() == Some(code));
        assert!(told, "{code}:\n{table}");
    }
}

#[test]
fn completion_scripts_are_written_for_each_shell() {
    let home = TempDir::new().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = run(home.path(), &["completion", shell], 0);
        assert!(text(&output.stdout).contains("promote"), "{shell}");
    }
    let path = home.path().join("completion.bash");
    fs::write(&path, run(home.path(), &["completion", "bash"], 0).stdout).unwrap();
    let checked = Process::new("bash").arg("-n").arg(path).status().unwrap();
    assert!(checked.success());
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let home = TempDir::new().unwrap();
    let mut child = Process::new(cargo_bin!("sealift"))
        .args(["completion", "bash"])
        .env("XDG_CONFIG_HOME", home.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

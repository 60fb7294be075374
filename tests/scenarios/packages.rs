//! What is installed on hosts: units, packages, the installer. Nothing is installed here; the programs are those of the build.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::{
    fs,
    os::unix::{fs::PermissionsExt as _, net::UnixDatagram},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use sealift_e2e::fleet::Fleet;
use serde_json::Value;

/// The worst exposure that `systemd-analyze security` may find: 0 is best, 10 is worst, a bare unit has 9.2 to 9.6. The agent's
/// has 0.2 for `NotifyAccess=all`, without which a program on trial could not say that it is ready.
const EXPOSURE: f64 = 1.6;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .canonicalize()
        .unwrap()
}

fn unit(name: &str) -> String {
    fs::read_to_string(root().join(format!("deploy/systemd/{name}.service"))).unwrap()
}

fn directive<'a>(unit: &'a str, name: &str) -> Option<&'a str> {
    unit.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
}

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn units_leave_little_to_whoever_breaks_into_the_process() {
    for name in ["sealift-agent", "sealift-orchestrator"] {
        let output = Command::new("systemd-analyze")
            .args(["security", "--offline=true", "--no-pager"])
            .arg(root().join(format!("deploy/systemd/{name}.service")))
            .output()
            .unwrap();
        let said = text(&output);
        let exposure: f64 = said
            .lines()
            .find(|line| line.contains("Overall exposure level"))
            .and_then(|line| line.split(": ").nth(1)?.split_whitespace().next()?.parse().ok())
            .unwrap_or_else(|| panic!("{said}"));
        assert!(exposure <= EXPOSURE, "{name}: {exposure}\n{said}");
    }
}

#[test]
fn units_fit_the_programs_that_they_start() {
    let agent = unit("sealift-agent");
    // The state directory is the default, and its file says that the host is enrolled.
    assert_eq!(
        directive(&agent, "ConditionPathExists"),
        Some("/var/lib/sealift-agent/identity.json")
    );
    assert_eq!(directive(&agent, "RestartPreventExitStatus"), Some("3"));
    assert_eq!(directive(&agent, "SupplementaryGroups"), Some("docker"));
    for name in ["sealift-agent", "sealift-orchestrator"] {
        let unit = unit(name);
        assert_eq!(directive(&unit, "Type"), Some("notify"), "{name}");
        assert_eq!(directive(&unit, "StateDirectory"), Some(name));
        // The programs refuse a directory that others may enter.
        assert_eq!(directive(&unit, "StateDirectoryMode"), Some("0700"), "{name}");
        assert_eq!(directive(&unit, "UMask"), Some("0077"), "{name}");
        assert!(directive(&unit, "WatchdogSec").is_some(), "{name}");
    }
}

/// The packages' metadata in the Cargo files, by package of the workspace.
fn metadata() -> Vec<(String, PathBuf, Value)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .unwrap();
    let all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = all["packages"].as_array().unwrap().iter();
    packages
        .filter(|package| package["metadata"]["deb"].is_object())
        .map(|package| {
            let manifest = Path::new(package["manifest_path"].as_str().unwrap());
            (
                package["name"].as_str().unwrap().to_owned(),
                manifest.parent().unwrap().to_owned(),
                package["metadata"]["deb"].clone(),
            )
        })
        .collect()
}

#[test]
fn packages_hold_what_is_there_and_their_settings_are_conffiles() {
    let packages = metadata();
    let names: Vec<_> = packages.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(names.len(), 3, "{names:?}");
    for (name, folder, deb) in &packages {
        let mut installed = Vec::new();
        for asset in deb["assets"].as_array().unwrap() {
            let (from, to) = (asset[0].as_str().unwrap(), asset[1].as_str().unwrap());
            assert!(
                from.starts_with("target/release/") || folder.join(from).exists(),
                "{name}: {from}"
            );
            installed.push(format!("/{to}"));
        }
        let conffiles = deb["conf-files"].as_array().cloned().unwrap_or_default();
        for to in installed.iter().filter(|to| to.starts_with("/etc/")) {
            assert!(
                conffiles.contains(&Value::from(to.as_str())),
                "{name}: {to} is no conffile"
            );
        }
        let Some(scripts) = deb["maintainer-scripts"].as_str() else {
            continue;
        };
        for script in ["postinst", "prerm", "postrm"] {
            let path = folder.join(scripts).join(script);
            let mode = fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o111, 0o111, "{name}: {script} cannot be run");
            let checked = Command::new("sh").arg("-n").arg(&path).output().unwrap();
            assert!(checked.status.success(), "{}", text(&checked));
            let content = fs::read_to_string(&path).unwrap();
            // Installing a package starts nothing and enables nothing.
            for unasked in [
                "systemctl enable",
                "systemctl start",
                "systemctl restart",
                "deb-systemd",
            ] {
                assert!(!content.contains(unasked), "{name}: {script} has {unasked:?}");
            }
        }
    }
}

/// A package that says it is the agent's, and its checksum.
fn package(folder: &Path) -> (PathBuf, String) {
    let tree = folder.join("tree");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    let control = "Package: sealift-agent\nVersion: 0.0.0\nArchitecture: all\nMaintainer: a test <a@b>\nDescription: a test\n";
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    let deb = folder.join("agent.deb");
    let made = Command::new("dpkg-deb")
        .args(["--root-owner-group", "--build"])
        .arg(&tree)
        .arg(&deb)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", text(&made));
    let summed = Command::new("sha256sum").arg(&deb).output().unwrap();
    let sum = text(&summed).split_whitespace().next().unwrap().to_owned();
    (deb, sum)
}

fn install(arguments: &[&str]) -> Output {
    Command::new(root().join("deploy/install-agent"))
        .arg("--dry-run")
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

#[test]
fn the_installer_installs_nothing_that_was_not_checked() {
    let folder = tempfile::tempdir().unwrap();
    let (deb, sum) = package(folder.path());
    let deb = deb.to_str().unwrap();
    let refused = |arguments: &[&str], why: &str| {
        let output = install(arguments);
        assert!(
            !output.status.success() && text(&output).contains(why),
            "{arguments:?}: {}",
            text(&output)
        );
    };
    refused(&[], "nothing to install");
    refused(&["--deb", deb], "no checksum");
    refused(&["--deb", deb, "--sha256", &"0".repeat(64)], "checksum is");
    refused(
        &["--base-url", "http://example.com", "--sha256", &sum],
        "must be https",
    );
    refused(
        &["--deb", deb, "--sha256", &sum, "--token-file", "-"],
        "needs --orchestrator",
    );
    refused(
        &["--deb", deb, "--sha256", &sum, "--orchestrator", "http://a:1"],
        "must be https",
    );
    refused(
        &["--deb", deb, "--sha256", &sum, "--signature", "x"],
        "go together",
    );
    let accepted = install(&[
        "--deb",
        deb,
        "--sha256",
        &sum,
        "--orchestrator",
        "https://a:1",
        "--token-file",
        "-",
    ]);
    let said = text(&accepted);
    assert!(accepted.status.success(), "{said}");
    for told in [
        "checksum fits",
        "would: env",
        "would: enrol",
        "to undo:",
        "apt-get purge sealift-agent",
    ] {
        assert!(said.contains(told), "{told:?} is not in {said}");
    }
}

#[test]
fn the_installer_believes_only_a_signature_that_fits() {
    let folder = tempfile::tempdir().unwrap();
    let (deb, sum) = package(folder.path());
    let file = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let openssl = |arguments: &[&str]| {
        let output = Command::new("openssl").args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", text(&output));
    };
    for key in ["ours", "theirs"] {
        openssl(&["genpkey", "-algorithm", "ed25519", "-out", &file(key)]);
        openssl(&[
            "pkey",
            "-in",
            &file(key),
            "-pubout",
            "-out",
            &file(&format!("{key}.pub")),
        ]);
    }
    fs::write(file("SHA256SUMS"), format!("{sum}  agent.deb\n")).unwrap();
    let sign = [
        "pkeyutl",
        "-sign",
        "-rawin",
        "-inkey",
        &file("ours"),
        "-in",
        &file("SHA256SUMS"),
    ];
    openssl(&[&sign[..], &["-out", &file("SHA256SUMS.sig")]].concat());
    let with = |key: &str| {
        let (signature, key) = (file("SHA256SUMS.sig"), file(key));
        let deb = deb.to_str().unwrap();
        install(&[
            "--deb",
            deb,
            "--sha256",
            &sum,
            "--signature",
            &signature,
            "--public-key",
            &key,
        ])
    };
    let output = with("ours.pub");
    assert!(
        output.status.success() && text(&output).contains("signature fits"),
        "{}",
        text(&output)
    );
    let output = with("theirs.pub");
    assert!(
        !output.status.success() && text(&output).contains("does not fit"),
        "{}",
        text(&output)
    );
}

#[test]
fn the_installer_tells_its_options_when_asked() {
    let output = install(&["--help"]);
    assert!(output.status.success(), "{}", text(&output));
    for option in [
        "--orchestrator",
        "--token-file",
        "--base-url",
        "--deb",
        "--sha256",
        "--dry-run",
    ] {
        assert!(text(&output).contains(option), "{option}");
    }
}

#[test]
fn a_download_of_the_installer_that_broke_off_does_nothing() {
    let script = fs::read_to_string(root().join("deploy/install-agent")).unwrap();
    let last = script.trim_end().lines().last().unwrap();
    assert_eq!(last, "main \"$@\"");
    let outside = script
        .lines()
        .find(|line| !line.starts_with('#') && !line.is_empty())
        .unwrap();
    assert_eq!(outside, "main() {", "everything is inside of the function");
    let used = script.lines().filter(|line| !line.trim_start().starts_with('#'));
    assert!(
        used.clone().all(|line| !line.contains("sudo ")),
        "it calls no sudo"
    );
    let broken = used.take(60).collect::<Vec<_>>().join("\n");
    let output = Command::new("bash").args(["-c", &broken]).output().unwrap();
    assert!(!output.status.success(), "half a function is no program");
    assert!(
        text(&output).contains("unexpected end of file"),
        "{}",
        text(&output)
    );
}

/// A program that a supervisor started, and what it says to it.
struct Supervised {
    child: std::process::Child,
    socket: UnixDatagram,
}

impl Supervised {
    fn start(program: &str, arguments: &[&str], folder: &Path) -> Self {
        let path = folder.join(format!("{program}.notify"));
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        let folder = std::env::var_os("SEALIFT_TEST_BIN_DIR").map_or_else(
            || {
                let test = std::env::current_exe().unwrap();
                test.ancestors().nth(2).unwrap().to_owned()
            },
            PathBuf::from,
        );
        let child = Command::new(folder.join(program))
            .args(arguments)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "300000")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, socket }
    }

    fn hears(&self, wanted: &str) {
        let mut buffer = [0; 1024];
        loop {
            let length = self
                .socket
                .recv(&mut buffer)
                .unwrap_or_else(|error| panic!("{wanted}: {error}"));
            let said = String::from_utf8_lossy(&buffer[..length]);
            if said.lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    fn end(mut self) {
        let pid = self.child.id().to_string();
        assert!(
            Command::new("kill")
                .args(["-TERM", &pid])
                .status()
                .unwrap()
                .success()
        );
        self.hears("STOPPING=1");
        assert!(self.child.wait().unwrap().success());
    }
}

impl Drop for Supervised {
    fn drop(&mut self) {
        // It has ended already unless the test failed.
        let _ = self.child.kill();
    }
}

#[test]
fn the_orchestrator_tells_systemd_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data-dir",
        data.to_str().unwrap(),
    ];
    let orchestrator = Supervised::start("sealift-orchestrator", &arguments, folder.path());
    orchestrator.hears("READY=1");
    orchestrator.hears("WATCHDOG=1");
    orchestrator.end();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_agent_tells_systemd_how_it_is() {
    let fleet = Fleet::start().await.unwrap();
    let target = fleet.target("web-1").await.unwrap();
    let state = fleet.enrol(&target).await.unwrap();
    let folder = fleet.folder.path().to_owned();
    let watch = move || {
        let state = state.to_str().unwrap();
        let arguments = [
            "run",
            "--state-dir",
            state,
            "--engine-socket",
            "unix:///nowhere/engine.sock",
        ];
        let agent = Supervised::start("sealift-agent", &arguments, &folder);
        agent.hears("READY=1");
        agent.hears("STATUS=connected");
        agent.hears("WATCHDOG=1");
        agent.end();
    };
    tokio::task::spawn_blocking(watch).await.unwrap();
    assert!(fleet.running.stop().await);
}

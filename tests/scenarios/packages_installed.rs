//! The packages as they are built, installed on a throw-away copy of this machine: by the installer with a join token, run as their
//! users, updated, removed and purged. `tests/run packages` builds them.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::{
    real::{Database, PATIENCE, System, eventually, free_port, image},
    root::{Root, said},
};
use tokio::{process::Child, time::timeout};

/// Where the packages are seen in the copy.
const PACKAGES: &str = "/srv/packages";
const INSTALLER: &str = "/srv/packages/install-agent";
/// What a purge leaves on purpose: logs, caches, lists of packages and users. A user's number must not come to mean somebody else.
const LEFT: [&str; 12] = [
    "/etc/passwd",
    "/etc/passwd-",
    "/etc/group",
    "/etc/group-",
    "/etc/shadow",
    "/etc/shadow-",
    "/etc/gshadow",
    "/etc/gshadow-",
    "/etc/.pwd.lock",
    "/var/lib/dpkg/",
    "/var/lib/apt/",
    "/var/cache/",
];
const LOGS: &str = "/var/log/";
const UNIT: &str = "sealift-agent.service";

fn packages() -> Result<PathBuf> {
    let folder = std::env::var_os("SEALIFT_TEST_PACKAGES");
    let folder = folder.context("SEALIFT_TEST_PACKAGES is not set: run this through tests/run packages")?;
    Ok(PathBuf::from(folder))
}

/// The package of this name, as the copy sees it.
fn package(name: &str) -> Result<String> {
    let folder = packages()?;
    for entry in folder.read_dir()? {
        let file = entry?.file_name().to_string_lossy().into_owned();
        if file.starts_with(&format!("{name}_")) {
            return Ok(format!("{PACKAGES}/{file}"));
        }
    }
    anyhow::bail!("no package {name} in {}", folder.display())
}

fn engine_socket() -> PathBuf {
    let address = std::env::var("DOCKER_HOST").unwrap_or_default();
    let path = address.strip_prefix("unix://").unwrap_or("/var/run/docker.sock");
    PathBuf::from(path)
}

/// Paths of the copy that nobody but a package of ours can have made.
fn leftovers(root: &Root) -> Result<Vec<String>> {
    let changed = root.changed()?.into_iter();
    let is_left = |path: &str| {
        path.starts_with(LOGS)
            || LEFT
                .iter()
                .any(|left| path == *left || (left.ends_with('/') && path.starts_with(left)))
    };
    // The mount points of the copy itself.
    let is_mount = |path: &str| path.starts_with("/srv");
    Ok(changed.filter(|path| !is_left(path) && !is_mount(path)).collect())
}

async fn mode(root: &Root, path: &str) -> Result<String> {
    let said = root.must("stat", &["--format", "%U:%G %a", path]).await?;
    Ok(said.trim().to_owned())
}

async fn gone(root: &Root, path: &str) -> Result<()> {
    let there = root.run("test", &["-e", path]).await?;
    ensure!(!there.status.success(), "{path} is still there");
    Ok(())
}

/// A daemon in the copy, as a user with further groups.
fn daemon(root: &Root, user: &str, groups: &[&str], command: &[&str]) -> Result<Child> {
    let mut runner = root.command("setpriv")?;
    runner.args(["--reuid", user, "--regid", user]);
    match groups {
        [] => runner.arg("--clear-groups"),
        groups => runner.arg("--groups").arg(groups.join(",")),
    };
    runner.arg("--").args(command);
    let child = runner
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    Ok(child)
}

async fn end(root: &Root, child: &mut Child, program: &str) -> Result<()> {
    let pid = child.id().context("the program has ended by itself")?.to_string();
    root.must("kill", &["-TERM", &pid]).await?;
    timeout(PATIENCE, child.wait())
        .await
        .with_context(|| format!("{program} does not end"))??;
    Ok(())
}

#[tokio::test]
async fn a_host_is_installed_with_one_line_and_a_token_works_and_is_purged_without_a_trace() -> Result<()> {
    let system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    system
        .sealift(&["target", "create", "staging/web-1", "--kind", "docker-host"])
        .await?;
    let token = system.sealift(&["target", "token", "staging/web-1"]).await?;
    let socket = engine_socket();
    let built = packages()?;
    let shared = [
        (built.as_path(), PACKAGES),
        (socket.as_path(), "/run/docker.sock"),
    ];
    let root = Root::make(&shared).await?;
    root.sh(&format!("umask 077; printf '%s' '{}' >/tmp/token", token.trim()))
        .await?;

    // The one line. No systemd runs here: it must say so, and what to do instead.
    let deb = package("sealift-agent")?;
    let endpoint = system.endpoint();
    let line = [
        "--deb",
        &deb,
        "--orchestrator",
        &endpoint,
        "--token-file",
        "/tmp/token",
    ];
    let said_first = root.must(INSTALLER, &line).await?;
    for told in [
        "checksum fits",
        "enrolled",
        "systemd does not run here",
        "to undo:",
    ] {
        ensure!(said_first.contains(told), "{told:?} is not in:\n{said_first}");
    }
    ensure!(
        !said_first.contains(token.trim()),
        "the token was told:\n{said_first}"
    );
    let again = root.must(INSTALLER, &line).await?;
    ensure!(again.contains("enrolled already"), "{again}");

    for (path, wanted) in [
        ("/usr/bin/sealift-agent", "root:root 755"),
        ("/etc/sealift/agent.toml", "root:root 644"),
        ("/lib/systemd/system/sealift-agent.service", "root:root 644"),
        ("/var/lib/sealift-agent", "sealift-agent:sealift-agent 700"),
        (
            "/var/lib/sealift-agent/identity.json",
            "sealift-agent:sealift-agent 600",
        ),
    ] {
        let is = mode(&root, path).await?;
        ensure!(is == wanted, "{path} is {is}, not {wanted}");
    }
    let user = root.must("getent", &["passwd", "sealift-agent"]).await?;
    ensure!(user.trim().ends_with("/usr/sbin/nologin"), "{user}");
    let unit = "/lib/systemd/system/sealift-agent.service";
    root.must("systemd-analyze", &["verify", "--man=no", unit])
        .await?;

    // It works as its user, with no more than the group of the engine.
    let mut agent = daemon(
        &root,
        "sealift-agent",
        &["docker"],
        &[
            "/usr/bin/sealift-agent",
            "--config",
            "/etc/sealift/agent.toml",
            "run",
        ],
    )?;
    eventually("the installed agent is online", async || {
        let seen = system.json(&["target", "get", "staging/web-1"]).await?;
        Ok((seen["agentStatus"] == "online").then_some(()))
    })
    .await?;
    let release = system.release(&image("OK_1")?, 1).await?;
    let (code, told) = system.promote(release, "staging", &[]).await?;
    ensure!(code == 0, "release 1 ended with {code}:\n{told}");
    let doctor = root
        .must(
            "runuser",
            &[
                "-u",
                "sealift-agent",
                "-G",
                "docker",
                "--",
                "sealift-agent",
                "doctor",
            ],
        )
        .await?;
    ensure!(!doctor.contains("FAIL"), "{doctor}");
    end(&root, &mut agent, "the agent").await?;

    // An update keeps what is kept: state, identity, settings that somebody changed.
    root.sh("echo '# ours' >>/etc/sealift/agent.toml").await?;
    let reinstall = ["-i", "--force-confdef", &deb];
    root.must("dpkg", &reinstall).await?;
    root.sh("grep -q '^# ours' /etc/sealift/agent.toml && test -e /var/lib/sealift-agent/identity.json")
        .await?;
    // Removing takes the program away and keeps the rest.
    root.must("apt-get", &["-y", "-q", "remove", "sealift-agent"])
        .await?;
    gone(&root, "/usr/bin/sealift-agent").await?;
    root.sh("test -e /etc/sealift/agent.toml && test -e /var/lib/sealift-agent/identity.json")
        .await?;
    root.must("dpkg", &reinstall).await?;

    // As the installer says: first what it made, then itself.
    let purge = [
        "sealift-agent",
        "--config",
        "/etc/sealift/agent.toml",
        "purge",
        "--yes",
    ];
    let mut as_user = vec!["-u", "sealift-agent", "-G", "docker", "--"];
    as_user.extend(purge);
    root.must("runuser", &as_user).await?;
    ensure!(
        system.running("staging/web-1").await?.is_empty(),
        "the purge left containers"
    );
    root.must("apt-get", &["-y", "-q", "purge", "sealift-agent"])
        .await?;
    let left = leftovers(&root)?;
    ensure!(left.is_empty(), "a purge left {left:#?}");
    system.end().await
}

#[tokio::test]
async fn the_orchestrator_is_installed_runs_as_its_user_and_keeps_its_keys_when_purged() -> Result<()> {
    let root = Root::make(&[(packages()?.as_path(), PACKAGES)]).await?;
    let deb = package("sealift-orchestrator")?;
    root.must(
        "apt-get",
        &["-y", "-q", "--no-install-recommends", "install", &deb],
    )
    .await?;
    for (path, wanted) in [
        ("/usr/bin/sealift-orchestrator", "root:root 755"),
        ("/etc/sealift/orchestrator.toml", "root:root 644"),
        ("/var/lib/sealift-orchestrator", "sealift:sealift 700"),
    ] {
        let is = mode(&root, path).await?;
        ensure!(is == wanted, "{path} is {is}, not {wanted}");
    }
    let unit = "/lib/systemd/system/sealift-orchestrator.service";
    root.must("systemd-analyze", &["verify", "--man=no", unit])
        .await?;

    let port = free_port()?;
    let listen = format!("127.0.0.1:{port}");
    let mut orchestrator = daemon(
        &root,
        "sealift",
        &[],
        &[
            "/usr/bin/sealift-orchestrator",
            "serve",
            "--config",
            "/etc/sealift/orchestrator.toml",
            "--listen",
            &listen,
        ],
    )?;
    eventually("the installed orchestrator listens", async || {
        Ok(tokio::net::TcpStream::connect(("127.0.0.1", port))
            .await
            .is_ok()
            .then_some(()))
    })
    .await?;
    // What the documents tell to do next.
    let endpoint = format!("https://127.0.0.1:{port}");
    let issue = [
        "-u",
        "sealift",
        "--",
        "sealift-orchestrator",
        "admin",
        "issue",
        "ada",
        "--role",
        "admin",
        "--endpoint",
        &endpoint,
        "--out",
        "/tmp/ada",
    ];
    root.must("runuser", &issue).await?;
    root.must("dpkg", &["-i", &package("sealift")?]).await?;
    let answer = root
        .sh("SEALIFT_CONTEXT_FILE=/tmp/ada/context.toml sealift whoami")
        .await?;
    ensure!(answer.contains("ada"), "{answer}");
    end(&root, &mut orchestrator, "the orchestrator").await?;

    let purged = root
        .must(
            "apt-get",
            &["-y", "-q", "purge", "sealift-orchestrator", "sealift"],
        )
        .await?;
    ensure!(purged.contains("kept: /var/lib/sealift-orchestrator"), "{purged}");
    let left = leftovers(&root)?;
    let (kept, other): (Vec<_>, Vec<_>) = left
        .into_iter()
        .partition(|path| path.starts_with("/var/lib/sealift-orchestrator"));
    ensure!(other.is_empty(), "a purge left {other:#?}");
    ensure!(
        kept.iter().any(|path| Path::new(path).ends_with("sealift.db")),
        "{kept:?}"
    );
    Ok(())
}

#[tokio::test]
async fn nothing_is_installed_when_the_package_is_not_what_it_says() -> Result<()> {
    let root = Root::make(&[(packages()?.as_path(), PACKAGES)]).await?;
    let deb = package("sealift-agent")?;
    root.sh(&format!("cp {deb} /tmp/agent.deb && printf x >>/tmp/agent.deb"))
        .await?;
    let refused = root.run(INSTALLER, &["--deb", "/tmp/agent.deb"]).await?;
    let why = said(&refused);
    ensure!(
        !refused.status.success() && why.contains("do not install it"),
        "{why}"
    );
    // Another package under the agent's checksum is refused, too.
    let other = package("sealift-orchestrator")?;
    let sum = root.must("sha256sum", &[&other]).await?;
    let sum = sum.split_whitespace().next().context("a checksum")?.to_owned();
    let refused = root.run(INSTALLER, &["--deb", &other, "--sha256", &sum]).await?;
    let why = said(&refused);
    ensure!(
        !refused.status.success() && why.contains("no package of the agent"),
        "{why}"
    );
    gone(&root, "/usr/bin/sealift-agent").await?;
    let left = leftovers(&root)?;
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}

#[tokio::test]
async fn the_unit_runs_the_agent_under_a_real_systemd_that_starts_it_again_and_stops_it() -> Result<()> {
    let system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    system
        .sealift(&["target", "create", "staging/web-1", "--kind", "docker-host"])
        .await?;
    let token = system.sealift(&["target", "token", "staging/web-1"]).await?;
    let (built, socket) = (packages()?, engine_socket());
    let shared = [
        (built.as_path(), PACKAGES),
        (socket.as_path(), "/run/docker.sock"),
    ];
    let root = Root::boot(&shared).await?;
    root.sh(&format!("umask 077; printf '%s' '{}' >/root/token", token.trim()))
        .await?;

    let line = [
        "--deb",
        &package("sealift-agent")?,
        "--orchestrator",
        &system.endpoint(),
        "--token-file",
        "/root/token",
    ];
    let told = root.must(INSTALLER, &line).await?;
    ensure!(told.contains("the orchestrator knows it"), "{told}");
    let property = async |name: &str| -> Result<String> {
        let said = root
            .must("systemctl", &["show", "--property", name, "--value", UNIT])
            .await?;
        Ok(said.trim().to_owned())
    };
    ensure!(property("ActiveState").await? == "active");
    ensure!(property("UnitFileState").await? == "enabled");

    // Under all that the unit takes away it still deploys, heals and goes back.
    for (image_name, number, wanted) in [("OK_1", 1, 0), ("OK_2", 2, 0), ("UNHEALTHY", 3, 1)] {
        let release = system.release(&image(image_name)?, number).await?;
        let (code, told) = system.promote(release, "staging", &[]).await?;
        let journal = root.must("journalctl", &["-u", UNIT, "--no-pager", "-n", "30"]);
        ensure!(
            code == wanted,
            "{image_name} ended with {code}:\n{told}\n{}",
            journal.await?
        );
    }

    // F1: what is killed is started again, with another process and the same identity.
    let before = property("MainPID").await?;
    root.must("systemctl", &["kill", "--signal=KILL", UNIT]).await?;
    eventually("systemd has started the agent again", async || {
        let again = property("MainPID").await?;
        let connected = property("StatusText").await?.starts_with("connected");
        Ok((again != before && again != "0" && connected).then_some(()))
    })
    .await?;
    // A stop is in order, and an update restarts what runs.
    root.must("systemctl", &["stop", UNIT]).await?;
    ensure!(property("Result").await? == "success");
    root.must("systemctl", &["start", UNIT]).await?;
    let before = property("MainPID").await?;
    root.must("dpkg", &["-i", &package("sealift-agent")?]).await?;
    let after = property("MainPID").await?;
    ensure!(before != after && after != "0", "{before} and {after}");
    ensure!(property("ActiveState").await? == "active");

    // Nobody but the agent's user may read its keys.
    let stat = mode(&root, "/var/lib/sealift-agent").await?;
    ensure!(stat == "sealift-agent:sealift-agent 700", "{stat}");

    root.must("systemctl", &["stop", UNIT]).await?;
    let purge = [
        "-u",
        "sealift-agent",
        "-G",
        "docker",
        "--",
        "sealift-agent",
        "purge",
        "--yes",
    ];
    root.must("runuser", &purge).await?;
    root.must("apt-get", &["-y", "-q", "purge", "sealift-agent"])
        .await?;
    let units = root
        .sh("systemctl list-unit-files --no-legend 'sealift*'; systemctl list-units --all --no-legend 'sealift*'")
        .await?;
    ensure!(units.trim().is_empty(), "systemd still knows {units}");
    let left: Vec<String> = root
        .changed()?
        .into_iter()
        .filter(|path| {
            path.contains("sealift") && !path.starts_with("/srv/") && !path.starts_with("/var/lib/dpkg/")
        })
        .collect();
    ensure!(left.is_empty(), "a purge left {left:#?}");
    root.end().await?;
    system.end().await
}

//! A throw-away copy of this machine: its files as a lower layer, a layer of its own above them, in a mount namespace that ends with
//! it. What is installed there is really installed, and the machine itself is left as it is. Needs root.

use std::{
    ffi::OsStr,
    fs, io,
    path::{Path, PathBuf},
    process::{Output, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::{Child, Command},
    time::timeout,
};

use crate::{
    commands::run,
    real::{PATIENCE, eventually},
};

/// Mounts everything, says so, and stays for as long as somebody holds its standard input, or, with `boot`, becomes the systemd of
/// the copy in namespaces and a control group of its own. `$1` says which, `$2` is a folder, the others are pairs of a path of this
/// machine and where it is seen in the copy.
const HOLD: &str = r#"
set -eu
kind=$1 top=$2; shift 2
mount -t tmpfs tmpfs "$top"
mkdir "$top/upper" "$top/work" "$top/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$top/upper,workdir=$top/work" "$top/root"
mount -t tmpfs -o mode=755 tmpfs "$top/root/run"
mount -t tmpfs -o mode=1777 tmpfs "$top/root/tmp"
while [ $# -gt 0 ]; do
  mkdir -p "$(dirname "$top/root$2")"
  if [ -d "$1" ]; then mkdir -p "$top/root$2"; else : >"$top/root$2"; fi
  mount --bind "$1" "$top/root$2"
  shift 2
done
if [ "$kind" = hold ]; then
  mount -t proc proc "$top/root/proc"
  mount --rbind /dev "$top/root/dev"
  echo ready
  exec cat >/dev/null
fi
for tree in /sys/fs/cgroup /sys/fs/cgroup/systemd /sys/fs/cgroup/unified; do
  [ -e "$tree/cgroup.procs" ] || continue
  mkdir "$tree/$(basename "$top")"
  echo $$ >"$tree/$(basename "$top")/cgroup.procs"
done
exec unshare --cgroup --pid --ipc --uts --fork --kill-child=KILL sh -euc '
  root=$1/root
  mount -t proc proc "$root/proc"
  mount --rbind /sys "$root/sys"
  if [ -e /sys/fs/cgroup/cgroup.procs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
  else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    mkdir "$root/sys/fs/cgroup/systemd"
    mount -t cgroup -o none,name=systemd cgroup "$root/sys/fs/cgroup/systemd"
  fi
  mount -t tmpfs -o mode=755 tmpfs "$root/dev"
  mkdir "$root/dev/pts" "$root/dev/shm"
  for name in null zero full random urandom tty; do
    : >"$root/dev/$name"
    mount --bind "/dev/$name" "$root/dev/$name"
  done
  mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
  ln -s pts/ptmx "$root/dev/ptmx"
  ln -s /proc/self/fd "$root/dev/fd"
  # Nothing of what this machine starts at boot.
  : >"$root/etc/fstab"
  : >"$root/etc/machine-id"
  rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/systemd/system/*.requires
  ln -sf /lib/systemd/system/basic.target "$root/etc/systemd/system/default.target"
  echo ready
  exec env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin chroot "$root" /lib/systemd/systemd --system \
    </dev/null >/dev/null 2>&1
' boot "$top"
"#;

/// The copy.
#[derive(Debug)]
pub struct Root {
    folder: tempfile::TempDir,
    holder: Child,
    /// The process whose namespaces are the copy's.
    inside: u32,
    is_booted: bool,
}

impl Root {
    /// Makes it, without any service. `shared` are paths of this machine with where they are seen in the copy.
    pub async fn make(shared: &[(&Path, &str)]) -> Result<Self> {
        let mut root = Self::hold("hold", shared).await?;
        root.inside = root.holder.id().context("the copy has ended")?;
        Ok(root)
    }

    /// Makes it and boots it: systemd runs in it, with nothing but the basics.
    pub async fn boot(shared: &[(&Path, &str)]) -> Result<Self> {
        let mut root = Self::hold("boot", shared).await?;
        let holder = root.holder.id().context("the copy has ended")?;
        let children = format!("/proc/{holder}/task/{holder}/children");
        let children = fs::read_to_string(children)?;
        let init = children.split_whitespace().next().context("nothing was booted")?;
        root.inside = init.parse()?;
        eventually("systemd has booted", async || {
            let state = root.run("systemctl", &["is-system-running"]).await?;
            let state = said(&state);
            Ok(["running", "degraded"].contains(&state.trim()).then_some(()))
        })
        .await?;
        Ok(root)
    }

    async fn hold(kind: &str, shared: &[(&Path, &str)]) -> Result<Self> {
        let folder = tempfile::TempDir::with_prefix("sealift-root-")?;
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private"]);
        command.args(["sh", "-c", HOLD, "sh", kind]).arg(folder.path());
        for (path, seen) in shared {
            command.arg(path).arg(seen);
        }
        let mut holder = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let output = holder.stdout.take().context("standard output")?;
        let mut line = String::new();
        timeout(PATIENCE, BufReader::new(output).read_line(&mut line)).await??;
        ensure!(
            line == "ready\n",
            "no copy of this machine could be made: it needs root and overlay file systems"
        );
        Ok(Self {
            folder,
            holder,
            inside: 0,
            is_booted: kind == "boot",
        })
    }

    /// A program that will run in the copy. In one that was not booted it is the process that is made here.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--target={}", self.inside));
        command.arg("--mount");
        if self.is_booted {
            // A process of its own is needed to enter a namespace of processes, so that a signal to this one reaches nobody.
            command.args(["--pid", "--ipc", "--uts", "--cgroup"]);
        }
        command.arg("--");
        command.arg("chroot").arg(self.folder.path().join("root"));
        command.arg(program);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", "/root")
            .env("LANG", "C.UTF-8");
        Ok(command)
    }

    /// Ends it with all that runs in it.
    pub async fn end(mut self) -> Result<()> {
        self.holder.kill().await?;
        let name = self.folder.path().file_name().unwrap_or_default();
        for tree in [
            "/sys/fs/cgroup",
            "/sys/fs/cgroup/systemd",
            "/sys/fs/cgroup/unified",
        ] {
            let group = Path::new(tree).join(name);
            eventually("the control group of the copy is gone", async || {
                Ok((!group.exists() || remove_group(&group).is_ok()).then_some(()))
            })
            .await?;
        }
        Ok(())
    }

    /// Runs a program in the copy to its end.
    pub async fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command(program)?;
        command.args(arguments);
        run(command, None).await
    }

    /// Runs a program that must succeed; gives all that it said.
    pub async fn must(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(program, arguments).await?;
        let said = said(&output);
        ensure!(output.status.success(), "{program} {arguments:?}:\n{said}");
        Ok(said)
    }

    /// Runs a script of the shell that must succeed; gives all that it said.
    pub async fn sh(&self, script: &str) -> Result<String> {
        self.must("sh", &["-c", script]).await
    }

    /// The files that are other than the machine's own and not gone, by their paths in the copy, sorted.
    pub fn changed(&self) -> Result<Vec<String>> {
        // Through the holder's own view: the layers are mounted nowhere else.
        let holder = self.holder.id().context("the copy has ended")?;
        let folder = self.folder.path();
        let upper = PathBuf::from(format!("/proc/{holder}/root"))
            .join(folder.strip_prefix("/").unwrap_or(folder))
            .join("upper");
        let mut found = Vec::new();
        walk(&upper, &upper, &mut found)?;
        found.sort();
        Ok(found)
    }
}

/// Removes a control group with those below it, once nothing is in them.
fn remove_group(group: &Path) -> io::Result<()> {
    for entry in fs::read_dir(group)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_group(&entry.path())?;
        }
    }
    fs::remove_dir(group)
}

/// Standard output and errors of a program.
pub fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

fn walk(top: &Path, folder: &Path, found: &mut Vec<String>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            walk(top, &entry.path(), found)?;
        }
        // A file of the machine that is gone in the copy is a device here; folders count by what is in them, or when they are new.
        let is_file = kind.is_file() || kind.is_symlink();
        let path = entry.path();
        let seen = path.strip_prefix(top).map_err(io::Error::other)?;
        let is_new_folder = kind.is_dir() && !Path::new("/").join(seen).exists();
        if is_file || is_new_folder {
            found.push(format!("/{}", seen.display()));
        }
    }
    Ok(())
}

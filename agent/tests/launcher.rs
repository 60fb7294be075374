//! The launcher as a real process with real programs: scripts that end, hang or are none. The agent behind it is never enrolled, so that
//! it says so and ends when its turn comes: that is how it shows that the packaged program runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    fs::{self, DirBuilder, Permissions},
    os::unix::fs::{DirBuilderExt as _, PermissionsExt as _},
    path::Path,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use sealift_agent::program::{
    files::Files,
    launcher::own_version,
    marker::{Installed, Marker, Returned, Why},
};
use sealift_common::{digest::Digest, id::TaskId, manifest::PinnedImage};
use tempfile::TempDir;

/// What the packaged program says when it runs here.
const PACKAGED: &str = "this host is not enrolled";

struct Host {
    state: TempDir,
}

impl Host {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        fs::set_permissions(state.path(), Permissions::from_mode(0o700)).unwrap();
        Self { state }
    }

    fn files(&self) -> Files {
        Files::new(self.state.path())
    }

    fn marker(&self) -> Marker {
        self.files().marker().unwrap()
    }

    fn returned(&self) -> Returned {
        let marker = self.marker();
        assert_eq!(marker.trial, None);
        marker.returned.unwrap()
    }

    /// Puts a program beside the packaged one.
    fn install(&self, content: &str) -> Installed {
        let program = Digest::of(content.as_bytes());
        let path = self.files().program(program);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path.parent().unwrap())
            .unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
        Installed {
            program,
            version: own_version(),
            image: PinnedImage {
                repository: "r.example/agent".into(),
                tag: None,
                digest: Digest::of(b"image"),
            },
            task: TaskId::from(uuid::Uuid::from_u128(1)),
            attempt: 1,
        }
    }

    fn on_trial(&self, content: &str) -> Installed {
        let installed = self.install(content);
        let marker = Marker::default().try_out(installed.clone(), 500);
        self.files().set_marker(&marker).unwrap();
        installed
    }

    fn start(&self) -> Child {
        Command::new(env!("CARGO_BIN_EXE_sealift-agent"))
            .arg("run")
            .arg("--state-dir")
            .arg(self.state.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    }

    fn run(&self) -> (Output, String) {
        let output = self.start().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output, said)
    }

    fn note(&self) -> String {
        self.state.path().join("note").display().to_string()
    }
}

fn await_file(path: &Path) -> String {
    let give_up = Instant::now() + Duration::from_secs(30);
    loop {
        match fs::read_to_string(path) {
            Ok(text) if text.ends_with('\n') => return text,
            _ => assert!(Instant::now() < give_up, "{} never came", path.display()),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn r10_a_program_that_ends_by_itself_is_started_three_times_and_then_the_packaged_one_runs() {
    for code in [0, 1] {
        let host = Host::new();
        let note = host.note();
        let program = host.on_trial(&format!("#!/bin/sh\necho \"$@\" >> {note}\nexit {code}\n"));
        let (_, said) = host.run();
        assert!(said.contains(PACKAGED), "{said}");
        let returned = host.returned();
        assert_eq!((returned.program, returned.why), (program.program, Why::Died));
        let starts = fs::read_to_string(note).unwrap();
        let wanted = format!("run --state-dir {}\n", host.state.path().display());
        assert_eq!(
            starts,
            wanted.repeat(3),
            "each time with the launcher's own arguments"
        );
    }
}

#[test]
fn r10_a_program_on_trial_that_takes_itself_for_dismissed_does_not_end_the_unit() {
    let host = Host::new();
    let note = host.note();
    host.on_trial(&format!("#!/bin/sh\necho started >> {note}\nexit 3\n"));
    let (_, said) = host.run();
    assert!(said.contains(PACKAGED), "{said}");
    let returned = host.returned();
    assert_eq!(returned.why, Why::Died);
    assert!(returned.detail.contains("dismissed"), "{returned:?}");
    assert_eq!(fs::read_to_string(note).unwrap(), "started\n", "once is enough");
}

#[test]
fn r10_what_is_no_program_or_another_than_was_signed_is_given_up_at_once() {
    let host = Host::new();
    host.on_trial("this is no program");
    let (_, said) = host.run();
    assert!(said.contains(PACKAGED), "{said}");
    let returned = host.returned();
    assert_eq!(returned.why, Why::Died);
    assert!(returned.detail.contains("cannot be started"), "{returned:?}");

    let host = Host::new();
    let note = host.note();
    let program = host.on_trial(&format!("#!/bin/sh\necho started > {note}\n"));
    fs::write(host.files().program(program.program), "#!/bin/sh\n").unwrap();
    let (_, said) = host.run();
    assert!(said.contains(PACKAGED), "{said}");
    assert_eq!(host.returned().why, Why::Damaged);
    assert!(!Path::new(&note).exists(), "it was never started");
}

#[test]
fn r10_a_program_that_hangs_is_ended_and_given_up() {
    let host = Host::new();
    let note = host.note();
    // It does not listen to a request to end either.
    host.on_trial(&format!(
        "#!/bin/sh\ntrap '' TERM\necho $$ > {note}\nwhile :; do sleep 1; done\n"
    ));
    let (_, said) = host.run();
    assert!(said.contains(PACKAGED), "{said}");
    assert_eq!(host.returned().why, Why::Silent);
    let pid = await_file(Path::new(&note));
    assert!(
        !Path::new(&format!("/proc/{}", pid.trim())).exists(),
        "it is gone"
    );
}

#[test]
fn r10_a_program_that_says_that_it_works_stays_and_its_end_is_the_launchers() {
    let host = Host::new();
    let program = host.on_trial("#!/bin/sh\nsleep 2\nexit 42\n");
    let child = host.start();
    let give_up = Instant::now() + Duration::from_secs(30);
    while host.marker().trial.is_none_or(|trial| trial.boots == 0) {
        assert!(Instant::now() < give_up, "it was never started");
        std::thread::sleep(Duration::from_millis(20));
    }
    host.files().set_marker(&host.marker().confirm(None)).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(42));
    assert_eq!(host.marker().current, Some(program));
    assert_eq!(host.marker().returned, None);
}

#[test]
fn a_program_that_was_found_good_takes_the_process_over_and_a_changed_one_does_not() {
    let host = Host::new();
    let note = host.note();
    let good = host.install(&format!(
        "#!/bin/sh\necho $$ \"$SEALIFT_AGENT_PACKAGED\" \"$SEALIFT_AGENT_SUPERVISOR\" > {note}\nexit 7\n"
    ));
    host.files()
        .set_marker(&Marker::default().install(good.clone(), None))
        .unwrap();
    let child = host.start();
    let pid = child.id();
    assert_eq!(child.wait_with_output().unwrap().status.code(), Some(7));
    assert_eq!(
        await_file(Path::new(&note)),
        format!("{pid} {} \n", own_version()),
        "the same process, and nobody supervises it"
    );
    fs::write(host.files().program(good.program), "#!/bin/sh\nexit 0\n").unwrap();
    let (_, said) = host.run();
    assert!(
        said.contains(PACKAGED) && said.contains("was changed on the host"),
        "{said}"
    );
    assert_eq!(host.marker().current, Some(good), "what should run is remembered");
}

#[test]
fn r14_a_request_to_end_reaches_the_program_on_trial() {
    let host = Host::new();
    let note = host.note();
    host.on_trial(&format!(
        "#!/bin/sh\ntrap 'echo ended >> {note}; exit 0' TERM\necho started > {note}\nwhile :; do sleep 0.1; done\n"
    ));
    let child = host.start();
    await_file(Path::new(&note));
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(fs::read_to_string(note).unwrap(), "started\nended\n");
    assert!(host.marker().trial.is_some(), "it goes on at the next start");
}

#[test]
fn two_launchers_do_not_start_programs_at_once() {
    let host = Host::new();
    host.on_trial("#!/bin/sh\nexit 1\n");
    let claim = host.files().claim().unwrap().unwrap();
    let (output, said) = host.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("another process is starting"), "{said}");
    drop(claim);
    assert_eq!(
        host.marker().trial.map(|trial| trial.boots),
        Some(0),
        "nothing was counted"
    );
}

/// A disk that takes no lock or no marker is told by a folder in the place of the file: it also stops a test that may do everything.
fn in_the_way(host: &Host, name: &str) {
    let path = host.state.path().join("programs").join(name);
    fs::create_dir_all(path).unwrap();
}

/// A current program that notes what it is told, and one on trial above it that notes that it was started.
fn current_and_trial(host: &Host) -> String {
    let note = host.note();
    let current = host.install(&format!(
        "#!/bin/sh\necho \"current: $SEALIFT_AGENT_PROBLEM\" >> {note}\nexit 7\n"
    ));
    let trial = host.install(&format!("#!/bin/sh\necho trial >> {note}\nexit 1\n"));
    let marker = Marker::default().install(current, None).try_out(trial, 500);
    host.files().set_marker(&marker).unwrap();
    note
}

#[test]
fn r10_without_a_lock_or_a_count_a_good_program_runs_and_says_why() {
    for (name, wanted) in [
        ("launch.lock", "nothing can be locked for it"),
        (".marker.json.new", "its start cannot be counted"),
    ] {
        // Nothing was found good yet: the packaged program runs.
        let host = Host::new();
        let note = host.note();
        host.on_trial(&format!("#!/bin/sh\necho trial > {note}\n"));
        in_the_way(&host, name);
        let (_, said) = host.run();
        assert!(said.contains(PACKAGED) && said.contains(wanted), "{name}: {said}");
        assert!(
            !Path::new(&note).exists(),
            "{name}: what cannot be counted is not tried"
        );

        let host = Host::new();
        let note = current_and_trial(&host);
        in_the_way(&host, name);
        let (output, said) = host.run();
        assert_eq!(output.status.code(), Some(7), "{name}: {said}");
        let noted = fs::read_to_string(note).unwrap();
        assert!(
            noted.starts_with("current: ") && noted.contains(wanted),
            "{name}: {noted}"
        );
        assert_eq!(host.marker().trial.map(|trial| trial.boots), Some(0), "{name}");
    }
}

#[test]
fn r10_a_trial_whose_end_cannot_be_written_down_ends_with_a_good_program_all_the_same() {
    let host = Host::new();
    let way = host.state.path().join("programs/.marker.json.new");
    let trial = host.install(&format!("#!/bin/sh\nmkdir {}\nexec sleep 600\n", way.display()));
    let note = host.note();
    let current = host.install(&format!(
        "#!/bin/sh\necho \"$SEALIFT_AGENT_PROBLEM\" >> {note}\nexit 7\n"
    ));
    let marker = Marker::default().install(current, None).try_out(trial, 500);
    host.files().set_marker(&marker).unwrap();
    let (output, said) = host.run();
    assert_eq!(output.status.code(), Some(7), "{said}");
    assert!(
        fs::read_to_string(note)
            .unwrap()
            .contains("cannot be written down")
    );
}

#[test]
fn r10_a_superseded_program_does_not_come_back_when_a_trial_cannot_be_counted() {
    let host = Host::new();
    let note = current_and_trial(&host);
    // Older than the package, which has changed since.
    let mut marker = host.marker();
    let current = marker.current.as_mut().unwrap();
    current.version = semver::Version::new(0, 0, 0);
    marker.packaged = Some(Digest::of(b"an older package"));
    host.files().set_marker(&marker).unwrap();
    in_the_way(&host, ".marker.json.new");
    let (_, said) = host.run();
    assert!(said.contains(PACKAGED), "{said}");
    assert!(!Path::new(&note).exists(), "{said}");
}

#[test]
fn a_marker_that_cannot_be_read_is_put_aside_once() {
    let host = Host::new();
    host.files().make().unwrap();
    let folder = host.state.path().join("programs");
    for text in ["{", "3"] {
        fs::write(folder.join("marker.json"), text).unwrap();
        let (_, said) = host.run();
        assert!(
            said.contains(PACKAGED) && said.contains("was put aside as"),
            "{said}"
        );
        assert_eq!(
            fs::read_to_string(folder.join("marker.unreadable.json")).unwrap(),
            text
        );
        assert!(!host.files().has_marker());
        let (_, said) = host.run();
        assert!(
            !said.contains("put aside"),
            "the next start is as the first ever was: {said}"
        );
    }
}

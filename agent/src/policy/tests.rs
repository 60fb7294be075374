//! What of the host is open to whom.

use sealift_common::hook::HookWhen;

use super::*;
use crate::samples;

fn with(change: impl FnOnce(&mut ServiceSpec)) -> Manifest {
    let mut manifest = samples::order(1, &[("web", "v1")]).manifest;
    change(manifest.services.values_mut().next().unwrap());
    manifest
}

fn bind(source: impl AsRef<Path>) -> Manifest {
    let source = source.as_ref().to_str().unwrap().to_owned();
    with(|spec| {
        spec.volumes.push(MountSpec::Bind {
            source,
            target: "/x".to_owned(),
            read_only: true,
        });
    })
}

fn policy() -> HostPolicy {
    HostPolicy {
        engine_socket: Some("/var/run/docker.sock".into()),
        state_dir: Some("/var/lib/sealift-agent".into()),
        ..HostPolicy::default()
    }
}

fn listing(paths: &[&Path]) -> HostPolicy {
    HostPolicy {
        allowed_host_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
        ..policy()
    }
}

#[test]
fn r4_no_path_of_the_host_is_open_unless_the_settings_name_it() {
    for path in [
        "/",
        "/etc",
        "/etc/shadow",
        "/usr/local/bin",
        "/boot",
        "/var/spool/cron",
        "/home/x/.ssh",
        "/var/lib/containerd",
        "/dev",
        "/proc/1/root",
        "/run/x",
        "/srv/app",
        "/srv/../etc",
        "relative",
        "//etc",
    ] {
        let refused = policy().check(&bind(path)).unwrap_err().to_string();
        assert!(refused.contains(path) && refused.contains("policy."), "{refused}");
    }
}

#[test]
fn t16_hooks_are_run_only_as_far_as_the_settings_allow_them() {
    let hooks = [crate::samples::hook("migrate", HookWhen::PreDeploy, "v1")];
    let of = |allow_hooks| HostPolicy {
        allow_hooks,
        ..policy()
    };
    let named = |repository: &str| AllowHooks::From([repository.to_owned()].into());
    assert_eq!(policy().check_hooks(&hooks), Ok(()));
    assert_eq!(of(named(&hooks[0].image.repository)).check_hooks(&hooks), Ok(()));
    for policy in [of(named("registry.example.com")), of(AllowHooks::Never)] {
        let refused = policy.check_hooks(&hooks).unwrap_err().to_string();
        assert!(refused.contains("migrate") && refused.contains("policy.allow_hooks"));
        assert_eq!(policy.check_hooks(&[]), Ok(()));
    }
}

#[test]
fn r4_listed_paths_are_open_with_what_is_below_them() {
    let policy = listing(&[Path::new("/srv/app")]);
    for path in ["/srv/app", "/srv/app/data", "/srv/./app"] {
        assert!(policy.check(&bind(path)).is_ok(), "{path}");
    }
    for path in ["/srv/application", "/srv", "/opt", "/srv/app/../x"] {
        assert!(policy.check(&bind(path)).is_err(), "{path}");
    }
}

#[test]
fn r4_a_link_counts_as_what_it_leads_to() {
    let dir = tempfile::tempdir().unwrap();
    let policy = listing(&[dir.path()]);
    std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("loose")).unwrap();
    for path in ["link", "link/passwd", "loose"] {
        assert!(policy.check(&bind(dir.path().join(path))).is_err(), "{path}");
    }
    assert!(policy.check(&bind(dir.path().join("plain"))).is_ok());
}

#[test]
fn t16_what_may_not_be_looked_at_is_not_taken_for_absent() {
    let dir = tempfile::tempdir().unwrap();
    let policy = listing(&[dir.path()]);
    let refuses = |path: PathBuf| {
        let refused = policy.check(&bind(&path));
        assert!(
            matches!(refused, Err(Forbidden::Unseen { .. })),
            "{path:?}: {refused:?}"
        );
    };
    std::fs::write(dir.path().join("file"), "").unwrap();
    refuses(dir.path().join("file/below"));
    refuses(dir.path().join("x".repeat(300)));

    // As the packaged agent: a user of its own, and a folder of somebody else's with a link to anywhere.
    let closed = dir.path().join("closed");
    std::fs::create_dir(&closed).unwrap();
    std::os::unix::fs::symlink("/", closed.join("link")).unwrap();
    let mode = |path: &Path, mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        std::fs::set_permissions(path, permissions).unwrap();
    };
    mode(dir.path(), 0o755);
    mode(&closed, 0);
    std::thread::scope(|scope| {
        let of_agent = scope.spawn(|| {
            // Only root may, and only root needs to: everybody else may not enter the folder anyway.
            let nobody = rustix::process::Uid::from_raw(65_534);
            if rustix::process::geteuid().is_root() {
                rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
            }
            refuses(closed.join("link"));
            refuses(closed.join("link/etc"));
            assert!(
                policy.check(&bind(&closed)).is_ok(),
                "the folder itself can be told"
            );
        });
        of_agent.join().unwrap();
    });
    mode(&closed, 0o700);
}

#[test]
fn t16_files_that_compose_reads_stay_in_their_folder() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("files");
    std::fs::create_dir_all(folder.join("shared")).unwrap();
    std::fs::write(folder.join("web.env"), "A=1").unwrap();
    std::fs::write(dir.path().join("key"), "secret").unwrap();
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.join(name)).unwrap();
    link("web.env", "same.env");
    link("../../key", "shared/leak.env");
    link("/etc", "shared/etc");
    link("/nowhere", "shared/loose.env");
    for file in [
        "web.env",
        "./web.env",
        "same.env",
        "absent.env",
        "shared/absent.env",
    ] {
        assert!(stays_in(&folder, file), "{file}");
    }
    for file in [
        "shared/leak.env",
        "shared/etc/passwd",
        "shared/loose.env",
        "../key",
        "/etc/passwd",
    ] {
        assert!(!stays_in(&folder, file), "{file}");
    }
}

#[test]
fn t16_what_is_kept_from_everybody_is_so_where_it_cannot_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("file"), "").unwrap();
    let policy = HostPolicy {
        engine_socket: Some(dir.path().join("file/engine.sock")),
        state_dir: Some(dir.path().join("file/state")),
        ..listing(&[dir.path()])
    };
    assert!(policy.check(&bind(dir.path())).is_err());
}

#[test]
fn r4_the_engines_socket_needs_a_setting_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    std::fs::write(&socket, "").unwrap();
    let mut policy = HostPolicy {
        engine_socket: Some(socket.clone()),
        ..listing(&[Path::new("/")])
    };
    for path in [&socket, dir.path(), Path::new("/")] {
        let refused = policy.check(&bind(path)).unwrap_err();
        assert!(matches!(refused, Forbidden::EngineSocket { .. }), "{refused}");
        assert!(refused.to_string().contains("policy.allow_engine_socket"));
    }
    policy.allow_engine_socket = true;
    policy.allowed_host_paths.clear();
    assert!(policy.check(&bind(&socket)).is_ok());
    assert!(policy.check(&bind(dir.path())).is_err());
    policy.allowed_host_paths.push(dir.path().to_owned());
    assert!(policy.check(&bind(dir.path())).is_ok());
}

#[test]
fn r4_the_agents_own_state_is_never_open() {
    let dir = tempfile::tempdir().unwrap();
    let policy = HostPolicy {
        state_dir: Some(dir.path().join("agent")),
        allow_engine_socket: true,
        ..listing(&[Path::new("/")])
    };
    for path in ["agent", "agent/identity", ""] {
        let refused = policy.check(&bind(dir.path().join(path))).unwrap_err();
        assert!(matches!(refused, Forbidden::AgentState { .. }), "{refused}");
    }
    assert!(policy.check(&bind(dir.path().join("other"))).is_ok());
}

#[test]
fn r4_capabilities_are_the_usual_ones_and_those_that_the_settings_name() {
    let adding = |name: &str| with(|spec| spec.cap_add.push(name.to_owned()));
    for usual in ["NET_BIND_SERVICE", "cap_chown", "Kill"] {
        assert!(policy().check(&adding(usual)).is_ok(), "{usual}");
    }
    for more in [
        "all",
        "CAP_ALL",
        "SYS_ADMIN",
        "cap_sys_ptrace",
        "NET_ADMIN",
        "DAC_READ_SEARCH",
        "",
    ] {
        let refused = policy().check(&adding(more)).unwrap_err().to_string();
        assert!(refused.contains("policy.allowed_capabilities"), "{refused}");
    }
    let some = HostPolicy {
        allowed_capabilities: BTreeSet::from(["NET_ADMIN".to_owned()]),
        ..policy()
    };
    assert!(some.check(&adding("cap_net_admin")).is_ok());
    assert!(some.check(&adding("SYS_ADMIN")).is_err());
    assert!(some.check(&adding("ALL")).is_err());
    let every = HostPolicy {
        allowed_capabilities: BTreeSet::from(["ALL".to_owned()]),
        ..policy()
    };
    assert!(every.check(&adding("ALL")).is_ok());
    assert!(every.check(&adding("SYS_ADMIN")).is_ok());
}

#[test]
fn r4_options_that_may_switch_a_confinement_off_are_refused() {
    for option in [
        "seccomp=unconfined",
        "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}",
        "apparmor:unconfined",
        "apparmor=mine",
        "systempaths=unconfined",
        "label=disable",
        "label:type:spc_t",
        "unmask=ALL",
        "no-new-privileges:false",
        "no-new-privileges=0",
    ] {
        let loose = with(|spec| spec.security_opt.push(option.to_owned()));
        let refused = policy().check(&loose).unwrap_err().to_string();
        assert!(refused.contains(option), "{refused}");
        let allowed = HostPolicy {
            allow_unconfined: true,
            ..policy()
        };
        assert!(allowed.check(&loose).is_ok());
    }
    for option in [
        "no-new-privileges:true",
        "no-new-privileges",
        "seccomp=builtin",
        "label=level:s0:c1",
    ] {
        let strict = with(|spec| spec.security_opt.push(option.to_owned()));
        assert!(policy().check(&strict).is_ok(), "{option}");
    }
}

fn names(allowances: &[Allowance]) -> Vec<(AllowedBy, &str)> {
    allowances
        .iter()
        .map(|allowance| (allowance.setting, allowance.what.as_str()))
        .collect()
}

#[test]
fn r4_what_the_settings_allow_is_told_and_what_everybody_may_have_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("engine.sock");
    std::fs::write(&socket, "").unwrap();
    let policy = HostPolicy {
        engine_socket: Some(socket.clone()),
        allow_engine_socket: true,
        allow_unconfined: true,
        allowed_capabilities: BTreeSet::from(["ALL".to_owned()]),
        ..listing(&[Path::new("/srv/app")])
    };
    let mut manifest = with(|spec| {
        spec.cap_add = vec!["chown".to_owned(), "cap_sys_time".to_owned()];
        spec.security_opt = vec!["no-new-privileges".to_owned(), "seccomp=unconfined".to_owned()];
    });
    for mounted in [bind("/srv/app/data"), bind(&socket)] {
        let volumes = mounted.services.into_values().flat_map(|spec| spec.volumes);
        manifest
            .services
            .values_mut()
            .next()
            .unwrap()
            .volumes
            .extend(volumes);
    }
    let allowances = policy.check(&manifest).unwrap();
    let mut wanted = [
        (AllowedBy::HostPaths, "/srv/app/data"),
        (AllowedBy::Capabilities, "SYS_TIME"),
        (AllowedBy::EngineSocket, socket.to_str().unwrap()),
        (AllowedBy::Unconfined, "seccomp=unconfined"),
    ];
    wanted.sort_unstable();
    assert_eq!(names(&allowances), wanted);
    assert!(allowances.iter().all(|allowance| allowance.service == "web"));
    assert_eq!(policy.check(&with(|_| {})), Ok(Vec::new()));

    let whole = HostPolicy {
        allowed_host_paths: vec![dir.path().to_owned()],
        ..policy
    };
    let allowances = whole.check(&bind(dir.path())).unwrap();
    assert_eq!(
        names(&allowances),
        [(AllowedBy::EngineSocket, dir.path().to_str().unwrap())],
        "a folder that holds the socket is as much as the socket"
    );
}

#[test]
fn a_packet_names_a_bounded_number_of_allowances() {
    let many = with(|spec| {
        for number in 0..bounds::ALLOWANCES + 10 {
            spec.volumes.push(MountSpec::Bind {
                source: format!("/srv/app/{number}"),
                target: format!("/{number}"),
                read_only: true,
            });
        }
    });
    let allowances = listing(&[Path::new("/srv/app")]).check(&many).unwrap();
    assert_eq!(allowances.len(), bounds::ALLOWANCES);
    assert_eq!(allowances.last().unwrap().what, "this and 10 more");
}

#[test]
fn an_environment_may_have_a_policy_of_its_own() {
    let policy = HostPolicy {
        environments: BTreeMap::from([("staging".parse().unwrap(), listing(&[Path::new("/srv/app")]))]),
        ..policy()
    };
    let asked = bind("/srv/app");
    assert!(policy.of(&"staging".parse().unwrap()).check(&asked).is_ok());
    assert!(policy.of(&"production".parse().unwrap()).check(&asked).is_err());
}

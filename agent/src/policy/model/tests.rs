//! What of a resolved compose file reaches the host.

use sealift_common::{compose::hosted, evidence::AllowedBy};

use super::*;

fn check(yaml: &str) -> Result<Vec<Allowance>, Forbidden> {
    let policy = HostPolicy {
        allowed_host_paths: vec!["/srv/app".into()],
        engine_socket: Some("/var/run/docker.sock".into()),
        state_dir: Some("/var/lib/sealift-agent".into()),
        ..HostPolicy::default()
    };
    let model = hosted::document(yaml).unwrap();
    policy.check_model(
        &model,
        &["a".to_owned()].into(),
        Some(Path::new("/srv/files")),
        "sealift-0a-",
    )
}

fn service(body: &str) -> Result<Vec<Allowance>, Forbidden> {
    check(&format!("services: {{a: {{image: a, {body}}}}}"))
}

#[test]
fn t16_what_reaches_the_host_is_refused_with_place_and_advice() {
    for (body, said) in [
        ("privileged: true", "services.a.privileged"),
        ("privileged: 'true'", "services.a.privileged"),
        ("pid: host", "services.a.pid"),
        ("pid: 'container:x'", "services.a.pid"),
        ("ipc: host", "services.a.ipc"),
        ("uts: host", "services.a.uts"),
        ("userns_mode: host", "services.a.userns_mode"),
        ("cgroup: host", "services.a.cgroup"),
        ("cgroup_parent: x", "services.a.cgroup_parent"),
        ("network_mode: host", "services.a.network_mode"),
        ("network_mode: 'container:x'", "services.a.network_mode"),
        ("network_mode: other_default", "services.a.network_mode"),
        ("network_mode: bridge", "services.a.network_mode"),
        ("network_mode: default", "services.a.network_mode"),
        ("annotations: {run.oci.hooks: /x}", "services.a.annotations"),
        (
            "networks: {n: {driver_opts: {com.docker.network.endpoint.ifname: eth9}}}",
            "services.a.networks.n.driver_opts",
        ),
        (
            "volumes: [{type: volume, source: /etc, target: /x}]",
            "services.a.volumes",
        ),
        (
            "security_opt: ['no-new-privileges:false']",
            "no-new-privileges:false",
        ),
        ("devices: [/dev/sda]", "services.a.devices"),
        (
            "device_cgroup_rules: ['c 1:3 rwm']",
            "services.a.device_cgroup_rules",
        ),
        ("gpus: all", "services.a.gpus"),
        ("runtime: x", "services.a.runtime"),
        ("use_api_socket: true", "services.a.use_api_socket"),
        ("some_future_key: 1", "services.a.some_future_key"),
        ("volumes_from: ['container:x']", "services.a.volumes_from"),
        (
            "post_start: [{command: x, privileged: true}]",
            "services.a.post_start",
        ),
        (
            "deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}",
            "services.a.deploy.resources.reservations.devices",
        ),
        ("cap_add: [SYS_ADMIN]", "SYS_ADMIN"),
        ("cap_add: [ALL]", "ALL"),
        ("security_opt: ['seccomp:unconfined']", "unconfined"),
        ("volumes: ['/etc:/x:ro']", "/etc"),
        ("volumes: ['/var/run/docker.sock:/x']", "/var/run/docker.sock"),
        ("volumes: [{type: bind, source: /root, target: /x}]", "/root"),
        (
            "volumes: [{type: npipe, source: x, target: /x}]",
            "services.a.volumes",
        ),
        (
            "volumes: ['/var/lib/sealift-agent/compose/x:/x']",
            "/var/lib/sealift-agent",
        ),
    ] {
        let refused = service(body).unwrap_err().to_string();
        assert!(
            refused.contains(said) && refused.len() > said.len() + 20,
            "{body}: {refused}"
        );
    }
    for (yaml, said) in [
        (
            "services: {a: {image: a}}\nvolumes: {v: {driver_opts: {type: none, o: bind, device: /etc}}}",
            "/etc",
        ),
        (
            "services: {a: {image: a}}\nnetworks: {n: {driver: macvlan}}",
            "networks.n",
        ),
        (
            "services: {a: {image: a}}\nnetworks: {n: {external: true, name: host}}",
            "networks.n",
        ),
        (
            "services: {a: {image: a}}\nnetworks: {host: {external: true}}",
            "networks.host",
        ),
        (
            "services: {a: {image: a}}\nsecrets: {s: {file: /etc/shadow}}",
            "/etc/shadow",
        ),
        (
            "services: {a: {image: a}}\nnetworks: {n: {external: true, name: sealift-0b-shop_default}}",
            "sealift-0b-shop_default",
        ),
        (
            "services: {a: {image: a}}\nvolumes: {v: {name: sealift-0b-shop_data}}",
            "sealift-0b-shop_data",
        ),
        ("services: {a: {image: a}}\nmodels: {m: {}}", "models"),
        (
            "services: {a: {image: a}}\nnetworks: {n: {external: true, name: bridge}}",
            "networks.n",
        ),
        (
            "services: {a: {image: a}}\nnetworks: {n: {name: host}}",
            "networks.n",
        ),
    ] {
        let refused = check(yaml).unwrap_err().to_string();
        assert!(refused.contains(said), "{yaml}: {refused}");
    }
}

#[test]
fn t16_volumes_have_the_engine_mount_nothing_of_the_host() {
    for options in [
        "driver: some/plugin",
        "driver: [local]",
        "driver_opts: {type: none, o: bind, device: etc}",
        "driver_opts: {type: none, o: rbind, device: ../etc}",
        "driver_opts: {type: none, o: bind, device: /etc}",
        "driver_opts: {o: rbind, device: /srv/app/../../etc}",
        "driver_opts: {type: none, device: /srv/app/x}",
        "driver_opts: {type: none, o: 'bind,remount', device: /srv/app/x}",
        "driver_opts: {type: none, o: 'bind,rshared', device: /srv/app/x}",
        "driver_opts: {type: ext4, o: bind, device: /srv/app/x}",
        "driver_opts: {type: overlay, o: 'lowerdir=/etc:/tmp', device: overlay}",
        "driver_opts: {type: overlay, o: 'lowerdir=/etc,upperdir=/etc,workdir=/tmp', device: overlay}",
        "driver_opts: {type: proc, device: proc}",
        "driver_opts: {type: sysfs, device: sysfs}",
        "driver_opts: {type: ext4, device: dev/sda1}",
        "driver_opts: {type: ext4, device: /dev/sda1}",
        "driver_opts: {type: devtmpfs, device: devtmpfs}",
        "driver_opts: {type: cifs, o: 'addr=x', device: //x/y}",
        "driver_opts: {type: nfs, o: 'addr=10.0.0.1', device: ':/'}",
        "driver_opts: {type: tmpfs, o: bind, device: tmpfs}",
        "driver_opts: {type: tmpfs, o: 'size=1m,rbind', device: tmpfs}",
        "driver_opts: {type: tmpfs, o: remount, device: tmpfs}",
        "driver_opts: {type: tmpfs, device: /etc}",
        "driver_opts: {type: [none], o: bind, device: /srv/app/x}",
        "driver_opts: {type: none, o: 5, device: /srv/app/x}",
        "driver_opts: {Type: none, o: bind, device: /srv/app/x}",
        "driver_opts: {mountpoint: /etc}",
        "driver_opts: [type=none]",
        "some_future_key: 1",
    ] {
        let refused = check(&format!(
            "services: {{a: {{image: a}}}}\nvolumes: {{v: {{{options}}}}}"
        ));
        let refused = refused.expect_err(options).to_string();
        assert!(refused.contains("volumes.v"), "{options}: {refused}");
    }
    for options in [
        "",
        "driver: local",
        "driver: local, driver_opts: {}",
        "driver_opts: {type: tmpfs, device: tmpfs}",
        "driver_opts: {type: tmpfs, o: 'size=100m,uid=1000,mode=0700,noexec', device: tmpfs}",
        "driver_opts: {type: none, o: 'bind,ro', device: /srv/files/x}",
        "external: true, name: others",
    ] {
        let allowed = check(&format!(
            "services: {{a: {{image: a}}}}\nvolumes: {{v: {{{options}}}}}"
        ));
        assert_eq!(allowed, Ok(Vec::new()), "{options}");
    }
}

#[test]
fn t16_networks_stay_away_from_those_of_the_host() {
    for options in [
        "driver: ipvlan",
        "driver: [bridge]",
        "driver_opts: {com.docker.network.bridge.name: docker0}",
        "driver_opts: {parent: eth0}",
        "driver_opts: {com.docker.network.bridge.host_binding_ipv4: 0.0.0.0}",
        "driver_opts: [parent=eth0]",
        "ipam: {driver: dhcp}",
        "ipam: {options: {a: b}}",
        "config_from: x",
    ] {
        let refused = check(&format!(
            "services: {{a: {{image: a}}}}\nnetworks: {{n: {{{options}}}}}"
        ));
        let refused = refused.expect_err(options).to_string();
        assert!(refused.contains("networks.n"), "{options}: {refused}");
    }
    for network in [
        "n: null",
        "n: {driver: bridge, driver_opts: {com.docker.network.driver.mtu: 1400}, internal: true, attachable: true}",
        "n: {driver_opts: {com.docker.network.bridge.enable_icc: 'false'}, ipam: {config: [{subnet: 10.9.0.0/24}]}}",
        "n: {external: true, name: edge}",
        "host: {}",
    ] {
        let allowed = check(&format!("services: {{a: {{image: a}}}}\nnetworks: {{{network}}}"));
        assert_eq!(allowed, Ok(Vec::new()), "{network}");
    }
}

#[test]
fn what_applications_usually_ask_for_is_allowed() {
    for body in [
        "cap_add: [NET_BIND_SERVICE], cap_drop: [ALL], read_only: true",
        "security_opt: ['no-new-privileges:true']",
        "volumes: ['data:/d:rw', /anonymous, '/srv/files/y:/y']",
        "volumes: [{type: volume, source: data, target: /d}, {type: tmpfs, target: /t}]",
        "pid: 'service:b', ipc: shareable, network_mode: 'service:b', privileged: false",
        "deploy: {resources: {limits: {cpus: '0.5'}}}, x-sealift: {}",
    ] {
        assert_eq!(service(body), Ok(Vec::new()), "{body}");
    }
    assert_eq!(
        check("services: {a: {image: a}}\nvolumes: {v: {name: sealift-0a-shop_v}}"),
        Ok(Vec::new())
    );
    // What does not run asks for nothing.
    assert_eq!(
        check("services: {a: {image: a}, off: {image: b, privileged: true, profiles: [x]}}"),
        Ok(Vec::new())
    );
    assert_eq!(
        check("services: {a: {image: a}}\nsecrets: {s: {file: /srv/files/s}}"),
        Ok(Vec::new())
    );
}

#[test]
fn what_the_settings_allow_is_told() {
    let body = "volumes: ['/srv/app/x:/x:ro', '/srv/files/y:/y', '/srv/app/x:/z']";
    let wanted = Allowance::new("a", AllowedBy::HostPaths, "/srv/app/x");
    assert_eq!(service(body), Ok(vec![wanted]));
    let shared =
        "services: {a: {image: a}}\nvolumes: {v: {driver_opts: {type: none, o: bind, device: /srv/app/v}}}";
    let wanted = Allowance::new("volumes.v", AllowedBy::HostPaths, "/srv/app/v");
    assert_eq!(check(shared), Ok(vec![wanted]));
}

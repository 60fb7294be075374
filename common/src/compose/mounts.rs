//! `volumes` and `tmpfs` of a service: short and long syntax.

use std::collections::BTreeMap;

use super::{
    cx::{At, Cx, quoted},
    scalar,
};
use crate::manifest::MountSpec;

const ADVICE: &str = "write it like data:/var/lib/data, /srv/data:/data:ro or /cache";
const HOST_ADVICE: &str =
    "name the absolute path on the host: the orchestrator does not know where the file lay";

/// Mounts and tmpfs (path to options) of a service.
#[derive(Default)]
pub struct Mounts {
    pub volumes: Vec<MountSpec>,
    pub tmpfs: BTreeMap<String, String>,
}

impl Mounts {
    fn taken(&self, path: &str) -> bool {
        self.tmpfs.contains_key(path) || self.volumes.iter().any(|mount| target(mount) == path)
    }

    fn add_mount(&mut self, cx: &mut Cx, at: &At, mount: MountSpec) {
        if self.taken(target(&mount)) {
            twice(cx, at, target(&mount));
        }
        self.volumes.push(mount);
    }

    fn add_tmpfs(&mut self, cx: &mut Cx, at: &At, path: String, options: String) {
        if self.taken(&path) {
            twice(cx, at, &path);
        }
        self.tmpfs.insert(path, options);
    }
}

fn twice(cx: &mut Cx, at: &At, path: &str) {
    cx.wrong(
        at,
        format!("something is already mounted on {}", quoted(path)),
        "mount it elsewhere",
    );
}

fn target(mount: &MountSpec) -> &str {
    match mount {
        MountSpec::Volume { target, .. }
        | MountSpec::Bind { target, .. }
        | MountSpec::Anonymous { target } => target,
    }
}

fn container_path(cx: &mut Cx, at: &At, text: &str) -> Option<String> {
    let path = scalar::normal_path(text);
    let fault = scalar::path_fault(text).or((path == "/").then_some("is the root directory"));
    if let Some(fault) = fault {
        cx.wrong(
            at,
            format!("{} {fault}", quoted(text)),
            "name an absolute path in the container",
        );
        return None;
    }
    Some(path)
}

fn host_path(cx: &mut Cx, at: &At, text: &str) -> Option<String> {
    if let Some(fault) = scalar::path_fault(text) {
        cx.wrong(at, format!("{} {fault}", quoted(text)), HOST_ADVICE);
        return None;
    }
    Some(scalar::normal_path(text))
}

/// Reads `volumes`.
pub fn volumes(cx: &mut Cx, at: &At, mounts: &mut Mounts) {
    for item in cx.items(at) {
        if item.is_map() {
            long(cx, &item, mounts);
        } else if let Some(mount) = cx.text(&item).and_then(|text| short(cx, &item, &text)) {
            mounts.add_mount(cx, &item, mount);
        }
    }
    mounts.volumes.sort();
}

fn short(cx: &mut Cx, at: &At, text: &str) -> Option<MountSpec> {
    let parts: Vec<_> = text.split(':').collect();
    let (source, path, mode) = match parts.as_slice() {
        [path] => (None, *path, "rw"),
        [source, path] => (Some(*source), *path, "rw"),
        [source, path, mode] => (Some(*source), *path, *mode),
        _ => {
            cx.wrong(at, format!("{} is no mount", quoted(text)), ADVICE);
            return None;
        }
    };
    let read_only = match mode {
        "ro" => true,
        "rw" => false,
        _ => {
            let message = format!("the mode {} is not ro or rw", quoted(mode));
            cx.unsupported(at, message, "remove it, or use a compose_host target");
            return None;
        }
    };
    let target = container_path(cx, at, path)?;
    let Some(source) = source else {
        return Some(MountSpec::Anonymous { target });
    };
    if source.starts_with(['/', '.', '~']) {
        let source = host_path(cx, at, source)?;
        return Some(MountSpec::Bind {
            source,
            target,
            read_only,
        });
    }
    named(cx, at, source, target, read_only)
}

fn named(cx: &mut Cx, at: &At, source: &str, target: String, read_only: bool) -> Option<MountSpec> {
    let Ok(volume) = source.parse() else {
        cx.wrong(at, format!("{} is no name of a volume", quoted(source)), ADVICE);
        return None;
    };
    Some(MountSpec::Volume {
        volume,
        target,
        read_only,
    })
}

fn long(cx: &mut Cx, at: &At, mounts: &mut Mounts) -> Option<()> {
    const SCHEMA: &str = "services.*.volumes[]";
    let fields = cx.fields(at, SCHEMA);
    let text = |cx: &mut Cx, key: &str| fields.get(key).and_then(|at| cx.text(at));
    let kind = text(cx, "type").unwrap_or_default();
    let Some(path) = fields.get("target") else {
        cx.wrong(at, "it has no target", "name the path in the container");
        return None;
    };
    let path_text = cx.text(path)?;
    let target = container_path(cx, path, &path_text)?;
    let read_only = fields
        .get("read_only")
        .and_then(|at| cx.flag(at))
        .unwrap_or_default();
    if let Some(at) = fields.get("volume") {
        cx.fields(at, "services.*.volumes[].volume");
    }
    if let Some(at) = fields.get("bind") {
        let bind = cx.fields(at, "services.*.volumes[].bind");
        bind.get("create_host_path").and_then(|at| cx.flag(at));
    }
    let source = text(cx, "source");
    match (kind.as_str(), source) {
        ("volume", None) if read_only => {
            cx.wrong(
                at,
                "a volume without a name is always writable",
                "name the volume",
            );
        }
        ("volume", None) => mounts.add_mount(cx, at, MountSpec::Anonymous { target }),
        ("volume", Some(source)) => {
            let mount = named(cx, at, &source, target, read_only)?;
            mounts.add_mount(cx, at, mount);
        }
        ("bind", Some(source)) => {
            let source = host_path(cx, at, &source)?;
            mounts.add_mount(
                cx,
                at,
                MountSpec::Bind {
                    source,
                    target,
                    read_only,
                },
            );
        }
        ("bind", None) => cx.wrong(at, "it has no source", "name the path on the host"),
        ("tmpfs", None) => {
            let options = tmpfs_options(cx, fields.get("tmpfs"), read_only);
            mounts.add_tmpfs(cx, at, target, options);
        }
        ("tmpfs", Some(_)) => cx.wrong(at, "a tmpfs has no source", "remove `source`"),
        (kind, _) => {
            let message = format!("the type {} is not volume, bind or tmpfs", quoted(kind));
            cx.unsupported(at, message, "use one of them, or a compose_host target");
        }
    }
    Some(())
}

fn tmpfs_options(cx: &mut Cx, at: Option<&At>, read_only: bool) -> String {
    let mut options = Vec::new();
    if read_only {
        options.push("ro".to_owned());
    }
    if let Some(at) = at {
        let fields = cx.fields(at, "services.*.volumes[].tmpfs");
        if let Some(at) = fields.get("size")
            && let Some(text) = cx.number(at)
        {
            match scalar::bytes(&text) {
                Some(bytes) => options.push(format!("size={bytes}")),
                None => cx.wrong(at, format!("{} is no size", quoted(&text)), "write it like 64m"),
            }
        }
        if let Some(at) = fields.get("mode")
            && let Some(text) = cx.number(at)
        {
            // YAML 1.2 spells octal numbers 0o755, people write 0755 or 755.
            let digits = text.trim_start_matches("0o").trim_start_matches('0');
            if !digits.is_empty()
                && digits.len() <= 4
                && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'))
            {
                options.push(format!("mode={digits}"));
            } else {
                cx.wrong(
                    at,
                    format!("{} is no file mode", quoted(&text)),
                    "write it like 1777",
                );
            }
        }
    }
    options.join(",")
}

/// Reads `tmpfs`.
pub fn tmpfs(cx: &mut Cx, at: &At, mounts: &mut Mounts) {
    for text in cx.one_or_many(at) {
        let (path, options) = text.split_once(':').unwrap_or((&text, ""));
        if let Some(path) = container_path(cx, at, path) {
            mounts.add_tmpfs(cx, at, path, options.to_owned());
        }
    }
}

//! Compose files of releases for agents: one service, one image, nothing else. A program of an agent is no container, so whatever
//! else a service may say would be a promise that nobody keeps.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ComposeErrors, EnvFiles, NotResolved,
    cx::{At, Cx},
};
use crate::{
    agent_manifest::{AgentKind, AgentManifest},
    bounds,
    manifest::PinnedImage,
    name::ServiceName,
    program::SERVICE,
};

/// A file whose image is still a reference as people write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentFile {
    services: BTreeMap<ServiceName, String>,
}

impl AgentFile {
    /// The image, as written.
    pub fn images(&self) -> BTreeMap<&ServiceName, &str> {
        self.services
            .iter()
            .map(|(name, image)| (name, image.as_str()))
            .collect()
    }

    /// The content of a release, given what a registry said about the image.
    pub fn pin(self, resolved: &BTreeMap<ServiceName, PinnedImage>) -> Result<AgentManifest, NotResolved> {
        let pinned = self.services.into_keys().map(|name| match resolved.get(&name) {
            Some(image) => Ok((name, image.clone())),
            None => Err(NotResolved { service: name }),
        });
        Ok(AgentManifest {
            kind: AgentKind::AgentHost,
            services: pinned.collect::<Result<_, _>>()?,
        })
    }
}

/// The compose file of a release for agents whose program lies in `image`.
pub fn document(image: &str) -> String {
    let quoted = image.replace('\'', "''");
    format!("services:\n  {SERVICE}:\n    image: '{quoted}'\n")
}

/// Reads a compose file for agents.
pub fn parse(text: &str) -> Result<AgentFile, ComposeErrors> {
    let variables = EnvFiles::new();
    let mut cx = Cx::new(&variables);
    let Some(root) = cx.read(text) else {
        return Err(cx.into_errors());
    };
    let services = read(&mut cx, &At::root(&root));
    cx.finish(AgentFile { services })
}

fn read(cx: &mut Cx, root: &At) -> BTreeMap<ServiceName, String> {
    let advice = format!("write `services: {{{SERVICE}: {{image: …}}}}` and nothing else");
    only(cx, root, &["name", "version", "services"]);
    let Some(at) = root.get("services") else {
        cx.wrong(root, "it has no `services`", &advice);
        return BTreeMap::new();
    };
    let mut images = BTreeMap::new();
    for (name, service) in cx.named(&at, bounds::SERVICES) {
        if name.as_str() != SERVICE {
            cx.wrong(
                &service,
                format!("an agent is the service {SERVICE}, not {name}"),
                &advice,
            );
            continue;
        }
        only(cx, &service, &["image"]);
        match service.get("image").and_then(|image| image.plain_text()) {
            Some(image) if !image.contains('$') => {
                images.insert(name, image);
            }
            Some(_) => cx.wrong(&service, "its image is a variable", "write the image literally"),
            None => cx.wrong(
                &service,
                "it names no `image`",
                "name the image that holds the program",
            ),
        }
    }
    if at.keys().is_empty() {
        cx.wrong(&at, "it has no service", &advice);
    }
    images
}

/// Refuses every other key.
fn only(cx: &mut Cx, at: &At, known: &[&str]) {
    let known: BTreeSet<&str> = known.iter().copied().collect();
    for (key, value) in at.map() {
        if !known.contains(key) {
            let message = format!("{key} means nothing for the program of an agent");
            cx.unsupported(&value, message, "take it out");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{digest::Digest, error::Reason};

    #[test]
    fn what_is_written_for_an_image_is_read_back_and_pinned() {
        for image in ["r.example:5000/acme/sealift-agent:1.2.3", "it's"] {
            let file = parse(&document(image)).unwrap();
            assert_eq!(file.images().into_values().collect::<Vec<_>>(), [image]);
        }
        let file = parse(&document("r.example/agent:1")).unwrap();
        assert!(file.clone().pin(&BTreeMap::new()).is_err());
        let pinned = PinnedImage {
            repository: "r.example/agent".into(),
            tag: Some("1".into()),
            digest: Digest::of(b"1"),
        };
        let resolved = [(SERVICE.parse().unwrap(), pinned.clone())].into();
        assert_eq!(file.pin(&resolved).unwrap().program().unwrap().1, &pinned);
    }

    #[test]
    fn what_an_agent_cannot_be_is_refused_with_its_place() {
        for (text, reason, place) in [
            (
                "services: {web: {image: i}}",
                Reason::InvalidManifest,
                "services.web",
            ),
            (
                "services: {sealift-agent: {}}",
                Reason::InvalidManifest,
                "services.sealift-agent",
            ),
            ("services: {}", Reason::InvalidManifest, "services"),
            ("x: 1", Reason::InvalidManifest, ""),
            (
                "services: {sealift-agent: {image: '$I'}}",
                Reason::InvalidManifest,
                "services.sealift-agent",
            ),
            (
                "services: {sealift-agent: {image: i, ports: ['80']}}",
                Reason::UnsupportedManifestKey,
                "services.sealift-agent.ports",
            ),
            (
                "services: {sealift-agent: {image: i}}\nvolumes: {a: {}}",
                Reason::UnsupportedManifestKey,
                "volumes",
            ),
        ] {
            let errors = parse(text).unwrap_err();
            assert!(
                errors
                    .errors
                    .iter()
                    .any(|error| error.reason == reason && error.path == place),
                "{text}: {errors}"
            );
        }
    }
}

//! Names that people choose, checked once at the edge: `Name` for things, `SourceRef` for where a release came from,
//! `ReleaseAlias` for how people point at one.

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{bounds, id::ReleaseId};

/// Why a text is not a name of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct InvalidName {
    /// What was wanted.
    pub kind: &'static str,
    /// What was given, cut to a printable length.
    pub text: String,
    /// The rule that it breaks.
    pub rule: &'static str,
}

fn invalid(kind: &'static str, text: &str, rule: &'static str) -> InvalidName {
    InvalidName {
        kind,
        text: text.chars().take(100).collect(),
        rule,
    }
}

/// The first of some names, as many as a message has room for.
pub(crate) fn few<N: Into<String>>(names: impl ExactSizeIterator<Item = N>, most: usize) -> String {
    let more = names.len().saturating_sub(most);
    let shown: Vec<String> = names.take(most).map(Into::into).collect();
    let shown = shown.join(", ");
    if more == 0 {
        shown
    } else {
        format!("{shown} and {more} more")
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }
        impl std::borrow::Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

/// A name that people choose for a tenant, an environment, a target, a user: a lower-case letter, then up to 62 lower-case
/// letters, digits and single dashes (fits DNS labels, container names and file names).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Name(String);

text_type!(Name);

impl FromStr for Name {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let legal = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
        let fits = (1..=63).contains(&text.len())
            && text.as_bytes()[0].is_ascii_lowercase()
            && text.bytes().all(legal)
            && !text.ends_with('-')
            && !text.contains("--");
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(
                "name",
                text,
                "1 to 63 of a-z, 0-9 and single dashes, beginning with a letter, not ending with a dash",
            ))
        }
    }
}

/// A compose service's name, as compose-spec allows it: letters, digits, `_`, `.`, `-`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceName(String);

text_type!(ServiceName);

impl FromStr for ServiceName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
        let fits = (1..=63).contains(&text.len())
            && text.as_bytes()[0].is_ascii_alphanumeric()
            && text.bytes().all(legal);
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(
                "service name",
                text,
                "1 to 63 letters, digits, '_', '.' or '-', beginning with a letter or digit",
            ))
        }
    }
}

/// One or more path segments of a repository (`github.com/acme/shop`) or a component (`acme/shop-api`).
fn is_path(text: &str, most: usize) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b':');
    !text.is_empty()
        && text.len() <= most
        && text.split('/').all(|segment| {
            !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(legal)
        })
}

/// A component's name: path segments of letters, digits, `.`, `_`, `-`, `:`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ComponentName(String);

text_type!(ComponentName);

impl FromStr for ComponentName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        if is_path(text, 255) {
            Ok(Self(text.to_owned()))
        } else {
            Err(invalid(
                "component name",
                text,
                "path segments of letters, digits, '.', '_', '-', ':'; at most 255 bytes",
            ))
        }
    }
}

/// A project: a place inside a source repository that numbers its own releases, `repository/project`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProjectRef {
    /// The source repository, `github.com/acme/shop`.
    pub repository: String,
    /// The project inside it, `api`.
    pub project: String,
}

impl fmt::Display for ProjectRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.repository, self.project)
    }
}

impl FromStr for ProjectRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rule = "wanted `repository/project`, for example github.com/acme/shop/api";
        if !is_path(text, 512) {
            return Err(invalid("project", text, rule));
        }
        let (repository, project) = text
            .rsplit_once('/')
            .ok_or_else(|| invalid("project", text, rule))?;
        Ok(Self {
            repository: repository.to_owned(),
            project: project.to_owned(),
        })
    }
}

impl ProjectRef {
    /// Whether a project can end with this text.
    pub fn is_ending(text: &str) -> bool {
        is_path(text, 512)
    }

    /// Whether `wanted` (for example `shop/api`) names this project by its last whole segments.
    pub fn ends_with(&self, wanted: &str) -> bool {
        let full = self.to_string();
        full == wanted || full.strip_suffix(wanted).is_some_and(|head| head.ends_with('/'))
    }
}

/// Where a release came from: `repository/project@commit`, the commit as 40 lower-case hex digits (or 64 for SHA-256 git).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SourceRef {
    /// The project.
    #[serde(flatten)]
    pub project: ProjectRef,
    /// The commit.
    pub commit: String,
}

fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64)
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

impl fmt::Display for SourceRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.project, self.commit)
    }
}

impl FromStr for SourceRef {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rule = "wanted `repository/project@commit`, the commit as 40 or 64 lower-case hex digits";
        let (project, commit) = text
            .rsplit_once('@')
            .ok_or_else(|| invalid("source", text, rule))?;
        if !is_commit(commit) {
            return Err(invalid("source", text, rule));
        }
        Ok(Self {
            project: project.parse()?,
            commit: commit.to_owned(),
        })
    }
}

/// How people point at a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReleaseAlias {
    /// By identifier.
    Id(ReleaseId),
    /// By number: `shop/api#42`; the project may be cut at the front to whole segments as long as one project fits.
    Number {
        /// The project's last segments.
        project: String,
        /// The number in the project.
        number: u64,
    },
    /// By triplet: `repository/project@commit` or `repository/project/commit`.
    Triplet {
        /// The project's last segments.
        project: String,
        /// The commit.
        commit: String,
    },
}

impl fmt::Display for ReleaseAlias {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id(id) => id.fmt(f),
            Self::Number { project, number } => write!(f, "{project}#{number}"),
            Self::Triplet { project, commit } => write!(f, "{project}@{commit}"),
        }
    }
}

impl FromStr for ReleaseAlias {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<Self, InvalidName> {
        let rule = "wanted a release id, `project#number` or `repository/project@commit`";
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if let Some((project, number)) = text.rsplit_once('#') {
            let number = number
                .parse()
                .ok()
                .filter(|number| *number > 0 && is_path(project, 512));
            let number = number.ok_or_else(|| invalid("release", text, rule))?;
            return Ok(Self::Number {
                project: project.to_owned(),
                number,
            });
        }
        let parts = text.rsplit_once('@').or_else(|| text.rsplit_once('/'));
        match parts {
            Some((project, commit)) if is_path(project, 512) && is_commit(commit) => Ok(Self::Triplet {
                project: project.to_owned(),
                commit: commit.to_owned(),
            }),
            _ => Err(invalid("release", text, rule)),
        }
    }
}

/// Labels of a target, checked.
pub type Labels = BTreeMap<String, String>;

/// Checks labels: bounded in number, keys like `region` or `acme.com/zone`, values printable and bounded.
pub fn check_labels(labels: &Labels) -> Result<(), InvalidName> {
    if labels.len() > bounds::LABELS {
        return Err(invalid("label set", "", "at most 64 labels"));
    }
    for (key, value) in labels {
        if !is_path(key, 128) {
            return Err(invalid(
                "label key",
                key,
                "letters, digits, '.', '_', '-' and '/'; at most 128 bytes",
            ));
        }
        if value.len() > bounds::LABEL_VALUE_BYTES || value.chars().any(char::is_control) {
            return Err(invalid(
                "label value",
                value,
                "at most 256 bytes, no control characters",
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_strict() {
        for text in ["staging", "web-1", "a"] {
            assert!(text.parse::<Name>().is_ok(), "{text}");
        }
        for text in ["", "1a", "-a", "a-", "a--b", "A", "a_b", "ä", &"a".repeat(64)] {
            assert!(text.parse::<Name>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_source_names_project_and_commit() {
        let commit = "a".repeat(40);
        let source: SourceRef = format!("github.com/acme/shop/api@{commit}").parse().unwrap();
        assert_eq!(source.project.repository, "github.com/acme/shop");
        assert_eq!(source.project.project, "api");
        for text in [
            "api@x",
            "api",
            "a/../b@aaaa",
            &format!("api@{commit}"),
            &format!("/a/b@{commit}"),
        ] {
            assert!(text.parse::<SourceRef>().is_err(), "{text}");
        }
    }

    #[test]
    fn aliases_are_told_apart_and_match_whole_segments() {
        assert_eq!(
            "shop/api#42".parse(),
            Ok(ReleaseAlias::Number {
                project: "shop/api".into(),
                number: 42
            })
        );
        assert!("shop/api#0".parse::<ReleaseAlias>().is_err());
        assert!("shop/api#-1".parse::<ReleaseAlias>().is_err());
        let project: ProjectRef = "github.com/acme/shop/api".parse().unwrap();
        assert!(project.ends_with("shop/api") && project.ends_with("api"));
        assert!(!project.ends_with("hop/api") && !project.ends_with("pi"));
    }
}

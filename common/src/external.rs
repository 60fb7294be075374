//! References to things of other systems: containers of an engine, places on a host. Who may see which is said with the reference, and
//! taken care of in one place: what leaves this program for a caller is a [`SeenRef`], and only [`ExternalRef::seen_by`] makes one.

use crate::{phases, role::Role};

phases! {
    /// Whose identifier it is.
    ExternalSystem { Engine = "engine", Host = "host" }
}

phases! {
    /// What it identifies.
    ExternalKind { Container = "container", Path = "path" }
}

phases! {
    /// Who gets to see identifier and address; each includes those after it.
    Visibility { Everybody = "everybody", Operators = "operators", Admins = "admins" }
}

impl Visibility {
    /// Whether a caller of this role is one of them. A caller without a role is only everybody.
    pub const fn includes(self, role: Option<Role>) -> bool {
        match (self, role) {
            (Self::Everybody, _) | (_, Some(Role::Admin)) | (Self::Operators, Some(Role::Deployer)) => true,
            (Self::Operators, Some(Role::Observer | Role::Ci | Role::Approver) | None)
            | (Self::Admins, Some(Role::Observer | Role::Ci | Role::Deployer | Role::Approver) | None) => {
                false
            }
        }
    }
}

/// A reference to something that another system keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExternalRef {
    /// Whose identifier it is.
    pub system: ExternalSystem,
    /// What it identifies.
    pub kind: ExternalKind,
    /// The identifier there.
    pub id: String,
    /// Where it can be looked at, if it can.
    pub url: Option<String>,
    /// Who gets to see it.
    pub visibility: Visibility,
}

impl ExternalRef {
    /// A container. Its identifier is a handle at the engine and tells others nothing that service and digest do not.
    pub fn container(id: impl Into<String>) -> Self {
        Self {
            system: ExternalSystem::Engine,
            kind: ExternalKind::Container,
            id: id.into(),
            url: None,
            visibility: Visibility::Admins,
        }
    }

    /// A place in the file system of a host. Whoever looks after hosts has to find it.
    pub fn host_path(path: impl Into<String>) -> Self {
        Self {
            system: ExternalSystem::Host,
            kind: ExternalKind::Path,
            id: path.into(),
            url: None,
            visibility: Visibility::Operators,
        }
    }

    /// What a caller of this role gets of it.
    #[must_use]
    pub fn seen_by(&self, role: Option<Role>) -> SeenRef<'_> {
        SeenRef {
            reference: self,
            shown: self.visibility.includes(role),
        }
    }
}

/// A reference as one caller may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SeenRef<'a> {
    reference: &'a ExternalRef,
    shown: bool,
}

impl<'a> SeenRef<'a> {
    /// Whose identifier it is.
    pub const fn system(self) -> ExternalSystem {
        self.reference.system
    }

    /// What it identifies.
    pub const fn kind(self) -> ExternalKind {
        self.reference.kind
    }

    /// Who gets to see it.
    pub const fn visibility(self) -> Visibility {
        self.reference.visibility
    }

    /// The identifier; `None` when the caller does not get to see it.
    pub fn id(self) -> Option<&'a str> {
        self.shown.then_some(self.reference.id.as_str())
    }

    /// The address; `None` when there is none, or the caller does not get to see it.
    pub fn url(self) -> Option<&'a str> {
        self.reference.url.as_deref().filter(|_| self.shown)
    }

    /// The text with what the caller does not get to see left out: for texts of other programs that name what is referred to. An
    /// identifier of one character is no secret and stays.
    #[must_use]
    pub fn without_hidden(self, text: &str) -> String {
        let id = self.reference.id.as_str();
        if self.shown || id.len() < 2 {
            text.to_owned()
        } else {
            text.replace(id, "(hidden)")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_visibility_includes_exactly_the_roles_that_it_says() {
        let sees = |visibility: Visibility| {
            let roles = Role::ALL.into_iter().map(Some).chain([None]);
            roles
                .filter(|role| visibility.includes(*role))
                .collect::<Vec<_>>()
        };
        let all: Vec<_> = Role::ALL.into_iter().map(Some).chain([None]).collect();
        assert_eq!(sees(Visibility::Everybody), all);
        assert_eq!(
            sees(Visibility::Operators),
            [Some(Role::Deployer), Some(Role::Admin)]
        );
        assert_eq!(sees(Visibility::Admins), [Some(Role::Admin)]);
    }

    #[test]
    fn nothing_of_a_hidden_reference_is_told_but_that_there_is_one() {
        for visibility in Visibility::ALL {
            let reference = ExternalRef {
                url: Some("https://engine.example/0123456789ab".to_owned()),
                visibility: *visibility,
                ..ExternalRef::container("0123456789ab")
            };
            for role in Role::ALL.into_iter().map(Some).chain([None]) {
                let seen = reference.seen_by(role);
                let shown = visibility.includes(role);
                assert_eq!(seen.id(), shown.then_some("0123456789ab"));
                assert_eq!(seen.url().is_some(), shown);
                assert_eq!(
                    (seen.system(), seen.kind(), seen.visibility()),
                    (ExternalSystem::Engine, ExternalKind::Container, *visibility)
                );
            }
        }
        assert_eq!(ExternalRef::container("x").visibility, Visibility::Admins);
        assert_eq!(ExternalRef::host_path("/x").visibility, Visibility::Operators);
    }

    #[test]
    fn texts_lose_what_is_hidden_and_nothing_else() {
        let path = ExternalRef::host_path("/var/lib/docker");
        let text = "/var/lib/docker has 3 MiB free";
        assert_eq!(path.seen_by(Some(Role::Deployer)).without_hidden(text), text);
        assert_eq!(
            path.seen_by(Some(Role::Observer)).without_hidden(text),
            "(hidden) has 3 MiB free"
        );
        let root = ExternalRef::host_path("/");
        assert_eq!(root.seen_by(None).without_hidden("/ has a/b"), "/ has a/b");
        assert_eq!(ExternalRef::host_path("").seen_by(None).without_hidden("x"), "x");
    }
}

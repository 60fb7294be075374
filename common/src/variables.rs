//! Variables of an environment: what Compose fills `${NAME}` with. Never secret: they are stored, shown and signed. Values that are
//! secret stay on the host (`docs/compose-support.md`).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::bounds;

/// Names that mean something to Compose, to the engine's client or to the loader of programs, and so are never handed on.
const RESERVED: &[&str] = &[
    "BASH_ENV", "ENV", "GODEBUG", "HOME", "IFS", "LOCPATH", "PATH", "PWD", "SHELL", "TMPDIR",
];
/// The same for all names that begin so.
const FAMILIES: &[&str] = &[
    "BUILDKIT_",
    "BUILDX_",
    "COMPOSE_",
    "DOCKER_",
    "GCONV_",
    "GLIBC_",
    "LD_",
    "MALLOC_",
    "PYTHON",
    "SEALIFT_",
    "XDG_",
];

/// Why a variable is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVariable {
    /// The name is none.
    #[error(
        "{0:?} is no name of a variable: letters, digits and '_', not beginning with a digit, at most 128"
    )]
    Name(String),
    /// The name belongs to somebody else.
    #[error("{0} means something to Compose or to the system and cannot be a variable of an environment")]
    Reserved(String),
    /// The value cannot be handed to a program.
    #[error("the value of {0} has more than {most} bytes or a NUL in it", most = bounds::VARIABLE_BYTES)]
    Value(String),
    /// There are too many.
    #[error("more than {most} variables", most = bounds::VARIABLES)]
    Count,
}

/// Whether `name` may be a variable.
pub fn check_name(name: &str) -> Result<(), InvalidVariable> {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let begins = name
        .bytes()
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_');
    if !begins || name.len() > 128 || !name.bytes().all(legal) {
        return Err(InvalidVariable::Name(name.chars().take(128).collect()));
    }
    let upper = name.to_ascii_uppercase();
    let is_reserved =
        RESERVED.contains(&upper.as_str()) || FAMILIES.iter().any(|begin| upper.starts_with(begin));
    if is_reserved {
        return Err(InvalidVariable::Reserved(name.to_owned()));
    }
    Ok(())
}

/// Checked variables by name.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "BTreeMap<String, String>", into = "BTreeMap<String, String>")]
pub struct Variables(BTreeMap<String, String>);

impl TryFrom<BTreeMap<String, String>> for Variables {
    type Error = InvalidVariable;

    fn try_from(variables: BTreeMap<String, String>) -> Result<Self, InvalidVariable> {
        if variables.len() > bounds::VARIABLES {
            return Err(InvalidVariable::Count);
        }
        for (name, value) in &variables {
            check_name(name)?;
            if value.len() > bounds::VARIABLE_BYTES || value.contains('\0') {
                return Err(InvalidVariable::Value(name.clone()));
            }
        }
        Ok(Self(variables))
    }
}

impl From<Variables> for BTreeMap<String, String> {
    fn from(variables: Variables) -> Self {
        variables.0
    }
}

impl Variables {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Names with values, by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The value of one.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: &str, value: &str) -> Result<Variables, InvalidVariable> {
        Variables::try_from(BTreeMap::from([(name.to_owned(), value.to_owned())]))
    }

    #[test]
    fn names_that_steer_programs_are_refused() {
        for name in ["GREETING", "_x", "Db_Host", "TZ", "HTTP_PROXY", "ENVIRONMENT"] {
            assert!(of(name, "x").is_ok(), "{name}");
        }
        for name in [
            "COMPOSE_FILE",
            "compose_profiles",
            "DOCKER_HOST",
            "LD_PRELOAD",
            "PATH",
            "HOME",
            "PYTHONPATH",
            "GODEBUG",
        ] {
            assert!(
                matches!(of(name, "x"), Err(InvalidVariable::Reserved(_))),
                "{name}"
            );
        }
        for name in ["", "1A", "A-B", "A=B", "Ä", "A B"] {
            assert!(matches!(of(name, "x"), Err(InvalidVariable::Name(_))), "{name}");
        }
    }

    #[test]
    fn values_and_numbers_are_bounded() {
        assert!(of("A", "two\nlines and $signs").is_ok());
        assert!(of("A", "\0").is_err());
        assert!(of("A", &"x".repeat(bounds::VARIABLE_BYTES + 1)).is_err());
        let many: BTreeMap<_, _> = (0..=bounds::VARIABLES)
            .map(|number| (format!("V{number}"), String::new()))
            .collect();
        assert_eq!(Variables::try_from(many), Err(InvalidVariable::Count));
    }
}

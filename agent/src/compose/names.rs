//! What the engine calls the networks and volumes of a lock, for containers that join them beside Compose. Pure.

use serde_json::Value;

use crate::policy::{called, is_external};

/// A network or volume of a lock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Thing {
    /// The engine's name.
    pub name: String,
    /// Whether others made it.
    pub is_external: bool,
    /// Whether nothing but its name is said of it, so that whoever makes it makes the same.
    pub is_plain: bool,
    /// A network without a way out.
    pub is_internal: bool,
}

/// The network or volume (`kind` is `networks` or `volumes`) that a lock of this Compose project calls `key`.
pub fn thing(model: &Value, project: &str, kind: &str, key: &str) -> Thing {
    let entry = model
        .get(kind)
        .and_then(|all| all.get(key))
        .unwrap_or(&Value::Null);
    let field = |name: &str| entry.get(name).filter(|value| !value.is_null());
    let is_external = is_external(entry);
    let name = match called("", entry) {
        "" if is_external => key.to_owned(),
        "" => format!("{project}_{key}"),
        written => written.to_owned(),
    };
    let is_empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    Thing {
        name,
        is_external,
        is_plain: field("driver").is_none_or(|driver| *driver == "local")
            && field("driver_opts").is_none_or(is_empty),
        is_internal: field("internal") == Some(&Value::Bool(true)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_are_those_that_compose_gives() {
        let model = json!({
            "networks": {
                "default": null,
                "named": { "name": "other", "internal": true },
                "edge": { "external": true },
                "old": { "external": { "name": "older" } },
                "ours": { "external": false },
            },
            "volumes": {
                "data": {},
                "mapped": { "driver": "local", "driver_opts": { "device": "/srv", "o": "bind" } },
            },
        });
        let name = |kind: &str, key: &str| {
            let thing = thing(&model, "p", kind, key);
            (thing.name, thing.is_external)
        };
        let text = |text: &str| text.to_owned();
        for (kind, key, wanted) in [
            ("networks", "default", (text("p_default"), false)),
            ("networks", "named", (text("other"), false)),
            ("networks", "edge", (text("edge"), true)),
            ("networks", "old", (text("older"), true)),
            ("networks", "ours", (text("p_ours"), false)),
            ("networks", "unsaid", (text("p_unsaid"), false)),
            ("volumes", "data", (text("p_data"), false)),
        ] {
            assert_eq!(name(kind, key), wanted, "{kind} {key}");
        }
        assert!(thing(&model, "p", "networks", "named").is_internal);
        assert!(thing(&model, "p", "volumes", "data").is_plain);
        assert!(!thing(&model, "p", "volumes", "mapped").is_plain);
    }
}

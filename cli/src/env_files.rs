//! The files that `env_file` of a compose file names, read here because the orchestrator opens none. What a line means is as Compose
//! has it, except that nothing is filled in from the environment of a shell: a release says the same wherever it is made.

use std::{
    collections::{BTreeMap, HashMap},
    io::ErrorKind,
    path::Path,
};

use sealift_common::bounds;
use sealift_proto::v1::Variables;
use serde_json::Value;

use crate::{error::CliError, input::read_bounded};

/// How a compose file names one of its files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Named {
    required: bool,
    raw: bool,
}

/// Reads the files. Whatever else is wrong with the compose file is for the orchestrator to say.
pub fn read(compose: &[u8], folder: &Path) -> Result<HashMap<String, Variables>, CliError> {
    let mut files = HashMap::new();
    for (name, how) in named(compose)? {
        let path = folder.join(&name);
        // The orchestrator says of a required file that it was not sent; this says it earlier, with the path.
        if !how.required
            && let Err(error) = std::fs::metadata(&path)
            && error.kind() == ErrorKind::NotFound
        {
            continue;
        }
        let bytes = read_bounded(&path, bounds::MANIFEST_BYTES)?;
        let text = String::from_utf8(bytes).map_err(|error| {
            CliError::local(
                format!("{name} is not text"),
                "an env_file holds NAME=value lines in UTF-8",
                error,
            )
        })?;
        let values = variables(&name, &text, how.raw)?;
        files.insert(name, Variables { values });
    }
    Ok(files)
}

/// Every file that a service names: as text, as a map, or as a list of either. Needed once is needed. One file has one format: it is sent
/// once, by its name.
fn named(compose: &[u8]) -> Result<BTreeMap<String, Named>, CliError> {
    let mut names: BTreeMap<String, Named> = BTreeMap::new();
    let document = std::str::from_utf8(compose)
        .ok()
        .and_then(|text| serde_saphyr::from_str::<Value>(text).ok())
        .unwrap_or_default();
    let services = document.get("services").and_then(Value::as_object);
    for service in services.into_iter().flat_map(|services| services.values()) {
        let entries = match service.get("env_file") {
            Some(Value::Array(entries)) => entries.as_slice(),
            Some(entry) => std::slice::from_ref(entry),
            None => &[],
        };
        for entry in entries {
            let Some(path) = entry.as_str().or_else(|| entry.get("path")?.as_str()) else {
                continue;
            };
            let required = entry.get("required").and_then(Value::as_bool).unwrap_or(true);
            let raw = entry.get("format").and_then(Value::as_str) == Some("raw");
            let known = names.entry(path.to_owned()).or_insert(Named { required, raw });
            known.required |= required;
            if known.raw != raw {
                return Err(CliError::usage(
                    format!(
                        "{path} is named with `format: raw` and without, so what its lines mean is not clear"
                    ),
                    "name it alike everywhere, or use two files",
                ));
            }
        }
    }
    Ok(names)
}

/// `NAME=value` lines; blank lines and comments are passed over. In the raw format a value is everything after the `=`.
fn variables(file: &str, text: &str, raw: bool) -> Result<HashMap<String, String>, CliError> {
    let mut values = HashMap::new();
    for (number, line) in text.lines().enumerate() {
        let start = line.trim_start();
        if start.is_empty() || start.starts_with('#') {
            continue;
        }
        let wrong = |(problem, hint): (&str, &str)| {
            CliError::usage(format!("{file}, line {}: {problem}", number + 1), hint)
        };
        let start = start.strip_prefix("export ").unwrap_or(start);
        let (name, rest) = start.split_once('=').ok_or_else(|| {
            wrong((
                "wanted NAME=value",
                "variables that shall come from the environment of a shell must be written out",
            ))
        })?;
        let name = name.trim();
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(wrong(("wanted NAME=value", "a name has no spaces in it")));
        }
        let value = if raw {
            rest.to_owned()
        } else {
            value(rest.trim()).map_err(wrong)?
        };
        values.insert(name.to_owned(), value);
    }
    Ok(values)
}

/// What is wrong, and what to do about it.
type Fault = (&'static str, &'static str);

const UNENDED: Fault = (
    "a quoted value does not end on its line",
    "close the quote; a line break is written \\n in double quotes",
);
const TRAILING: Fault = (
    "something follows the quoted value",
    "only a comment may follow the closing quote",
);
const FILLED_IN: Fault = (
    "a value refers to another variable",
    "write it out, or put single quotes around a value with a $ in it",
);

/// A value without its quotes and without the comment behind it.
fn value(text: &str) -> Result<String, Fault> {
    if let Some(inner) = text.strip_prefix('\'') {
        let (value, rest) = inner.split_once('\'').ok_or(UNENDED)?;
        return ended(rest, value.to_owned());
    }
    if let Some(inner) = text.strip_prefix('"') {
        return double_quoted(inner);
    }
    let comment = text
        .char_indices()
        .find(|(at, c)| *c == '#' && (*at == 0 || text[..*at].ends_with([' ', '\t'])));
    let value = comment.map_or(text, |(at, _)| &text[..at]).trim_end();
    if value
        .char_indices()
        .any(|(at, c)| c == '$' && refers(&value[at + 1..]))
    {
        return Err(FILLED_IN);
    }
    Ok(value.to_owned())
}

fn double_quoted(inner: &str) -> Result<String, Fault> {
    let mut value = String::new();
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        match c {
            '"' => return ended(chars.as_str(), value),
            '\\' => match chars.next().ok_or(UNENDED)? {
                'n' => value.push('\n'),
                'r' => value.push('\r'),
                't' => value.push('\t'),
                known @ ('"' | '\\' | '$') => value.push(known),
                other => value.extend(['\\', other]),
            },
            '$' if refers(chars.as_str()) => return Err(FILLED_IN),
            other => value.push(other),
        }
    }
    Err(UNENDED)
}

fn ended(rest: &str, value: String) -> Result<String, Fault> {
    let rest = rest.trim_start();
    if rest.is_empty() || rest.starts_with('#') {
        Ok(value)
    } else {
        Err(TRAILING)
    }
}

/// Whether what follows a `$` makes it a reference.
fn refers(rest: &str) -> bool {
    rest.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_' || c == '{')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_file_in_two_formats_is_refused() {
        let file = |more: &str| {
            format!(
                "services: {{a: {{env_file: [{{path: x.env, format: raw}}]}}, b: {{env_file: [{more}]}}}}"
            )
        };
        for more in ["x.env", "{path: x.env}"] {
            let refused = named(file(more).as_bytes()).unwrap_err();
            assert!(refused.to_string().contains("x.env"), "{refused}");
        }
        for more in ["y.env", "{path: x.env, format: raw, required: false}"] {
            assert!(named(file(more).as_bytes()).is_ok(), "{more}");
        }
    }

    #[test]
    fn values_are_read_as_compose_reads_them() {
        for (line, wanted) in [
            ("A=1", "1"),
            ("A=1 # note", "1"),
            ("A=1\t# note", "1"),
            ("A=1#2", "1#2"),
            ("A=# note", ""),
            ("A=", ""),
            ("A = spaced ", "spaced"),
            ("export A=1", "1"),
            ("A='x=y' # note", "x=y"),
            ("A='$HOME # x'", "$HOME # x"),
            ("A=\"two # words\"", "two # words"),
            (r#"A="a\"b\\c\n\$d\q""#, "a\"b\\c\n$d\\q"),
            ("A=50$ and $!", "50$ and $!"),
        ] {
            assert_eq!(variables("x", line, false).unwrap()["A"], wanted, "{line}");
        }
        assert_eq!(variables("x", "# c\n\n  # d\n", false).unwrap().len(), 0);
    }

    #[test]
    fn raw_values_are_everything_after_the_equals_sign() {
        let values = variables("x", "A='1' # note $B\n# c\nB= x ", true).unwrap();
        assert_eq!(values["A"], "'1' # note $B");
        assert_eq!(values["B"], " x ");
    }

    #[test]
    fn lines_that_would_mean_something_else_are_refused() {
        for line in [
            "A",
            "=1",
            "A B=1",
            "A=\"open",
            "A='open",
            "A='x' y",
            "A=\"x\"y",
            "A=$HOME",
            "A=\"${HOME}\"",
            "A=a${B:-c}",
        ] {
            let error = variables("web.env", line, false).unwrap_err().to_string();
            assert!(error.starts_with("web.env, line 1: "), "{line}: {error}");
        }
    }

    #[test]
    fn every_form_of_env_file_is_read_and_only_optional_files_may_be_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("there.env"), "A=1").unwrap();
        let read_of = |env_file: &str| {
            read(
                format!("services:\n  web:\n    image: x\n    env_file: {env_file}\n").as_bytes(),
                dir.path(),
            )
        };
        for form in [
            "there.env",
            "[there.env]",
            "{path: there.env}",
            "[{path: there.env}]",
        ] {
            assert_eq!(read_of(form).unwrap()["there.env"].values["A"], "1", "{form}");
        }
        assert!(
            read_of("[{path: missing.env, required: false}]")
                .unwrap()
                .is_empty()
        );
        assert!(
            read_of("{path: missing.env, required: false}")
                .unwrap()
                .is_empty()
        );
        for form in [
            "missing.env",
            "[{path: missing.env}]",
            "[missing.env, {path: missing.env, required: false}]",
        ] {
            assert!(read_of(form).is_err(), "{form}");
        }
        assert!(read(b"{{{", dir.path()).unwrap().is_empty());
    }
}

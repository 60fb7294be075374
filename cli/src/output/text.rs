//! Text from hosts and users is never printed raw: no escape sequences, no line breaks that forge output.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_proto::v1::ExternalRef;

/// Replaces every control, format and direction-changing character, and cuts to a bound.
pub fn clean(text: &str) -> String {
    const MOST: usize = 4096;
    text.chars()
        .take(MOST)
        .map(|c| if is_harmless(c) { c } else { '\u{fffd}' })
        .collect()
}

/// A line of a log. The carriage return of a network protocol's line end is none of it, and a tab is layout.
pub fn log_line(text: &str) -> String {
    clean(&text.trim_end_matches(['\r', '\n']).replace('\t', "    "))
}

/// Text of several lines for people: each is cleaned, and all but the first begin below the first.
pub fn lines(text: &str, indent: usize) -> String {
    let lines: Vec<String> = text.trim_end().lines().map(clean).collect();
    lines.join(&format!("\n{}", " ".repeat(indent)))
}

/// Text of several lines in one line.
pub fn one_line(text: &str) -> String {
    let lines: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(clean)
        .collect();
    lines.join("; ")
}

/// Whether a terminal shows a character and does nothing else with it.
pub fn is_harmless(c: char) -> bool {
    !c.is_control()
        && !matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The last segment of a resource name.
pub fn leaf(name: &str) -> String {
    clean(name.rsplit('/').next().unwrap_or(name))
}

/// A digest in twelve digits.
pub fn short_digest(digest: &str) -> String {
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    clean(&hex.chars().take(12).collect::<String>())
}

/// `environments/prod/targets/web-1` as `prod/web-1`.
pub fn short_target(name: &str) -> String {
    let parts: Vec<_> = name.split('/').collect();
    match parts.as_slice() {
        ["environments", environment, "targets", target] => clean(&format!("{environment}/{target}")),
        _ => clean(name),
    }
}

/// A protobuf time stamp.
pub fn time(stamp: Option<&pbjson_types::Timestamp>) -> Option<DateTime<Utc>> {
    stamp.and_then(|stamp| DateTime::from_timestamp(stamp.seconds, u32::try_from(stamp.nanos).ok()?))
}

/// How long ago, in the largest unit: `3d`, `2h`, `5m`, `12s`.
pub fn age(stamp: Option<&pbjson_types::Timestamp>, now: DateTime<Utc>) -> String {
    time(stamp).map_or_else(|| "-".to_owned(), |then| span(now - then))
}

/// A span in the largest unit.
pub fn span(span: TimeDelta) -> String {
    let seconds = span.num_seconds().max(0);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `1 target`, `2 targets`.
pub fn counted(count: impl TryInto<u64>, what: &str) -> String {
    let count = count.try_into().unwrap_or_default();
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {what}{plural}")
}

/// RFC 3339 without fractions.
pub fn stamp(stamp: Option<&pbjson_types::Timestamp>) -> String {
    time(stamp).map_or_else(
        || "-".to_owned(),
        |time| time.format("%Y-%m-%dT%H:%M:%SZ").to_string(),
    )
}

/// The text, or a dash for none.
pub fn or_dash(text: &str) -> String {
    if text.is_empty() {
        "-".to_owned()
    } else {
        clean(text)
    }
}

/// A reference to something of another system; an identifier in hexadecimal digits is cut to twelve.
pub fn external(reference: Option<&ExternalRef>) -> String {
    match reference {
        None => "-".to_owned(),
        Some(reference) if reference.hidden => "hidden for your role".to_owned(),
        Some(reference) if reference.kind == "container" => or_dash(&short_digest(&reference.id)),
        Some(reference) => or_dash(&reference.id),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_survive() {
        assert_eq!(
            clean("a\x1b[31mb\nc\u{202e}d"),
            "a\u{fffd}[31mb\u{fffd}c\u{fffd}d"
        );
        assert_eq!(clean("grüße 漢字"), "grüße 漢字");
        assert_eq!(clean(&"x".repeat(10_000)).len(), 4096);
    }

    #[test]
    fn a_line_of_a_log_ends_without_the_marks_of_its_protocol() {
        assert_eq!(log_line("HTTP/1.1 200 OK\r"), "HTTP/1.1 200 OK");
        assert_eq!(log_line("a\tb\rc\u{1b}[2J\r\n"), "a    b\u{fffd}c\u{fffd}[2J");
    }

    #[test]
    fn one_is_no_plural() {
        assert_eq!(counted(0, "target"), "0 targets");
        assert_eq!(counted(1_i32, "target"), "1 target");
        assert_eq!(counted(2_usize, "target"), "2 targets");
    }

    #[test]
    fn spans_use_the_largest_unit() {
        assert_eq!(span(TimeDelta::seconds(59)), "59s");
        assert_eq!(span(TimeDelta::hours(49)), "2d");
        assert_eq!(span(TimeDelta::seconds(-5)), "0s");
    }

    #[test]
    fn a_reference_is_shown_or_said_to_be_hidden_and_never_left_blank() {
        let container = ExternalRef {
            kind: "container".to_owned(),
            id: "0123456789abcdef".to_owned(),
            ..ExternalRef::default()
        };
        assert_eq!(external(Some(&container)), "0123456789ab");
        let path = ExternalRef {
            kind: "path".to_owned(),
            id: "/var/lib/docker\u{1b}".to_owned(),
            ..ExternalRef::default()
        };
        assert_eq!(external(Some(&path)), "/var/lib/docker\u{fffd}");
        let hidden = ExternalRef {
            hidden: true,
            ..ExternalRef::default()
        };
        assert_eq!(external(Some(&hidden)), "hidden for your role");
        assert_eq!(external(Some(&ExternalRef::default())), "-");
        assert_eq!(external(None), "-");
    }
}

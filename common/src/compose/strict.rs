//! What other readers of YAML read otherwise. On a compose host the host's Compose reads the same bytes with a reader of its own
//! (`PyYAML` in v1, `go-yaml` in v2): were it to see a line where this one sees a comment, or another value of a key, what is refused
//! here could be asked for behind the check's back. So whatever the readers disagree on is no compose file.

use granit_parser::{Event, Parser, ScalarStyle, Span, Tag};

use super::{error::ComposeError, yaml::Place};
use crate::error::Reason;

/// Line breaks of YAML 1.1, which are ordinary text in YAML 1.2: next line, line separator, paragraph separator.
const OLD_BREAKS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];
/// Byte order mark: no text, as the first character of a file. Elsewhere some readers pass over it and others do not.
const MARK: char = '\u{feff}';
/// The key that merges other maps into its own.
const MERGE: &str = "<<";

/// Refuses what the readers disagree on. For text that the parser takes: budgets were kept.
pub fn check(text: &str) -> Result<(), ComposeError> {
    let options = granit_parser::options! { disallow_directives: true };
    let mut open: Vec<Container> = Vec::new();
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = event.map_err(|error| {
            let at = place(Some(Span::empty(*error.marker())));
            refused(
                at,
                "is read differently by different programs",
                "write it more plainly",
            )
        })?;
        if let Some(tag) = event.tag() {
            plain_tag(tag, span)?;
        }
        if let Some(container) = open.last_mut()
            && event.is_node()
        {
            container.node(&event, span)?;
        }
        match event {
            Event::MappingStart(..) => open.push(Container::Map {
                at_key: true,
                merges: false,
            }),
            Event::SequenceStart(..) => open.push(Container::List),
            Event::MappingEnd | Event::SequenceEnd => {
                open.pop();
            }
            _ => {}
        }
    }
    Ok(())
}

/// Refuses characters that end a line, or are passed over, for some readers only. They can be written as escapes in double quotes.
pub fn characters(text: &str) -> Result<(), ComposeError> {
    let (mut line, mut column) = (1, 0);
    for (index, c) in text.char_indices() {
        column += 1;
        if OLD_BREAKS.contains(&c) || (c == MARK && index > 0) {
            let what = format!("holds the character U+{:04X}", u32::from(c));
            let message = format!("{what}, which ends a line for some programs and not for others");
            let advice = format!(
                "remove it, or write it as \"\\u{:04X}\" in double quotes",
                u32::from(c)
            );
            return Err(refused(Some((line, column)), &message, &advice));
        }
        if c == '\n' {
            (line, column) = (line + 1, 0);
        }
    }
    Ok(())
}

/// A map or list that is being read.
enum Container {
    Map { at_key: bool, merges: bool },
    List,
}

impl Container {
    fn node(&mut self, event: &Event<'_>, span: Span) -> Result<(), ComposeError> {
        let Self::Map { at_key, merges } = self else {
            return Ok(());
        };
        let is_key = std::mem::replace(at_key, !*at_key);
        if !is_key {
            return Ok(());
        }
        let at = place(Some(span));
        if event.is_alias() {
            return Err(refused(at, "has an alias for a key", "write the key out"));
        }
        let Some((MERGE, style)) = event.scalar() else {
            return Ok(());
        };
        if style != ScalarStyle::Plain || event.tag().is_some() || event.anchor_id().is_some() {
            let message = "has a merge key (<<) that some programs take for a name";
            return Err(refused(
                at,
                message,
                "write it as <<, without quotes, tag or anchor",
            ));
        }
        if std::mem::replace(merges, true) {
            let message = "has two merge keys (<<) in one map, of which some programs take the first and others the last";
            return Err(refused(
                at,
                message,
                "write one with a list: <<: [*first, *second]",
            ));
        }
        Ok(())
    }
}

/// Tags of the seven kinds that all readers know alike.
fn plain_tag(tag: &Tag, span: Span) -> Result<(), ComposeError> {
    if tag.core_suffix().is_some() {
        return Ok(());
    }
    Err(refused(
        place(span.tag_span().or(Some(span))),
        &format!("has the tag {}, which not all programs know", shown(tag)),
        "remove the tag",
    ))
}

fn shown(tag: &Tag) -> String {
    tag.original()
        .chars()
        .filter(|c| !c.is_control())
        .take(64)
        .collect()
}

fn place(span: Option<Span>) -> Place {
    let start = span?.start;
    let number = |number: usize| u32::try_from(number).ok();
    Some((number(start.line())?, number(start.col())?.checked_add(1)?))
}

fn refused(place: Place, message: &str, advice: &str) -> ComposeError {
    ComposeError {
        path: String::new(),
        message: format!("the file {message}"),
        advice: advice.to_owned(),
        reason: Reason::InvalidManifest,
        line: place.map(|(line, _)| line),
        column: place.map(|(_, column)| column),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::yaml;

    fn said(text: &str) -> String {
        yaml::read(text).unwrap_err().to_string()
    }

    #[test]
    fn t16_what_is_a_comment_here_is_a_line_nowhere() {
        for (text, place, advice) in [
            ("a: 1\n# note\u{2028}b: 2\n", "2:7: ", "\"\\u2028\""),
            ("a: 1 # note\u{2029}b: 2\n", "1:12: ", "\"\\u2029\""),
            ("a: 1\n\n #\u{85}b: 2\n", "3:3: ", "\"\\u0085\""),
            ("a: 'x\u{2028}  y'\n", "1:6: ", "remove it"),
            ("a: |\n  x\u{85}b: 2\n", "2:4: ", "remove it"),
            ("# x\n\u{feff}a: 1\n", "2:1: ", "\"\\uFEFF\""),
        ] {
            let said = said(text);
            assert!(
                said.starts_with(place) && said.contains(advice),
                "{text:?}: {said}"
            );
        }
        for text in [
            "\u{feff}a: 1\n",
            "a: \"\\u2028 \\u0085 \\L\\N\"\n",
            "a: é\u{a0}\u{3000}😀 # ü\n",
        ] {
            assert!(yaml::read(text).is_ok(), "{text:?}");
        }
    }

    #[test]
    fn t16_no_key_has_another_value_for_another_reader() {
        for (text, place) in [
            ("a:\n  <<: {b: 1}\n  <<: {b: 2}\n", "3:3: "),
            ("a: {<<: {b: 1}, c: 1, <<: {b: 2}}\n", "1:23: "),
            ("a: {'<<': {b: 1}}\n", "1:5: "),
            ("a: {\"<<\": {b: 1}}\n", "1:5: "),
            ("a: {!!str <<: {b: 1}}\n", "1:11: "),
            ("a: {&m <<: {b: 1}}\n", "1:8: "),
            ("a: &x b\n*x : c\n", "2:1: "),
            ("a: {!!binary ZW52X2ZpbGU=: 1}\n", "1:"),
            ("a: !!binary ZW52X2ZpbGU=\n", "1:"),
            ("a: ! 1\n", "1:"),
            ("a: !reset null\n", "1:"),
            ("a: !!merge <<\n", "1:"),
            ("%YAML 1.1\n---\na: 1\n", "1:1: "),
            ("%TAG !e! tag:yaml.org,2002:\n---\na: !e!str 1\n", "1:1: "),
            ("a: 1\n---\nb: 1\n", ""),
            ("a: 1\n...\nb: 1\n", ""),
            ("a: 1\n...\n---\nb: 1\n", ""),
        ] {
            let said = said(text);
            assert!(said.starts_with(place), "{text:?}: {said}");
        }
        for text in [
            "a: &x {b: 1}\nc: &y {d: 1}\ne: {<<: [*x, *y], f: 1}\ng: {<<: *x}\n",
            "a: !!str 1\nb: !!int '1'\nc: !!seq [1]\nd: '<<'\ne: [<<]\n",
            "---\na: 1\n...\n",
        ] {
            assert!(yaml::read(text).is_ok(), "{text:?}");
        }
    }

    proptest! {
        /// Whoever takes the old breaks for ends of lines reads the same lines as who does not, in whatever is accepted.
        #[test]
        fn t16_accepted_text_has_the_same_lines_for_every_reader(
            parts in prop::collection::vec(
                prop_oneof![
                    Just("a: "), Just("b"), Just("\n"), Just("\n  "), Just("# "), Just(" # "), Just("'"), Just("\""), Just("|"),
                    Just("- "), Just("{"), Just("}"), Just(", "), Just("\r"), Just("\u{85}"), Just("\u{2028}"), Just("\u{2029}"),
                    Just("\u{feff}"), Just("\u{a0}"), Just("\u{b}"), Just("\u{c}"), Just("\u{200b}"), Just("é"),
                ],
                0..16,
            ),
        ) {
            let text = parts.concat();
            if yaml::read(&text).is_ok() {
                let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
                let now: Vec<_> = text.split(['\n', '\r']).collect();
                let old: Vec<_> = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}', '\u{feff}']).collect();
                prop_assert_eq!(now, old);
            }
        }
    }
}

//! The small grammars inside compose-spec's texts: durations, byte sizes, fractions, paths, commands.

/// A duration such as `1m30s` or `1.5h` in milliseconds. `None` when it is no duration, not whole milliseconds or above 2^32 ms.
pub fn duration_ms(text: &str) -> Option<u32> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut nanos: u128 = 0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(end);
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        let factor: u128 = match unit {
            "ns" => 1,
            "us" | "µs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60 * 1_000_000_000,
            "h" => 3_600 * 1_000_000_000,
            _ => return None,
        };
        nanos = nanos.checked_add(scaled(number, factor)?)?;
        rest = tail;
    }
    if !nanos.is_multiple_of(1_000_000) {
        return None;
    }
    u32::try_from(nanos / 1_000_000).ok()
}

/// A size such as `64m` or `1.5g` in bytes, by powers of 1024 as compose-spec has it.
pub fn bytes(text: &str) -> Option<u64> {
    let lower = text.trim().to_ascii_lowercase();
    let end = lower
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(lower.len());
    let (number, unit) = lower.split_at(end);
    let power = match unit.trim_start() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 1,
        "m" | "mb" | "mib" => 2,
        "g" | "gb" | "gib" => 3,
        "t" | "tb" | "tib" => 4,
        _ => return None,
    };
    u64::try_from(scaled(number, 1024_u128.pow(power))?).ok()
}

/// A fraction such as `0.50` in thousandths; `None` when it needs more than three decimals.
pub fn milli(text: &str) -> Option<u32> {
    let decimals = text
        .split_once('.')
        .map_or("", |(_, decimals)| decimals.trim_end_matches('0'));
    if decimals.len() > 3 {
        return None;
    }
    u32::try_from(scaled(text, 1_000)?).ok()
}

/// `number` (digits, at most one point) times `factor`, cut to a whole number.
fn scaled(number: &str, factor: u128) -> Option<u128> {
    let (whole, decimals) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.len() + decimals.len() == 0
        || whole.len() > 20
        || decimals.len() > 9
        || !digits(whole)
        || !digits(decimals)
    {
        return None;
    }
    let value = |text: &str| {
        if text.is_empty() {
            Some(0)
        } else {
            text.parse::<u128>().ok()
        }
    };
    let part = value(decimals)?.checked_mul(factor)? / 10_u128.pow(u32::try_from(decimals.len()).ok()?);
    value(whole)?.checked_mul(factor)?.checked_add(part)
}

/// What breaks the rule for a path in a container or on a host, if anything.
pub fn path_fault(path: &str) -> Option<&'static str> {
    if !path.starts_with('/') {
        Some("is not an absolute path")
    } else if path.len() > 4096 {
        Some("is longer than 4096 bytes")
    } else if path.contains('\0') {
        Some("contains a NUL character")
    } else if path.split('/').any(|segment| segment == "..") {
        Some("contains `..`")
    } else {
        None
    }
}

/// A path without doubled or trailing slashes and without `.` segments, so that two spellings of one path are equal.
pub fn normal_path(path: &str) -> String {
    let segments: Vec<_> = path
        .split('/')
        .filter(|segment| !segment.is_empty() && *segment != ".")
        .collect();
    format!("/{}", segments.join("/"))
}

/// Splits a command as compose does (POSIX quoting). Compose knows no comments, our splitter does, so `#` at the beginning of
/// a word is refused instead of being read in two ways.
pub fn words(text: &str) -> Result<Vec<String>, &'static str> {
    let comment = text.split(char::is_whitespace).any(|word| word.starts_with('#'));
    if comment {
        return Err("has a word that begins with #");
    }
    shell_words::split(text).map_err(|_| "has an open quote")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_compose_spec() {
        for (text, wanted) in [
            ("10s", Some(10_000)),
            ("1m30s", Some(90_000)),
            ("2h32m", Some(9_120_000)),
            ("1.5s", Some(1_500)),
            ("100ms", Some(100)),
            ("5000us", Some(5)),
            ("0", Some(0)),
            ("0s", Some(0)),
            ("1us", None),
            ("10", None),
            ("", None),
            ("s", None),
            ("-1s", None),
            ("1d", None),
            ("1..5s", None),
            ("99999999999999999999h", None),
            ("9999h", None),
        ] {
            assert_eq!(duration_ms(text), wanted, "{text}");
        }
    }

    #[test]
    fn sizes_and_fractions_follow_compose_spec() {
        for (text, wanted) in [
            ("64m", Some(64 << 20)),
            ("64M", Some(64 << 20)),
            ("1.5g", Some(3 << 29)),
            ("2kb", Some(2048)),
            ("300000", Some(300_000)),
            ("1gib", Some(1 << 30)),
            ("m", None),
            ("1x", None),
            ("-1m", None),
            ("99999999999999999999g", None),
        ] {
            assert_eq!(bytes(text), wanted, "{text}");
        }
        for (text, wanted) in [
            ("0.5", Some(500)),
            ("2", Some(2_000)),
            ("0.50", Some(500)),
            (".25", Some(250)),
            ("0.0005", None),
            ("x", None),
            ("", None),
            (".", None),
        ] {
            assert_eq!(milli(text), wanted, "{text}");
        }
    }

    #[test]
    fn commands_are_split_by_quotes_and_never_in_two_ways() {
        let split = words(r#"sh -c "echo 'a b' \$X""#).unwrap();
        assert_eq!(split, ["sh", "-c", "echo 'a b' $X"]);
        assert!(words("echo 'a").is_err());
        assert!(words("echo # a").is_err());
    }
}

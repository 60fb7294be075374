//! Every stable code (of refusals, gates, failures and conditions) has a page in `docs/errors/` that says what happened, why, and what to do next; no page is left over.
//! Pages of failures say of which category they are; `docs/failures.md`, printed from here, says what the categories mean.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use std::{collections::BTreeSet, fmt::Write as _};

use golden::golden;
use sealift_common::{
    condition::ConditionCode,
    error::Reason,
    failure::{FailureCategory, FailureCode},
    gate_reason::GateReason,
};

#[test]
fn every_code_has_a_page_and_every_page_a_code() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors");
    let pages: BTreeSet<String> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let reasons = Reason::ALL.iter().map(|reason| reason.as_str());
    let failures = FailureCode::ALL.iter().map(|code| code.as_str());
    let conditions = ConditionCode::ALL.iter().map(|code| code.as_str());
    let gates = GateReason::ALL.iter().map(|reason| reason.as_str());
    let codes = reasons.chain(failures).chain(conditions).chain(gates);
    let wanted: BTreeSet<String> = codes.map(|code| format!("{code}.md")).collect();
    let missing: Vec<_> = wanted.difference(&pages).collect();
    let orphaned: Vec<_> = pages.difference(&wanted).collect();
    assert!(
        missing.is_empty() && orphaned.is_empty(),
        "missing {missing:?}, orphaned {orphaned:?}"
    );
    for page in &pages {
        let text = std::fs::read_to_string(format!("{folder}/{page}")).unwrap();
        let code = page.trim_end_matches(".md");
        assert!(text.starts_with(&format!("# {code}\n")), "{page}");
        for part in ["\n## Why\n", "\n## What to do next\n"] {
            assert!(text.contains(part), "{page} lacks {part:?}");
        }
    }
}

/// What a page says of the failure with this code.
fn category_line(code: FailureCode) -> String {
    let again = if code.retryable() {
        "Another attempt follows when the recipe allows more than one."
    } else {
        "No other attempt follows by itself."
    };
    format!(
        "\nCategory of the failure: [`{}`](../failures.md). {again}\n",
        code.category()
    )
}

#[test]
fn every_page_of_a_failure_says_its_category_and_no_other_page_does() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/errors");
    for entry in std::fs::read_dir(folder).unwrap() {
        let page = entry.unwrap().path();
        let text = std::fs::read_to_string(&page).unwrap();
        let lines: Vec<_> = text
            .lines()
            .filter(|line| line.starts_with("Category of the failure"))
            .collect();
        let code: Result<FailureCode, _> = page.file_stem().unwrap().to_str().unwrap().parse();
        let wanted = code.map(category_line).unwrap_or_default();
        assert_eq!(lines.concat(), wanted.trim(), "{}", page.display());
        let next = text.split("\n## What to do next\n").nth(1).unwrap_or_default();
        assert!(!next.trim().is_empty(), "{} says nothing to do", page.display());
    }
}

#[test]
fn the_page_of_categories_is_up_to_date() {
    let mut page = String::from(
        "# Failures\n\n\
         What failed on a target or in a job has a stable code, a summary in one line, often a detail, and what to do next. Each code has\n\
         one of nine categories: what kind of thing failed, and so who looks at it first. A failure of an attempt also says when it was\n\
         told, on which target, in which attempt and in which step; the step is the one on the way forward, because going back is what\n\
         follows from a failure (`RESTORE_FAILED` is the exception: there the way back failed).\n\n\
         `sealift job failures JOB` lists the failures of all attempts of a job, newest first; with a target, those of its task.\n\
         `sealift job get JOB` shows the newest twenty and how many there are.\n\n\
         Printed from the code by `common/tests/error_pages.rs` (`UPDATE_GOLDEN=1` rewrites it).\n\n\
         | Category | What it means | Codes |\n|---|---|---|\n",
    );
    for category in FailureCategory::ALL {
        let codes: Vec<_> = FailureCode::ALL
            .iter()
            .filter(|code| code.category() == *category)
            .map(|code| format!("[`{0}`](errors/{0}.md)", code.as_str()))
            .collect();
        writeln!(
            page,
            "| `{category}` | {} | {} |",
            category.meaning(),
            codes.join(", ")
        )
        .unwrap();
    }
    golden("failures.md", &page);
}

//! Every stable code (of refusals, gates, failures and conditions) has a page in `docs/errors/` that says what happened, why, and what to do next; no page is left over.

use std::collections::BTreeSet;

use sealift_common::{
    condition::ConditionCode, error::Reason, failure::FailureCode, gate_reason::GateReason,
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

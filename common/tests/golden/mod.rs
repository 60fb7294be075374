//! Pages of `docs/` that are printed from the code.

/// Fails when `docs/<file>` is not `page`; with `UPDATE_GOLDEN=1` writes it first.
pub fn golden(file: &str, page: &str) {
    let path = format!("{}/../docs/{file}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, page,
        "docs/{file} differs: run this test with UPDATE_GOLDEN=1 and look at the change"
    );
}

//! Page tokens: the store's cursor, bound to the other arguments of the list. A token carries no authority; it is only a place.
//! Streams that can be taken up again give out such tokens, too.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sealift_common::{bounds, digest::Digest, error::Reason};
use sealift_store::{Cursor, PageRequest};

use crate::status::ApiError;

/// Longest token that is looked at.
const TOKEN_BYTES: usize = 2048;

/// How many bytes of the arguments' digest a token carries: enough to notice a mistake, which is all it is for.
const BINDING_BYTES: usize = 8;

fn binding(bound_to: &[&str]) -> [u8; BINDING_BYTES] {
    // Lengths keep ["a", "b"] and ["ab"] apart.
    let parts: Vec<String> = bound_to
        .iter()
        .map(|part| format!("{}:{part}", part.len()))
        .collect();
    let digest = Digest::of(parts.join(";").as_bytes());
    let mut bytes = [0; BINDING_BYTES];
    bytes.copy_from_slice(&digest.as_bytes()[..BINDING_BYTES]);
    bytes
}

/// Reads `page_size` and `page_token`. Size 0 is the default, a larger one than allowed is lowered, a negative one refused.
/// `bound_to` are the other arguments, beginning with the method.
pub fn page_request(page_size: i32, page_token: &str, bound_to: &[&str]) -> Result<PageRequest, ApiError> {
    let size = match u32::try_from(page_size) {
        Ok(0) => bounds::PAGE_DEFAULT,
        Ok(size) => size.min(bounds::PAGE_MAX),
        Err(_) => return Err(ApiError::invalid("page_size", "must not be negative")),
    };
    let after = place("page_token", page_token, bound_to)?;
    Ok(PageRequest { size, after })
}

/// Reads the place that a token in `field` names; without one, the beginning.
pub fn place(field: &str, token: &str, bound_to: &[&str]) -> Result<Option<Cursor>, ApiError> {
    (!token.is_empty())
        .then(|| cursor(token, bound_to).ok_or_else(|| not_given(field)))
        .transpose()
}

fn cursor(token: &str, bound_to: &[&str]) -> Option<Cursor> {
    if token.len() > TOKEN_BYTES {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).ok()?;
    let (bound, text) = bytes.split_first_chunk::<BINDING_BYTES>()?;
    if *bound != binding(bound_to) {
        return None;
    }
    // No ordering column holds control characters, and PostgreSQL takes no zero.
    String::from_utf8(text.to_vec())
        .ok()
        .filter(|text| !text.chars().any(char::is_control))
        .map(Cursor::from_text)
}

/// The error of a token that this list did not give.
pub fn invalid_token() -> ApiError {
    not_given("page_token")
}

/// The error of a token in `field` that was not given for these arguments.
pub fn not_given(field: &str) -> ApiError {
    let description = "not a token that was given for these arguments";
    ApiError::new(
        Reason::InvalidPageToken,
        format!("field {field}: {description}"),
        format!("begin again without {field} and keep all other arguments the same"),
    )
    .field(field, description)
}

/// The token of the next page; empty at the end.
pub fn next_token(next: Option<Cursor>, bound_to: &[&str]) -> String {
    next.map_or_else(String::new, |cursor| {
        let mut bytes = binding(bound_to).to_vec();
        bytes.extend_from_slice(cursor.as_str().as_bytes());
        URL_SAFE_NO_PAD.encode(bytes)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[&str] = &["ListTargets", "environments/prod"];

    #[test]
    fn a_token_leads_back_to_its_cursor() {
        let token = next_token(Some(Cursor::from_text("3|prod")), LIST);
        let page = page_request(0, &token, LIST).unwrap();
        assert_eq!(page.after, Some(Cursor::from_text("3|prod")));
        assert_eq!(page.size, bounds::PAGE_DEFAULT);
        assert_eq!(next_token(None, LIST), "");
    }

    #[test]
    fn sizes_are_lowered_and_negative_ones_refused() {
        assert_eq!(page_request(i32::MAX, "", LIST).unwrap().size, bounds::PAGE_MAX);
        let error = page_request(-1, "", LIST).unwrap_err();
        assert_eq!(error.reason(), Reason::InvalidArgument);
    }

    #[test]
    fn a_token_of_another_list_or_of_nobody_is_refused() {
        let token = next_token(Some(Cursor::from_text("x")), LIST);
        for (token, bound_to) in [
            (token.as_str(), &["ListTargets", "environments/staging"][..]),
            (token.as_str(), &["ListTargets", "environments", "/prod"][..]),
            (next_token(Some(Cursor::from_text("a\0")), LIST).as_str(), LIST),
            ("!", LIST),
            ("AAAA", LIST),
            (&"A".repeat(TOKEN_BYTES + 1), LIST),
        ] {
            let error = page_request(10, token, bound_to).unwrap_err();
            assert_eq!(error.reason(), Reason::InvalidPageToken, "{token}");
        }
    }
}

//! References to things of other systems. They reach callers in this way only, so that nobody gets what its role does not.

use sealift_common::external::SeenRef;
use sealift_proto::v1 as pb;

/// A reference as its caller may see it.
pub fn external(seen: SeenRef<'_>) -> pb::ExternalRef {
    pb::ExternalRef {
        system: seen.system().to_string(),
        kind: seen.kind().to_string(),
        id: seen.id().unwrap_or_default().to_owned(),
        url: seen.url().unwrap_or_default().to_owned(),
        visibility: seen.visibility().to_string(),
        hidden: seen.id().is_none(),
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::{
        external::{ExternalRef, Visibility},
        role::Role,
    };

    use super::*;

    #[test]
    fn a_hidden_reference_says_so_and_whom_to_ask() {
        let reference = ExternalRef {
            url: Some("https://engine.example/c0ffee".to_owned()),
            ..ExternalRef::container("c0ffee")
        };
        let admin = external(reference.seen_by(Some(Role::Admin)));
        assert_eq!(
            (admin.id.as_str(), admin.url.as_str(), admin.hidden),
            ("c0ffee", "https://engine.example/c0ffee", false)
        );
        let observer = external(reference.seen_by(Some(Role::Observer)));
        assert_eq!(
            observer,
            pb::ExternalRef {
                id: String::new(),
                url: String::new(),
                hidden: true,
                ..admin
            }
        );
        assert_eq!(observer.visibility, Visibility::Admins.as_str());
    }
}

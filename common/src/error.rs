//! Stable reasons of refused calls: what `google.rpc.ErrorInfo.reason` carries. Each has a page `docs/errors/<REASON>.md`.

/// An enum whose variants have a stable text each.
macro_rules! stable_codes {
    ($(#[$about:meta])* $type:ident: $($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        $(#[$about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $type {
            $($(#[$doc])* $name,)+
        }

        impl $type {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The stable text (upper snake case).
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

pub(crate) use stable_codes;

stable_codes! {
    /// Why a call was refused, stable for programs.
    Reason:
    /// A field of the request is missing, malformed or out of bounds.
    InvalidArgument = "INVALID_ARGUMENT";
    /// The compose manifest cannot be read.
    InvalidManifest = "INVALID_MANIFEST";
    /// The compose manifest uses a key that `docker_host` does not support.
    UnsupportedManifestKey = "UNSUPPORTED_MANIFEST_KEY";
    /// An image reference is malformed.
    InvalidImageReference = "INVALID_IMAGE_REFERENCE";
    /// The registry does not know the image.
    ImageNotFound = "IMAGE_NOT_FOUND";
    /// The registry refused the orchestrator's credentials.
    RegistryDenied = "REGISTRY_DENIED";
    /// The registry cannot be reached or does not answer in time.
    RegistryUnavailable = "REGISTRY_UNAVAILABLE";
    /// The registry answered with something that is not what it says.
    RegistryMisbehaved = "REGISTRY_MISBEHAVED";
    /// A plain-http registry outside loopback that the configuration does not allow.
    RegistryInsecure = "REGISTRY_INSECURE";
    /// There is no such thing in this tenant.
    NotFound = "NOT_FOUND";
    /// The name is taken, or the same release exists with other content.
    AlreadyExists = "ALREADY_EXISTS";
    /// A short release name fits several projects.
    AmbiguousRelease = "AMBIGUOUS_RELEASE";
    /// The thing is in a state that does not allow this.
    WrongState = "WRONG_STATE";
    /// The thing is still used by others.
    InUse = "IN_USE";
    /// The etag is not that of the newest revision.
    StaleEtag = "STALE_ETAG";
    /// The same request id came with another body.
    RequestIdReused = "REQUEST_ID_REUSED";
    /// A page token that this list did not give.
    InvalidPageToken = "INVALID_PAGE_TOKEN";
    /// No client certificate.
    CertificateMissing = "CERTIFICATE_MISSING";
    /// The certificate is not one that counts: unknown, expired or revoked.
    CertificateRefused = "CERTIFICATE_REFUSED";
    /// The caller's role may not call this.
    RoleMissing = "ROLE_MISSING";
    /// The join token does not exist, has expired or was used.
    JoinTokenRefused = "JOIN_TOKEN_REFUSED";
    /// The certificate signing request does not verify.
    InvalidCsr = "INVALID_CSR";
    /// Another session of the same agent took over.
    SessionReplaced = "SESSION_REPLACED";
    /// The peer broke the agent protocol.
    ProtocolViolation = "PROTOCOL_VIOLATION";
    /// The orchestrator has no method of that name.
    UnknownMethod = "UNKNOWN_METHOD";
    /// Too much of something at once: try later.
    Overloaded = "OVERLOADED";
    /// The call took longer than its deadline.
    DeadlineExceeded = "DEADLINE_EXCEEDED";
    /// The database is away: try later.
    StoreUnavailable = "STORE_UNAVAILABLE";
    /// The orchestrator is going down: connect again.
    ShuttingDown = "SHUTTING_DOWN";
    /// A concurrent change won; the call may be tried again.
    Conflict = "CONFLICT";
    /// The release cannot be swapped in the wanted way.
    SwapUnfit = "SWAP_UNFIT";
    /// A defect of Sealift.
    Internal = "INTERNAL";
}

/// The domain that goes with every reason (`google.rpc.ErrorInfo.domain`).
pub const DOMAIN: &str = "sealift.dev";

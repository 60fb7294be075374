//! Authorization: ONE table, method to roles. What is not in it is denied. A test walks the descriptors of everything that is
//! served and fails on a method without line and on a line without method.

use std::{collections::HashMap, fmt, sync::LazyLock};

use sealift_common::{error::Reason, role::Role};

use crate::{
    caller::{Caller, Principal, certificate_missing},
    status::ApiError,
};

/// A set of roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Roles(u8);

impl Roles {
    /// A caller without certificate.
    pub const ANONYMOUS: Self = Self(1);
    /// Reads.
    pub const OBSERVER: Self = Self(1 << 1);
    /// CI systems.
    pub const CI: Self = Self(1 << 2);
    /// Operators.
    pub const DEPLOYER: Self = Self(1 << 3);
    /// Approvers.
    pub const APPROVER: Self = Self(1 << 4);
    /// Administrators of a tenant.
    pub const ADMIN: Self = Self(1 << 5);
    /// Agents.
    pub const AGENT: Self = Self(1 << 6);
    /// The socket in the orchestrator's data directory.
    pub const LOCAL: Self = Self(1 << 7);

    const NAMES: [(Self, &'static str); 8] = [
        (Self::ANONYMOUS, "anonymous"),
        (Self::OBSERVER, "observer"),
        (Self::CI, "ci"),
        (Self::DEPLOYER, "deployer"),
        (Self::APPROVER, "approver"),
        (Self::ADMIN, "admin"),
        (Self::AGENT, "agent"),
        (Self::LOCAL, "local"),
    ];

    const fn or(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether `role` is in the set.
    pub const fn contains(self, role: Self) -> bool {
        self.0 & role.0 == role.0
    }

    /// The role of a principal.
    pub const fn of(principal: &Principal) -> Self {
        match principal {
            Principal::User { role, .. } => Self::of_user(*role),
            Principal::Agent { .. } => Self::AGENT,
            Principal::Local => Self::LOCAL,
            Principal::Anonymous => Self::ANONYMOUS,
        }
    }

    /// The role of a user.
    pub const fn of_user(role: Role) -> Self {
        match role {
            Role::Observer => Self::OBSERVER,
            Role::Ci => Self::CI,
            Role::Deployer => Self::DEPLOYER,
            Role::Approver => Self::APPROVER,
            Role::Admin => Self::ADMIN,
        }
    }
}

impl fmt::Display for Roles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = Self::NAMES
            .iter()
            .filter(|(role, _)| self.contains(*role))
            .map(|(_, name)| *name)
            .collect();
        f.write_str(&names.join(", "))
    }
}

/// Only whoever sits on the orchestrator's host.
const LOCAL: Roles = Roles::LOCAL;
/// Administrators.
const ADMINS: Roles = Roles::LOCAL.or(Roles::ADMIN);
/// Whoever manages what there is.
const OPERATORS: Roles = ADMINS.or(Roles::DEPLOYER);
/// Whoever brings things into motion. Handlers narrow it further: a CI system cancels only what it asked for itself.
const REQUESTERS: Roles = OPERATORS.or(Roles::CI);
/// Every user: reading.
const USERS: Roles = REQUESTERS.or(Roles::OBSERVER).or(Roles::APPROVER);
/// Everyone with an identity.
const IDENTIFIED: Roles = USERS.or(Roles::AGENT);

/// One line of the table.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The path of the call: `/package.Service/Method`.
    pub method: &'static str,
    /// Who may call it.
    pub allowed: Roles,
    /// Whether it changes something, so that a failed call leaves an audit event (a denied one always does).
    pub mutates: bool,
    /// Whether the answer is a stream, which has to end when its principal is revoked.
    pub streams: bool,
    /// Whether a certificate that TLS has verified is enough while the store is away.
    pub without_store: bool,
}

const fn reads(method: &'static str, allowed: Roles) -> Rule {
    Rule {
        method,
        allowed,
        mutates: false,
        streams: false,
        without_store: false,
    }
}

const fn mutates(method: &'static str, allowed: Roles) -> Rule {
    Rule {
        mutates: true,
        ..reads(method, allowed)
    }
}

const fn streams(method: &'static str, allowed: Roles) -> Rule {
    Rule {
        streams: true,
        ..reads(method, allowed)
    }
}

/// About the process, not about what it keeps: answered even while the store is away.
const fn probes(rule: Rule) -> Rule {
    Rule {
        without_store: true,
        ..rule
    }
}

/// The table.
pub static RULES: &[Rule] = &[
    reads("/sealift.v1.ServerService/GetServerInfo", USERS),
    reads("/sealift.v1.ServerService/GetCaller", USERS),
    mutates("/sealift.v1.TenantService/CreateTenant", LOCAL),
    reads("/sealift.v1.TenantService/ListTenants", LOCAL),
    mutates("/sealift.v1.UserService/IssueUserCertificate", ADMINS),
    reads("/sealift.v1.UserService/ListUsers", ADMINS),
    mutates("/sealift.v1.UserService/RevokeUser", ADMINS),
    mutates("/sealift.v1.EnvironmentService/CreateEnvironment", ADMINS),
    reads("/sealift.v1.EnvironmentService/GetEnvironment", USERS),
    reads("/sealift.v1.EnvironmentService/ListEnvironments", USERS),
    mutates("/sealift.v1.EnvironmentService/UpdateEnvironment", ADMINS),
    mutates("/sealift.v1.EnvironmentService/ArchiveEnvironment", ADMINS),
    mutates("/sealift.v1.TargetService/CreateTarget", OPERATORS),
    reads("/sealift.v1.TargetService/GetTarget", USERS),
    reads("/sealift.v1.TargetService/ListStickers", USERS),
    reads("/sealift.v1.TargetService/ListTargets", USERS),
    mutates("/sealift.v1.TargetService/UpdateTarget", OPERATORS),
    mutates("/sealift.v1.TargetService/ArchiveTarget", OPERATORS),
    mutates("/sealift.v1.TargetService/CreateJoinToken", OPERATORS),
    reads("/sealift.v1.AgentService/GetAgent", USERS),
    reads("/sealift.v1.AgentService/ListAgents", USERS),
    mutates("/sealift.v1.AgentService/PauseAgent", OPERATORS),
    mutates("/sealift.v1.AgentService/ResumeAgent", OPERATORS),
    mutates("/sealift.v1.AgentService/DrainAgent", OPERATORS),
    mutates("/sealift.v1.AgentService/RevokeAgent", ADMINS),
    mutates("/sealift.v1.ComponentService/CreateComponent", OPERATORS),
    reads("/sealift.v1.ComponentService/GetComponent", USERS),
    reads("/sealift.v1.ComponentService/ListComponents", USERS),
    reads("/sealift.v1.ComponentService/ListVersions", USERS),
    mutates("/sealift.v1.ReleaseService/CreateRelease", REQUESTERS),
    reads("/sealift.v1.ReleaseService/GetRelease", USERS),
    reads("/sealift.v1.ReleaseService/ListReleases", USERS),
    mutates("/sealift.v1.ReleaseService/MarkRelease", REQUESTERS),
    reads("/sealift.v1.PromotionService/PlanPromotion", USERS),
    mutates("/sealift.v1.PromotionService/CreatePromotion", REQUESTERS),
    reads("/sealift.v1.PromotionService/GetPromotion", USERS),
    reads("/sealift.v1.PromotionService/ListPromotions", USERS),
    reads("/sealift.v1.PromotionService/ListPlanTargets", USERS),
    streams("/sealift.v1.PromotionService/ReadDecision", USERS),
    mutates("/sealift.v1.PromotionService/CancelPromotion", REQUESTERS),
    streams("/sealift.v1.PromotionService/WatchPromotion", USERS),
    reads("/sealift.v1.JobService/GetJob", USERS),
    reads("/sealift.v1.JobService/ListJobs", USERS),
    reads("/sealift.v1.JobService/GetTask", USERS),
    reads("/sealift.v1.JobService/ListTasks", USERS),
    reads("/sealift.v1.JobService/ListFailures", USERS),
    mutates("/sealift.v1.JobService/PauseJob", OPERATORS),
    mutates("/sealift.v1.JobService/ResumeJob", OPERATORS),
    mutates("/sealift.v1.JobService/AbortJob", OPERATORS),
    mutates("/sealift.v1.JobService/SkipTask", OPERATORS),
    mutates("/sealift.v1.JobService/RetryJob", REQUESTERS),
    streams("/sealift.v1.JobService/WatchJob", USERS),
    streams("/sealift.v1.JobService/StreamJobLogs", USERS),
    reads("/sealift.v1.RollbackService/ExplainRollback", USERS),
    mutates("/sealift.v1.RollbackService/CreateRollback", OPERATORS),
    reads("/sealift.v1.HoldService/ListHolds", USERS),
    mutates("/sealift.v1.HoldService/PlaceHold", OPERATORS),
    mutates("/sealift.v1.HoldService/LiftHold", OPERATORS),
    reads("/sealift.v1.StatusService/GetBoard", USERS),
    streams("/sealift.v1.StatusService/WatchBoard", USERS),
    reads("/sealift.v1.StatusService/ListHistory", USERS),
    reads("/sealift.v1.DriftService/ListDrift", USERS),
    reads("/sealift.v1.DriftService/ExplainDrift", USERS),
    mutates("/sealift.v1.DriftService/AcknowledgeDrift", OPERATORS),
    reads("/sealift.v1.EvidenceService/GetPacket", USERS),
    reads("/sealift.v1.EvidenceService/ListPackets", USERS),
    reads("/sealift.v1.EvidenceService/GetTrustFile", USERS),
    reads("/sealift.v1.AuditService/ListAuditEvents", USERS),
    reads("/sealift.v1.AuditService/VerifyAuditEvents", LOCAL),
    reads("/sealift.v1.MaintenanceService/ListMaintenanceRuns", LOCAL),
    mutates("/sealift.v1.MaintenanceService/RunMaintenance", LOCAL),
    mutates("/sealift.agent.v1.GatewayService/Enroll", Roles::ANONYMOUS),
    mutates("/sealift.agent.v1.GatewayService/RenewCertificate", Roles::AGENT),
    mutates("/sealift.agent.v1.GatewayService/AddTarget", Roles::AGENT),
    reads("/sealift.agent.v1.GatewayService/Ping", Roles::AGENT),
    streams("/sealift.agent.v1.GatewayService/Connect", Roles::AGENT),
    probes(reads("/grpc.health.v1.Health/Check", IDENTIFIED)),
    probes(streams("/grpc.health.v1.Health/Watch", IDENTIFIED)),
    probes(streams(
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        IDENTIFIED,
    )),
    probes(streams(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
        IDENTIFIED,
    )),
];

/// The line of a method; `None` for what is not served.
pub fn rule(path: &str) -> Option<&'static Rule> {
    static BY_METHOD: LazyLock<HashMap<&'static str, &'static Rule>> =
        LazyLock::new(|| RULES.iter().map(|rule| (rule.method, rule)).collect());
    BY_METHOD.get(path).copied()
}

/// Whether the caller may call what `rule` is about.
pub fn check(rule: &Rule, caller: &Caller) -> Result<(), ApiError> {
    let role = Roles::of(&caller.principal);
    if rule.allowed.contains(role) {
        return Ok(());
    }
    if role == Roles::ANONYMOUS {
        return Err(certificate_missing().meta("method", rule.method));
    }
    Err(ApiError::new(
        Reason::RoleMissing,
        format!(
            "{} has the role {role}, and {} needs one of: {}",
            caller.actor(),
            rule.method,
            rule.allowed
        ),
        "use a certificate with one of these roles, or ask an administrator for one",
    )
    .meta("method", rule.method)
    .meta("role", role.to_string())
    .meta("allowed", rule.allowed.to_string()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message as _;
    use prost_types::FileDescriptorSet;

    use super::*;

    /// All methods of all services in an encoded descriptor set, and whether each answers with a stream.
    fn methods(descriptors: &[u8]) -> Vec<(String, bool)> {
        let set = FileDescriptorSet::decode(descriptors).unwrap();
        let mut methods = Vec::new();
        for file in &set.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    methods.push((path, method.server_streaming()));
                }
            }
        }
        methods
    }

    #[test]
    fn every_served_method_has_exactly_one_line() {
        let served: BTreeSet<(String, bool)> = [
            sealift_proto::DESCRIPTORS,
            tonic_health::pb::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
            tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
        ]
        .into_iter()
        .flat_map(methods)
        .collect();
        let listed: BTreeSet<(String, bool)> = RULES
            .iter()
            .map(|rule| (rule.method.to_owned(), rule.streams))
            .collect();
        assert_eq!(RULES.len(), listed.len(), "a method has two lines");
        assert_eq!(listed, served);
    }

    #[test]
    fn what_is_not_in_the_table_has_no_rule() {
        for path in [
            "",
            "/",
            "/sealift.v1.TargetService/",
            "/sealift.v1.TargetService/gettarget",
            "sealift.v1.TargetService/GetTarget",
        ] {
            assert!(rule(path).is_none(), "{path}");
        }
    }

    #[test]
    fn r12_agents_may_call_nothing_of_the_operators_and_users_nothing_of_the_agents() {
        for rule in RULES {
            if rule.method.starts_with("/sealift.v1.") {
                assert!(!rule.allowed.contains(Roles::AGENT), "{}", rule.method);
                assert!(!rule.allowed.contains(Roles::ANONYMOUS), "{}", rule.method);
                assert!(rule.allowed.contains(Roles::LOCAL), "{}", rule.method);
            }
            if rule.method.starts_with("/sealift.agent.v1.") {
                for role in Role::ALL {
                    assert!(!rule.allowed.contains(Roles::of_user(role)), "{}", rule.method);
                }
            }
            if rule.mutates {
                assert!(!rule.allowed.contains(Roles::OBSERVER), "{}", rule.method);
            }
        }
    }
}

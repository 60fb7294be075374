//! Another target for an agent that is enrolled already: the certificate says which agent, the join token of the target says that
//! whoever may deploy there wants it so. The agent gets no new identity, and every target keeps its own fencing tokens, stickers
//! and orders.

use sealift_common::{
    error::Reason,
    id::{AgentId, TenantId},
    inventory::{Target, TargetKind},
    join_token::JoinToken,
    name::Name,
};
use sealift_proto::agent::v1::{AddTargetRequest, AddTargetResponse};

use super::{
    enrol::{
        audit_success, binding, check_counts, check_free, known_token, live_target, read_token, refused,
    },
    hello::TARGETS,
};
use crate::{caller::Caller, names, state::App, status::ApiError};

/// How often the transaction is tried when others win.
const TRIES: u32 = 3;

/// Binds the token's target to the calling agent. The same agent may ask again with the same token: its answer may have been lost.
pub async fn add_target(
    app: &App,
    caller: &Caller,
    tenant: &(TenantId, Name),
    agent: AgentId,
    request: &AddTargetRequest,
) -> Result<AddTargetResponse, ApiError> {
    let token = read_token(&request.join_token)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt(app, caller, tenant, agent, &token).await {
            Err(error) if error.reason() == Reason::Conflict && tries < TRIES => {}
            result => return result,
        }
    }
}

async fn attempt(
    app: &App,
    caller: &Caller,
    (tenant, tenant_name): &(TenantId, Name),
    agent: AgentId,
    token: &JoinToken,
) -> Result<AddTargetResponse, ApiError> {
    let now = app.clock.now();
    let mut tx = app.db.write().await?;
    let row = known_token(&mut tx, caller, token).await?;
    // A token of another tenant is none for this agent (R12).
    if row.tenant_id != *tenant {
        caller.about_proven(&format!("joinTokens/{}", row.id));
        return Err(refused());
    }
    let target = live_target(&mut tx, &row).await?;
    let answer = AddTargetResponse {
        binding: Some(binding(tenant_name, &target)),
    };
    if row.used_by == Some(agent) && target.agent_id == Some(agent) {
        return Ok(answer);
    }
    check_counts(app, caller, &row)?;
    // Served already, by another token: this one is of no use to anybody while that lasts.
    if target.agent_id == Some(agent) {
        return Ok(answer);
    }
    check_free(&mut tx, &target).await?;
    let served = tx.targets_of_agent(agent).await?;
    one_program(&target, &served)?;
    if served.len() >= TARGETS {
        return Err(ApiError::new(
            Reason::Overloaded,
            format!("one agent serves at most {TARGETS} targets"),
            "enrol another host",
        ));
    }
    if !tx.use_join_token(row.id, agent, now).await? {
        return Err(refused());
    }
    tx.bind_target(target.id, target.agent_id, agent, now).await?;
    let resource = names::of_target(&target.environment, &target.name);
    audit_success(&mut tx, caller, "AddTarget", &resource, now).await?;
    tx.commit().await?;
    caller.set_recorded();
    tracing::info!(agent.id = %agent, target.id = %target.id, "target added");
    Ok(answer)
}

/// An agent has one program, so at most one target may say what it is: two would exchange it in turn for ever.
fn one_program(target: &Target, served: &[Target]) -> Result<(), ApiError> {
    let is_program = |target: &&Target| target.kind == TargetKind::AgentHost;
    match served.iter().find(is_program) {
        Some(other) if is_program(&target) && other.id != target.id => Err(ApiError::new(
            Reason::WrongState,
            format!(
                "the agent's program is the target {} in {} already",
                other.name, other.environment
            ),
            "promote to that target, or archive it first (sealift target archive)",
        )),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;
    use sealift_common::{
        id::{EnvironmentId, TargetId},
        name::Labels,
        order::Fence,
    };

    use super::*;

    #[test]
    fn an_agent_has_one_program_and_many_other_targets() {
        let at = DateTime::UNIX_EPOCH;
        let target = |name: &str, kind| Target {
            id: TargetId::new(at),
            tenant_id: TenantId::new(at),
            environment_id: EnvironmentId::new(at),
            environment: "agents".parse().unwrap(),
            name: name.parse().unwrap(),
            kind,
            labels: Labels::new(),
            agent_id: None,
            fence: Fence(0),
            revision: 1,
            created_at: at,
            updated_at: at,
            archived_at: None,
        };
        let docker = target("web-1", TargetKind::DockerHost);
        let program = target("agent-1", TargetKind::AgentHost);
        let other = target("agent-2", TargetKind::AgentHost);
        one_program(&program, std::slice::from_ref(&docker)).unwrap();
        one_program(&program, std::slice::from_ref(&program)).unwrap();
        one_program(&docker, std::slice::from_ref(&program)).unwrap();
        let refused = one_program(&other, &[docker, program]).unwrap_err();
        assert_eq!(refused.reason(), Reason::WrongState);
    }
}

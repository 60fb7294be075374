//! Doctor: can this agent reach its orchestrator, and do the two agree on who it is, what time it is and which versions go together?

use sealift_common::{
    condition::{Condition, version_skew},
    time::Clock,
};
use sealift_proto::{
    agent::v1::{PingRequest, PingResponse, gateway_service_client::GatewayServiceClient},
    convert,
};
use tokio::{
    net::lookup_host,
    time::{Instant, timeout},
};

use super::{DEADLINE, Line, Verdict};
use crate::{
    clock_offset,
    config::Config,
    enrol,
    identity::{Enrolled, OrchestratorEndpoint, connect_mtls},
};

pub(super) async fn examine(config: &Config, enrolled: &Enrolled, clock: &dyn Clock) -> Vec<Line> {
    let endpoint = config
        .orchestrator
        .clone()
        .or_else(|| enrol::enrolled_at(&config.state_dir));
    let Some(endpoint) = endpoint else {
        return vec![Line::new(
            Verdict::Fail,
            "orchestrator",
            "none is known",
            "name it with --orchestrator https://host:port",
        )];
    };
    let mut lines = vec![dns(&endpoint).await];
    let began = Instant::now();
    let answer = timeout(DEADLINE, ping(&endpoint, enrolled)).await;
    let ours = clock.now();
    let advice = "check name, port, firewall and clock; the agent only needs to reach this one address";
    let asked = match answer {
        Err(_) => Err(format!("{endpoint} does not answer")),
        Ok(Err(found)) => Err(found),
        Ok(Ok((answer, took))) => Ok((answer, took)),
    };
    match asked {
        Err(found) => lines.push(Line::new(Verdict::Fail, "orchestrator", found, advice)),
        Ok((answer, took)) => {
            let found = format!("{endpoint} takes this agent ({} ms)", began.elapsed().as_millis());
            lines.push(Line::new(Verdict::Ok, "orchestrator", found, ""));
            if let Ok(theirs) = convert::time("time", answer.time.as_ref()) {
                let measured = clock_offset::measure(theirs, ours, took);
                let fine = format!("{:+} ms (±{} ms)", measured.ahead_ms, measured.uncertainty_ms);
                lines.push(of_condition(
                    "clock",
                    &fine,
                    clock_offset::skew(measured),
                    Verdict::Fail,
                ));
            }
            let version = env!("CARGO_PKG_VERSION");
            let fine = format!("agent {version}, orchestrator {}", answer.version);
            let skew = version_skew(&answer.version, version);
            lines.push(of_condition("versions", &fine, skew, Verdict::Warn));
        }
    }
    lines
}

fn of_condition(what: &'static str, fine: &str, found: Option<Condition>, verdict: Verdict) -> Line {
    match found {
        None => Line::new(Verdict::Ok, what, fine, ""),
        Some(found) => Line::new(verdict, what, found.detail.clone(), found.advice()),
    }
}

async fn dns(endpoint: &OrchestratorEndpoint) -> Line {
    let text = endpoint.to_string();
    let address = text.trim_start_matches("https://");
    let advice = "check the name, /etc/resolv.conf and /etc/hosts of this host";
    match timeout(DEADLINE, lookup_host(address)).await {
        Ok(Ok(found)) => {
            let found: Vec<_> = found.map(|address| address.ip().to_string()).take(4).collect();
            Line::new(Verdict::Ok, "DNS", found.join(", "), "")
        }
        Ok(Err(error)) => Line::new(Verdict::Fail, "DNS", format!("{address}: {error}"), advice),
        Err(_) => Line::new(Verdict::Fail, "DNS", format!("{address}: no answer"), advice),
    }
}

/// The answer, and how long it took once there was a connection.
async fn ping(
    endpoint: &OrchestratorEndpoint,
    enrolled: &Enrolled,
) -> Result<(PingResponse, std::time::Duration), String> {
    let credential = enrolled.next.as_ref().unwrap_or(&enrolled.current);
    let channel = connect_mtls(endpoint, &enrolled.identity.ca_pem, credential)
        .await
        .map_err(|error| {
            let cause = std::error::Error::source(&error)
                .map(|cause| format!(": {cause}"))
                .unwrap_or_default();
            format!("{error}{cause}")
        })?;
    let began = Instant::now();
    let answer = GatewayServiceClient::new(channel).ping(PingRequest {}).await;
    answer
        .map(|answer| (answer.into_inner(), began.elapsed()))
        .map_err(|status| format!("{endpoint} answered: {}", status.message()))
}

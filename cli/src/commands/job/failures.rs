//! `sealift job failures`: what failed in a job, each attempt for itself, newest first.

use sealift_proto::v1::{Failure, Job, ListFailuresRequest, job_service_client::JobServiceClient};
use tonic::transport::Channel;

use super::tasks::of_target;
use crate::{
    args::{Global, ListArgs},
    client::{named, unary},
    error::{CliError, Exit},
    list,
    output::{
        Rows,
        text::{leaf, or_dash, short_target, stamp},
    },
    progress::failure_line,
};

type Client = JobServiceClient<Channel>;

/// Shows the failures of a job, or those on one of its targets.
pub async fn list(
    global: &Global,
    client: &mut Client,
    id: &str,
    target: Option<&str>,
    list: ListArgs,
) -> Result<Exit, CliError> {
    let parent = match target {
        Some(target) => of_target(client, id, target).await?.name,
        None => named("jobs", id),
    };
    let calls = &*client;
    let fetch = async |page_size, page_token| {
        let request = ListFailuresRequest {
            parent: parent.clone(),
            page_size,
            page_token,
        };
        calls.clone().list_failures(unary(request)).await
    };
    list::show(global, list, fetch, rows).await?;
    Ok(Exit::Done)
}

/// Says of a job's failures how many are shown, when they are not all.
pub fn shown(job: &Job) -> String {
    let (shown, all) = (job.failures.len(), job.failure_count);
    if usize::try_from(all).is_ok_and(|all| all > shown) {
        format!(
            "the newest {shown} of {all} failures (sealift job failures {} shows all):",
            leaf(&job.name)
        )
    } else {
        "failures, newest first:".to_owned()
    }
}

/// Failures as rows.
pub fn rows(failures: &[Failure]) -> Rows {
    let header = ["TIME", "TARGET", "ATTEMPT", "STEP", "CATEGORY", "FAILURE"];
    Rows::new(&header).with(failures.iter().map(|failure| {
        vec![
            stamp(failure.observe_time.as_ref()),
            or_dash(&short_target(&failure.target)),
            match failure.attempt {
                0 => "-".to_owned(),
                attempt => attempt.to_string(),
            },
            or_dash(&failure.step),
            or_dash(&failure.category),
            failure_line(failure),
        ]
    }))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    #[test]
    fn the_failures_of_a_job_and_of_one_target_can_be_asked_for() {
        for line in [
            "sealift job failures x",
            "sealift job failures x web-1 --limit 5",
            "sealift job failures x prod/web-1",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
    }

    #[test]
    fn a_row_has_no_holes_and_says_what_is_left_out() {
        let failure = Failure {
            code: "AGENT_LOST".to_owned(),
            category: "infrastructure".to_owned(),
            target: "environments/prod/targets/web-1".to_owned(),
            ..Failure::default()
        };
        let table = rows(std::slice::from_ref(&failure)).table();
        let row = table.lines().nth(1).unwrap_or_default();
        let cells: Vec<_> = row.split_whitespace().collect();
        assert_eq!(
            cells[1..],
            ["prod/web-1", "-", "-", "infrastructure", "AGENT_LOST"],
            "{table}"
        );
        let mut job = Job {
            name: "jobs/j".to_owned(),
            failures: vec![failure],
            failure_count: 1,
            ..Job::default()
        };
        assert_eq!(shown(&job), "failures, newest first:");
        job.failure_count = 40;
        assert!(shown(&job).contains("newest 1 of 40 failures (sealift job failures j "));
    }
}

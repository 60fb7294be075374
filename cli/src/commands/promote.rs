//! `sealift promote`: bring a release to an environment, and see it through.

use std::{collections::BTreeSet, time::Duration};

use clap::Args;
use sealift_proto::v1::{
    CancelPromotionRequest, CreatePromotionRequest, Decision, GetPromotionRequest, PlanPromotionRequest,
    PlanPromotionResponse, PlanTarget, Promotion, WatchPromotionRequest, WatchPromotionResponse,
    gate_answer::Verdict, plan_change::Action, promotion::State,
    promotion_service_client::PromotionServiceClient, task,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, RequestArgs},
    client::{client, connect, named, repeated, request_id, target_in, unary},
    commands::{job::waits_for_a_person, promotion},
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{clean, counted, leaf, or_dash, short_digest, short_target, span},
    },
    progress::{Progress, failure_line, failure_text},
    recipe::RecipeArgs,
    watch,
};

/// What to bring where, and how.
#[derive(Debug, Args)]
pub struct PromoteArgs {
    /// The release: id, PROJECT#NUMBER or REPOSITORY/PROJECT@COMMIT.
    release: String,
    /// The environment.
    #[arg(long = "to", value_name = "ENVIRONMENT")]
    environment: String,
    /// Show what would change and whether the gates would pass; change nothing.
    #[arg(long, conflicts_with = "wait")]
    plan: bool,
    /// Most targets to show in the table (with --plan).
    #[arg(long, requires = "plan", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    limit: u32,
    /// Exit with 2 when the plan has changes (with --plan).
    #[arg(long, requires = "plan")]
    detailed_exitcode: bool,
    /// Following it.
    #[command(flatten)]
    waiting: WaitArgs,
    /// In which way.
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Only these targets of the environment (may be repeated); the release becomes the active one only when all are meant.
    #[arg(long = "target", value_name = "TARGET")]
    targets: Vec<String>,
    /// What this change is, for the record.
    #[arg(long, default_value = "")]
    summary: String,
    /// Digest of a plan that was looked at: refused when the plan would differ now.
    #[arg(long, default_value = "", value_name = "DIGEST")]
    plan_digest: String,
    /// Repeating it.
    #[command(flatten)]
    request: RequestArgs,
}

/// Calls about promotions.
pub type Client = PromotionServiceClient<Channel>;

pub async fn run(global: &Global, args: PromoteArgs) -> Result<Exit, CliError> {
    let mut client = client!(
        promotion_service_client,
        PromotionServiceClient,
        connect(global).await?
    );
    if args.plan {
        return plan(global, &mut client, &args).await;
    }
    let request = CreatePromotionRequest {
        request_id: args.request.id(),
        release: named("releases", &args.release),
        environment: named("environments", &args.environment),
        recipe: Some(args.recipe.to_recipe()?),
        targets: args.targets()?,
        change_summary: args.summary.clone(),
        plan_digest: args.plan_digest.clone(),
    };
    let create = async || client.create_promotion(unary(request.clone())).await;
    let promotion = repeated(create).await?.promotion.unwrap_or_default();
    let id = leaf(&promotion.name);
    if promotion.state() == State::Rejected {
        promotion::show(global, &promotion)?;
        if let Some(decision) = &promotion.decision {
            anstream::eprintln!("rejected:");
            print_gates(decision);
        }
        return Ok(Exit::Rejected);
    }
    if !args.waiting.wait {
        promotion::show(global, &promotion)?;
        anstream::eprintln!("to follow it: sealift promotion watch {id}");
        return Ok(Exit::Done);
    }
    anstream::eprintln!(
        "promotion {id}: {} to {}",
        clean(&promotion.release_display),
        clean(&args.environment)
    );
    see_through(global, &mut client, &promotion, &args.waiting).await
}

/// Whether to follow to the end, and for how long.
#[derive(Debug, Clone, Args)]
pub struct WaitArgs {
    /// Follow to the end; the exit code tells how it ended.
    #[arg(long)]
    pub wait: bool,
    /// Give up waiting after this time; the promotion goes on.
    #[arg(long, requires = "wait", value_parser = humantime::parse_duration)]
    timeout: Option<Duration>,
    /// Cancel the promotion when --timeout passes.
    #[arg(long, requires = "timeout")]
    cancel_on_timeout: bool,
}

/// Follows a promotion to its end and shows what became of it.
pub async fn see_through(
    global: &Global,
    client: &mut Client,
    promotion: &Promotion,
    waiting: &WaitArgs,
) -> Result<Exit, CliError> {
    let mut heard = promotion.clone();
    let mut failed = BTreeSet::new();
    let followed = follow(client, &promotion.name, |news| {
        for task in &news.tasks {
            let target = short_target(&task.target);
            if task.state() == task::State::Failed {
                failed.insert(target);
            } else {
                failed.remove(&target);
            }
        }
        if let Some(newer) = &news.promotion {
            heard.clone_from(newer);
        }
        Ok(())
    });
    let followed = match waiting.timeout {
        None => Some(followed.await?),
        Some(timeout) => tokio::time::timeout(timeout, followed).await.ok().transpose()?,
    };
    let exit = match followed {
        Some((exit, _)) => exit,
        None => give_up(client, promotion, waiting.cancel_on_timeout).await?,
    };
    let newest = newest_of(get(client, &promotion.name).await, heard);
    promotion::show(global, &newest)?;
    if let Some(failure) = newest.failure.as_ref().filter(|_| exit == Exit::Failed) {
        anstream::eprintln!("{}", failure_text(failure));
        anstream::eprintln!("look:    {}", where_to_look(&newest, &failed));
        anstream::eprintln!(
            "now:     sealift status {} says what is recorded on its targets",
            leaf(&newest.environment)
        );
    }
    Ok(exit)
}

/// What tells more about a promotion that failed: only what has something to say of it.
fn where_to_look(promotion: &Promotion, failed: &BTreeSet<String>) -> String {
    let job = leaf(&promotion.job);
    match (failed.first(), failed.len()) {
        // No target failed: a gate closed, or there was nothing to do.
        (None, _) => format!("sealift promotion get {}", leaf(&promotion.name)),
        (Some(target), 1) => format!("sealift job task {job} {target}; sealift job logs {job}"),
        (Some(target), _) => format!(
            "sealift job tasks {job} --state failed; sealift job task {job} {target}; sealift job logs {job}"
        ),
    }
}

/// What to show at the end. How it ended is known by then, so that an orchestrator which cannot be asked once more changes nothing
/// about the exit code: what was heard is shown.
fn newest_of(asked: Result<Promotion, CliError>, heard: Promotion) -> Promotion {
    asked.unwrap_or_else(|error| {
        anstream::eprintln!(
            "the promotion cannot be read once more ({}): this is what was last heard of it",
            clean(&error.to_string())
        );
        heard
    })
}

impl PromoteArgs {
    fn targets(&self) -> Result<Vec<String>, CliError> {
        self.targets
            .iter()
            .map(|target| target_in(&self.environment, target))
            .collect()
    }
}

async fn plan(global: &Global, client: &mut Client, args: &PromoteArgs) -> Result<Exit, CliError> {
    let (recipe, only) = (args.recipe.to_recipe()?, args.targets()?);
    // Programs get the whole plan, people as much as they asked for.
    let limit = (global.output == Format::Table).then_some(args.limit);
    let calls = &*client;
    let (targets, rest) = list::read(limit, async |page_size, page_token| {
        let request = PlanPromotionRequest {
            release: named("releases", &args.release),
            environment: named("environments", &args.environment),
            recipe: Some(recipe.clone()),
            targets: only.clone(),
            page_size,
            page_token,
        };
        calls.clone().plan_promotion(unary(request)).await
    })
    .await?;
    if !rest.next.is_empty() {
        anstream::eprintln!("there is more: raise --limit (now {}) to see it", args.limit);
    }
    let answer = PlanPromotionResponse { targets, ..rest.page };
    let plan = answer.plan.clone().unwrap_or_default();
    let decision = answer.decision.clone().unwrap_or_default();
    output::write(global.output, &answer, || plan_rows(&answer.targets))?;
    if global.output == Format::Table {
        anstream::eprintln!();
        anstream::eprintln!(
            "{} of {} would change; plan {}",
            plan.changed_count,
            counted(plan.target_count, "target"),
            clean(&plan.digest)
        );
        print_gates(&decision);
    }
    let changes = plan.changed_count > 0;
    Ok(match (decision.passed, args.detailed_exitcode && changes) {
        (false, _) => Exit::Rejected,
        (true, true) => Exit::Differences,
        (true, false) => Exit::Done,
    })
}

fn plan_rows(targets: &[PlanTarget]) -> Rows {
    Rows::new(&["WAVE", "TARGET", "SERVICE", "ACTION", "NOW", "NEXT"]).with(targets.iter().flat_map(
        |target| {
            target.changes.iter().map(|change| {
                let action = match change.action() {
                    Action::Keep => "keep",
                    Action::Create => "create",
                    Action::Replace => "replace",
                    Action::Remove => "remove",
                    Action::Unspecified => "-",
                };
                vec![
                    if target.no_op {
                        "-".to_owned()
                    } else {
                        target.wave.to_string()
                    },
                    short_target(&target.target),
                    clean(&change.service),
                    action.to_owned(),
                    or_dash(&short_digest(&change.digest_now)),
                    or_dash(&short_digest(&change.digest_next)),
                ]
            })
        },
    ))
}

/// Every gate's answer, with what to do where one did not pass.
pub fn print_gates(decision: &Decision) {
    for gate in &decision.gates {
        let verdict = match gate.verdict() {
            Verdict::Pass => "pass",
            Verdict::Wait => "wait",
            Verdict::Fail => "FAIL",
            Verdict::Unspecified => "-",
        };
        anstream::eprintln!(
            "  {verdict}  {:16} {} {}",
            clean(&gate.gate),
            clean(&gate.reason),
            clean(&gate.message)
        );
        if !gate.advice.is_empty() {
            anstream::eprintln!("        hint: {}", clean(&gate.advice));
        }
    }
}

/// Follows a promotion to its end; gives how it ended and what was last heard of it. `each` sees every change.
pub async fn follow(
    client: &mut Client,
    name: &str,
    mut each: impl FnMut(&WatchPromotionResponse) -> Result<(), CliError>,
) -> Result<(Exit, Promotion), CliError> {
    let open = async || {
        let request = WatchPromotionRequest {
            name: name.to_owned(),
        };
        client
            .watch_promotion(request)
            .await
            .map(tonic::Response::into_inner)
    };
    watch::follow(
        &mut Progress::new(),
        watch::PATIENCE,
        open,
        None,
        |progress, news: WatchPromotionResponse| {
            // A sign of life holds nothing.
            if news != WatchPromotionResponse::default() {
                each(&news)?;
            }
            progress.tasks(&news.tasks);
            if let Some(text) = news.job.as_ref().and_then(waits_for_a_person) {
                progress.say("job", &text);
            }
            let Some(promotion) = news.promotion else {
                return Ok(None);
            };
            progress.say("promotion", &describe(&promotion));
            Ok(ended(&promotion).map(|exit| (exit, promotion)))
        },
    )
    .await
}

fn describe(promotion: &Promotion) -> String {
    let state = promotion::state(promotion.state());
    match (&promotion.failure, promotion.lane_position) {
        (Some(failure), _) => format!("{state}: {}; {}", failure_line(failure), clean(&failure.advice)),
        (None, position) if position > 0 => {
            format!(
                "{state}, number {position} in the lane{}{}",
                estimate(promotion),
                awaited(promotion)
            )
        }
        (None, _) => state.to_owned(),
    }
}

/// `, about 40s to go (by the last 12 jobs)`; empty without experience.
fn estimate(promotion: &Promotion) -> String {
    let Some(wait) = promotion.estimated_wait else {
        return String::new();
    };
    let samples = promotion.estimated_wait_samples;
    let wait = span(chrono::TimeDelta::seconds(wait.seconds.max(1)));
    format!(", about {wait} to go (by the last {})", counted(samples, "job"))
}

/// What it waits for beside its place in the lane, as the gates saw it at the request.
fn awaited(promotion: &Promotion) -> String {
    let gates = promotion.decision.iter().flat_map(|decision| &decision.gates);
    let waiting = gates.filter(|gate| gate.verdict() == Verdict::Wait && gate.gate != "lane");
    let reasons: Vec<_> = waiting
        .map(|gate| format!("; waits: {} {}", clean(&gate.reason), clean(&gate.message)))
        .collect();
    reasons.concat()
}

fn ended(promotion: &Promotion) -> Option<Exit> {
    match promotion.state() {
        State::Deployed => Some(Exit::Done),
        State::Rejected => Some(Exit::Rejected),
        State::Failed | State::Cancelled | State::RolledBack => Some(Exit::Failed),
        State::PendingGate | State::Approved | State::Deploying | State::Unspecified => None,
    }
}

/// What to do when `--timeout` passed: leave the promotion alone, or cancel it. It may have ended in the same moment.
async fn give_up(client: &mut Client, promotion: &Promotion, cancel: bool) -> Result<Exit, CliError> {
    let id = leaf(&promotion.name);
    if !cancel {
        anstream::eprintln!("--timeout passed; the promotion goes on: sealift promotion watch {id}");
        return Ok(Exit::TimedOut);
    }
    let request = CancelPromotionRequest {
        request_id: request_id(),
        name: promotion.name.clone(),
        reason: "the time given with --timeout passed".to_owned(),
        etag: String::new(),
        finish_running: false,
    };
    match client.cancel_promotion(unary(request)).await {
        Ok(_) => {
            anstream::eprintln!(
                "--timeout passed; the promotion is being cancelled: sealift promotion watch {id}"
            );
            Ok(Exit::TimedOut)
        }
        Err(status) => ended(&get(client, &promotion.name).await?).ok_or_else(|| status.into()),
    }
}

async fn get(client: &mut Client, name: &str) -> Result<Promotion, CliError> {
    let request = GetPromotionRequest {
        name: name.to_owned(),
    };
    Ok(client
        .get_promotion(unary(request))
        .await?
        .into_inner()
        .promotion
        .unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use sealift_proto::v1::GateAnswer;

    use super::*;

    #[test]
    fn what_waits_for_an_agent_says_so() {
        let gate = |gate: &str, verdict: Verdict, reason: &str| GateAnswer {
            gate: gate.to_owned(),
            verdict: verdict.into(),
            reason: reason.to_owned(),
            message: "dev/local: it is expected until noon".to_owned(),
            ..GateAnswer::default()
        };
        let mut waiting = Promotion {
            state: State::Approved.into(),
            lane_position: 1,
            decision: Some(Decision {
                gates: vec![
                    gate("release_ready", Verdict::Pass, "OK"),
                    gate("agents_present", Verdict::Wait, "AGENT_RECONNECTING"),
                    gate("lane", Verdict::Wait, "LANE_BUSY"),
                ],
                ..Decision::default()
            }),
            ..Promotion::default()
        };
        let said = describe(&waiting);
        let wanted = "number 1 in the lane; waits: AGENT_RECONNECTING dev/local: it is expected until noon";
        assert!(said.ends_with(wanted), "{said}");
        waiting.lane_position = 0;
        assert!(!describe(&waiting).contains("waits"), "its turn has come");
    }

    #[test]
    fn a_failure_names_only_commands_that_have_something_to_say_of_it() {
        let promotion = Promotion {
            name: "promotions/p".to_owned(),
            job: "jobs/j".to_owned(),
            ..Promotion::default()
        };
        let look = |failed: &[&str]| {
            where_to_look(
                &promotion,
                &failed.iter().map(|target| (*target).to_owned()).collect(),
            )
        };
        assert_eq!(look(&[]), "sealift promotion get p");
        assert_eq!(look(&["dev/a"]), "sealift job task j dev/a; sealift job logs j");
        assert_eq!(
            look(&["dev/a", "dev/b"]),
            "sealift job tasks j --state failed; sealift job task j dev/a; sealift job logs j"
        );
    }

    #[test]
    fn how_it_ended_does_not_depend_on_a_last_question() {
        let state = |state: State| Promotion {
            state: state.into(),
            ..Promotion::default()
        };
        let (heard, newest) = (state(State::Deploying), state(State::Deployed));
        let away = CliError::from(tonic::Status::unavailable("away"));
        assert_eq!(newest_of(Err(away), heard.clone()).state(), State::Deploying);
        assert_eq!(newest_of(Ok(newest), heard).state(), State::Deployed);
    }
}

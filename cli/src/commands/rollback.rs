//! `sealift rollback`: go back to what is known to be good, and see it through.

use clap::Args;
use sealift_proto::v1::{
    CreateRollbackRequest, ExplainRollbackRequest, ExplainRollbackResponse, Promotion, RollbackCandidate,
    RollbackWish, promotion::State,
};
use tonic_types::StatusExt as _;

use crate::{
    args::{Global, RequestArgs},
    client::{client, connect, named, repeated, unary},
    commands::{
        promote::{WaitArgs, print_gates, see_through},
        promotion,
    },
    error::{CliError, Exit},
    output::{
        self, Format, Rows,
        text::{age, clean, leaf, or_dash},
    },
    recipe::RecipeArgs,
};

/// What to go back from, and to what.
#[derive(Debug, Args)]
#[command(
    override_usage = "sealift rollback <ENVIRONMENT> [WHAT] --reason <REASON> [OPTIONS]
       sealift rollback <ENVIRONMENT> [WHAT] --explain [OPTIONS]"
)]
pub struct RollbackArgs {
    /// The environment.
    environment: String,
    /// The component, or the project (REPOSITORY/PROJECT or its last segments); not needed when only one project runs there.
    what: Option<String>,
    /// Take WHAT for a component.
    #[arg(long, requires = "what")]
    component: bool,
    /// This release instead of the last known good one; it must have run there before.
    #[arg(long, value_name = "RELEASE")]
    to: Option<String>,
    /// Also allow releases with a higher number than the one that runs.
    #[arg(long)]
    allow_higher: bool,
    /// Show what would be chosen and why nothing else; change nothing.
    #[arg(long, conflicts_with_all = ["wait", "reason"])]
    explain: bool,
    /// Why; others will want to know.
    #[arg(long, required_unless_present = "explain")]
    reason: Option<String>,
    /// Limits on health and what to do about absent agents.
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Following it.
    #[command(flatten)]
    waiting: WaitArgs,
    /// Repeating it.
    #[command(flatten)]
    request: RequestArgs,
}

pub async fn run(global: &Global, args: RollbackArgs) -> Result<Exit, CliError> {
    let channel = connect(global).await?;
    let mut client = client!(rollback_service_client, RollbackServiceClient, channel.clone());
    let wish = args.wish();
    if args.explain {
        let request = ExplainRollbackRequest { wish: Some(wish) };
        let answer = client
            .explain_rollback(unary(request))
            .await
            .map_err(|status| args.with_flags(status.into()))?
            .into_inner();
        output::write(global.output, &answer, || rows(&answer))?;
        if answer.to.is_none() && global.output == Format::Table {
            anstream::eprintln!(
                "nothing fits: name a release with --to, or promote one that is known to be good"
            );
        }
        return Ok(match answer.to {
            Some(_) => Exit::Done,
            // As the rollback itself would end.
            None => Exit::Conflict,
        });
    }
    let request = CreateRollbackRequest {
        request_id: args.request.id(),
        wish: Some(wish),
        recipe: Some(args.recipe.to_recipe()?),
        reason: args.reason.clone().unwrap_or_default(),
    };
    let create = async || client.create_rollback(unary(request.clone())).await;
    let promotion = repeated(create)
        .await
        .map_err(|error| args.with_flags(error))?
        .promotion
        .unwrap_or_default();
    report(global, &promotion, args.waiting.wait);
    if promotion.state() == State::Rejected {
        promotion::show(global, &promotion)?;
        return Ok(Exit::Rejected);
    }
    if !args.waiting.wait {
        promotion::show(global, &promotion)?;
        return Ok(Exit::Done);
    }
    let mut client = client!(promotion_service_client, PromotionServiceClient, channel);
    see_through(global, &mut client, &promotion, &args.waiting).await
}

impl RollbackArgs {
    /// A refusal that asks for the project, in the words of this command line instead of the API's.
    fn with_flags(&self, error: CliError) -> CliError {
        let wanted = match &error {
            CliError::Status(status) => status
                .get_details_bad_request()
                .and_then(|bad| bad.field_violations.into_iter().next())
                .filter(|violation| violation.field == "wish.project"),
            _ => None,
        };
        let (Some(violation), None) = (wanted, &self.what) else {
            return error;
        };
        CliError::usage(
            format!("which project? {}", violation.description),
            format!("sealift rollback {} PROJECT …", self.environment),
        )
    }

    fn wish(&self) -> RollbackWish {
        let what = self.what.clone().unwrap_or_default();
        RollbackWish {
            environment: named("environments", &self.environment),
            project: if self.component {
                named("components", &what)
            } else {
                what
            },
            release: self
                .to
                .as_ref()
                .map(|release| named("releases", release))
                .unwrap_or_default(),
            allow_higher: self.allow_higher,
        }
    }
}

fn report(global: &Global, promotion: &Promotion, waits: bool) {
    let id = leaf(&promotion.name);
    if promotion.state() == State::Rejected {
        anstream::eprintln!("the rollback was rejected:");
        if let Some(decision) = &promotion.decision {
            print_gates(decision);
        }
        return;
    }
    anstream::eprintln!(
        "rollback {id}: {} back to {}",
        leaf(&promotion.environment),
        clean(&promotion.release_display)
    );
    anstream::eprintln!(
        "what ran is marked unstable, and new promotions of the project are held: sealift hold list"
    );
    if global.output == Format::Table && !waits {
        anstream::eprintln!("to follow it: sealift promotion watch {id}");
    }
}

fn rows(answer: &ExplainRollbackResponse) -> Rows {
    let row = |candidate: &RollbackCandidate, role: &str| {
        vec![
            role.to_owned(),
            clean(&candidate.release_display),
            or_dash(&candidate.mark),
            age(candidate.active_time.as_ref(), output::now()),
            why_not(&candidate.rejection),
        ]
    };
    let from = answer.from.iter().map(|candidate| row(candidate, "runs"));
    let to = answer.to.iter().map(|candidate| row(candidate, "back to"));
    // What runs is among the rejected ones, too: once is enough.
    let others = answer
        .rejected
        .iter()
        .filter(|candidate| candidate.rejection != "current")
        .map(|candidate| row(candidate, "not"));
    Rows::new(&["", "RELEASE", "MARK", "ACTIVE", "WHY NOT"]).with(from.chain(to).chain(others))
}

/// What a rejection means to people, with the way around it where there is one.
fn why_not(rejection: &str) -> String {
    match rejection {
        "newer" => "newer than what runs (--allow-higher)".to_owned(),
        "unstable" => "marked unstable (--to takes it all the same)".to_owned(),
        other => or_dash(other),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use tonic::{Code, Status};
    use tonic_types::ErrorDetails;

    use super::*;
    use crate::{args::Cli, output::text::clean};

    #[derive(Debug, clap::Parser)]
    struct Line {
        #[command(flatten)]
        args: RollbackArgs,
    }

    #[test]
    fn the_usage_tells_that_a_reason_is_required() {
        let error = Cli::try_parse_from(["sealift", "rollback", "dev"]).unwrap_err();
        assert!(error.to_string().contains("--reason <REASON>"), "{error}");
        let help = Cli::try_parse_from(["sealift", "rollback", "--help"]).unwrap_err();
        let usage = "Usage: sealift rollback <ENVIRONMENT> [WHAT] --reason <REASON> [OPTIONS]";
        assert!(help.to_string().contains(usage), "{help}");
    }

    #[test]
    fn a_refusal_that_asks_for_the_project_says_where_to_write_it() {
        let refused = || {
            let details =
                ErrorDetails::with_bad_request_violation("wish.project", "must name one of those: a, b");
            CliError::from(Status::with_error_details(
                Code::InvalidArgument,
                "field wish.project",
                details,
            ))
        };
        let line = |words: &[&str]| Line::try_parse_from(words).unwrap().args;
        let error = line(&["x", "dev", "--explain"]).with_flags(refused());
        assert_eq!(error.exit(), Exit::Usage);
        let CliError::Usage { message, hint } = error else {
            panic!("{}", clean(&error.to_string()));
        };
        assert!(message.contains("a, b") && !message.contains("wish"), "{message}");
        assert!(hint.contains("sealift rollback dev PROJECT"), "{hint}");
        let named = line(&["x", "dev", "nobody", "--explain"]).with_flags(refused());
        assert!(matches!(named, CliError::Status(_)));
    }
}

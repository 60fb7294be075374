//! `sealift rollback`: go back to what is known to be good, and see it through.

use clap::Args;
use sealift_proto::v1::{
    CreateRollbackRequest, ExplainRollbackRequest, ExplainRollbackResponse, Promotion, RollbackCandidate,
    RollbackWish, promotion::State,
};

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
        let answer = client.explain_rollback(unary(request)).await?.into_inner();
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
    let promotion = repeated(create).await?.promotion.unwrap_or_default();
    report(global, &promotion);
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

fn report(global: &Global, promotion: &Promotion) {
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
    if global.output == Format::Table {
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

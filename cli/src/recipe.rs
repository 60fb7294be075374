//! The way in which a release is brought to its targets: from a file, from flags, or from both (flags win).

use std::{path::PathBuf, time::Duration};

use clap::Args;
use sealift_proto::v1::{
    FailurePolicy, Limits, OfflinePolicy, Recipe, Strategy,
    failure_policy::OnFailure,
    offline_policy,
    strategy::{self, Kind, canary},
};

use crate::{error::CliError, input::read_bounded};

/// Largest recipe file.
const FILE_BYTES: usize = 64 * 1024;

/// What to do when targets fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum OnFailureArg {
    /// Begin nothing new and fail.
    Stop,
    /// As before, and undo what succeeded.
    RollBack,
    /// Wait for a person.
    Pause,
    /// Work on the others all the same.
    Continue,
}

/// In which way.
#[derive(Debug, Clone, Args)]
pub struct RecipeArgs {
    /// Read strategy, limits and failure rules from a YAML or JSON file (fields as in the API); other flags win over it.
    #[arg(long, value_name = "FILE")]
    recipe: Option<PathBuf>,
    /// Work on at most so many targets at a time (3, 25%); without a strategy all at once.
    #[arg(long, value_name = "MAX_PARALLEL", group = "strategy")]
    rolling: Option<String>,
    /// With --rolling: never mix targets of two values of this label, for example region.
    #[arg(long, value_name = "LABEL", requires = "rolling")]
    by: Option<String>,
    /// With --rolling: wait after each wave.
    #[arg(long, value_parser = humantime::parse_duration, requires = "rolling")]
    pause: Option<Duration>,
    /// Begin with so many targets (1, 10%), watch them for --bake, then go on with the rest.
    #[arg(long, value_name = "FIRST", group = "strategy")]
    canary: Option<String>,
    /// With --canary: wait for `sealift job resume` after baking.
    #[arg(long, requires = "canary")]
    manual: bool,
    /// With --canary: most targets at a time afterwards (default: all).
    #[arg(long, value_name = "MAX_PARALLEL", requires = "canary")]
    max_parallel: Option<String>,
    /// Start the new set beside the old one, switch when it is healthy, and keep both up for --bake.
    #[arg(long, group = "strategy")]
    blue_green: bool,
    /// With --canary or --blue-green: how long to watch before going on.
    #[arg(long, value_parser = humantime::parse_duration)]
    bake: Option<Duration>,
    /// How long every service must be healthy without a break.
    #[arg(long, value_parser = humantime::parse_duration)]
    min_healthy: Option<Duration>,
    /// How long the services may take until that is reached.
    #[arg(long, value_parser = humantime::parse_duration)]
    healthy_deadline: Option<Duration>,
    /// How long pulling may take.
    #[arg(long, value_parser = humantime::parse_duration)]
    pull_deadline: Option<Duration>,
    /// How long a wave may go without one target more that is healthy.
    #[arg(long, value_parser = humantime::parse_duration)]
    progress_deadline: Option<Duration>,
    /// Attempts per target.
    #[arg(long)]
    max_attempts: Option<i32>,
    /// How many targets may fail without consequences (3, 10%).
    #[arg(long, value_name = "SHARE")]
    tolerate: Option<String>,
    /// What to do beyond that.
    #[arg(long, value_enum)]
    on_failure: Option<OnFailureArg>,
    /// What to do about targets whose agent is away: fail, skip, or a time to wait for them (30m).
    #[arg(long, value_name = "fail|skip|TIME")]
    offline: Option<String>,
}

impl RecipeArgs {
    /// The recipe that file and flags describe.
    pub fn to_recipe(&self) -> Result<Recipe, CliError> {
        let mut recipe = self.file()?;
        if let Some(kind) = self.strategy()? {
            recipe.strategy = Some(Strategy { kind: Some(kind) });
        }
        self.limits(recipe.limits.get_or_insert_default());
        let failures: &mut FailurePolicy = recipe.failures.get_or_insert_default();
        if let Some(tolerated) = &self.tolerate {
            failures.tolerated.clone_from(tolerated);
        }
        if let Some(on_failure) = self.on_failure {
            failures.set_on_failure(match on_failure {
                OnFailureArg::Stop => OnFailure::Stop,
                OnFailureArg::RollBack => OnFailure::RollBack,
                OnFailureArg::Pause => OnFailure::Pause,
                OnFailureArg::Continue => OnFailure::Continue,
            });
        }
        if let Some(offline) = &self.offline {
            recipe.offline = Some(to_offline(offline)?);
        }
        Ok(recipe)
    }

    fn file(&self) -> Result<Recipe, CliError> {
        let Some(path) = &self.recipe else {
            return Ok(Recipe::default());
        };
        let hint = "fields are those of `recipe` in `sealift promotion get -o yaml`";
        let wrong = |why: String| CliError::usage(format!("{}: {why}", path.display()), hint);
        let text =
            String::from_utf8(read_bounded(path, FILE_BYTES)?).map_err(|error| wrong(error.to_string()))?;
        serde_saphyr::from_str(&text).map_err(|error| {
            let why = error.to_string();
            // The reader's own first word would be ours twice.
            wrong(why.strip_prefix("error: ").unwrap_or(&why).to_owned())
        })
    }

    fn strategy(&self) -> Result<Option<Kind>, CliError> {
        if self.bake.is_some() && self.canary.is_none() && !self.blue_green {
            let hint = "add --canary 1 or --blue-green, or leave --bake out";
            return Err(CliError::usage("--bake needs --canary or --blue-green", hint));
        }
        let bake = self.bake.map(duration);
        Ok(match (&self.rolling, &self.canary, self.blue_green) {
            (Some(most), _, _) => Some(Kind::Rolling(strategy::Rolling {
                max_parallel: most.clone(),
                by: self.by.clone().unwrap_or_default(),
                pause: self.pause.map(duration),
            })),
            (None, Some(first), _) => Some(Kind::Canary(strategy::Canary {
                first: first.clone(),
                bake,
                promotion: if self.manual {
                    canary::Promotion::Manual
                } else {
                    canary::Promotion::Automatic
                }
                .into(),
                max_parallel: self.max_parallel.clone().unwrap_or_default(),
            })),
            (None, None, true) => Some(Kind::BlueGreen(strategy::BlueGreen { bake })),
            (None, None, false) => None,
        })
    }

    fn limits(&self, limits: &mut Limits) {
        let set = |field: &mut Option<pbjson_types::Duration>, flag: Option<Duration>| {
            if let Some(flag) = flag {
                *field = Some(duration(flag));
            }
        };
        set(&mut limits.min_healthy, self.min_healthy);
        set(&mut limits.healthy_deadline, self.healthy_deadline);
        set(&mut limits.pull_deadline, self.pull_deadline);
        set(&mut limits.progress_deadline, self.progress_deadline);
        if let Some(attempts) = self.max_attempts {
            limits.max_attempts = attempts;
        }
    }
}

fn to_offline(text: &str) -> Result<OfflinePolicy, CliError> {
    let kind = match text {
        "fail" => offline_policy::Kind::Fail(offline_policy::Fail {}),
        "skip" => offline_policy::Kind::Skip(offline_policy::Skip {}),
        time => {
            let time = humantime::parse_duration(time).map_err(|error| {
                CliError::usage(
                    format!("--offline {time:?}: {error}"),
                    "write fail, skip, or a time like 30m",
                )
            })?;
            offline_policy::Kind::Wait(offline_policy::Wait {
                time: Some(duration(time)),
            })
        }
    };
    Ok(OfflinePolicy { kind: Some(kind) })
}

/// A span for the wire.
pub fn duration(duration: Duration) -> pbjson_types::Duration {
    pbjson_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        recipe: RecipeArgs,
    }

    fn parse(line: &str) -> Result<Recipe, String> {
        let words = std::iter::once("x").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.recipe.to_recipe().map_err(|error| error.to_string())
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "strategy:\n  canary: {first: 10%, bake: 60s, promotion: PROMOTION_MANUAL}\n\
                    limits: {minHealthy: 3s}\nfailures: {tolerated: '2', onFailure: ON_FAILURE_ROLL_BACK}\n";
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().display();
        let recipe = parse(&format!(
            "--recipe {path} --tolerate 5% --min-healthy 1s --offline 30m"
        ))
        .unwrap();
        let failures = recipe.failures.unwrap();
        assert_eq!(
            (failures.tolerated.as_str(), failures.on_failure()),
            ("5%", OnFailure::RollBack)
        );
        assert_eq!(recipe.limits.unwrap().min_healthy.unwrap().seconds, 1);
        assert!(matches!(recipe.strategy.unwrap().kind, Some(Kind::Canary(canary)) if canary.first == "10%"));
        let rolling = parse(&format!("--recipe {path} --rolling 25% --by region")).unwrap();
        assert!(
            matches!(rolling.strategy.unwrap().kind, Some(Kind::Rolling(rolling)) if rolling.by == "region")
        );
    }

    #[test]
    fn the_recipe_of_the_documentation_is_one() {
        let page = include_str!("../../docs/rollouts.md");
        let (_, rest) = page.split_once("```yaml\n").unwrap();
        let (text, _) = rest.split_once("```").unwrap();
        let (before, other) = text.split_once("# or ").unwrap();
        let canary = "  canary: {first: 10%, bake: 600s, promotion: PROMOTION_MANUAL}";
        assert!(before.contains(canary));
        let file = tempfile::NamedTempFile::new().unwrap();
        let line = format!("--recipe {}", file.path().display());
        std::fs::write(file.path(), text).unwrap();
        let recipe = parse(&line).unwrap();
        assert!(matches!(recipe.strategy.unwrap().kind, Some(Kind::Canary(canary)) if canary.first == "10%"));
        let rolling = format!("  {}", other.lines().next().unwrap());
        std::fs::write(file.path(), text.replace(canary, &rolling)).unwrap();
        let recipe = parse(&line).unwrap();
        assert!(
            matches!(recipe.strategy.unwrap().kind, Some(Kind::Rolling(rolling)) if rolling.max_parallel == "25%")
        );
    }

    #[test]
    fn what_contradicts_itself_is_refused() {
        for line in [
            "--rolling 1 --canary 1",
            "--by region",
            "--manual",
            "--bake 1m",
            "--rolling 1 --bake 1m",
            "--offline never",
            "--recipe /nonexistent/recipe.yaml",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "strategie: {}\n").unwrap();
        assert!(parse(&format!("--recipe {}", file.path().display())).is_err());
    }
}

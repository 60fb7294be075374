//! `sealift context`: which orchestrator, as whom.

use std::path::PathBuf;

use clap::Subcommand;

use crate::{
    args::Global,
    context::{self, Context, Contexts},
    error::{CliError, Exit},
    output::{self, Rows, text::clean},
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum ContextCommand {
    /// Save a context from a context file and select it.
    Add {
        /// Name for it.
        name: String,
        /// The file, as `sealift-orchestrator admin issue` writes it.
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
    },
    /// Show all.
    List,
    /// Select one.
    Use {
        /// Its name.
        name: String,
    },
    /// Show the one that commands would use now.
    Show,
    /// Forget one; the files that it names stay.
    Remove {
        /// Its name.
        name: String,
    },
}

pub fn run(global: &Global, command: ContextCommand) -> Result<Exit, CliError> {
    match command {
        ContextCommand::Add { name, file } => add(name, &file)?,
        ContextCommand::List => list(global)?,
        ContextCommand::Use { name } => {
            let mut contexts = Contexts::load()?;
            known(&contexts, &name)?;
            contexts.selected = Some(name);
            contexts.save()?;
        }
        ContextCommand::Show => {
            let context = context::resolve(global)?;
            output::write(global.output, &context, || rows([("", &context, true)]))?;
        }
        ContextCommand::Remove { name } => {
            let mut contexts = Contexts::load()?;
            known(&contexts, &name)?;
            contexts.contexts.remove(&name);
            contexts.selected = contexts.selected.filter(|selected| *selected != name);
            contexts.save()?;
        }
    }
    Ok(Exit::Done)
}

/// Saves a context under a name and selects it.
pub fn add(name: String, file: &std::path::Path) -> Result<(), CliError> {
    let context = Context::read(file)?;
    let mut contexts = Contexts::load()?;
    contexts.contexts.insert(name.clone(), context);
    anstream::eprintln!("context {} saved and selected", clean(&name));
    contexts.selected = Some(name);
    contexts.save()
}

fn known(contexts: &Contexts, name: &str) -> Result<(), CliError> {
    if contexts.contexts.contains_key(name) {
        return Ok(());
    }
    Err(CliError::usage(
        format!("there is no context {name:?}"),
        "`sealift context list` shows all",
    ))
}

fn list(global: &Global) -> Result<(), CliError> {
    let contexts = Contexts::load()?;
    output::write(global.output, &contexts, || {
        rows(
            contexts
                .contexts
                .iter()
                .map(|(name, context)| (name.as_str(), context, contexts.selected.as_deref() == Some(name))),
        )
    })
}

fn rows<'a>(contexts: impl IntoIterator<Item = (&'a str, &'a Context, bool)>) -> Rows {
    Rows::new(&["SELECTED", "NAME", "ENDPOINT", "CERTIFICATE"]).with(contexts.into_iter().map(
        |(name, context, selected)| {
            vec![
                if selected { "*".to_owned() } else { String::new() },
                clean(name),
                clean(&context.endpoint),
                clean(&context.certificate.display().to_string()),
            ]
        },
    ))
}

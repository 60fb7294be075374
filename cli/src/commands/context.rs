//! `sealift context`: which orchestrator, as whom.

use std::path::{Path, PathBuf};

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
    /// Save a context from a context file and select it. One of the same name is renewed only when it is the same certificate's file, or
    /// that file is gone.
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
fn add(name: String, file: &Path) -> Result<(), CliError> {
    let context = Context::read(file)?;
    let mut contexts = Contexts::load()?;
    put(
        &mut contexts,
        &name,
        context,
        "choose another name, or remove it with `sealift context remove`",
    )?;
    contexts.selected = Some(name.clone());
    contexts.save()?;
    anstream::eprintln!("context {} saved and selected", clean(&name));
    Ok(())
}

/// Saves a context under a name. Refused when the name is somebody else's: one whose certificate is another file that exists.
fn put(contexts: &mut Contexts, name: &str, context: Context, hint: &str) -> Result<(), CliError> {
    let others = |there: &Context| there.certificate != context.certificate && there.certificate.exists();
    if contexts.contexts.get(name).is_some_and(others) {
        return Err(CliError::usage(
            format!("there is a context {name:?} already"),
            hint,
        ));
    }
    contexts.contexts.insert(name.to_owned(), context);
    Ok(())
}

/// What to do about a name that is taken. It is not said how to remove it: what runs under it would lose it.
const TAKEN: &str =
    "choose another name with --name: another `sealift dev` may run under this one (`sealift context list`)";

/// A context that is there only while something runs.
#[derive(Debug)]
pub struct Lent {
    name: String,
    context: Context,
    /// What was selected before.
    before: Option<String>,
}

impl Lent {
    /// Saves a context and selects it, unless the name is somebody else's.
    pub fn lend(name: &str, file: &Path) -> Result<Self, CliError> {
        let context = Context::read(file)?;
        let mut contexts = Contexts::load()?;
        let lent = Self::of(&mut contexts, name, context)?;
        contexts.save()?;
        Ok(lent)
    }

    /// Whether a name can be lent for an identity within `folder`.
    pub fn check(name: &str, folder: &Path) -> Result<(), CliError> {
        Self::is_free(&Contexts::load()?, name, folder)
    }

    fn is_free(contexts: &Contexts, name: &str, folder: &Path) -> Result<(), CliError> {
        let others = |there: &Context| !there.certificate.starts_with(folder) && there.certificate.exists();
        if contexts.contexts.get(name).is_some_and(others) {
            return Err(CliError::usage(
                format!("there is a context {name:?} already"),
                TAKEN,
            ));
        }
        Ok(())
    }

    fn of(contexts: &mut Contexts, name: &str, context: Context) -> Result<Self, CliError> {
        put(contexts, name, context.clone(), TAKEN)?;
        let before = contexts.selected.replace(name.to_owned());
        Ok(Self {
            name: name.to_owned(),
            context,
            before: before.filter(|before| before != name),
        })
    }

    /// Forgets the context and selects what was selected before, except where the user has changed either meanwhile.
    pub fn give_back(self) -> Result<(), CliError> {
        let mut contexts = Contexts::load()?;
        self.out_of(&mut contexts);
        contexts.save()
    }

    fn out_of(self, contexts: &mut Contexts) {
        if contexts.contexts.get(&self.name) == Some(&self.context) {
            contexts.contexts.remove(&self.name);
        }
        let gone = |name: &String| !contexts.contexts.contains_key(name);
        if contexts.selected.as_ref() == Some(&self.name) || contexts.selected.as_ref().is_some_and(gone) {
            contexts.selected = self
                .before
                .filter(|before| contexts.contexts.contains_key(before));
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn context(certificate: &Path) -> Context {
        Context {
            endpoint: "https://127.0.0.1:1".to_owned(),
            ca: "/x/ca.pem".into(),
            certificate: certificate.to_owned(),
            key: "/x/key.pem".into(),
        }
    }

    fn saved(selected: Option<&str>, names: &[(&str, &Path)]) -> Contexts {
        Contexts {
            selected: selected.map(str::to_owned),
            contexts: names
                .iter()
                .map(|(name, certificate)| ((*name).to_owned(), context(certificate)))
                .collect(),
        }
    }

    #[test]
    fn a_lent_context_leaves_everything_as_it_was() {
        let mine = Path::new("/nowhere/mine.pem");
        let before = saved(Some("production"), &[("production", Path::new("/nowhere/p.pem"))]);
        let mut contexts = before.clone();
        let lent = Lent::of(&mut contexts, "dev", context(mine)).unwrap();
        assert_eq!(contexts.selected.as_deref(), Some("dev"));
        lent.out_of(&mut contexts);
        assert_eq!(contexts, before);
    }

    #[test]
    fn a_context_of_somebody_else_is_never_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs.pem");
        std::fs::write(&theirs, "").unwrap();
        let mut contexts = saved(None, &[("dev", &theirs)]);
        let before = contexts.clone();
        let error = Lent::of(&mut contexts, "dev", context(Path::new("/nowhere/mine.pem"))).unwrap_err();
        assert!(error.to_string().contains("\"dev\""), "{error}");
        assert_eq!(contexts, before);
        let error = Lent::is_free(&contexts, "dev", Path::new("/nowhere")).unwrap_err();
        assert!(error.to_string().contains("\"dev\""), "{error}");
        Lent::is_free(&contexts, "dev", dir.path()).unwrap();
        Lent::is_free(&contexts, "other", Path::new("/nowhere")).unwrap();
        // What a killed process left behind leads nowhere, and one's own is one's own.
        let mut contexts = saved(Some("dev"), &[("dev", Path::new("/nowhere/old.pem"))]);
        Lent::of(&mut contexts, "dev", context(&theirs)).unwrap();
        Lent::of(&mut contexts, "dev", context(&theirs)).unwrap();
    }

    #[test]
    fn what_the_user_selected_meanwhile_stays() {
        let other = Path::new("/nowhere/o.pem");
        let mut contexts = saved(None, &[("other", other)]);
        let lent = Lent::of(&mut contexts, "dev", context(Path::new("/nowhere/m.pem"))).unwrap();
        contexts.selected = Some("other".to_owned());
        lent.out_of(&mut contexts);
        assert_eq!(contexts, saved(Some("other"), &[("other", other)]));
    }

    #[test]
    fn adding_a_context_replaces_none_of_somebody_else() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("theirs.pem");
        std::fs::write(&theirs, "").unwrap();
        let mut contexts = saved(Some("prod"), &[("prod", &theirs)]);
        let before = contexts.clone();
        let mine = context(Path::new("/nowhere/mine.pem"));
        let error = put(&mut contexts, "prod", mine.clone(), "remove it").unwrap_err();
        assert!(error.to_string().contains("\"prod\""), "{error}");
        assert_eq!(contexts, before);
        put(&mut contexts, "prod", context(&theirs), "").unwrap();
        put(&mut contexts, "other", mine, "").unwrap();
        assert_eq!(contexts.contexts.len(), 2);
    }
}

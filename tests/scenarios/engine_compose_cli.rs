//! The applications of `tests/compose` through the whole system, a test for each: released, promoted, updated, failed and rolled back
//! by the `sealift` command on a host of its own, with the host's Compose; and what reaches the engine is what the file says.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::{Context as _, Result, ensure};
use sealift_common::compose::hosted;
use sealift_e2e::{
    described::{Around, differences, order_differences},
    real::{Database, System, commit, eventually, image, number},
};
use serde_json::Value;

const VARIABLES: [(&str, &str); 1] = [("GREETING", "hello $world")];
/// Values that belong to the host: in a file that is mounted, and in one that is filled in.
const PASSWORD: &str = "canary-d41d8cd98f";
const TOKEN: &str = "canary-0b2c427e11";

/// A set on a host: `docker inspect` of each container by service.
type Set = BTreeMap<String, Value>;

struct Application<'a> {
    system: &'a System,
    files: &'a Path,
    name: &'a str,
    source: String,
}

impl<'a> Application<'a> {
    fn open(system: &'a System, files: &'a Path, name: &'a str) -> Result<Self> {
        let path = format!("{}/compose/{name}/compose.yaml", env!("CARGO_MANIFEST_DIR"));
        let source = fs::read_to_string(&path).with_context(|| path.clone())?;
        Ok(Self {
            system,
            files,
            name,
            source,
        })
    }

    fn target(&self) -> String {
        format!("{}/host-1", self.name)
    }

    /// The file of the release whose services run `next` where they change from release to release.
    fn text(&self, next: &str) -> Result<String> {
        let text = self.source.replace("STEADY", &image("OK_1")?);
        Ok(text.replace("NEXT", &image(next)?))
    }

    /// The same as data.
    fn document(&self, next: &str) -> Result<Value> {
        hosted::document(&self.text(next)?).map_err(|error| anyhow::anyhow!("{error:?}"))
    }

    async fn release(&self, next: &str, number_of_commit: u32) -> Result<String> {
        let file = self
            .system
            .folder()
            .join(format!("{}-{number_of_commit}.yaml", self.name));
        fs::write(&file, self.text(next)?)?;
        let file = file.to_string_lossy().into_owned();
        let source = format!("example.com/acme/apps/{}@{}", self.name, commit(number_of_commit));
        let mut arguments = vec!["release", "create", "--kind", "compose-host"];
        arguments.extend(["-f", &file, "--source", &source]);
        let profiles = self
            .source
            .lines()
            .find_map(|line| line.strip_prefix("# profiles: "));
        for profile in profiles.into_iter().flat_map(str::split_whitespace) {
            arguments.extend(["--profile", profile]);
        }
        let release = self.system.json(&arguments).await?;
        Ok(format!("apps/{}#{}", self.name, number(&release["number"])?))
    }

    /// Promotes and waits; gives exit code and all that was said.
    async fn promote(&self, release: &str) -> Result<(i32, String)> {
        let mut arguments = vec!["promote", release, "--to", self.name, "--wait", "--timeout", "2m"];
        arguments.extend(["--min-healthy", "1s", "--healthy-deadline", "90s"]);
        let (code, out, errors) = self.system.sealift_as("ada", &arguments).await?;
        Ok((code, out + &errors))
    }

    async fn succeed(&self, release: &str) -> Result<Set> {
        let (code, said) = self.promote(release).await?;
        ensure!(code == 0, "{release} ended with {code}:\n{said}");
        self.set().await
    }

    async fn set(&self) -> Result<Set> {
        let uid = self.system.json(&["target", "get", &self.target()]).await?["uid"].clone();
        let filter = format!(
            "label=dev.sealift.target-id={}",
            uid.as_str().context("a target has an identifier")?
        );
        let ids = self.system.docker(&["ps", "-aq", "--filter", &filter]).await?;
        let mut arguments = vec!["inspect"];
        arguments.extend(ids.split_whitespace());
        if arguments.len() == 1 {
            return Ok(Set::new());
        }
        let all: Vec<Value> = serde_json::from_str(&self.system.docker(&arguments).await?)?;
        let service = |one: &Value| {
            one["Config"]["Labels"]["dev.sealift.service"]
                .as_str()
                .map(str::to_owned)
        };
        all.into_iter()
            .map(|one| Ok((service(&one).context("a container without its service")?, one)))
            .collect()
    }

    /// R15: what runs is what the file of a release says, key by key.
    async fn check(&self, set: &Set, next: &str) -> Result<()> {
        let file = self.document(next)?;
        let around = Around {
            variables: VARIABLES
                .into_iter()
                .chain([("API_TOKEN:-none", TOKEN)])
                .collect(),
            files: self.files,
        };
        let mut found = Vec::new();
        for (service, container) in set {
            let reference = file["services"][service]["image"].as_str();
            let reference = reference.with_context(|| format!("{service} is not in the file"))?;
            let seen = self.system.docker(&["image", "inspect", reference]).await?;
            let image: Value = serde_json::from_str(&seen)?;
            found.extend(differences(&file, service, container, &image[0], &around));
        }
        ensure!(found.is_empty(), "{}:\n{}", self.name, found.join("\n"));
        Ok(())
    }

    /// The lock that people see on the host.
    fn lock(&self) -> Result<String> {
        let agent = self
            .system
            .agents
            .iter()
            .find(|agent| agent.target == self.target())
            .context("the application has a host")?;
        let folder = |path: &Path| -> Result<_> {
            let first = fs::read_dir(path)?.next().context("an empty folder")??;
            Ok(first.path())
        };
        let project = folder(&folder(&agent.state().join("compose"))?)?;
        Ok(fs::read_to_string(project.join("compose.sealift.lock.yaml"))?)
    }

    /// Deployed, updated, failed and returned, rolled back.
    async fn live(&self) -> Result<()> {
        let one = self.release("OK_1", 1).await?;
        let first = self.succeed(&one).await?;
        self.check(&first, "OK_1").await?;
        let late = order_differences(&self.document("OK_1")?, &first);
        ensure!(late.is_empty(), "{}: {late:?}", self.name);

        // What changed is made anew, the rest is left alone.
        let two = self.release("OK_2", 2).await?;
        let second = self.succeed(&two).await?;
        self.check(&second, "OK_2").await?;
        for (service, container) in &second {
            let same = container["Id"] == first[service]["Id"];
            let steady = container["Image"] == first[service]["Image"];
            ensure!(
                same == steady,
                "{}: {service} was made anew or was not",
                self.name
            );
        }

        // R10, R15: what never becomes healthy fails, and what ran before runs, to the byte of its lock.
        let lock = self.lock()?;
        let three = self.release("UNHEALTHY", 3).await?;
        let (code, said) = self.promote(&three).await?;
        ensure!(
            code == 1 && said.contains("UNHEALTHY"),
            "{three} ended with {code}:\n{said}"
        );
        ensure!(self.lock()? == lock, "{}: another lock is shown", self.name);
        let third = self.set().await?;
        self.check(&third, "OK_2").await?;
        for (service, container) in &third {
            let running = (
                container["State"]["Running"] == true,
                second[service]["State"]["Running"] == true,
            );
            ensure!(
                running.0 == running.1,
                "{}: {service} runs {running:?}",
                self.name
            );
        }

        // And back, on request.
        let back = [
            "rollback",
            self.name,
            "--reason",
            "it is slow",
            "--wait",
            "--min-healthy",
            "1s",
        ];
        let (code, out, said) = self.system.sealift_as("ada", &back).await?;
        ensure!(
            code == 0,
            "{}: the rollback ended with {code}:\n{out}{said}",
            self.name
        );
        self.check(&self.set().await?, "OK_1").await?;
        eventually("nothing drifts", async || {
            let drift = self.system.json(&["drift", &self.target()]).await?;
            Ok(drift["drift"].as_array().is_none_or(Vec::is_empty).then_some(()))
        })
        .await
        .with_context(|| self.name.to_owned())
    }
}

/// Each attempt left one packet that verifies offline; those that succeeded name their lock.
async fn evidence(system: &System) -> Result<()> {
    let out = system.folder().join("evidence").to_string_lossy().into_owned();
    system.sealift(&["evidence", "export", "--out", &out]).await?;
    let trust = format!("{out}/trust.json");
    let verdicts = system
        .json(&["evidence", "verify", &out, "--trust", &trust])
        .await?;
    let verdicts = verdicts.as_array().context("verdicts")?;
    // Deployed, updated, failed, rolled back.
    ensure!(verdicts.len() == 4, "{} packets", verdicts.len());
    let bad: Vec<_> = verdicts
        .iter()
        .filter(|verdict| verdict["verified"] != true)
        .collect();
    ensure!(bad.is_empty(), "{bad:?}");
    Ok(())
}

/// The file of the host is in the container that asks for it.
async fn mounted(application: &Application<'_>) -> Result<()> {
    let system = application.system;
    let store = application.set().await?;
    let id = store["store"]["Id"].as_str().context("the store runs")?;
    let copy = system.folder().join("copied.txt").to_string_lossy().into_owned();
    let source = format!("{id}:/run/secrets/password");
    system.docker(&["cp", "--follow-link", &source, &copy]).await?;
    ensure!(
        fs::read_to_string(&copy)? == PASSWORD,
        "another password is mounted"
    );
    Ok(())
}

/// R11: what belongs to a host is nowhere else: not in the database, a log, a packet or a sticker.
async fn told_nowhere(system: &System) -> Result<()> {
    let mut everything = vec![system.orchestrator_log()];
    for job in system.json(&["job", "list"]).await?["jobs"]
        .as_array()
        .context("jobs")?
    {
        let id = job["name"]
            .as_str()
            .unwrap_or_default()
            .trim_start_matches("jobs/");
        everything.push(system.sealift(&["job", "logs", id]).await?);
    }
    everything.extend(system.agents.iter().map(sealift_e2e::real::Agent::log));
    let mut folders = vec![
        system.folder().join("orchestrator"),
        system.folder().join("evidence"),
    ];
    for agent in &system.agents {
        // The lock holds what was filled in: on the host, for its owner alone.
        let state = agent.state();
        folders.extend(["stickers", "outbox"].map(|name| state.join(name)));
        everything.extend(files_of(state)?);
    }
    for folder in folders.iter().filter(|folder| folder.is_dir()) {
        everything.extend(all_files_of(folder)?);
    }
    for secret in [PASSWORD, TOKEN] {
        let told = everything.iter().filter(|text| text.contains(secret)).count();
        ensure!(told == 0, "{secret} was told in {told} places");
    }
    Ok(())
}

/// The files of a folder, read as text.
fn files_of(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_file() {
            texts.push(String::from_utf8_lossy(&fs::read(path)?).into_owned());
        }
    }
    Ok(texts)
}

/// The same with all folders below.
fn all_files_of(folder: &Path) -> Result<Vec<String>> {
    let mut texts = files_of(folder)?;
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            texts.extend(all_files_of(&path)?);
        }
    }
    Ok(texts)
}

/// Volumes outlive their containers on purpose.
async fn remove_volumes(system: &System) -> Result<()> {
    for agent in &system.agents {
        let target = system.json(&["target", "get", &agent.target]).await?;
        let uid = target["uid"].as_str().context("uid")?;
        let filter = format!("label=dev.sealift.target-id={uid}");
        let names = system
            .docker(&["volume", "ls", "-q", "--filter", &filter])
            .await?;
        let ids = system.docker(&["ps", "-aq", "--filter", &filter]).await?;
        for id in ids.split_whitespace() {
            system.docker(&["rm", "--force", "--volumes", id]).await?;
        }
        for name in names.split_whitespace() {
            system.docker(&["volume", "rm", name]).await?;
        }
    }
    Ok(())
}

/// The whole life of one application in a system of its own.
async fn lives(name: &str) -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    let files = system.folder().join("files");
    fs::create_dir_all(files.join("shared"))?;
    fs::write(files.join("password.txt"), PASSWORD)?;
    let host = system.folder().join("host.env");
    fs::write(&host, format!("API_TOKEN={TOKEN}\n"))?;
    let settings = system.folder().join("agent.toml");
    let program = std::env::var("SEALIFT_TEST_COMPOSE").ok();
    let program = program.map_or_else(String::new, |program| format!("program = \"{program}\"\n"));
    let text = format!(
        "[compose]\nfiles_dir = \"{}\"\nenv_file = \"{}\"\n{program}",
        files.display(),
        host.display()
    );
    fs::write(&settings, text)?;
    let settings = settings.to_string_lossy().into_owned();
    system.environment(name, 10).await?;
    for (variable, value) in VARIABLES {
        let assignment = format!("{variable}={value}");
        system
            .sealift(&["env", "set-variable", name, &assignment])
            .await?;
    }
    let target = format!("{name}/host-1");
    system
        .target_of("compose-host", &target, &[("SEALIFT_AGENT_CONFIG", &settings)])
        .await?;

    let application = Application::open(&system, &files, name)?;
    application.live().await?;
    if name == "volumes" {
        mounted(&application).await?;
    }
    evidence(&system).await?;
    told_nowhere(&system).await?;
    remove_volumes(&system).await?;
    system.end().await
}

macro_rules! applications {
    ($($test:ident = $name:literal;)+) => {
        $(#[tokio::test]
        async fn $test() -> Result<()> {
            lives($name).await
        })+

        #[test]
        fn every_application_has_its_test() {
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/compose");
            let mut there: Vec<_> = fs::read_dir(folder)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            there.sort();
            assert_eq!(there, [$($name),+]);
        }
    };
}

applications! {
    r3_r10_r15_compose_application_healthchecks_lives = "healthchecks";
    r3_r10_r15_compose_application_limits_lives = "limits";
    r3_r10_r15_compose_application_migration_lives = "migration";
    r3_r10_r15_compose_application_profiles_lives = "profiles";
    r3_r10_r15_compose_application_proxy_lives = "proxy";
    r3_r10_r15_compose_application_volumes_lives = "volumes";
    r3_r10_r15_compose_application_web_db_cache_lives = "web-db-cache";
    r3_r10_r15_compose_application_workers_lives = "workers";
}

//! A worker process: holds many agents and does what the driver says, one line of JSON for each command and each answer. It ends with
//! its standard input.

use std::{sync::Arc, time::Duration};

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use sealift_agent::{backoff, identity::OrchestratorEndpoint};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinSet, time::sleep};

use crate::{
    board::{Board, Wish},
    lines::{self, number, text},
    member::{Member, Place, until},
};

/// Enrolments at the same time in one worker.
const ENROLMENTS: usize = 16;

struct Worker {
    board: Arc<Board>,
    wishes: watch::Sender<Wish>,
    agents: JoinSet<()>,
    /// Agents of each group so far.
    counts: [usize; 2],
}

/// Serves the driver until standard input ends.
pub async fn run() -> Result<()> {
    let mut worker = Worker {
        board: Board::new(),
        wishes: watch::channel(Wish::default()).0,
        agents: JoinSet::new(),
        counts: [0; 2],
    };
    lines::serve(async |command| worker.obey(command).await).await
}

impl Worker {
    async fn obey(&mut self, command: Value) -> Result<Value> {
        match text(&command, "do")? {
            "enrol" => self.enrol(&command).await,
            "connect" => self.connect(&command),
            "counts" => Ok(self.board.counts()),
            "take" => Ok(self.board.take()),
            other => anyhow::bail!("{other:?} is no command"),
        }
    }

    async fn enrol(&mut self, command: &Value) -> Result<Value> {
        let group = usize::try_from(number(command, "group")?)?;
        ensure!(group < self.counts.len(), "there is no group {group}");
        let endpoint: OrchestratorEndpoint = text(command, "endpoint")?.parse()?;
        let tokens = command["tokens"].as_array().context("tokens")?;
        let members: Vec<Member> = stream::iter(tokens.iter().enumerate())
            .map(|(index, token)| {
                let endpoint = endpoint.clone();
                async move {
                    let token = token.as_str().context("a token is text")?.parse()?;
                    Member::enrol(&endpoint, &token, index as u64).await
                }
            })
            .buffered(ENROLMENTS)
            .try_collect()
            .await?;
        let enrolled = members.len();
        for member in members {
            let place = self.counts[group];
            self.counts[group] += 1;
            let (board, wishes) = (Arc::clone(&self.board), self.wishes.subscribe());
            self.agents.spawn(live(member, group, place, board, wishes));
        }
        Ok(json!({ "enrolled": enrolled }))
    }

    fn connect(&self, command: &Value) -> Result<Value> {
        let count = |group: &str| Ok::<_, anyhow::Error>(usize::try_from(number(command, group)?)?);
        let place = Place {
            endpoint: text(command, "endpoint")?.parse()?,
            root_pem: command["root_pem"].as_str().map(ToOwned::to_owned),
            is_bare: command["root_pem"].is_string(),
            beat: Duration::from_secs(number(command, "beat_seconds")?),
        };
        self.wishes.send_replace(Wish {
            place: Some(Arc::new(place)),
            counts: [count("group0")?, count("group1")?],
        });
        Ok(json!({}))
    }
}

/// The life of one agent: connected while it is wanted, back by itself when its session ends unasked.
async fn live(
    mut member: Member,
    group: usize,
    place: usize,
    board: Arc<Board>,
    mut wishes: watch::Receiver<Wish>,
) {
    // Spread evenly, and the same in every run.
    let dice = (place as f64 * 0.618_033_988_75).fract();
    let mut failures = 0;
    loop {
        // The other end of the channel is gone when the process ends.
        let Ok(Some(at)) = until(&mut wishes, |wish| {
            wish.place.is_some() && place < wish.counts[group]
        })
        .await
        else {
            return;
        };
        let unwanted = async {
            let moved = |wish: &Wish| {
                place >= wish.counts[group] || wish.place.as_ref().is_none_or(|now| !Arc::ptr_eq(now, &at))
            };
            // An error says that the process ends.
            drop(until(&mut wishes, moved).await);
        };
        match member.serve(&at, &board, dice, unwanted).await {
            Ok(()) => failures = 0,
            Err(error) => {
                board.lost(&error);
                failures += 1;
                sleep(backoff::wait(failures, dice)).await;
            }
        }
    }
}

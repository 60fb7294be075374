//! Carries out maintenance, one bounded piece at a time: what was asked for first, then what is due. A run that the orchestrator
//! died over goes on where it was.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    time::Duration,
};

use chrono::TimeDelta;
use sealift_common::{
    canonical,
    id::{AgentId, PacketId, ReplicaId},
    keys::PublicKey,
    maintenance::{MaintenanceKind, MaintenanceState, Progress},
    trust::{TrustFile, verify_packet},
};
use sealift_store::{Change, MaintenanceRun, PacketRow, StoreError, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        trust::{agent_key, own_key},
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::ApiError,
};

/// How long a repeated request gets its first answer (R16).
pub const ANSWERS_KEPT: TimeDelta = TimeDelta::hours(24);
/// How long runs are remembered.
const RUNS_KEPT: TimeDelta = TimeDelta::days(90);
/// Audit events of one piece.
const EVENTS: u32 = 2_000;
/// Packets of one piece: each costs two signatures to verify.
const PACKETS: u32 = 200;

/// The maintenance of one replica.
#[derive(Debug)]
pub struct Maintenance {
    core: Core,
    turn: Turn,
    own_key: PublicKey,
}

/// Whether a piece was the last one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Piece {
    More,
    Last,
}

impl Maintenance {
    /// Of this replica. `own_key` is the orchestrator's, with which packets are countersigned.
    pub fn new(core: Core, replica: ReplicaId, own_key: PublicKey) -> Self {
        let turn = Turn::new(core.db.clone(), turn::MAINTENANCE, replica);
        Self { core, turn, own_key }
    }

    /// The run to go on with, if there is anything to do.
    async fn next(&self, tx: &mut Tx) -> Result<Option<MaintenanceRun>, ApiError> {
        if let Some(run) = tx.open_maintenance().await? {
            return Ok(Some(run));
        }
        let now = self.core.clock.now();
        for kind in MaintenanceKind::ALL {
            if kind.is_due(tx.newest_maintenance(*kind).await?, now) {
                return Ok(Some(tx.request_maintenance(*kind, ORCHESTRATOR, now).await?));
            }
        }
        Ok(None)
    }

    async fn go_on(&self, tx: &mut Tx, run: &MaintenanceRun) -> Result<Piece, ApiError> {
        let now = self.core.clock.now();
        if run.state == MaintenanceState::Pending {
            tx.begin_maintenance(run.id, now).await?;
        }
        let mut progress = run.progress.clone();
        let piece = match run.kind {
            MaintenanceKind::Cleanup => {
                progress.items += tx.purge_idempotent_answers(now - ANSWERS_KEPT).await?;
                progress.items += tx.purge_maintenance(now - RUNS_KEPT).await?;
                Piece::Last
            }
            MaintenanceKind::Audit => audit(tx, &mut progress).await?,
            MaintenanceKind::Evidence => self.evidence(tx, &mut progress).await?,
        };
        match piece {
            Piece::More => tx.progress_maintenance(run.id, &progress).await?,
            Piece::Last => {
                tx.end_maintenance(run, &progress, now).await?;
                tell(run.kind, &progress);
            }
        }
        Ok(piece)
    }

    async fn evidence(&self, tx: &mut Tx, progress: &mut Progress) -> Result<Piece, ApiError> {
        let after: Option<PacketId> = progress.position.parse().ok();
        let packets = tx.packets_after(after, PACKETS).await?;
        let mut keys: BTreeMap<AgentId, TrustFile> = BTreeMap::new();
        for packet in &packets {
            let known = match keys.entry(packet.agent_id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.keys_of(tx, packet).await?),
            };
            progress.items += 1;
            let verified = verify_packet(&packet.envelope, known);
            match verified.map(|verified| canonical::digest(&verified.statement)) {
                Ok(Ok(digest)) if digest == packet.digest => {}
                Ok(_) => progress.problem(format!("packets/{}: its digest is another one", packet.id)),
                Err(error) => progress.problem(format!("packets/{}: {error}", packet.id)),
            }
        }
        let Some(last) = packets.last().filter(|_| packets.len() == PACKETS as usize) else {
            return Ok(Piece::Last);
        };
        progress.position = last.id.to_string();
        Ok(Piece::More)
    }

    /// The keys under which the packets of an agent must verify.
    async fn keys_of(&self, tx: &mut Tx, packet: &PacketRow) -> Result<TrustFile, ApiError> {
        let (agent, tenant) = (
            tx.agent_by_id(packet.agent_id).await?,
            tx.tenant(packet.tenant_id).await?,
        );
        // Without them the packet fails as one of an unknown key.
        let key = agent
            .zip(tenant)
            .map(|(agent, tenant)| agent_key(&agent, &tenant.name));
        let agents = key.transpose()?.into_iter().collect();
        TrustFile::new(vec![own_key(self.own_key)], agents).map_err(ApiError::internal)
    }
}

async fn audit(tx: &mut Tx, progress: &mut Progress) -> Result<Piece, ApiError> {
    let first: u64 = progress.position.parse().unwrap_or(1);
    match tx.verify_audit_chain(first, EVENTS).await {
        Ok(events) => {
            // The last event of a piece is the first of the next one, which names its hash.
            let is_last = events < u64::from(EVENTS);
            progress.items += if is_last { events } else { events - 1 };
            progress.position = (first + events.max(1) - 1).to_string();
            Ok(if is_last { Piece::Last } else { Piece::More })
        }
        Err(error @ StoreError::Corrupt { .. }) => {
            progress.items += 1;
            progress.problem(error.to_string());
            Ok(Piece::Last)
        }
        Err(error) => Err(error.into()),
    }
}

fn tell(kind: MaintenanceKind, progress: &Progress) {
    let summary = progress.summary(kind);
    if progress.problems > 0 {
        tracing::error!(name: "maintenance.failed", kind = kind.as_str(), summary, "stored records are not as they must be");
    } else {
        tracing::debug!(name: "maintenance.done", kind = kind.as_str(), summary, "maintenance done");
    }
}

impl Activity for Maintenance {
    fn name(&self) -> &'static str {
        "maintenance"
    }

    fn period(&self) -> Duration {
        Duration::from_mins(1)
    }

    fn wants(&self, change: &Change) -> bool {
        matches!(change, Change::Maintenance)
    }

    async fn activate(&mut self) -> Result<Outcome, ApiError> {
        if !self.turn.hold(self.core.clock.now()).await? {
            return Ok(Outcome::Idle);
        }
        let mut tx = match self.turn.write().await {
            Ok(tx) => tx,
            Err(error) => {
                self.turn.release();
                return Err(error);
            }
        };
        let Some(run) = self.next(&mut tx).await? else {
            return Ok(Outcome::Idle);
        };
        self.go_on(&mut tx, &run).await?;
        tx.commit().await?;
        Ok(Outcome::More)
    }
}

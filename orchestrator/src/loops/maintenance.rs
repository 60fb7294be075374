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
use sealift_store::{Change, MaintenanceRun, StoreError, StoredPacket, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        trust::{own_key, timeless_key},
        turn::{self, Turn},
    },
    loops::driver::{Activity, Outcome},
    status::ApiError,
};

/// How long a repeated request gets its first answer (R16).
pub const ANSWERS_KEPT: TimeDelta = TimeDelta::hours(24);
/// How long runs are remembered.
const RUNS_KEPT: TimeDelta = TimeDelta::days(90);
/// How long a certificate is remembered after its end.
const CERTIFICATES_KEPT: TimeDelta = TimeDelta::days(30);
/// Certificates of one piece.
const CERTIFICATES: u32 = 1_000;
/// Audit events of one piece.
const EVENTS: u32 = 2_000;
/// Packets of one piece: each costs two signatures to verify.
const PACKETS: u32 = 50;

/// The maintenance of one replica.
#[derive(Debug)]
pub struct Maintenance {
    core: Core,
    turn: Turn,
    own_key: PublicKey,
}

/// What there is to do.
enum Todo {
    /// A run that is not over.
    GoOn(MaintenanceRun),
    /// A run that is due.
    Begin(MaintenanceKind),
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

    async fn todo(&self, tx: &mut Tx) -> Result<Option<Todo>, ApiError> {
        if let Some(run) = tx.open_maintenance().await? {
            return Ok(Some(Todo::GoOn(run)));
        }
        let now = self.core.clock.now();
        for kind in MaintenanceKind::ALL {
            if kind.is_due(tx.newest_maintenance(*kind).await?, now) {
                return Ok(Some(Todo::Begin(*kind)));
            }
        }
        Ok(None)
    }

    /// A transaction of whoever has the turn; without it the turn is given up.
    async fn write(&mut self) -> Result<Tx, ApiError> {
        let tx = self.turn.write().await;
        if tx.is_err() {
            self.turn.release();
        }
        tx
    }

    /// One piece. What is only looked at is looked at before the writer is taken: no signature is verified under its lock.
    async fn go_on(&mut self, run: &MaintenanceRun) -> Result<(), ApiError> {
        let mut progress = run.progress.clone();
        let mut reader = self.core.db.read().await?;
        let mut piece = match run.kind {
            MaintenanceKind::Cleanup => Piece::Last,
            MaintenanceKind::Audit => audit(&mut reader, &mut progress).await?,
            MaintenanceKind::Evidence => self.evidence(&mut reader, &mut progress).await?,
        };
        drop(reader);
        let now = self.core.clock.now();
        let mut tx = self.write().await?;
        if run.state == MaintenanceState::Pending {
            tx.begin_maintenance(run.id, now).await?;
        }
        if run.kind == MaintenanceKind::Cleanup {
            progress.items += tx.purge_idempotent_answers(now - ANSWERS_KEPT).await?;
            progress.items += tx.purge_maintenance(now - RUNS_KEPT).await?;
            let certificates = tx
                .purge_certificates(now - CERTIFICATES_KEPT, CERTIFICATES)
                .await?;
            progress.items += certificates;
            if certificates == u64::from(CERTIFICATES) {
                piece = Piece::More;
            }
        }
        match piece {
            Piece::More => tx.progress_maintenance(run.id, &progress).await?,
            Piece::Last => tx.end_maintenance(run, &progress, now).await?,
        }
        tx.commit().await?;
        if piece == Piece::Last {
            tell(run.kind, &progress);
        }
        Ok(())
    }

    async fn evidence(&self, tx: &mut Tx, progress: &mut Progress) -> Result<Piece, ApiError> {
        let after: Option<PacketId> = progress.position.parse().ok();
        let packets = tx.packets_after(after, PACKETS).await?;
        let mut keys: BTreeMap<AgentId, Result<TrustFile, String>> = BTreeMap::new();
        for packet in &packets {
            let known = match keys.entry(packet.agent_id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => place.insert(self.keys_of(tx, packet).await?),
            };
            progress.items += 1;
            if let Err(problem) = known
                .as_ref()
                .map_err(Clone::clone)
                .and_then(|keys| look_at(packet, keys))
            {
                progress.problem(format!("packets/{}: {problem}", packet.id));
            }
        }
        let Some(last) = packets.last().filter(|_| packets.len() == PACKETS as usize) else {
            return Ok(Piece::Last);
        };
        progress.position = last.id.to_string();
        Ok(Piece::More)
    }

    /// The keys under which the packets of an agent must verify; or what is wrong with what stands there as its key.
    async fn keys_of(
        &self,
        tx: &mut Tx,
        packet: &StoredPacket,
    ) -> Result<Result<TrustFile, String>, ApiError> {
        let agent = match tx.agent_by_id(packet.agent_id).await {
            Ok(agent) => agent,
            Err(error @ StoreError::Corrupt { .. }) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let Some((agent, tenant)) = agent.zip(tx.tenant(packet.tenant_id).await?) else {
            return Ok(Err("its agent is not known".to_owned()));
        };
        let Ok(key) = timeless_key(&agent, &tenant.name) else {
            return Ok(Err("what stands there as its agent's key is none".to_owned()));
        };
        let file = TrustFile::new(vec![own_key(self.own_key)], vec![key]);
        file.map(Ok).map_err(ApiError::internal)
    }
}

/// What is wrong with a packet, if anything is.
fn look_at(packet: &StoredPacket, keys: &TrustFile) -> Result<(), String> {
    let verified = verify_packet(&packet.envelope, keys).map_err(|error| error.to_string())?;
    let digest = canonical::digest(&verified.statement).map_err(|error| error.to_string())?;
    if digest.to_string() == packet.digest {
        Ok(())
    } else {
        Err("its digest is another one".to_owned())
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
        let mut reader = self.core.db.read().await?;
        let todo = self.todo(&mut reader).await?;
        drop(reader);
        match todo {
            None => {}
            Some(Todo::GoOn(run)) => self.go_on(&run).await?,
            Some(Todo::Begin(kind)) => {
                let now = self.core.clock.now();
                let mut tx = self.write().await?;
                tx.request_maintenance(kind, ORCHESTRATOR, now).await?;
                tx.commit().await?;
            }
        }
        // Each piece wakes the next one by its own change, after a rest: nothing here is in a hurry.
        Ok(Outcome::Idle)
    }
}

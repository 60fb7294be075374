//! Leases: which replica does the duties that only one may do. The epoch grows whenever the holder changes, so that work of a
//! former holder can be told from that of the present one.

use chrono::{DateTime, Utc};
use sealift_common::id::ReplicaId;

use crate::{
    Result, Tx,
    engine::{on, statements},
    rows::{At, int},
};

statements! {
    ACQUIRE = {
        "INSERT INTO leases (name, holder, epoch, until) VALUES ($1, $2, 1, $3) ON CONFLICT (name) DO UPDATE SET ",
        "epoch = leases.epoch + CASE WHEN leases.holder = excluded.holder THEN 0 ELSE 1 END, ",
        "holder = excluded.holder, until = excluded.until ",
        "WHERE leases.until <= $4 OR leases.holder = excluded.holder RETURNING epoch"
    };
    HOLD = { "UPDATE leases SET epoch = epoch WHERE name = $1 AND holder = $2 AND epoch = $3" };
    RELEASE_ALL = { "UPDATE leases SET until = $1 WHERE until > $1" };
    RELEASE = { "UPDATE leases SET until = $3 WHERE name = $1 AND holder = $2" };
}

impl Tx {
    /// Takes a lease or keeps it, until `until`; gives its epoch, or `None` while another replica holds it.
    pub async fn acquire_lease(
        &mut self,
        name: &str,
        holder: ReplicaId,
        until: DateTime<Utc>,
        now: DateTime<Utc>,
    ) -> Result<Option<u64>> {
        let epoch: Option<i64> = on!(self, |conn| sqlx::query_scalar(ACQUIRE)
            .bind(name)
            .bind(holder.uuid())
            .bind(until)
            .bind(now)
            .fetch_optional(conn)
            .await)?;
        epoch
            .map(|epoch| At::new("leases", name).number("epoch", epoch))
            .transpose()
    }

    /// Whether the lease is still the holder's, with that epoch. Locks the row: until this transaction ends nobody else can
    /// take the lease, so that no work of an old epoch is committed after work of a newer one.
    pub async fn check_lease(&mut self, name: &str, holder: &ReplicaId, epoch: u64) -> Result<bool> {
        let epoch = int(epoch)?;
        let held = on!(self, |conn| sqlx::query(HOLD)
            .bind(name)
            .bind(holder.uuid())
            .bind(epoch)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(held == 1)
    }

    /// Gives a lease up before its time, at an orderly stop.
    pub async fn release_lease(&mut self, name: &str, holder: ReplicaId, now: DateTime<Utc>) -> Result<()> {
        on!(self, |conn| sqlx::query(RELEASE)
            .bind(name)
            .bind(holder.uuid())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// Ends all leases. Only for whoever knows that no holder lives any more: on SQLite the lock file proves it at the start.
    pub async fn release_dead_leases(&mut self, now: DateTime<Utc>) -> Result<()> {
        on!(self, |conn| sqlx::query(RELEASE_ALL)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }
}

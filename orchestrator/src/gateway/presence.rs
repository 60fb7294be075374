//! Presence: which agents are connected to this process, when each was last heard, and how to reach their sessions.
//!
//! Memory only. Heartbeats touch nothing else; `loops/heartbeats.rs` writes what changed in one statement every few seconds. What
//! a session is told here is a *state* (a watch value), not a message, so nothing queues up for a slow one.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    error::Reason,
    id::{AgentId, SessionId, TaskId},
    inventory::{AgentIntent, AgentStatus},
    time::Clock,
};
use sealift_store::Heartbeat;
use tokio::sync::watch;

/// How many heartbeat intervals an agent may be silent and still count as online.
pub const SILENT_INTERVALS: u32 = 3;
/// How often heartbeats are written to the store, at the least.
pub const FLUSH_INTERVAL: Duration = Duration::from_secs(3);

const FASTEST: Duration = Duration::from_secs(5);
const SLOWEST: Duration = Duration::from_mins(1);
const SMALL_FLEET: usize = 100;
/// From this size on the heartbeats of the whole fleet arrive at a constant rate.
const LARGE_FLEET: usize = 6_000;

/// How often each agent should say that it is there, for a fleet of `agents`: every 5 s for up to 100 agents, then growing in
/// proportion to the fleet up to once a minute.
pub fn heartbeat_interval(agents: usize) -> Duration {
    let range = SLOWEST.saturating_sub(FASTEST).as_millis() as u64;
    let over = agents.clamp(SMALL_FLEET, LARGE_FLEET) - SMALL_FLEET;
    let share = range * over as u64 / (LARGE_FLEET - SMALL_FLEET) as u64;
    FASTEST + Duration::from_millis(share)
}

/// Whether the schedule has moved far enough (more than 20 %) from what an agent was told to tell it again.
pub fn schedule_differs(told: Duration, now: Duration) -> bool {
    told.abs_diff(now) * 5 > told
}

/// Why a session has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Farewell {
    /// The stable reason.
    pub reason: Reason,
    /// Whether the agent must not come back.
    pub is_final: bool,
}

/// What a session is told from outside. A state: only the newest value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Signal {
    /// Grows whenever the agent's assignments may have changed.
    pub assignments: u64,
    /// Set when the session has to end.
    pub farewell: Option<Farewell>,
}

#[derive(Debug)]
struct Entry {
    session: SessionId,
    signal: watch::Sender<Signal>,
    heard_at: DateTime<Utc>,
    /// Heard since the last write.
    fresh: bool,
    /// Tasks whose leases its heartbeats keep up.
    tasks: Arc<[TaskId]>,
}

/// How often the same blame of the same agent is recorded at most: one that fails comes back every few seconds, for ever.
const BLAME_EVERY: TimeDelta = TimeDelta::hours(1);
/// From this size on the memory of blames is swept.
const BLAMES: usize = 1_024;

#[derive(Debug, Default)]
struct Sessions {
    live: HashMap<AgentId, Entry>,
    /// When the last session of an agent ended, for as long as its last heartbeat would still count as fresh.
    gone: HashMap<AgentId, DateTime<Utc>>,
    /// When an agent was last recorded for something. Bounded by the agents that there are.
    blamed: HashMap<(AgentId, &'static str), DateTime<Utc>>,
}

/// What the heartbeat loop writes.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// When agents were last heard.
    pub agents: Vec<Heartbeat>,
    /// Tasks of those agents.
    pub tasks: Vec<TaskId>,
}

/// Where else an agent could have its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Elsewhere {
    /// Nowhere: this process is the only one that uses the database.
    Nowhere,
    /// At another replica, whose fleet may be of any size: nobody here knows how often it wants to hear its agents.
    Replicas,
}

/// The live sessions of this process.
#[derive(Debug)]
pub struct Presence {
    clock: Arc<dyn Clock>,
    elsewhere: Elsewhere,
    sessions: Mutex<Sessions>,
}

/// A session's place in [`Presence`]; dropping it takes the session out.
#[derive(Debug)]
pub struct Seat {
    presence: Arc<Presence>,
    agent: AgentId,
    session: SessionId,
    /// What the session is told.
    pub signal: watch::Receiver<Signal>,
}

impl Presence {
    /// Nobody is connected yet.
    pub fn new(clock: Arc<dyn Clock>, elsewhere: Elsewhere) -> Arc<Self> {
        Arc::new(Self {
            clock,
            elsewhere,
            sessions: Mutex::default(),
        })
    }

    /// Takes the agent's place; the session that had it is told to end (newest wins).
    pub fn open(self: &Arc<Self>, agent: AgentId, session: SessionId) -> Seat {
        let (sender, signal) = watch::channel(Signal::default());
        let entry = Entry {
            session,
            signal: sender,
            heard_at: self.clock.now(),
            fresh: true,
            tasks: Arc::from([]),
        };
        let mut sessions = self.sessions();
        sessions.gone.remove(&agent);
        if let Some(older) = sessions.live.insert(agent, entry) {
            farewell(&older.signal, Reason::SessionReplaced, false);
        }
        drop(sessions);
        Seat {
            presence: Arc::clone(self),
            agent,
            session,
            signal,
        }
    }

    /// Whether the agent has a session here.
    pub fn is_connected(&self, agent: AgentId) -> bool {
        self.sessions().live.contains_key(&agent)
    }

    /// How many agents have a session here.
    pub fn connected(&self) -> usize {
        self.sessions().live.len()
    }

    /// How often an agent should be heard at the present size of the fleet.
    pub fn interval(&self) -> Duration {
        heartbeat_interval(self.connected())
    }

    /// How long an assignment or a lease may be trusted without a word of the agent: longer than any silence that is still
    /// normal, plus the time until it is written.
    pub fn lease(&self) -> Duration {
        self.interval() * SILENT_INTERVALS + FLUSH_INTERVAL * 2 + Duration::from_secs(10)
    }

    /// Tells the agent's session to look at its assignments again; nothing when it has none here.
    pub fn notify(&self, agent: AgentId) {
        if let Some(entry) = self.sessions().live.get(&agent) {
            entry.signal.send_modify(|signal| signal.assignments += 1);
        }
    }

    /// Tells the sessions of these agents to look at their assignments again, if they are here and know of none.
    pub fn remind(&self, agents: &[AgentId]) {
        let sessions = self.sessions();
        for entry in agents.iter().filter_map(|agent| sessions.live.get(agent)) {
            if entry.tasks.is_empty() {
                entry.signal.send_modify(|signal| signal.assignments += 1);
            }
        }
    }

    /// Tells every session to look at its assignments again.
    pub fn notify_all(&self) {
        for entry in self.sessions().live.values() {
            entry.signal.send_modify(|signal| signal.assignments += 1);
        }
    }

    /// Ends the agent's session here.
    pub fn close(&self, agent: AgentId, reason: Reason, is_final: bool) {
        if let Some(entry) = self.sessions().live.get(&agent) {
            farewell(&entry.signal, reason, is_final);
        }
    }

    /// Ends all sessions; the agents come back by themselves.
    pub fn close_all(&self, reason: Reason) {
        for entry in self.sessions().live.values() {
            farewell(&entry.signal, reason, false);
        }
    }

    /// How an agent is. `last_seen_at` is what the store knows, which includes what other replicas heard.
    pub fn status(
        &self,
        agent: AgentId,
        intent: AgentIntent,
        last_seen_at: Option<DateTime<Utc>>,
        degraded: bool,
    ) -> AgentStatus {
        let now = self.clock.now();
        let sessions = self.sessions();
        let interval = heartbeat_interval(sessions.live.len());
        let written = match self.elsewhere {
            Elsewhere::Nowhere => interval,
            Elsewhere::Replicas => SLOWEST,
        } * SILENT_INTERVALS
            + FLUSH_INTERVAL;
        let heard = match (sessions.live.get(&agent), sessions.gone.get(&agent)) {
            (Some(entry), _) => Some((entry.heard_at, interval * SILENT_INTERVALS)),
            // Its session here ended: only what another replica heard later counts.
            (None, Some(left)) => last_seen_at
                .filter(|seen| seen > left)
                .map(|seen| (seen, written)),
            (None, None) => last_seen_at.map(|seen| (seen, written)),
        };
        drop(sessions);
        let is_fresh = heard.is_some_and(|(heard, silence)| now - heard <= span(silence));
        match (intent.is_live() && is_fresh, degraded) {
            (true, true) => AgentStatus::Degraded,
            (true, false) => AgentStatus::Online,
            (false, _) => AgentStatus::Offline,
        }
    }

    /// The agent's session here, else what the store knows of one elsewhere, or of its last one.
    pub fn session_of(&self, agent: AgentId, stored: Option<SessionId>) -> Option<SessionId> {
        let sessions = self.sessions();
        sessions.live.get(&agent).map(|entry| entry.session).or(stored)
    }

    /// Whether this is to be recorded of the agent: the first time, and then once an hour.
    pub fn blame(&self, agent: AgentId, what: &'static str) -> bool {
        let now = self.clock.now();
        let mut sessions = self.sessions();
        if sessions.blamed.len() >= BLAMES {
            sessions.blamed.retain(|_, at| now - *at < BLAME_EVERY);
        }
        match sessions.blamed.get(&(agent, what)) {
            Some(at) if now - *at < BLAME_EVERY => false,
            _ => {
                sessions.blamed.insert((agent, what), now);
                true
            }
        }
    }

    /// Takes what was heard since the last call.
    pub fn take_heard(&self) -> Heard {
        let now = self.clock.now();
        let mut heard = Heard::default();
        let mut sessions = self.sessions();
        for (agent, entry) in &mut sessions.live {
            if std::mem::take(&mut entry.fresh) {
                heard.agents.push(Heartbeat {
                    agent_id: *agent,
                    session: entry.session,
                    at: entry.heard_at,
                });
                heard.tasks.extend(entry.tasks.iter().copied());
            }
        }
        let memory = span(SLOWEST * (SILENT_INTERVALS + 1));
        sessions.gone.retain(|_, left| now - *left <= memory);
        heard
    }

    fn sessions(&self) -> MutexGuard<'_, Sessions> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seat {
    /// The agent said something.
    pub fn heard(&self) {
        let now = self.presence.clock.now();
        self.with_entry(|entry| {
            entry.heard_at = now;
            entry.fresh = true;
        });
    }

    /// The tasks whose leases this agent's words keep up.
    pub fn set_tasks(&self, tasks: Vec<TaskId>) {
        self.with_entry(|entry| {
            if *entry.tasks != *tasks {
                entry.tasks = tasks.into();
            }
        });
    }

    fn with_entry(&self, change: impl FnOnce(&mut Entry)) {
        let mut sessions = self.presence.sessions();
        if let Some(entry) = sessions.live.get_mut(&self.agent)
            && entry.session == self.session
        {
            change(entry);
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let now = self.presence.clock.now();
        let mut sessions = self.presence.sessions();
        // A newer session may have the place by now.
        if sessions
            .live
            .get(&self.agent)
            .is_some_and(|entry| entry.session == self.session)
        {
            sessions.live.remove(&self.agent);
            sessions.gone.insert(self.agent, now);
        }
    }
}

fn farewell(signal: &watch::Sender<Signal>, reason: Reason, is_final: bool) {
    signal.send_modify(|signal| {
        // The first reason stays, unless a later one is final.
        if is_final || signal.farewell.is_none() {
            signal.farewell = Some(Farewell { reason, is_final });
        }
    });
}

fn span(value: Duration) -> TimeDelta {
    TimeDelta::from_std(value).unwrap_or(TimeDelta::MAX)
}

#[cfg(test)]
mod tests {
    use sealift_common::time::TestClock;

    use super::*;

    fn presence() -> (TestClock, Arc<Presence>) {
        presence_and(Elsewhere::Nowhere)
    }

    fn presence_and(elsewhere: Elsewhere) -> (TestClock, Arc<Presence>) {
        let clock = TestClock::at(DateTime::from_timestamp(1_800_000_000, 0).unwrap());
        (clock.clone(), Presence::new(Arc::new(clock), elsewhere))
    }

    fn ids(clock: &TestClock) -> (AgentId, SessionId) {
        (AgentId::new(clock.now()), SessionId::new(clock.now()))
    }

    #[test]
    fn only_who_knows_of_no_work_is_reminded() {
        let (clock, presence) = presence();
        let [idle, busy, away] = [1, 2, 3].map(|_| AgentId::new(clock.now()));
        let mut seats = [idle, busy].map(|agent| presence.open(agent, SessionId::new(clock.now())));
        seats[1].set_tasks(vec![TaskId::new(clock.now())]);
        presence.remind(&[idle, busy, away]);
        let told = seats
            .each_mut()
            .map(|seat| seat.signal.borrow_and_update().assignments);
        assert_eq!(told, [1, 0]);
    }

    #[test]
    fn r13_an_agent_that_fails_again_and_again_is_recorded_once_an_hour() {
        let (clock, presence) = presence();
        let (agent, _) = ids(&clock);
        assert!(presence.blame(agent, "agent.protocol"));
        assert!(!presence.blame(agent, "agent.protocol"));
        assert!(presence.blame(agent, "agent.state_older"));
        assert!(presence.blame(ids(&clock).0, "agent.protocol"));
        clock.advance(BLAME_EVERY);
        assert!(presence.blame(agent, "agent.protocol"));
    }

    #[test]
    fn heartbeats_slow_down_with_the_fleet() {
        assert_eq!(heartbeat_interval(0), Duration::from_secs(5));
        assert_eq!(heartbeat_interval(100), Duration::from_secs(5));
        assert_eq!(heartbeat_interval(6_000), Duration::from_mins(1));
        assert_eq!(heartbeat_interval(1_000_000), Duration::from_mins(1));
        let all: Vec<_> = (0..8_000).map(heartbeat_interval).collect();
        assert!(all.is_sorted());
    }

    #[test]
    fn schedules_are_told_again_only_when_they_moved_by_a_fifth() {
        let told = Duration::from_secs(10);
        assert!(!schedule_differs(told, Duration::from_secs(12)));
        assert!(schedule_differs(told, Duration::from_secs(13)));
        assert!(schedule_differs(told, Duration::from_secs(7)));
    }

    #[test]
    fn t1_newest_session_wins_and_the_older_one_leaves_nothing_behind() {
        let (clock, presence) = presence();
        let (agent, first) = ids(&clock);
        let older = presence.open(agent, first);
        let newer = presence.open(agent, SessionId::new(clock.now()));
        let told = older.signal.borrow().farewell.unwrap();
        assert_eq!(
            told,
            Farewell {
                reason: Reason::SessionReplaced,
                is_final: false
            }
        );
        drop(older);
        assert!(
            presence.is_connected(agent),
            "the older session must not take out the newer one"
        );
        drop(newer);
        assert!(!presence.is_connected(agent));
    }

    #[test]
    fn status_follows_session_silence_facts_and_intent() {
        let (clock, presence) = presence();
        let (agent, session) = ids(&clock);
        let status = |intent, seen, degraded| presence.status(agent, intent, seen, degraded);
        assert_eq!(status(AgentIntent::Active, None, false), AgentStatus::Offline);
        let seat = presence.open(agent, session);
        assert_eq!(status(AgentIntent::Active, None, false), AgentStatus::Online);
        assert_eq!(status(AgentIntent::Active, None, true), AgentStatus::Degraded);
        assert_eq!(status(AgentIntent::Paused, None, false), AgentStatus::Online);
        assert_eq!(status(AgentIntent::Draining, None, true), AgentStatus::Degraded);
        assert_eq!(status(AgentIntent::Revoked, None, false), AgentStatus::Offline);
        clock.advance(TimeDelta::seconds(16));
        assert_eq!(status(AgentIntent::Active, None, false), AgentStatus::Offline);
        seat.heard();
        assert_eq!(status(AgentIntent::Active, None, false), AgentStatus::Online);
        let seen = Some(clock.now());
        drop(seat);
        assert_eq!(status(AgentIntent::Active, seen, false), AgentStatus::Offline);
        clock.advance(TimeDelta::seconds(1));
        let elsewhere = Some(clock.now());
        assert_eq!(status(AgentIntent::Active, elsewhere, false), AgentStatus::Online);
    }

    #[test]
    fn an_agent_of_another_replica_may_be_silent_as_long_as_the_slowest_schedule_lets_it() {
        let slowest = span(SLOWEST * SILENT_INTERVALS + FLUSH_INTERVAL);
        for (elsewhere, longest) in [
            (Elsewhere::Replicas, slowest),
            (
                Elsewhere::Nowhere,
                span(FASTEST * SILENT_INTERVALS + FLUSH_INTERVAL),
            ),
        ] {
            let (clock, presence) = presence_and(elsewhere);
            let (agent, _) = ids(&clock);
            let seen = Some(clock.now());
            let status = || presence.status(agent, AgentIntent::Active, seen, false);
            clock.advance(longest);
            assert_eq!(status(), AgentStatus::Online, "{elsewhere:?}");
            clock.advance(TimeDelta::seconds(1));
            assert_eq!(status(), AgentStatus::Offline, "{elsewhere:?}");
        }
        // One that has its session here is judged by what it was told here.
        let (clock, presence) = presence_and(Elsewhere::Replicas);
        let (agent, session) = ids(&clock);
        let _seat = presence.open(agent, session);
        clock.advance(TimeDelta::seconds(16));
        let status = presence.status(agent, AgentIntent::Active, None, false);
        assert_eq!(status, AgentStatus::Offline);
    }

    #[test]
    fn heartbeats_are_taken_once_with_the_tasks_they_keep_up() {
        let (clock, presence) = presence();
        let (agent, session) = ids(&clock);
        let task = TaskId::new(clock.now());
        let seat = presence.open(agent, session);
        seat.set_tasks(vec![task]);
        assert_eq!(
            presence.take_heard(),
            Heard {
                agents: vec![Heartbeat {
                    agent_id: agent,
                    session,
                    at: clock.now()
                }],
                tasks: vec![task]
            }
        );
        assert_eq!(presence.take_heard(), Heard::default());
        seat.heard();
        assert_eq!(presence.take_heard().agents.len(), 1);
    }

    #[test]
    fn an_agent_is_in_its_newest_session() {
        let (clock, presence) = presence();
        let (agent, session) = ids(&clock);
        let elsewhere = Some(SessionId::new(clock.now()));
        assert_eq!(presence.session_of(agent, elsewhere), elsewhere);
        let older = presence.open(agent, session);
        assert_eq!(presence.session_of(agent, elsewhere), Some(session));
        let newest = SessionId::new(clock.now());
        let newer = presence.open(agent, newest);
        assert_eq!(presence.session_of(agent, elsewhere), Some(newest));
        drop((older, newer));
        assert_eq!(presence.session_of(agent, elsewhere), elsewhere);
    }

    #[test]
    fn a_final_farewell_is_not_softened() {
        let (clock, presence) = presence();
        let (agent, session) = ids(&clock);
        let seat = presence.open(agent, session);
        presence.close_all(Reason::ShuttingDown);
        presence.close(agent, Reason::CertificateRefused, true);
        presence.close_all(Reason::ShuttingDown);
        assert!(seat.signal.borrow().farewell.unwrap().is_final);
    }

    #[test]
    fn notifications_coalesce() {
        let (clock, presence) = presence();
        let (agent, session) = ids(&clock);
        let mut seat = presence.open(agent, session);
        seat.signal.mark_unchanged();
        for _ in 0..1_000 {
            presence.notify(agent);
        }
        assert!(seat.signal.has_changed().unwrap());
        seat.signal.mark_unchanged();
        assert!(!seat.signal.has_changed().unwrap());
    }
}

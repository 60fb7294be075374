//! The table of the suite: every fault, and for each kind of host what injects it, what must hold, and what proves it. A fault
//! without a row is printed as not covered.

use anyhow::Result;
use futures::future::LocalBoxFuture;

use crate::{
    cases::{agent, clock, disk, engine, network, registry},
    stage::Stage,
};

/// Where a fault is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// On a host whose agent drives the engine itself.
    Docker,
    /// On a host whose agent drives Compose.
    Compose,
    /// Not on a host: orchestrator, database, wire.
    Center,
}

impl Host {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Docker, Self::Compose, Self::Center];

    /// Its name in the matrix.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Docker => "docker_host",
            Self::Compose => "compose_host",
            Self::Center => "center",
        }
    }

    /// As `sealift target create --kind` wants it.
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Compose => "compose-host",
            Self::Docker | Self::Center => "docker-host",
        }
    }
}

/// A fault of the fault model.
pub struct Fault {
    /// Its number there.
    pub id: &'static str,
    /// Its name.
    pub title: &'static str,
    /// Where it can be.
    pub hosts: &'static [Host],
}

/// Something that is done to a stage.
pub type Act = for<'a> fn(&'a mut Stage) -> LocalBoxFuture<'a, Result<()>>;

/// What is special about a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flag {
    /// Too long for every run.
    Long,
    /// It mounts file systems, which only root may.
    Root,
    /// It has an engine of its own, which only root may start.
    Private,
    /// It needs the kernel's memory controller, and root.
    Memory,
}

/// What proves a row.
pub enum Proof {
    /// It is injected here, with real programs and a real engine.
    Act {
        /// What is done.
        act: Act,
        /// What is special about it.
        flags: &'static [Flag],
        /// Settings of the orchestrator.
        settings: &'static str,
    },
    /// Tests of the workspace, by name.
    Tests(&'static [&'static str]),
    /// Such as take an engine and long: the stage `engine` of `tests/run` runs them, and this suite only with --full.
    Elsewhere(&'static [&'static str]),
}

/// A row, or two of them: one for each kind of host.
pub struct Row {
    /// The fault.
    pub fault: &'static str,
    /// Where.
    pub hosts: &'static [Host],
    /// How it is injected.
    pub how: &'static str,
    /// What proves that what must hold held.
    pub proof: Proof,
}

const HOSTS: &[Host] = &[Host::Docker, Host::Compose];
const CENTER: &[Host] = &[Host::Center];
const EVERYWHERE: &[Host] = &[Host::Docker, Host::Compose, Host::Center];
const DOCKER: &[Host] = &[Host::Docker];
const COMPOSE: &[Host] = &[Host::Compose];

const fn fault(id: &'static str, title: &'static str, hosts: &'static [Host]) -> Fault {
    Fault { id, title, hosts }
}

/// All faults of the fault model.
pub const FAULTS: &[Fault] = &[
    fault("F1", "agent killed at each step", HOSTS),
    fault("F2", "host reboots", HOSTS),
    fault("F3", "engine restarts or is killed", HOSTS),
    fault("F4", "engine hangs", HOSTS),
    fault("F5", "engine answers wrongly", HOSTS),
    fault("F6", "registry down, slow, lying", HOSTS),
    fault("F7", "disk full", HOSTS),
    fault("F8", "sync fails", HOSTS),
    fault("F9", "clock skew and jumps", EVERYWHERE),
    fault("F10", "partition both ways", HOSTS),
    fault("F11", "one-way partition", HOSTS),
    fault("F12", "loss and latency", HOSTS),
    fault("F13", "duplicate and late delivery", CENTER),
    fault("F14", "orchestrator killed", CENTER),
    fault("F15", "database restarts", CENTER),
    fault("F16", "database falls behind", CENTER),
    fault("F17", "two orchestrators", CENTER),
    fault("F18", "SQLite locked or corrupt", CENTER),
    fault("F19", "slow consumer", CENTER),
    fault("F20", "all agents reconnect", CENTER),
    fault("F21", "poison order", HOSTS),
    fault("F22", "oversized and endless messages", CENTER),
    fault("F23", "malformed messages", CENTER),
    fault("F24", "certificate expires mid-deploy", HOSTS),
    fault("F25", "authority rotates mid-deploy", CENTER),
    fault("F26", "version skew", CENTER),
    fault("F27", "migration interrupted", CENTER),
    fault("F28", "log flood", HOSTS),
    fault("F29", "memory pressure", HOSTS),
    fault("F30", "state restored from the past", HOSTS),
];

/// A row that is injected here.
macro_rules! act {
    ($fault:literal, $hosts:ident, $how:literal, $act:path $(, $flag:ident)* $(; $settings:literal)?) => {
        Row {
            fault: $fault,
            hosts: $hosts,
            how: $how,
            proof: Proof::Act {
                act: |stage| Box::pin($act(stage)),
                flags: &[$(Flag::$flag),*],
                settings: concat!($($settings)?),
            },
        }
    };
}

const fn tests(
    fault: &'static str,
    hosts: &'static [Host],
    how: &'static str,
    names: &'static [&'static str],
) -> Row {
    Row {
        fault,
        hosts,
        how,
        proof: Proof::Tests(names),
    }
}

/// All rows, in the order of the faults.
pub const ROWS: &[Row] = &[
    Row {
        fault: "F1",
        hosts: DOCKER,
        how: "abort in a swap in place and with hooks, forward and back",
        proof: Proof::Elsewhere(&[
            "r10_killed_in_every_phase_first_half",
            "r10_killed_in_every_phase_second_half",
            "f1_r10_killed_in_every_phase_of_a_hook_the_target_ends_whole",
        ]),
    },
    act!(
        "F1",
        DOCKER,
        "abort around the move of a blue/green swap, forward and back",
        agent::killed_in_blue_green
    ),
    act!(
        "F1",
        COMPOSE,
        "abort in an attempt, forward and back",
        agent::killed_on_compose
    ),
    act!(
        "F2",
        HOSTS,
        "SIGKILL of agent and engine, the agent starts first",
        engine::agent_before_engine,
        Private
    ),
    act!(
        "F3",
        HOSTS,
        "SIGKILL of engine and containerd in the health wait",
        engine::killed_in_a_swap,
        Private
    ),
    act!(
        "F3",
        HOSTS,
        "orderly restart in the health wait",
        engine::restarted_in_a_swap,
        Private,
        Long
    ),
    act!(
        "F3",
        HOSTS,
        "SIGKILL of agent, engine and containerd there",
        engine::killed_with_the_agent,
        Private,
        Long
    ),
    act!(
        "F4",
        HOSTS,
        "SIGSTOP for 10 s in the health wait, then SIGCONT",
        engine::hangs_for_a_moment,
        Private
    ),
    act!(
        "F4",
        HOSTS,
        "SIGSTOP for 75 s in the health wait, then SIGCONT",
        engine::hangs_for_long,
        Private,
        Long
    ),
    act!(
        "F5",
        HOSTS,
        "socket proxy: 500, 409, half JSON, error line, cut, silence",
        engine::answers_wrongly
    ),
    act!(
        "F6",
        HOSTS,
        "registry proxy: down, 500, 401, cut, other bytes, silence",
        registry::fails_in_a_pull,
        Private
    ),
    act!(
        "F6",
        HOSTS,
        "registry proxy: 4 kB/s",
        registry::slow,
        Private,
        Long
    ),
    act!(
        "F7",
        HOSTS,
        "agent's state on a full tmpfs",
        disk::of_the_agent,
        Root
    ),
    act!(
        "F7",
        HOSTS,
        "engine's data on a full ext4",
        disk::of_the_engine,
        Root,
        Long
    ),
    act!(
        "F8",
        DOCKER,
        "strace: fsync and fdatasync fail from the n-th on",
        agent::sync_fails
    ),
    act!(
        "F8",
        COMPOSE,
        "strace: fsync and fdatasync fail from the n-th on",
        agent::sync_fails,
        Long
    ),
    act!(
        "F9",
        DOCKER,
        "faketime: the agent 3 min ahead",
        clock::clock_ahead
    ),
    act!(
        "F9",
        COMPOSE,
        "faketime: the agent 3 min ahead",
        clock::clock_ahead,
        Long
    ),
    act!(
        "F9",
        HOSTS,
        "faketime: the agent 3 min behind",
        clock::clock_behind,
        Long
    ),
    act!(
        "F9",
        HOSTS,
        "faketime: the agent's clock is set by 3 min and back, both ways",
        clock::host_jumps,
        Long
    ),
    act!(
        "F9",
        CENTER,
        "faketime: the orchestrator's clock is set by 3 min and back, both ways",
        clock::center_jumps,
        Long
    ),
    act!(
        "F10",
        HOSTS,
        "bytes held both ways from the health wait on",
        network::partition_both_ways
    ),
    act!(
        "F11",
        DOCKER,
        "bytes to the orchestrator held",
        network::partition_upward
    ),
    act!(
        "F11",
        COMPOSE,
        "bytes to the orchestrator held",
        network::partition_upward,
        Long
    ),
    act!(
        "F11",
        DOCKER,
        "bytes to the agent held",
        network::partition_downward
    ),
    act!(
        "F11",
        COMPOSE,
        "bytes to the agent held",
        network::partition_downward,
        Long
    ),
    act!(
        "F12",
        DOCKER,
        "80 ms more on every piece, a break every 0.7 s",
        network::slow_and_broken
    ),
    act!(
        "F12",
        COMPOSE,
        "80 ms more on every piece, a break every 0.7 s",
        network::slow_and_broken,
        Long
    ),
    tests(
        "F13",
        CENTER,
        "repeated, late, reordered assignments and reports",
        &[
            "f13_a_gap_asks_for_the_full_set_once_and_nothing_is_done_meanwhile",
            "f13_an_increment_that_comes_twice_is_a_gap",
            "f13_a_gap_in_the_assignments_is_answered_with_resync",
            "r9_wrong_numbers_and_oversized_batches_are_refused_and_repeats_are_acknowledged",
            "r8_a_late_success_is_kept_as_proof_and_changes_no_record",
            "t11_a_repeated_order_is_answered_and_not_carried_out_again",
        ],
    ),
    tests(
        "F14",
        CENTER,
        "killed after its answer, under work, while reports come in, while asked",
        &[
            "r9_r16_kill_nine_of_the_orchestrator_loses_nothing_on_sqlite",
            "r9_r16_kill_nine_of_the_orchestrator_loses_nothing_on_postgres",
        ],
    ),
    tests(
        "F16",
        CENTER,
        "a database older than its agents",
        &["f16_a_database_that_is_older_than_its_agents_gives_no_orders"],
    ),
    tests(
        "F17",
        CENTER,
        "a scheduler that was paused beyond its lease",
        &[
            "i10_a_scheduler_that_was_paused_beyond_its_lease_writes_nothing",
            "r9_a_restart_does_not_wait_for_the_lease_of_the_process_before",
        ],
    ),
    tests(
        "F18",
        CENTER,
        "a second process, an SQLite that corrupts, a torn log, a spoiled file",
        &[
            "f18_a_torn_log_opens_with_a_beginning_of_what_was_committed",
            "f18_a_damaged_file_is_refused",
            "a_second_orchestrator_on_the_same_directory_does_not_start",
            "an_sqlite_that_corrupts_is_refused",
        ],
    ),
    act!(
        "F19",
        CENTER,
        "SIGSTOP of an agent with an open stream",
        network::slow_consumer
    ),
    tests(
        "F19",
        CENTER,
        "a stream that nobody reads",
        &[
            "f19_more_than_the_stream_holds_waits_and_arrives_in_order",
            "f19_an_agent_that_takes_nothing_is_cut",
        ],
    ),
    tests(
        "F20",
        CENTER,
        "40 agents lose the orchestrator at one instant",
        &[
            "f20_all_agents_come_back_and_nobody_hammers_on_sqlite",
            "f20_all_agents_come_back_and_nobody_hammers_on_postgres",
        ],
    ),
    act!(
        "F21",
        HOSTS,
        "abort when the new set is started, each time",
        agent::poison
    ),
    tests(
        "F22",
        CENTER,
        "batches and answers beyond every bound",
        &[
            "r9_wrong_numbers_and_oversized_batches_are_refused_and_repeats_are_acknowledged",
            "endless_and_oversized_answers_end_early",
        ],
    ),
    tests(
        "F23",
        CENTER,
        "broken beginnings, hostile fields",
        &[
            "t2_broken_beginnings_are_answered_and_audited",
            "malformed_messages_are_refused",
            "hostile_observations_are_refused_by_field",
        ],
    ),
    act!("F24", HOSTS, "a deployment of 75 s with certificates of 60 s", network::certificate_expires, Long;
        "[identity]\nagent_certificate_seconds = 60\n"),
    tests(
        "F24",
        DOCKER,
        "renewal while work goes on",
        &[
            "f24_a_certificate_is_renewed_with_a_new_key_and_work_goes_on",
            "f24_a_new_certificate_ends_the_session_for_the_next_one",
        ],
    ),
    act!(
        "F28",
        HOSTS,
        "a container that prints 20 MB at once",
        agent::floods
    ),
    tests(
        "F28",
        COMPOSE,
        "a Compose that prints without an end",
        &["f28_a_flood_is_bounded"],
    ),
    act!(
        "F29",
        HOSTS,
        "no more memory from the health wait on (RLIMIT_AS)",
        agent::no_memory,
        Long
    ),
    act!(
        "F29",
        HOSTS,
        "the kernel's OOM killer in the health wait",
        agent::oom_killed,
        Memory
    ),
    tests(
        "F30",
        DOCKER,
        "agent's state older than what was acknowledged",
        &["f30_state_that_is_older_than_what_was_acknowledged_is_noticed_and_told"],
    ),
];

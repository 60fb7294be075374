-- First schema. The same tables, columns and nullability as for SQLite; a test compares the two folders.
-- Columns that lists are ordered by compare bytewise. What hosts send is text, not JSONB, which refuses \u0000.
-- What may be large stands last in its row, as for SQLite.

-- Inventory: who owns what there is to deploy to.

CREATE TABLE tenants (
    id UUID NOT NULL PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT tenant_name UNIQUE (name)
);

CREATE TABLE users (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    name TEXT COLLATE "C" NOT NULL,
    role TEXT NOT NULL CHECK (role IN ('observer', 'ci', 'deployer', 'approver', 'admin')),
    created_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    revoked_reason TEXT NOT NULL DEFAULT '',
    CONSTRAINT user_name UNIQUE (tenant_id, name),
    CONSTRAINT user_tenant UNIQUE (tenant_id, id)
);
CREATE INDEX users_revoked_at ON users (revoked_at) WHERE revoked_at IS NOT NULL;

CREATE TABLE environments (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    name TEXT COLLATE "C" NOT NULL,
    display_name TEXT NOT NULL,
    position BIGINT NOT NULL CHECK (position >= 0),
    class TEXT NOT NULL CHECK (class IN ('production', 'non_production')),
    variables TEXT NOT NULL,
    -- What is done about drift; limits only where something is done.
    remediation TEXT NOT NULL CHECK (remediation IN ('alert', 'reconcile')),
    max_tries BIGINT CHECK (max_tries BETWEEN 1 AND 10),
    min_severity TEXT CHECK (min_severity IN ('low', 'medium', 'high', 'critical')),
    pause_ms BIGINT CHECK (pause_ms >= 0),
    -- What becomes of a promotion that would have to wait.
    lane_policy TEXT NOT NULL CHECK (lane_policy IN ('queue', 'reject', 'supersede')),
    revision BIGINT NOT NULL CHECK (revision >= 0),
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    archived_at TIMESTAMPTZ,
    CHECK ((remediation = 'reconcile') = (max_tries IS NOT NULL)),
    CHECK ((max_tries IS NULL) = (min_severity IS NULL)),
    CHECK ((max_tries IS NULL) = (pause_ms IS NULL)),
    CONSTRAINT environment_tenant UNIQUE (tenant_id, id, name)
);
CREATE UNIQUE INDEX environment_name ON environments (tenant_id, name) WHERE archived_at IS NULL;
CREATE INDEX environments_in_order ON environments (tenant_id, position, name, id) WHERE archived_at IS NULL;

CREATE TABLE agents (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    name TEXT COLLATE "C" NOT NULL,
    intent TEXT NOT NULL CHECK (intent IN ('active', 'paused', 'draining', 'revoked')),
    intent_reason TEXT NOT NULL,
    intent_by TEXT NOT NULL,
    intent_at TIMESTAMPTZ NOT NULL,
    revision BIGINT NOT NULL CHECK (revision >= 0),
    evidence_key BYTEA NOT NULL CHECK (length(evidence_key) = 32),
    facts TEXT NOT NULL,
    facts_at TIMESTAMPTZ,
    created_at TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    CHECK ((intent = 'revoked') = (revoked_at IS NOT NULL)),
    CONSTRAINT agent_tenant UNIQUE (tenant_id, id)
);
CREATE INDEX agents_by_name ON agents (tenant_id, name, id);
CREATE INDEX agents_revoked ON agents (id) WHERE intent = 'revoked';
CREATE INDEX agents_revoked_at ON agents (revoked_at) WHERE revoked_at IS NOT NULL;

-- Heartbeats have a table of their own: they are written in bulk all the time and must not touch the agents' rows.
CREATE TABLE agent_heartbeats (
    agent_id UUID NOT NULL PRIMARY KEY REFERENCES agents (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    last_seen_at TIMESTAMPTZ NOT NULL,
    session_id UUID NOT NULL
);

CREATE TABLE agent_reports (
    agent_id UUID NOT NULL PRIMARY KEY REFERENCES agents (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    acknowledged BIGINT NOT NULL CHECK (acknowledged >= 0)
);

CREATE TABLE targets (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL,
    environment_id UUID NOT NULL,
    environment TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('docker_host', 'compose_host', 'agent_host')),
    labels JSONB NOT NULL,
    agent_id UUID,
    fence BIGINT NOT NULL CHECK (fence >= 0),
    revision BIGINT NOT NULL CHECK (revision >= 0),
    created_at TIMESTAMPTZ NOT NULL,
    updated_at TIMESTAMPTZ NOT NULL,
    archived_at TIMESTAMPTZ,
    CONSTRAINT target_tenant UNIQUE (tenant_id, id, name),
    FOREIGN KEY (tenant_id, environment_id, environment) REFERENCES environments (tenant_id, id, name) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
CREATE UNIQUE INDEX target_name ON targets (environment_id, name) WHERE archived_at IS NULL;
CREATE INDEX targets_of_tenant ON targets (tenant_id, environment, name, id) WHERE archived_at IS NULL;
CREATE INDEX targets_of_agent ON targets (agent_id) WHERE agent_id IS NOT NULL;
-- Two of them would exchange the same program in turn.
CREATE UNIQUE INDEX one_program_per_agent ON targets (agent_id) WHERE kind = 'agent_host' AND archived_at IS NULL;

CREATE TABLE certificates (
    serial TEXT NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL,
    user_id UUID,
    agent_id UUID,
    not_before TIMESTAMPTZ NOT NULL,
    not_after TIMESTAMPTZ NOT NULL,
    revoked_at TIMESTAMPTZ,
    CHECK ((user_id IS NULL) <> (agent_id IS NULL)),
    FOREIGN KEY (tenant_id, user_id) REFERENCES users (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
CREATE INDEX certificates_of_agent ON certificates (agent_id, not_before, serial) WHERE agent_id IS NOT NULL AND revoked_at IS NULL;
CREATE INDEX certificates_of_user ON certificates (user_id) WHERE user_id IS NOT NULL;
CREATE INDEX certificates_by_end ON certificates (not_after);

CREATE TABLE join_tokens (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    secret_hash BYTEA NOT NULL CHECK (length(secret_hash) = 32),
    expires_at TIMESTAMPTZ NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    used_at TIMESTAMPTZ,
    used_by UUID,
    CHECK ((used_at IS NULL) = (used_by IS NULL)),
    FOREIGN KEY (tenant_id, used_by) REFERENCES agents (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
CREATE INDEX join_tokens_live ON join_tokens (target_id, expires_at) WHERE used_at IS NULL;

-- Releases: what there is to deploy.

CREATE TABLE components (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    name TEXT COLLATE "C" NOT NULL,
    repository TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT component_name UNIQUE (tenant_id, name),
    CONSTRAINT component_repository UNIQUE (tenant_id, repository)
);

CREATE TABLE version_entries (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    component_id UUID NOT NULL REFERENCES components (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    tag TEXT NOT NULL,
    digest TEXT NOT NULL,
    resolved_at TIMESTAMPTZ NOT NULL
);
CREATE INDEX version_entries_newest ON version_entries (component_id, id);
CREATE INDEX version_entries_of_tag ON version_entries (component_id, tag, id);

-- last_number is the gapless counter of the project's releases: taking a number locks the row until the transaction ends.
CREATE TABLE projects (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    repository TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    last_number BIGINT NOT NULL CHECK (last_number >= 0),
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT project_ref UNIQUE (tenant_id, repository, project),
    CONSTRAINT project_tenant UNIQUE (tenant_id, id, repository, project)
);
CREATE INDEX projects_by_name ON projects (tenant_id, project, repository);

-- The manifest is text on both engines: its canonical bytes are what the content digest covers.
CREATE TABLE releases (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL,
    project_id UUID NOT NULL,
    repository TEXT COLLATE "C" NOT NULL,
    project TEXT COLLATE "C" NOT NULL,
    commit_id TEXT NOT NULL,
    number BIGINT NOT NULL CHECK (number > 0),
    state TEXT NOT NULL CHECK (state IN ('draft', 'ready')),
    content TEXT NOT NULL,
    created_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    manifest TEXT NOT NULL,
    CONSTRAINT release_number UNIQUE (project_id, number),
    CONSTRAINT release_commit UNIQUE (project_id, commit_id),
    CONSTRAINT release_tenant UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, project_id, repository, project) REFERENCES projects (tenant_id, id, repository, project) ON DELETE RESTRICT ON UPDATE RESTRICT
);

CREATE TABLE release_components (
    release_id UUID NOT NULL REFERENCES releases (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    service TEXT NOT NULL,
    component_id UUID NOT NULL REFERENCES components (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    component TEXT NOT NULL,
    digest TEXT NOT NULL,
    -- What the registry said the image is built for, as a JSON list, sorted; empty where it said nothing.
    platforms TEXT NOT NULL,
    PRIMARY KEY (release_id, service)
);

-- What people think of a release: the newest mark counts.
CREATE TABLE quality_marks (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    release_id UUID NOT NULL REFERENCES releases (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    mark TEXT NOT NULL CHECK (mark IN ('stable', 'unstable', 'deprecated')),
    reason TEXT NOT NULL,
    actor TEXT NOT NULL,
    at TIMESTAMPTZ NOT NULL
);
CREATE INDEX quality_marks_newest ON quality_marks (release_id, id);

-- Promotions, jobs, tasks.

CREATE TABLE promotions (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL,
    environment_id UUID NOT NULL,
    environment TEXT COLLATE "C" NOT NULL,
    release_id UUID NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('pending_gate', 'approved', 'deploying', 'deployed', 'rejected', 'cancelled', 'failed', 'rolled_back')),
    plan_digest TEXT NOT NULL,
    recipe JSONB NOT NULL,
    -- The targets that it is restricted to; null is all of the environment.
    scope JSONB,
    -- The job that it undoes, and the one that it repeats. Jobs refer to promotions, so neither is a foreign key.
    rollback_of UUID,
    rerun_of UUID,
    -- The newer promotion that took its place while it waited.
    superseded_by UUID REFERENCES promotions (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    change_summary TEXT NOT NULL,
    requested_by TEXT NOT NULL,
    requester_role TEXT NOT NULL CHECK (requester_role IN ('observer', 'ci', 'deployer', 'approver', 'admin')),
    failure TEXT,
    version BIGINT NOT NULL CHECK (version >= 0),
    created_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ,
    plan_json TEXT NOT NULL,
    CHECK ((finished_at IS NOT NULL) = (state IN ('deployed', 'rejected', 'cancelled', 'failed', 'rolled_back'))),
    CHECK (rollback_of IS NULL OR rerun_of IS NULL),
    CHECK (superseded_by IS NULL OR state = 'cancelled'),
    CONSTRAINT promotion_tenant UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, environment_id, environment) REFERENCES environments (tenant_id, id, name) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, release_id) REFERENCES releases (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
CREATE INDEX promotions_of_environment ON promotions (environment_id, id);

CREATE TABLE decisions (
    id UUID NOT NULL PRIMARY KEY,
    promotion_id UUID NOT NULL REFERENCES promotions (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    digest TEXT NOT NULL,
    passed BOOLEAN NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    record BYTEA NOT NULL
);
CREATE INDEX decisions_of_promotion ON decisions (promotion_id, created_at, id);

-- One lane per environment: its counter gives jobs their tickets.
CREATE TABLE lanes (
    environment_id UUID NOT NULL PRIMARY KEY REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    last_ticket BIGINT NOT NULL CHECK (last_ticket >= 0)
);

CREATE TABLE jobs (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL,
    promotion_id UUID NOT NULL,
    environment_id UUID NOT NULL,
    environment TEXT COLLATE "C" NOT NULL,
    release_id UUID NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'paused', 'rolling_back', 'succeeded', 'failed', 'cancelled', 'rolled_back', 'rollback_failed')),
    pause_reason TEXT CHECK (pause_reason IN ('operator', 'canary', 'failures', 'gate')),
    -- What the gate says that it waits behind.
    pause_gate TEXT,
    failure TEXT,
    rollback_of UUID REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    stop TEXT CHECK (stop IN ('finish', 'cancel', 'roll_back', 'fail')),
    stop_failure TEXT,
    ticket BIGINT NOT NULL CHECK (ticket > 0),
    accepted_failures BIGINT NOT NULL CHECK (accepted_failures >= 0),
    resumed_at TIMESTAMPTZ,
    version BIGINT NOT NULL CHECK (version >= 0),
    created_at TIMESTAMPTZ NOT NULL,
    started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    CHECK ((stop IS NULL) = (stop_failure IS NULL)),
    CHECK ((pause_reason IS NOT NULL) = (state = 'paused')),
    CHECK ((pause_gate IS NOT NULL) = (pause_reason IS NOT NULL AND pause_reason = 'gate')),
    CHECK ((failure IS NOT NULL) = (state IN ('rolling_back', 'failed', 'rolled_back', 'rollback_failed'))),
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'cancelled', 'rolled_back', 'rollback_failed'))),
    CONSTRAINT job_of_promotion UNIQUE (promotion_id),
    CONSTRAINT job_ticket UNIQUE (environment_id, ticket),
    CONSTRAINT job_tenant UNIQUE (tenant_id, id),
    FOREIGN KEY (tenant_id, promotion_id) REFERENCES promotions (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, environment_id, environment) REFERENCES environments (tenant_id, id, name) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, release_id) REFERENCES releases (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
CREATE INDEX jobs_rolling_back ON jobs (environment_id, state) WHERE state = 'rolling_back';
CREATE INDEX jobs_of_rollback ON jobs (rollback_of) WHERE rollback_of IS NOT NULL;
CREATE INDEX jobs_of_environment ON jobs (environment_id, id);
-- With the state, so that they are never worse than an index with all of an environment's history.
CREATE INDEX jobs_queued ON jobs (environment_id, state, ticket) WHERE state = 'queued';
CREATE INDEX jobs_in_motion ON jobs (environment_id, state, ticket) WHERE state IN ('running', 'paused');
CREATE INDEX jobs_finished ON jobs (environment_id, finished_at) WHERE state = 'succeeded';

-- Written with the tasks, before the first order; only the three times change.
CREATE TABLE waves (
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    ordinal BIGINT NOT NULL CHECK (ordinal >= 0),
    what_then JSONB NOT NULL,
    opened_at TIMESTAMPTZ,
    settled_at TIMESTAMPTZ,
    passed_at TIMESTAMPTZ,
    PRIMARY KEY (job_id, ordinal)
);
CREATE INDEX waves_ahead ON waves (job_id, ordinal) WHERE passed_at IS NULL;

-- What a job is about besides its environment (its project and its components), so that histories run along an index.
CREATE TABLE job_subjects (
    environment_id UUID NOT NULL REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    subject_id UUID NOT NULL,
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    PRIMARY KEY (environment_id, subject_id, job_id)
);

CREATE TABLE tasks (
    id UUID NOT NULL PRIMARY KEY,
    job_id UUID NOT NULL,
    tenant_id UUID NOT NULL,
    target_id UUID NOT NULL,
    target TEXT COLLATE "C" NOT NULL,
    environment TEXT COLLATE "C" NOT NULL,
    agent_id UUID,
    wave BIGINT NOT NULL CHECK (wave >= 0),
    state TEXT NOT NULL CHECK (state IN ('pending', 'assigned', 'accepted', 'running', 'lost', 'succeeded', 'failed', 'skipped', 'cancelled')),
    step TEXT CHECK (step IN ('received', 'pulling', 'verifying', 'pre_deploy_hook', 'creating', 'switching', 'starting', 'health_wait', 'switch_hook', 'post_deploy_hook', 'committing', 'restoring', 'retry_wait')),
    skip_reason TEXT CHECK (skip_reason IN ('already_running', 'earlier_wave_failed', 'offline', 'operator')),
    failure TEXT,
    wanted TEXT NOT NULL CHECK (wanted IN ('run', 'stop')),
    attempt BIGINT NOT NULL CHECK (attempt >= 0),
    fence BIGINT NOT NULL CHECK (fence >= 0),
    lease_until TIMESTAMPTZ,
    retry_at TIMESTAMPTZ,
    version BIGINT NOT NULL CHECK (version >= 0),
    created_at TIMESTAMPTZ NOT NULL,
    started_at TIMESTAMPTZ,
    finished_at TIMESTAMPTZ,
    CHECK ((step IS NOT NULL) = (state = 'running')),
    CHECK ((skip_reason IS NOT NULL) = (state = 'skipped')),
    CHECK ((failure IS NOT NULL) = (state = 'failed')),
    CHECK (lease_until IS NULL OR (state IN ('assigned', 'accepted', 'running') AND agent_id IS NOT NULL)),
    CHECK (retry_at IS NULL OR (state = 'running' AND step = 'retry_wait')),
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'failed', 'skipped', 'cancelled'))),
    CHECK (state NOT IN ('assigned', 'accepted', 'running', 'lost') OR (agent_id IS NOT NULL AND attempt > 0)),
    CONSTRAINT task_target UNIQUE (job_id, target_id),
    FOREIGN KEY (tenant_id, job_id) REFERENCES jobs (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, target_id, target) REFERENCES targets (tenant_id, id, name) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
-- R1: the database refuses a second live task on a target.
CREATE UNIQUE INDEX one_live_task_per_target ON tasks (target_id) WHERE state IN ('assigned', 'accepted', 'running', 'lost');
CREATE INDEX tasks_of_target ON tasks (target_id, job_id);
CREATE INDEX tasks_of_job ON tasks (job_id, wave, target);
-- What the scheduler asks of a job, whole: how many tasks stand where, and which come next.
CREATE INDEX tasks_by_state ON tasks (job_id, state, wave, target, skip_reason, finished_at, started_at);
CREATE INDEX tasks_between_attempts ON tasks (job_id, retry_at) WHERE step = 'retry_wait';
CREATE INDEX tasks_of_agent ON tasks (agent_id) WHERE state IN ('assigned', 'accepted', 'running', 'lost');
CREATE INDEX tasks_leased ON tasks (lease_until) WHERE lease_until IS NOT NULL;

CREATE TABLE task_attempts (
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    number BIGINT NOT NULL CHECK (number > 0),
    fence BIGINT NOT NULL CHECK (fence > 0),
    agent_id UUID NOT NULL REFERENCES agents (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    order_digest TEXT NOT NULL,
    result TEXT NOT NULL DEFAULT '',
    packet_id UUID,
    started_at TIMESTAMPTZ NOT NULL,
    -- After this moment nothing more is expected of it.
    due_at TIMESTAMPTZ NOT NULL,
    finished_at TIMESTAMPTZ,
    order_envelope BYTEA NOT NULL,
    PRIMARY KEY (task_id, number)
);
CREATE INDEX attempts_by_due_time ON task_attempts (due_at) WHERE finished_at IS NULL;

-- History of every promotion, job and task; seq is the version that the change made, so that it has no gap.
CREATE TABLE transitions (
    ordinal BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    entity_kind TEXT NOT NULL CHECK (entity_kind IN ('promotion', 'job', 'task')),
    entity_id UUID NOT NULL,
    seq BIGINT NOT NULL CHECK (seq > 0),
    from_state TEXT NOT NULL,
    to_state TEXT NOT NULL,
    event TEXT NOT NULL,
    actor TEXT NOT NULL,
    detail TEXT NOT NULL,
    failure TEXT,
    at TIMESTAMPTZ NOT NULL,
    CONSTRAINT transition_seq UNIQUE (entity_kind, entity_id, seq)
);

-- After a rollback nothing new of the project goes to the environment until a person lifts this.
CREATE TABLE holds (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    environment_id UUID NOT NULL REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    reason TEXT NOT NULL,
    placed_by TEXT NOT NULL,
    placed_at TIMESTAMPTZ NOT NULL,
    lifted_by TEXT,
    lifted_at TIMESTAMPTZ,
    CHECK ((lifted_by IS NULL) = (lifted_at IS NULL))
);
CREATE UNIQUE INDEX one_open_hold ON holds (environment_id, project_id) WHERE lifted_at IS NULL;
CREATE INDEX holds_of_tenant ON holds (tenant_id, id);
CREATE INDEX holds_open_of_tenant ON holds (tenant_id, id) WHERE lifted_at IS NULL;

-- What runs where.

-- R2: at most one active row per environment and component.
CREATE TABLE active_components (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    environment_id UUID NOT NULL REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    component_id UUID NOT NULL REFERENCES components (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    digest TEXT NOT NULL,
    release_id UUID NOT NULL REFERENCES releases (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    since TIMESTAMPTZ NOT NULL,
    superseded_at TIMESTAMPTZ,
    superseded_by UUID REFERENCES releases (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    CHECK ((superseded_at IS NULL) = (superseded_by IS NULL))
);
CREATE INDEX active_components_of_job ON active_components (job_id);
CREATE INDEX active_components_of_project ON active_components (project_id, environment_id, id);
CREATE INDEX active_components_since ON active_components (environment_id, project_id, since);
CREATE UNIQUE INDEX one_active_release_per_component ON active_components (environment_id, project_id, component_id)
    WHERE superseded_at IS NULL;

CREATE TABLE target_current (
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    repository TEXT NOT NULL,
    project TEXT NOT NULL,
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    release_id UUID NOT NULL REFERENCES releases (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    fence BIGINT NOT NULL CHECK (fence > 0),
    inputs TEXT NOT NULL,
    sticker TEXT NOT NULL,
    since TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (target_id, repository, project)
);

-- Targets that a job left alone because their agents were away: they catch up when they are back.
CREATE TABLE left_out (
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    project_id UUID NOT NULL REFERENCES projects (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    since TIMESTAMPTZ NOT NULL,
    -- Not looked at again before this moment.
    look_at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (target_id, project_id)
);
CREATE INDEX left_out_by_time ON left_out (look_at);

CREATE TABLE target_observations (
    target_id UUID NOT NULL PRIMARY KEY REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    observation TEXT NOT NULL,
    session_id UUID NOT NULL,
    received_at TIMESTAMPTZ NOT NULL
);

CREATE TABLE stickers (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    project TEXT NOT NULL,
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    digest TEXT NOT NULL,
    previous TEXT,
    created_at TIMESTAMPTZ NOT NULL,
    content BYTEA NOT NULL
);
CREATE INDEX stickers_newest ON stickers (target_id, project, id);

-- severity is that of when it was last seen; job_id is what was recorded when it was found, null when nothing was.
CREATE TABLE drift (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    environment_id UUID NOT NULL REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    project TEXT NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('image', 'config', 'missing', 'stopped', 'extra', 'sticker_edited', 'sticker_missing')),
    service TEXT NOT NULL,
    severity TEXT NOT NULL CHECK (severity IN ('low', 'medium', 'high', 'critical')),
    expected TEXT NOT NULL,
    actual TEXT NOT NULL,
    job_id UUID REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    cause TEXT,
    owner TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    acknowledged_by TEXT NOT NULL DEFAULT '',
    acknowledged_at TIMESTAMPTZ,
    -- Since when remediation has given it up.
    gave_up_at TIMESTAMPTZ,
    first_seen_at TIMESTAMPTZ NOT NULL,
    last_seen_at TIMESTAMPTZ NOT NULL,
    resolved_at TIMESTAMPTZ,
    CHECK ((acknowledged_at IS NULL) = (owner = '')),
    CHECK ((acknowledged_at IS NULL) = (acknowledged_by = ''))
);
CREATE UNIQUE INDEX one_open_drift ON drift (target_id, project, kind, service) WHERE resolved_at IS NULL;
CREATE INDEX drift_of_tenant ON drift (tenant_id, severity, id);
CREATE INDEX drift_of_environment ON drift (environment_id, severity, id);
CREATE INDEX drift_of_target ON drift (target_id, severity, id);
CREATE INDEX drift_open_of_tenant ON drift (tenant_id, severity, id) WHERE resolved_at IS NULL;
CREATE INDEX drift_open_of_environment ON drift (environment_id, severity, id) WHERE resolved_at IS NULL;
CREATE INDEX drift_open_of_target ON drift (target_id, severity, id) WHERE resolved_at IS NULL;

-- What remediation did: one row per act and finding that it was about. number counts the acts at the place (target and project).
CREATE TABLE drift_remedies (
    drift_id UUID NOT NULL REFERENCES drift (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    promotion_id UUID NOT NULL REFERENCES promotions (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    environment_id UUID NOT NULL REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    project TEXT NOT NULL,
    number BIGINT NOT NULL CHECK (number BETWEEN 1 AND 10),
    at TIMESTAMPTZ NOT NULL,
    PRIMARY KEY (drift_id, promotion_id)
);
CREATE INDEX drift_remedies_of_place ON drift_remedies (target_id, project, at);
CREATE INDEX drift_remedies_of_environment ON drift_remedies (environment_id, at);

-- Evidence and logs.

CREATE TABLE packets (
    id UUID NOT NULL PRIMARY KEY,
    tenant_id UUID NOT NULL,
    environment_id UUID NOT NULL REFERENCES environments (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    target_id UUID NOT NULL REFERENCES targets (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    job_id UUID NOT NULL,
    task_id UUID NOT NULL,
    attempt BIGINT NOT NULL CHECK (attempt > 0),
    agent_id UUID NOT NULL,
    result TEXT NOT NULL,
    digest TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    envelope BYTEA NOT NULL,
    CONSTRAINT packet_of_attempt UNIQUE (task_id, attempt),
    FOREIGN KEY (task_id, attempt) REFERENCES task_attempts (task_id, number) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, job_id) REFERENCES jobs (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    FOREIGN KEY (tenant_id, agent_id) REFERENCES agents (tenant_id, id) ON DELETE RESTRICT ON UPDATE RESTRICT
);
CREATE INDEX packets_of_tenant ON packets (tenant_id, id);
CREATE INDEX packets_of_job ON packets (job_id, id);
CREATE INDEX packets_of_target ON packets (target_id, id);
CREATE INDEX packets_of_environment ON packets (environment_id, id);

-- Lines are numbered per job under a lock, so that a reader that follows by number misses none.
CREATE TABLE log_heads (
    job_id UUID NOT NULL PRIMARY KEY REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    last_position BIGINT NOT NULL CHECK (last_position >= 0)
);

CREATE TABLE log_lines (
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    position BIGINT NOT NULL CHECK (position > 0),
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    attempt BIGINT NOT NULL CHECK (attempt > 0),
    seq BIGINT NOT NULL CHECK (seq >= 0),
    source TEXT NOT NULL,
    text TEXT NOT NULL,
    at TIMESTAMPTZ NOT NULL,
    truncated BOOLEAN NOT NULL,
    PRIMARY KEY (job_id, position),
    CONSTRAINT log_line UNIQUE (task_id, attempt, seq)
);
CREATE INDEX log_lines_of_task ON log_lines (task_id, position);

CREATE TABLE log_sizes (
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    attempt BIGINT NOT NULL CHECK (attempt > 0),
    bytes BIGINT NOT NULL CHECK (bytes >= 0),
    truncated BOOLEAN NOT NULL,
    PRIMARY KEY (task_id, attempt)
);

-- Audit, idempotency, leases.

CREATE TABLE audit_events (
    seq BIGINT NOT NULL PRIMARY KEY CHECK (seq > 0),
    at TIMESTAMPTZ NOT NULL,
    tenant_id UUID REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    actor TEXT NOT NULL,
    role TEXT NOT NULL,
    action TEXT NOT NULL,
    resource TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('success', 'denied', 'failed')),
    reason TEXT NOT NULL,
    request_id TEXT NOT NULL,
    previous TEXT NOT NULL
);
CREATE INDEX audit_events_of_tenant ON audit_events (tenant_id, seq);

-- The end of the chain: taking it locks the row, so that events follow each other one by one.
CREATE TABLE audit_head (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    seq BIGINT NOT NULL CHECK (seq >= 0),
    hash TEXT NOT NULL
);
INSERT INTO audit_head (id, seq, hash) VALUES (1, 0, 'sha256:0000000000000000000000000000000000000000000000000000000000000000');

-- What the orchestrator does by itself to keep its records small and sound: at most one run of a kind that is not over.
CREATE TABLE maintenance_runs (
    id UUID NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL CHECK (kind IN ('cleanup', 'audit', 'evidence')),
    state TEXT NOT NULL CHECK (state IN ('pending', 'in_progress', 'succeeded', 'failed')),
    requested_by TEXT NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    started_at TIMESTAMPTZ,
    ended_at TIMESTAMPTZ,
    position TEXT NOT NULL DEFAULT '',
    items BIGINT NOT NULL DEFAULT 0 CHECK (items >= 0),
    problems BIGINT NOT NULL DEFAULT 0 CHECK (problems >= 0),
    first_problem TEXT NOT NULL DEFAULT '',
    summary TEXT NOT NULL DEFAULT '',
    CHECK ((started_at IS NULL) = (state = 'pending')),
    CHECK ((ended_at IS NULL) = (state IN ('pending', 'in_progress')))
);
CREATE UNIQUE INDEX one_open_maintenance_run ON maintenance_runs (kind) WHERE ended_at IS NULL;
CREATE INDEX maintenance_runs_of_kind ON maintenance_runs (kind, id);
CREATE INDEX maintenance_runs_by_end ON maintenance_runs (ended_at);

CREATE TABLE idempotent_answers (
    tenant_id UUID NOT NULL REFERENCES tenants (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    principal TEXT NOT NULL,
    method TEXT NOT NULL,
    request_id UUID NOT NULL,
    request_hash TEXT NOT NULL,
    response BYTEA NOT NULL,
    created_at TIMESTAMPTZ NOT NULL,
    CONSTRAINT idempotent_request PRIMARY KEY (tenant_id, principal, method, request_id)
);
CREATE INDEX idempotent_answers_by_age ON idempotent_answers (created_at);

CREATE TABLE leases (
    name TEXT NOT NULL PRIMARY KEY,
    holder UUID NOT NULL,
    epoch BIGINT NOT NULL CHECK (epoch > 0),
    until TIMESTAMPTZ NOT NULL
);

-- R7: what happened stays as it was written.

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is insert-only', TG_TABLE_NAME;
END
$$;
CREATE TRIGGER transitions_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON transitions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER decisions_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON decisions
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER packets_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON packets
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER stickers_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON stickers
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER audit_events_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit_events
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER version_entries_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON version_entries
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER releases_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON releases
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER release_components_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON release_components
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER quality_marks_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON quality_marks
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();
CREATE TRIGGER drift_remedies_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON drift_remedies
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

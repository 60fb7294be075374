-- Failures of attempts, one row each, so that those of a job are listed without its history. What failed and when is said once, by the
-- row `seq` of the task's history.
CREATE TABLE failures (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    job_id UUID NOT NULL REFERENCES jobs (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    task_id UUID NOT NULL REFERENCES tasks (id) ON DELETE RESTRICT ON UPDATE RESTRICT,
    seq BIGINT NOT NULL CHECK (seq > 0),
    -- 0 when no order had been made.
    attempt BIGINT NOT NULL CHECK (attempt >= 0),
    -- Null when no step had begun.
    step TEXT CHECK (step IN ('received', 'pulling', 'verifying', 'pre_deploy_hook', 'creating', 'switching', 'starting', 'health_wait', 'switch_hook', 'post_deploy_hook', 'committing', 'restoring', 'retry_wait')),
    CONSTRAINT failure_seq UNIQUE (task_id, seq)
);
CREATE INDEX failures_of_job ON failures (job_id, id);
CREATE INDEX failures_of_task ON failures (task_id, id);

-- Those that happened before there was this table.
INSERT INTO failures (job_id, task_id, seq, attempt, step)
SELECT k.job_id, t.entity_id, t.seq,
    (SELECT COUNT(*) FROM transitions a
        WHERE a.entity_kind = 'task' AND a.entity_id = t.entity_id AND a.seq < t.seq AND a.event = 'assigned'),
    CASE WHEN t.detail LIKE 'RESTORE_FAILED%' THEN 'restoring' ELSE
        (SELECT CASE p.event WHEN 'progressed' THEN p.detail WHEN 'attempt_failed' THEN 'retry_wait' END FROM transitions p
            WHERE p.entity_kind = 'task' AND p.entity_id = t.entity_id AND p.seq < t.seq AND p.detail <> 'restoring'
            AND p.event IN ('assigned', 'progressed', 'attempt_failed') ORDER BY p.seq DESC LIMIT 1)
    END
FROM transitions t JOIN tasks k ON k.id = t.entity_id
WHERE t.entity_kind = 'task' AND t.failure IS NOT NULL ORDER BY t.ordinal;

CREATE TRIGGER failures_insert_only BEFORE UPDATE OR DELETE OR TRUNCATE ON failures
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_change();

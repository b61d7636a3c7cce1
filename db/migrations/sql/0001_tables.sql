-- Tables, indexes, checks and guards of the spine. Statements are separated by a line of four dashes.
-- PostgreSQL is the truth: whatever Redis, an actor or a worker believes, these rows decide.
CREATE TABLE users (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT uq_users_name UNIQUE CONSTRAINT ck_users_name CHECK (name <> ''),
    created_at timestamptz NOT NULL DEFAULT now()
)
----
CREATE TABLE api_keys (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    role text NOT NULL CONSTRAINT ck_api_keys_role CHECK (role IN ('admin', 'user')),
    -- SHA-256 of a key with 256 random bits: no salt or stretching is needed for those.
    key_hash bytea NOT NULL CONSTRAINT uq_api_keys_key_hash UNIQUE,
    created_at timestamptz NOT NULL DEFAULT now(),
    revoked_at timestamptz
)
----
CREATE TABLE quotas (
    user_id uuid PRIMARY KEY REFERENCES users (id),
    max_tokens bigint,
    max_cost_usd double precision,
    tokens_per_min bigint,
    requests_per_min integer,
    max_concurrent integer,
    updated_at timestamptz NOT NULL DEFAULT now()
)
----
-- What each user's attempts have used in all, cancelled ones too: summing them up takes longer with every task.
CREATE TABLE token_totals (
    user_id uuid PRIMARY KEY,
    tokens_used bigint NOT NULL DEFAULT 0
)
----
CREATE TABLE tools (
    id uuid PRIMARY KEY,
    name text NOT NULL CONSTRAINT uq_tools_name UNIQUE,
    description text NOT NULL DEFAULT '',
    version text NOT NULL DEFAULT '1',
    schema jsonb NOT NULL,
    output_schema jsonb,
    endpoint text NOT NULL,
    type text NOT NULL CONSTRAINT ck_tools_type CHECK (type IN ('MCP', 'SKILL', 'NATIVE')),
    config jsonb NOT NULL DEFAULT '{}',
    resources jsonb NOT NULL DEFAULT '{}',
    lane text NOT NULL DEFAULT 'own' CONSTRAINT ck_tools_lane CHECK (lane IN ('own', 'shared')),
    permission_level text NOT NULL CONSTRAINT ck_tools_permission_level CHECK (permission_level IN ('read', 'write', 'execute', 'admin')),
    is_active boolean NOT NULL DEFAULT true,
    built_in boolean NOT NULL DEFAULT false,
    created_at timestamptz NOT NULL DEFAULT now(),
    updated_at timestamptz NOT NULL DEFAULT now()
)
----
CREATE TABLE tasks (
    id uuid PRIMARY KEY,
    user_id uuid NOT NULL REFERENCES users (id),
    title text NOT NULL,
    original_prompt text,
    status text NOT NULL CONSTRAINT ck_tasks_status
        CHECK (status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING', 'COMPLETED', 'FAILED', 'CANCELLED')),
    priority smallint NOT NULL CONSTRAINT ck_tasks_priority CHECK (priority BETWEEN 1 AND 10),
    context jsonb NOT NULL DEFAULT '{}',
    options jsonb NOT NULL DEFAULT '{}',
    labels jsonb NOT NULL DEFAULT '{}',
    plan jsonb,
    -- Where the plan came from and what making it took: {source, language, notes, width, critical_path, parsed_s, split_s}.
    plan_meta jsonb,
    result jsonb,
    error jsonb,
    subtask_count integer NOT NULL DEFAULT 0,
    -- Subtasks that are not settled yet; the task closes when it reaches 0.
    open_count integer NOT NULL DEFAULT 0 CONSTRAINT ck_tasks_open_count CHECK (open_count BETWEEN 0 AND subtask_count),
    blocked_count integer NOT NULL DEFAULT 0 CONSTRAINT ck_tasks_blocked_count CHECK (blocked_count BETWEEN 0 AND subtask_count),
    tokens_used bigint NOT NULL DEFAULT 0,
    cost_usd double precision NOT NULL DEFAULT 0,
    -- Who splits it, while SPLITTING.
    incarnation uuid,
    deadline_at timestamptz,
    created_at timestamptz NOT NULL DEFAULT now(),
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT ck_tasks_finished CHECK ((status IN ('COMPLETED', 'FAILED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CONSTRAINT ck_tasks_result CHECK ((result IS NOT NULL) = (status = 'COMPLETED')),
    CONSTRAINT ck_tasks_error CHECK (status <> 'FAILED' OR error IS NOT NULL),
    CONSTRAINT ck_tasks_closed CHECK (status NOT IN ('COMPLETED', 'CANCELLED') OR open_count = 0)
)
----
CREATE INDEX ix_tasks_user_id_created_at ON tasks (user_id, created_at DESC, id DESC)
----
CREATE INDEX ix_tasks_user_id_status_created_at ON tasks (user_id, status, created_at DESC, id DESC)
----
CREATE INDEX ix_tasks_created_at ON tasks (created_at DESC, id DESC)
----
CREATE INDEX ix_tasks_live ON tasks (status, priority DESC, created_at) WHERE status IN ('PENDING', 'SPLITTING')
----
CREATE INDEX ix_tasks_deadline ON tasks (deadline_at)
    WHERE deadline_at IS NOT NULL AND status IN ('PENDING', 'SPLITTING', 'READY', 'PROCESSING')
----
CREATE TABLE sub_tasks (
    id uuid PRIMARY KEY,
    parent_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    user_id uuid NOT NULL,
    key text NOT NULL,
    name text NOT NULL,
    task_type text NOT NULL CONSTRAINT ck_sub_tasks_task_type
        CHECK (task_type IN ('CODE_GEN', 'DATA_RETRIEVAL', 'API_CALL', 'TOOL', 'REASONING')),
    status text NOT NULL CONSTRAINT ck_sub_tasks_status
        CHECK (status IN ('PENDING', 'READY', 'AWAITING_APPROVAL', 'QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'BLOCKED', 'SKIPPED', 'CANCELLED')),
    phase text CONSTRAINT ck_sub_tasks_phase CHECK (phase IN ('PREPARE_ENV', 'EXECUTING', 'POST_PROCESS')),
    execution_order integer NOT NULL,
    dependencies jsonb NOT NULL DEFAULT '[]',
    -- Ids of the subtasks that wait for this one: what completing it has to count down.
    dependents uuid[] NOT NULL DEFAULT '{}',
    pending_dependencies integer NOT NULL DEFAULT 0 CONSTRAINT ck_sub_tasks_pending CHECK (pending_dependencies >= 0),
    tool text NOT NULL,
    input_context jsonb NOT NULL DEFAULT '{}',
    -- Ids in the plan of the subtasks whose outputs input_context refers to.
    referred text[] NOT NULL DEFAULT '{}',
    timeout_s double precision NOT NULL,
    max_retries integer NOT NULL,
    output_result jsonb,
    output_size bigint,
    output_sha256 text,
    error jsonb,
    resources jsonb NOT NULL DEFAULT '{}',
    -- The key of the resource shape, and the place in its queue: lower runs first.
    shape text NOT NULL,
    score double precision NOT NULL,
    attempt integer NOT NULL DEFAULT 0,
    retry_count integer NOT NULL DEFAULT 0,
    not_before timestamptz,
    -- The scheduler incarnation that holds the lease of the current attempt.
    incarnation uuid,
    worker_id text,
    duration_ms double precision,
    tokens_used bigint NOT NULL DEFAULT 0,
    created_at timestamptz NOT NULL DEFAULT now(),
    queued_at timestamptz,
    started_at timestamptz,
    finished_at timestamptz,
    CONSTRAINT uq_sub_tasks_parent_id_key UNIQUE (parent_id, key),
    CONSTRAINT ck_sub_tasks_finished
        CHECK ((status IN ('COMPLETED', 'BLOCKED', 'SKIPPED', 'CANCELLED')) = (finished_at IS NOT NULL)),
    CONSTRAINT ck_sub_tasks_output CHECK ((output_result IS NOT NULL) = (status = 'COMPLETED')),
    CONSTRAINT ck_sub_tasks_running CHECK (status <> 'RUNNING' OR (incarnation IS NOT NULL AND attempt > 0 AND started_at IS NOT NULL)),
    CONSTRAINT ck_sub_tasks_phase_running CHECK (phase IS NULL OR status = 'RUNNING'),
    CONSTRAINT ck_sub_tasks_lease CHECK (incarnation IS NULL OR status IN ('QUEUED', 'RUNNING')),
    CONSTRAINT ck_sub_tasks_freed
        CHECK (status NOT IN ('QUEUED', 'RUNNING', 'COMPLETED', 'FAILED', 'AWAITING_APPROVAL') OR pending_dependencies = 0),
    CONSTRAINT ck_sub_tasks_not_before CHECK ((status = 'FAILED') = (not_before IS NOT NULL)),
    CONSTRAINT ck_sub_tasks_error CHECK (status NOT IN ('FAILED', 'BLOCKED') OR error IS NOT NULL)
)
----
CREATE INDEX ix_sub_tasks_parent_id_execution_order ON sub_tasks (parent_id, execution_order)
----
CREATE INDEX ix_sub_tasks_queued ON sub_tasks (score, id) WHERE status = 'QUEUED' AND incarnation IS NULL
----
CREATE INDEX ix_sub_tasks_leased ON sub_tasks (incarnation) WHERE incarnation IS NOT NULL
----
CREATE INDEX ix_sub_tasks_backoff ON sub_tasks (not_before) WHERE status = 'FAILED'
----
CREATE INDEX ix_sub_tasks_blocked ON sub_tasks (parent_id, finished_at DESC) WHERE status = 'BLOCKED'
----
CREATE VIEW task_dependencies AS
    SELECT s.parent_id AS task_id, s.id AS sub_task_id, s.key, p.id AS depends_on_id, p.key AS depends_on
    FROM sub_tasks s
    CROSS JOIN LATERAL jsonb_array_elements_text(s.dependencies) AS d (key)
    JOIN sub_tasks p ON p.parent_id = s.parent_id AND p.key = d.key
----
CREATE TABLE execution_logs (
    sub_task_id uuid NOT NULL,
    attempt integer NOT NULL,
    task_id uuid NOT NULL,
    status text NOT NULL CONSTRAINT ck_execution_logs_status
        CHECK (status IN ('COMPLETED', 'FAILED', 'TIMED_OUT', 'CANCELLED', 'LOST')),
    queued_at timestamptz,
    start_time timestamptz NOT NULL,
    end_time timestamptz NOT NULL,
    duration double precision NOT NULL,
    tokens_used bigint NOT NULL DEFAULT 0,
    stdout text NOT NULL DEFAULT '',
    stderr text NOT NULL DEFAULT '',
    log_content text NOT NULL DEFAULT '',
    error_message text,
    error jsonb,
    spans jsonb NOT NULL DEFAULT '[]',
    worker_id text,
    node_id text,
    ray_task_id text,
    CONSTRAINT pk_execution_logs PRIMARY KEY (sub_task_id, attempt)
)
----
CREATE INDEX ix_execution_logs_task_id ON execution_logs (task_id, start_time)
----
CREATE INDEX ix_execution_logs_start_time ON execution_logs (start_time)
----
CREATE INDEX ix_execution_logs_tokens ON execution_logs (end_time) WHERE tokens_used > 0
----
-- Append-only. Every writer holds the lock of the task's row first, so the ids of a task's events become visible
-- in their order, and a reader that resumes after an id misses none.
CREATE TABLE task_events (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    task_id uuid NOT NULL,
    kind text NOT NULL CONSTRAINT ck_task_events_kind CHECK (kind IN ('task', 'subtask', 'plan', 'approval')),
    subtask text,
    from_status text,
    to_status text,
    phase text,
    attempt integer,
    reason text
)
----
CREATE INDEX ix_task_events_task_id_id ON task_events (task_id, id)
----
CREATE TABLE log_lines (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at timestamptz NOT NULL DEFAULT clock_timestamp(),
    task_id uuid NOT NULL,
    subtask text,
    attempt integer,
    stream text NOT NULL CONSTRAINT ck_log_lines_stream CHECK (stream IN ('system', 'stdout', 'stderr', 'tool', 'model')),
    level text NOT NULL CONSTRAINT ck_log_lines_level CHECK (level IN ('DEBUG', 'INFO', 'WARNING', 'ERROR')),
    message text NOT NULL,
    fields jsonb NOT NULL DEFAULT '{}'
)
----
CREATE INDEX ix_log_lines_task_id_id ON log_lines (task_id, id)
----
CREATE TABLE idempotency_keys (
    user_id uuid NOT NULL,
    key text NOT NULL,
    fingerprint bytea NOT NULL,
    task_id uuid NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (user_id, key)
)
----
CREATE TABLE blobs (
    sha256 text PRIMARY KEY,
    size bigint NOT NULL,
    data bytea NOT NULL,
    created_at timestamptz NOT NULL DEFAULT now()
)
----
CREATE TABLE task_files (
    task_id uuid NOT NULL REFERENCES tasks (id) ON DELETE CASCADE,
    path text NOT NULL,
    sha256 text NOT NULL REFERENCES blobs (sha256),
    size bigint NOT NULL,
    media_type text NOT NULL,
    updated_at timestamptz NOT NULL DEFAULT now(),
    CONSTRAINT pk_task_files PRIMARY KEY (task_id, path)
)
----
-- One row a life of a scheduler. Its leases die with it.
CREATE TABLE schedulers (
    incarnation uuid PRIMARY KEY,
    -- Which singleton it is a life of: two lives of one actor never overlap.
    actor text NOT NULL,
    started_at timestamptz NOT NULL DEFAULT now(),
    heartbeat_at timestamptz NOT NULL DEFAULT now(),
    ended_at timestamptz
)
----
CREATE INDEX ix_schedulers_live ON schedulers (heartbeat_at) WHERE ended_at IS NULL
----
CREATE FUNCTION refuse_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'illegal transition of % %: % to %', TG_TABLE_NAME, OLD.id, OLD.status, NEW.status
        USING ERRCODE = 'check_violation';
END $$
----
CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'check_violation';
END $$
----
-- What happened to a task is forgotten with the task, and not before.
CREATE FUNCTION refuse_removal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM tasks t WHERE t.id = OLD.task_id) THEN
        RAISE EXCEPTION '% is append-only', TG_TABLE_NAME USING ERRCODE = 'check_violation';
    END IF;
    RETURN OLD;
END $$
----
CREATE TRIGGER task_events_append_only BEFORE UPDATE ON task_events FOR EACH ROW EXECUTE FUNCTION refuse_change()
----
CREATE TRIGGER task_events_kept BEFORE DELETE ON task_events FOR EACH ROW EXECUTE FUNCTION refuse_removal()
----
CREATE TRIGGER task_events_not_emptied BEFORE TRUNCATE ON task_events FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()

-- The ledger as it was first released: made from infra/ledger/tables.py, never changed. Later migrations add to it.

CREATE TABLE api_keys (
    id TEXT NOT NULL,
    digest BYTEA NOT NULL,
    tenant TEXT NOT NULL,
    role TEXT NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    revoked_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_api_keys PRIMARY KEY (id),
    CONSTRAINT ck_api_keys_role CHECK (role IN ('service', 'viewer', 'moderator', 'admin')),
    CONSTRAINT uq_api_keys_digest UNIQUE (digest)
);

CREATE TABLE batches (
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    input_file_id TEXT NOT NULL,
    endpoint TEXT NOT NULL,
    metadata JSONB,
    run_id TEXT,
    errors JSONB,
    cancelling_at TIMESTAMP WITH TIME ZONE,
    failed_at TIMESTAMP WITH TIME ZONE,
    submitted_at TIMESTAMP WITH TIME ZONE,
    lease_until TIMESTAMP WITH TIME ZONE,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_batches PRIMARY KEY (id)
);
CREATE INDEX ix_batches_waiting ON batches (created_at) WHERE submitted_at IS NULL AND failed_at IS NULL;

CREATE TABLE decisions (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    iteration INTEGER NOT NULL,
    policy TEXT NOT NULL,
    policy_version INTEGER,
    action TEXT NOT NULL,
    category TEXT,
    surface TEXT NOT NULL,
    reason TEXT NOT NULL,
    decided_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    superseded_at TIMESTAMP WITH TIME ZONE,
    reviewed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_decisions PRIMARY KEY (id),
    CONSTRAINT ck_decisions_action CHECK (action IN ('pass', 'review', 'block'))
);
CREATE INDEX ix_decisions_history ON decisions (run_id, seq);
CREATE INDEX ix_decisions_review ON decisions (decided_at)
    WHERE superseded_at IS NULL AND reviewed_at IS NULL AND action = 'review';
CREATE UNIQUE INDEX uq_decisions_current ON decisions (run_id, seq, iteration) WHERE superseded_at IS NULL;

CREATE TABLE disagreements (
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    child_run_id TEXT NOT NULL,
    child_seq BIGINT NOT NULL,
    noted_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    reviewed_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_disagreements PRIMARY KEY (run_id, seq, child_run_id)
);
CREATE INDEX ix_disagreements_waiting ON disagreements (noted_at) WHERE reviewed_at IS NULL;

CREATE TABLE feed_entries (
    tenant TEXT NOT NULL,
    n BIGINT NOT NULL,
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    CONSTRAINT pk_feed_entries PRIMARY KEY (tenant, n)
);
CREATE UNIQUE INDEX ix_feed_entries_run_id_seq ON feed_entries (run_id, seq);

CREATE TABLE feeds (
    tenant TEXT NOT NULL,
    last_n BIGINT NOT NULL,
    CONSTRAINT pk_feeds PRIMARY KEY (tenant)
);

CREATE TABLE files (
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    filename TEXT NOT NULL,
    purpose TEXT NOT NULL,
    content BYTEA NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_files PRIMARY KEY (id)
);

CREATE TABLE fingerprints (
    digest TEXT NOT NULL,
    body JSONB NOT NULL,
    CONSTRAINT pk_fingerprints PRIMARY KEY (digest)
);

CREATE TABLE idempotency_keys (
    tenant TEXT NOT NULL,
    key TEXT NOT NULL,
    request_hash BYTEA NOT NULL,
    made JSONB NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_idempotency_keys PRIMARY KEY (tenant, key)
);
CREATE INDEX ix_idempotency_keys_created_at ON idempotency_keys (created_at);

CREATE TABLE items (
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    item_id TEXT NOT NULL,
    question TEXT NOT NULL,
    response TEXT NOT NULL,
    truth TEXT,
    source TEXT NOT NULL,
    category TEXT NOT NULL,
    subcategory TEXT NOT NULL,
    content_hash BYTEA NOT NULL,
    CONSTRAINT pk_items PRIMARY KEY (run_id, seq),
    CONSTRAINT uq_items_run_id_item_id UNIQUE (run_id, item_id)
);

CREATE TABLE outbox (
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    endpoint_id TEXT,
    callback_url TEXT,
    event TEXT NOT NULL,
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    body TEXT NOT NULL,
    state TEXT DEFAULT 'pending' NOT NULL,
    attempts INTEGER DEFAULT 0 NOT NULL,
    next_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    last_status INTEGER,
    last_error TEXT,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    settled_at TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_outbox PRIMARY KEY (id),
    CONSTRAINT ck_outbox_state CHECK (state IN ('pending', 'delivered', 'failed')),
    CONSTRAINT ck_outbox_destination CHECK ((endpoint_id IS NULL) <> (callback_url IS NULL))
);
CREATE INDEX ix_outbox_due ON outbox (next_at) WHERE state = 'pending';
CREATE INDEX ix_outbox_item ON outbox (run_id, seq);
CREATE INDEX ix_outbox_tenant ON outbox (tenant, created_at);

CREATE TABLE policies (
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    body JSONB NOT NULL,
    active BOOLEAN NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_policies PRIMARY KEY (name, version)
);
CREATE UNIQUE INDEX uq_policies_active ON policies (name) WHERE active;

CREATE TABLE reviews (
    id BIGINT GENERATED ALWAYS AS IDENTITY,
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    label TEXT NOT NULL,
    action TEXT NOT NULL,
    moderator TEXT NOT NULL,
    note TEXT DEFAULT '' NOT NULL,
    decided_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_reviews PRIMARY KEY (id),
    CONSTRAINT ck_reviews_label CHECK (label IN ('safe', 'unsafe')),
    CONSTRAINT ck_reviews_action CHECK (action IN ('pass', 'block'))
);
CREATE INDEX ix_reviews_item ON reviews (run_id, seq, id);

CREATE TABLE submissions (
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    tenant TEXT NOT NULL,
    custom_id TEXT,
    policy TEXT,
    callback_url TEXT,
    metadata JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    CONSTRAINT pk_submissions PRIMARY KEY (run_id, seq)
);
CREATE INDEX ix_submissions_tenant_created_at ON submissions (tenant, created_at);

CREATE TABLE tenant_policies (
    tenant TEXT NOT NULL,
    policy TEXT NOT NULL,
    CONSTRAINT pk_tenant_policies PRIMARY KEY (tenant)
);

CREATE TABLE verdicts (
    run_id TEXT NOT NULL,
    seq BIGINT NOT NULL,
    iteration INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    label TEXT,
    p_unsafe DOUBLE PRECISION,
    label_mass DOUBLE PRECISION,
    categories TEXT DEFAULT '' NOT NULL,
    reason TEXT,
    raw TEXT,
    prompt_tokens INTEGER NOT NULL,
    windows INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    fingerprint TEXT,
    settled_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    cached BOOLEAN DEFAULT false NOT NULL,
    CONSTRAINT pk_verdicts PRIMARY KEY (run_id, seq, iteration),
    CONSTRAINT ck_verdicts_outcome CHECK (outcome IN ('scored', 'unparseable', 'dead')),
    CONSTRAINT ck_verdicts_label CHECK ((outcome = 'scored') = (label IS NOT NULL)),
    CONSTRAINT ck_verdicts_reason CHECK (outcome <> 'dead' OR reason IS NOT NULL)
);
CREATE INDEX ix_verdicts_settled_at ON verdicts USING brin (settled_at);

CREATE TABLE webhook_endpoints (
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    url TEXT NOT NULL,
    secrets TEXT[] NOT NULL,
    events TEXT[] NOT NULL,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    paused_until TIMESTAMP WITH TIME ZONE,
    disabled_at TIMESTAMP WITH TIME ZONE,
    reason TEXT,
    CONSTRAINT pk_webhook_endpoints PRIMARY KEY (id)
);
CREATE INDEX ix_webhook_endpoints_tenant ON webhook_endpoints (tenant);

CREATE TABLE webhook_secrets (
    tenant TEXT NOT NULL,
    secrets TEXT[] NOT NULL,
    CONSTRAINT pk_webhook_secrets PRIMARY KEY (tenant)
);

CREATE TABLE runs (
    id TEXT NOT NULL,
    name TEXT NOT NULL,
    state TEXT NOT NULL,
    guard TEXT NOT NULL,
    lane TEXT NOT NULL,
    spec JSONB NOT NULL,
    repeat INTEGER NOT NULL,
    fingerprint TEXT,
    accepted BIGINT DEFAULT 0 NOT NULL,
    chunks BIGINT DEFAULT 0 NOT NULL,
    expected BIGINT,
    settled BIGINT DEFAULT 0 NOT NULL,
    scored BIGINT DEFAULT 0 NOT NULL,
    unparseable BIGINT DEFAULT 0 NOT NULL,
    dead BIGINT DEFAULT 0 NOT NULL,
    invalid_count BIGINT DEFAULT 0 NOT NULL,
    invalid_rows JSONB DEFAULT '[]' NOT NULL,
    cancelled BOOLEAN DEFAULT false NOT NULL,
    lease_until TIMESTAMP WITH TIME ZONE,
    report JSONB,
    created_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    sealed_at TIMESTAMP WITH TIME ZONE,
    settled_at TIMESTAMP WITH TIME ZONE,
    completed_at TIMESTAMP WITH TIME ZONE,
    parent TEXT GENERATED ALWAYS AS ((spec ->> 'parent')) STORED,
    CONSTRAINT pk_runs PRIMARY KEY (id),
    CONSTRAINT ck_runs_state CHECK (state IN ('open', 'sealed', 'finalizing', 'complete', 'cancelled')),
    CONSTRAINT ck_runs_lane CHECK (lane IN ('live', 'bulk')),
    CONSTRAINT ck_runs_outcomes CHECK (settled = scored + unparseable + dead),
    CONSTRAINT ck_runs_pending CHECK (settled >= 0 AND settled <= accepted * repeat),
    CONSTRAINT ck_runs_expected CHECK (expected IS NULL OR expected = accepted * repeat),
    CONSTRAINT ck_runs_sealed CHECK ((state = 'open') = (expected IS NULL)),
    CONSTRAINT ck_runs_ended_whole CHECK (state IN ('open', 'sealed') OR settled = expected),
    CONSTRAINT uq_runs_name UNIQUE (name),
    CONSTRAINT fk_runs_fingerprint FOREIGN KEY(fingerprint) REFERENCES fingerprints (digest)
);
CREATE INDEX ix_runs_parent ON runs (parent) WHERE parent IS NOT NULL;

CREATE TABLE chunks (
    run_id TEXT NOT NULL,
    chunk_no BIGINT NOT NULL,
    iteration INTEGER NOT NULL,
    first_seq BIGINT NOT NULL,
    size INTEGER NOT NULL,
    settled INTEGER DEFAULT 0 NOT NULL,
    attempt INTEGER DEFAULT 1 NOT NULL,
    enqueued_at TIMESTAMP WITH TIME ZONE DEFAULT now() NOT NULL,
    overtaken_at TIMESTAMP WITH TIME ZONE,
    wasted INTEGER DEFAULT 0 NOT NULL,
    worker TEXT,
    queue_s REAL,
    render_s REAL,
    device_s REAL,
    spent_s REAL,
    spent_prompt_tokens INTEGER,
    spent_new_tokens INTEGER,
    device TEXT,
    CONSTRAINT pk_chunks PRIMARY KEY (run_id, chunk_no),
    CONSTRAINT ck_chunks_settled CHECK (settled >= 0 AND settled <= size),
    CONSTRAINT ck_chunks_wasted CHECK (wasted >= 0),
    CONSTRAINT fk_chunks_run_id FOREIGN KEY(run_id) REFERENCES runs (id) ON DELETE CASCADE
);
CREATE INDEX ix_chunks_unsettled ON chunks (enqueued_at) WHERE settled < size;

"""Items, verdicts and submissions are partitioned by month, so that a month goes at once.

What is there becomes one partition, as it is: run ids without a month. Older processes go on: their ids lie there too.
Attaching it reads each of the three tables once. The months' own partitions come with `infra.ledger.months`.
"""

from alembic import op

revision = "0006_months"
down_revision = "0005_kinds"
branch_labels = None
depends_on = None

_KEYS = {"items": "run_id, seq", "verdicts": "run_id, seq, iteration", "submissions": "run_id, seq"}
_INDEXES = {
    "items": ("uq_items_run_id_item_id", "ALTER TABLE items ADD CONSTRAINT {} UNIQUE (run_id, item_id)"),
    "verdicts": ("ix_verdicts_settled_at", "CREATE INDEX {} ON verdicts USING brin (settled_at)"),
    "submissions": (
        "ix_submissions_tenant_created_at",
        "CREATE INDEX {} ON submissions (tenant, created_at)",
    ),
}


def upgrade() -> None:
    """The key and the index of the old table are taken on as those of its partition."""
    op.execute("ALTER TABLE items VALIDATE CONSTRAINT ck_items_kind")  # a partition's must be
    for table, key in _KEYS.items():
        older = f"{table}_older"
        index, create = _INDEXES[table]
        op.execute(f"ALTER TABLE {table} RENAME TO {older}")
        op.execute(f"ALTER INDEX pk_{table} RENAME TO pk_{older}")
        op.execute(f"ALTER INDEX {index} RENAME TO {index}_older")
        op.execute(
            f"CREATE TABLE {table} (LIKE {older} INCLUDING DEFAULTS INCLUDING CONSTRAINTS) PARTITION BY RANGE (run_id)"
        )
        op.execute(f"ALTER TABLE {table} ADD CONSTRAINT pk_{table} PRIMARY KEY ({key})")
        op.execute(create.format(index))
        op.execute(f"ALTER TABLE {table} ATTACH PARTITION {older} FOR VALUES FROM (MINVALUE) TO ('rm')")
        op.execute(f"CREATE TABLE {table}_others PARTITION OF {table} DEFAULT")

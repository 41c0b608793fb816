"""The durable tables, defined once for SQLite today and PostgreSQL later. Nothing here opens a database or decides anything.

Plain types only (text, integers, floats, bytes), names instead of surrogate keys where a name is what the rest of the house
uses, every reference a foreign key. A change here needs a migration in store/migrations/versions; a test compares the two.
"""

import sqlalchemy as sa

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

namespaces = sa.Table(
    "namespaces",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
)

namespace_limits = sa.Table(
    "namespace_limits",
    metadata,
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("limits", sa.Text, nullable=False),  # Limits as JSON
)

# The next version number of a name. It outlives the function, so that a number is never used twice: logs, usage and
# gateways' pools tell versions apart by it.
numbers = sa.Table(
    "numbers",
    metadata,
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name", ondelete="CASCADE"), primary_key=True),
    sa.Column("function", sa.Text, primary_key=True),
    sa.Column("next", sa.Integer, nullable=False),
)

functions = sa.Table(
    "functions",
    metadata,
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("function", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("config", sa.Text, nullable=False),  # FunctionConfig as JSON
    sa.Column("code_digest", sa.Text, nullable=False, index=True),
    sa.Column("layer_digest", sa.Text, nullable=False, index=True),  # "" = none
    sa.Column("created_at", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(["namespace", "function"], ["functions.namespace", "functions.name"], ondelete="CASCADE"),
)

# One row for each version an alias points at: one row, or two whose weights sum to 1.
aliases = sa.Table(
    "aliases",
    metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("function", sa.Text, primary_key=True),
    sa.Column("alias", sa.Text, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("weight", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(
        ["namespace", "function", "number"],
        ["versions.namespace", "versions.function", "versions.number"],
        ondelete="CASCADE",
    ),
)

# What `live` pointed at, oldest first: where a rollback goes back to.
moves = sa.Table(
    "moves",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("namespace", sa.Text, nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.ForeignKeyConstraint(
        ["namespace", "function", "number"],
        ["versions.namespace", "versions.function", "versions.number"],
        ondelete="CASCADE",
    ),
    sa.Index("ix_moves_function", "namespace", "function"),
)

secrets = sa.Table(
    "secrets",
    metadata,
    sa.Column("namespace", sa.Text, sa.ForeignKey("namespaces.name"), primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("sealed", sa.LargeBinary, nullable=False),  # control/vault.py
    sa.Column("updated_at", sa.Float, nullable=False),
)

tokens = sa.Table(
    "tokens",
    metadata,
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("digest", sa.LargeBinary, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("namespaces", sa.Text, nullable=False),  # JSON array
    sa.Column("verbs", sa.Text, nullable=False),  # JSON array
    sa.Column("created_at", sa.Float, nullable=False),
)

# No foreign key: usage outlives the function it was metered for.
usage_day = sa.Table(
    "usage_day",
    metadata,
    sa.Column("day", sa.Text, primary_key=True),  # YYYY-MM-DD, UTC
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("function", sa.Text, primary_key=True),
    sa.Column("calls", sa.BigInteger, nullable=False),
    sa.Column("errors", sa.BigInteger, nullable=False),
    sa.Column("cold", sa.BigInteger, nullable=False),
    sa.Column("exec_us", sa.BigInteger, nullable=False),
    sa.Column("billed_ms", sa.BigInteger, nullable=False),
    sa.Column("mb_ms", sa.BigInteger, nullable=False),
    sa.Column("bytes_in", sa.BigInteger, nullable=False),
    sa.Column("bytes_out", sa.BigInteger, nullable=False),
)

# Folders on disk that no version names, and since when: they go after a grace period (control/garbage.py).
garbage = sa.Table(
    "garbage",
    metadata,
    sa.Column("kind", sa.Text, primary_key=True),  # code | layer
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("since", sa.Float, nullable=False),
)

# What calls functions by the clock. A schedule goes with its function.
schedules = sa.Table(
    "schedules",
    metadata,
    sa.Column("namespace", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("schedule", sa.Text, nullable=False),  # Schedule as JSON
    sa.Column("declared", sa.Integer, nullable=False),  # 1: by the live version's manifest
    sa.Column("paused", sa.Integer, nullable=False),
    sa.Column("anchor", sa.Float, nullable=False),
    sa.Column("dice", sa.Float, nullable=False),
    sa.Column("decided", sa.Float, nullable=False),  # core/decide/schedule.py
    sa.Column("next_at", sa.Float, nullable=True, index=True),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("last_due", sa.Float, nullable=True),
    sa.Column("last_call", sa.Text, nullable=False),
    sa.Column("fired", sa.BigInteger, nullable=False),
    sa.Column("skipped", sa.BigInteger, nullable=False),
    sa.Column("missed", sa.BigInteger, nullable=False),
    sa.ForeignKeyConstraint(["namespace", "function"], ["functions.namespace", "functions.name"], ondelete="CASCADE"),
    sa.Index("ix_schedules_function", "namespace", "function"),
)

"""The first schema: namespaces, functions, versions, aliases, secrets, tokens, usage, garbage."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make every table of the first release."""
    _platform()
    _namespaces()
    _functions()


def _platform() -> None:
    """Tables that refer to no function."""
    op.create_table(
        "garbage",
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("digest", sa.Text(), nullable=False),
        sa.Column("since", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("kind", "digest", name=op.f("pk_garbage")),
    )
    op.create_table(
        "meta",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_meta")),
    )
    op.create_table(
        "namespaces",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_namespaces")),
    )
    op.create_table(
        "tokens",
        sa.Column("id", sa.Text(), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("namespaces", sa.Text(), nullable=False),
        sa.Column("verbs", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tokens")),
    )
    op.create_table(
        "usage_day",
        sa.Column("day", sa.Text(), nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("calls", sa.BigInteger(), nullable=False),
        sa.Column("errors", sa.BigInteger(), nullable=False),
        sa.Column("cold", sa.BigInteger(), nullable=False),
        sa.Column("exec_us", sa.BigInteger(), nullable=False),
        sa.Column("billed_ms", sa.BigInteger(), nullable=False),
        sa.Column("mb_ms", sa.BigInteger(), nullable=False),
        sa.Column("bytes_in", sa.BigInteger(), nullable=False),
        sa.Column("bytes_out", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("day", "namespace", "function", name=op.f("pk_usage_day")),
    )


def _namespaces() -> None:
    """What belongs to a namespace: functions, their next numbers, secrets."""
    op.create_table(
        "functions",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"], name=op.f("fk_functions_namespaces")),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_functions")),
    )
    op.create_table(
        "numbers",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("next", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"], name=op.f("fk_numbers_namespaces"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("namespace", "function", name=op.f("pk_numbers")),
    )
    op.create_table(
        "secrets",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"], name=op.f("fk_secrets_namespaces")),
        sa.PrimaryKeyConstraint("namespace", "name", name=op.f("pk_secrets")),
    )


def _functions() -> None:
    """Versions and where aliases point."""
    op.create_table(
        "versions",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("config", sa.Text(), nullable=False),
        sa.Column("code_digest", sa.Text(), nullable=False),
        sa.Column("layer_digest", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function"],
            ["functions.namespace", "functions.name"],
            name=op.f("fk_versions_functions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "number", name=op.f("pk_versions")),
    )
    op.create_index(op.f("ix_versions_code_digest"), "versions", ["code_digest"], unique=False)
    op.create_index(op.f("ix_versions_layer_digest"), "versions", ["layer_digest"], unique=False)
    op.create_table(
        "aliases",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("alias", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("weight", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "number"],
            ["versions.namespace", "versions.function", "versions.number"],
            name=op.f("fk_aliases_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("namespace", "function", "alias", "number", name=op.f("pk_aliases")),
    )
    op.create_table(
        "moves",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("function", sa.Text(), nullable=False),
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("at", sa.Float(), nullable=False),
        sa.ForeignKeyConstraint(
            ["namespace", "function", "number"],
            ["versions.namespace", "versions.function", "versions.number"],
            name=op.f("fk_moves_versions"),
            ondelete="CASCADE",
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_moves")),
    )
    op.create_index("ix_moves_function", "moves", ["namespace", "function"], unique=False)

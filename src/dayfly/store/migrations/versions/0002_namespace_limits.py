"""Limits of namespaces."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """A table of its own: most namespaces have none."""
    op.create_table(
        "namespace_limits",
        sa.Column("namespace", sa.Text(), nullable=False),
        sa.Column("limits", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["namespace"], ["namespaces.name"], name=op.f("fk_namespace_limits_namespaces"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("namespace", name=op.f("pk_namespace_limits")),
    )

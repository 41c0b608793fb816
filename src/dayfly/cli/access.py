"""Commands about who may do what: secret, token, namespace. A secret's value never travels in argv unless the user insists."""

import sys
from typing import Any
from urllib.parse import quote

import click

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.functions import confirm, done
from dayfly.cli.limits import namespace_limits
from dayfly.cli.options import Session, command

SECRET_BYTES_MAX = 64 * 1024  # as core/wire/node.py
VERBS = ("invoke", "read", "deploy", "admin")

secret_app = click.Group("secret", help="Secrets of a namespace: files for the functions that ask for them.")
token_app = click.Group("token", help="Access tokens.")
namespace_app = click.Group("namespace", help="Namespaces.")


def register(app: click.Group) -> None:
    """Add the three groups."""
    for group in (secret_app, token_app, namespace_app):
        app.add_command(group)
    for group, name, function in (
        (secret_app, "set", secret_set),
        (secret_app, "ls", secret_ls),
        (secret_app, "rm", secret_rm),
        (token_app, "create", token_create),
        (token_app, "ls", token_ls),
        (token_app, "rm", token_rm),
        (namespace_app, "create", namespace_create),
        (namespace_app, "ls", namespace_ls),
        (namespace_app, "rm", namespace_rm),
        (namespace_app, "limits", namespace_limits),
    ):
        command(group, name)(function)


@click.argument("name", metavar="NAME")
@click.argument("value", metavar="[VALUE]", required=False)
def secret_set(session: Session, name: str, value: str | None) -> None:
    """Set a secret: asked for without echo, or the bytes of standard input (one final newline is dropped)."""
    if value is not None:
        output.warn("a value on the command line is seen by `ps` and kept by the shell's history; pipe it in instead.")
        raw = value.encode()
    elif sys.stdin.isatty():
        import getpass

        raw = getpass.getpass(f"Value of {name}: ").encode()
    else:
        raw = sys.stdin.buffer.read(SECRET_BYTES_MAX + 2).removesuffix(b"\n")
    if len(raw) > SECRET_BYTES_MAX:
        raise Failure(f"The value is over {SECRET_BYTES_MAX} bytes.", "Keep large files in the bundle or in a store.")
    headers = {"Content-Type": "application/octet-stream"}
    answer = session.client.send("PUT", f"/api/v1/secrets/{quote(name, safe='')}", query=session.query(), body=raw, headers=headers)
    answer.check()
    done(session, {"secret": name, "bytes": len(raw)}, f"secret {name} is set ({len(raw)} bytes)")


def secret_ls(session: Session) -> None:
    """List the names of secrets; values are never shown."""
    answer = session.client.json("GET", "/api/v1/secrets", query=session.query())
    if session.json:
        output.document(answer)
        return
    found = answer.get("secrets", [])
    rows = [
        (s.get("name", "?"), output.moment(s.get("updated_at") or s.get("created_at"))) if isinstance(s, dict) else (s, "-") for s in found
    ]
    output.show_table(("name", "changed"), rows, empty="no secrets")


@click.argument("name", metavar="NAME")
def secret_rm(session: Session, name: str) -> None:
    """Remove a secret."""
    session.client.json("DELETE", f"/api/v1/secrets/{quote(name, safe='')}", query=session.query())
    done(session, {"removed": name}, f"secret {name} is removed")


@click.argument("name", metavar="NAME")
@click.option("--verb", "verb", multiple=True, metavar="|".join(VERBS), help="What it may do; repeat for more; default: invoke.")
@click.option(
    "--scope", "scope", multiple=True, metavar="NS", help="Namespace it may use, * for all; repeat for more; default: the present one."
)
def token_create(session: Session, name: str, verb: tuple[str, ...], scope: tuple[str, ...]) -> None:
    """Make a token. Its text is shown this one time, on standard output."""
    verbs = list(verb) or ["invoke"]
    if wrong := [v for v in verbs if v not in VERBS]:
        raise Failure(f"{wrong[0]!r} is no verb.", f"Use {', '.join(VERBS)}.")
    body = {"name": name, "namespaces": list(scope) or [session.profile.namespace], "verbs": verbs}
    answer = session.client.json("POST", "/api/v1/tokens", body=body)
    if session.json:
        output.document(answer)
        return
    output.result(str(answer.get("token", answer.get("text", ""))))
    output.message(f"token {name}: may {', '.join(verbs)} in {', '.join(body['namespaces'])}. It is not shown again.")


def token_ls(session: Session) -> None:
    """List tokens: id, name, scopes."""
    answer = session.client.json("GET", "/api/v1/tokens")
    if session.json:
        output.document(answer)
        return
    rows = [
        (
            t.get("id", "?"),
            t.get("name", ""),
            ", ".join(t.get("namespaces", [])),
            ", ".join(t.get("verbs", [])),
            output.moment(t.get("created_at")),
        )
        for t in answer.get("tokens", [])
    ]
    output.show_table(("id", "name", "namespaces", "verbs", "made"), rows, empty="no tokens")


@click.argument("id", metavar="ID")
def token_rm(session: Session, id: str) -> None:
    """Revoke a token at once."""
    session.client.json("DELETE", f"/api/v1/tokens/{quote(id, safe='')}")
    done(session, {"removed": id}, f"token {id} is revoked")


@click.argument("name", metavar="NAME")
def namespace_create(session: Session, name: str) -> None:
    """Make a namespace."""
    answer = session.client.json("POST", "/api/v1/namespaces", body={"name": name})
    done(session, answer or {"name": name}, f"namespace {name} is made")


def namespace_ls(session: Session) -> None:
    """List namespaces."""
    answer = session.client.json("GET", "/api/v1/namespaces")
    if session.json:
        output.document(answer)
        return
    found: list[Any] = answer.get("namespaces", [])
    output.show_table(("name",), [(n.get("name", "?") if isinstance(n, dict) else n,) for n in found], empty="no namespaces")


@click.argument("name", metavar="NAME")
@click.option("--yes", "-y", "yes", is_flag=True, help="Do not ask.")
def namespace_rm(session: Session, name: str, yes: bool) -> None:
    """Remove an empty namespace."""
    confirm(f"Remove the namespace {name}?", yes or session.json)
    session.client.json("DELETE", f"/api/v1/namespaces/{quote(name, safe='')}")
    done(session, {"removed": name}, f"namespace {name} is removed")

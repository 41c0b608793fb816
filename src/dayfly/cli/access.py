"""Commands about who may do what: secret, token, namespace. A secret's value never travels in argv unless the user insists."""

import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from dayfly.cli import output
from dayfly.cli.failure import Failure
from dayfly.cli.functions import confirm, done
from dayfly.cli.options import Session, command

SECRET_BYTES_MAX = 64 * 1024  # as core/wire/node.py
VERBS = ("invoke", "read", "deploy", "admin")

secret_app = typer.Typer(no_args_is_help=True, help="Secrets of a namespace: files for the functions that ask for them.")
token_app = typer.Typer(no_args_is_help=True, help="Access tokens.")
namespace_app = typer.Typer(no_args_is_help=True, help="Namespaces.")


def register(app: typer.Typer) -> None:
    """Add the three groups."""
    app.add_typer(secret_app, name="secret")
    app.add_typer(token_app, name="token")
    app.add_typer(namespace_app, name="namespace")
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
    ):
        command(group, name)(function)


def secret_set(
    session: Session,
    name: Annotated[str, typer.Argument(help="Secret's name.", metavar="NAME")],
    value: Annotated[str | None, typer.Argument(help="Value; better left out: it is then asked for, or read from standard input.", metavar="[VALUE]")] = None,
) -> None:
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
    rows = [(s.get("name", "?"), output.moment(s.get("updated_at") or s.get("created_at"))) if isinstance(s, dict) else (s, "-") for s in found]
    output.show_table(("name", "changed"), rows, empty="no secrets")


def secret_rm(session: Session, name: Annotated[str, typer.Argument(help="Secret's name.", metavar="NAME")]) -> None:
    """Remove a secret."""
    session.client.json("DELETE", f"/api/v1/secrets/{quote(name, safe='')}", query=session.query())
    done(session, {"removed": name}, f"secret {name} is removed")


def token_create(
    session: Session,
    name: Annotated[str, typer.Argument(help="What it is for.", metavar="NAME")],
    verb: Annotated[list[str] | None, typer.Option("--verb", metavar="|".join(VERBS), help="What it may do; repeat for more; default: invoke.")] = None,
    scope: Annotated[list[str] | None, typer.Option("--scope", metavar="NS", help="Namespace it may use, * for all; repeat for more; default: the present one.")] = None,
) -> None:
    """Make a token. Its text is shown this one time, on standard output."""
    verbs = verb or ["invoke"]
    if wrong := [v for v in verbs if v not in VERBS]:
        raise Failure(f"{wrong[0]!r} is no verb.", f"Use {', '.join(VERBS)}.")
    body = {"name": name, "namespaces": scope or [session.profile.namespace], "verbs": verbs}
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
        (t.get("id", "?"), t.get("name", ""), ", ".join(t.get("namespaces", [])), ", ".join(t.get("verbs", [])), output.moment(t.get("created_at")))
        for t in answer.get("tokens", [])
    ]
    output.show_table(("id", "name", "namespaces", "verbs", "made"), rows, empty="no tokens")


def token_rm(session: Session, id: Annotated[str, typer.Argument(help="Its id, as `token ls` shows it.", metavar="ID")]) -> None:
    """Revoke a token at once."""
    session.client.json("DELETE", f"/api/v1/tokens/{quote(id, safe='')}")
    done(session, {"removed": id}, f"token {id} is revoked")


def namespace_create(session: Session, name: Annotated[str, typer.Argument(help="Its name.", metavar="NAME")]) -> None:
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


def namespace_rm(
    session: Session,
    name: Annotated[str, typer.Argument(help="Its name.", metavar="NAME")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove an empty namespace."""
    confirm(f"Remove the namespace {name}?", yes or session.json)
    session.client.json("DELETE", f"/api/v1/namespaces/{quote(name, safe='')}")
    done(session, {"removed": name}, f"namespace {name} is removed")

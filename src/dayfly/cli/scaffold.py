"""`dayfly new`: a folder to start from. Nothing that is there already is touched."""

from pathlib import Path

from dayfly.cli.bundle import valid_name
from dayfly.cli.failure import EXIT_PLATFORM, Failure

HANDLER = '''"""Called for each event; https://… requests arrive as API Gateway events, payload format 2.0."""


def handler(event, context):
    """Return a dict with statusCode, headers and body, or any JSON value."""
    query = event.get("queryStringParameters") or {}
    name = query.get("name") or event.get("name") or "world"
    return {"message": f"Hello, {name}!", "call": context.aws_request_id}
'''

MANIFEST = """# Everything here is optional. All settings: docs/configuration.md
name = "{name}"
handler = "handler.handler"
memory_mb = 128
timeout_seconds = 30
# auth = "none"          # anybody may call it
# egress = "internet"    # it may open connections
# secrets = ["api-key"]  # files below /run/secrets

# [env]
# GREETING = "Hello"
"""

README = """# {name}

    dayfly deploy .
    dayfly invoke {name} --data '{{"name": "you"}}'
    dayfly logs {name} -f
    dayfly dev .            # deploys at every save
"""

REQUIREMENTS = "# One requirement a line, pinned: Pillow==11.1.0\n"


def scaffold(folder: Path) -> tuple[Path, str, list[str]]:
    """Make `folder` and its files; returns it, the function's name and the files' names. Raises Failure when it is not empty."""
    name = valid_name(folder.absolute().name)
    files = {
        "handler.py": HANDLER,
        "dayfly.toml": MANIFEST.format(name=name),
        "requirements.txt": REQUIREMENTS,
        "README.md": README.format(name=name),
    }
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise Failure(f"{folder} is there already and not empty.", "Choose another name.")
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        raise Failure(
            f"{error.filename or folder}: {error.strerror}.", "Choose a folder you may write to.", exit_code=EXIT_PLATFORM
        ) from error
    return folder, name, sorted(files)

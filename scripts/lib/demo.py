"""The tour that scripts/demo gives: real commands, real answers. Standard library only; run by scripts/demo in its environment.

Everything it makes lies below the folder it is given; the platform it starts is ended in any case but --keep.
"""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from types import FrameType

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DAYFLY = (sys.executable, "-m", "dayfly")
BOLD, DIM, PLAIN = ("\033[1m", "\033[2m", "\033[0m") if sys.stdout.isatty() else ("", "", "")


class Demo:
    """One platform and what is done with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        self.url = ""
        self.failures = 0
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("DAYFLY_")}
        self.environment["DAYFLY_CONFIG_DIR"] = str(folder / "config")

    def command(self, *arguments: str, stdin: str | None = None, shown: str = "") -> str:
        """Run `dayfly ARGUMENTS`, showing it; returns its output. A failure is shown and counted, and the tour goes on."""
        print(f"{BOLD}$ {shown or 'dayfly ' + ' '.join(arguments)}{PLAIN}", flush=True)
        done = subprocess.run(
            [*DAYFLY, *arguments], env=self.environment, cwd=EXAMPLES.parent, input=stdin, capture_output=True, text=True, check=False
        )
        print(_indented(done.stdout if done.returncode == 0 else done.stdout + done.stderr), flush=True)
        self.failures += done.returncode != 0
        return done.stdout

    def up(self) -> None:
        """Start the platform; raises SystemExit with the reason when it does not start."""
        shown = f"dayfly up -d --port 0 --data {self.data}"
        said = self.command("up", "-d", "--port", "0", "--data", str(self.data), "--json", shown=shown)
        try:
            self.url = json.loads(said)["url"]
        except (ValueError, KeyError):
            raise SystemExit("The platform did not start; the lines above say why.") from None
        self.environment["DAYFLY_URL"] = self.url

    def down(self) -> None:
        """End the platform, whatever state it is in."""
        subprocess.run([*DAYFLY, "down", "--data", str(self.data)], env=self.environment, capture_output=True, check=False, timeout=60)

    def call(self, path: str, body: bytes | None = None, *, show: int = 160) -> bytes:
        """One HTTP call, with what happened to it: cold or warm, and where the time went."""
        print(f"{BOLD}$ curl {self.url}{path}{' --data-binary @…' if body else ''}{PLAIN}", flush=True)
        begun = time.perf_counter()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data=body), timeout=60) as answer:
                said, headers, status = answer.read(), answer.headers, answer.status
        except urllib.error.HTTPError as error:
            said, headers, status = error.read(), error.headers, error.code
            self.failures += 1
        elapsed = (time.perf_counter() - begun) * 1000
        kind = headers.get("content-type", "")
        text = said.decode(errors="replace")[:show].rstrip() if "image" not in kind else f"({len(said):,} bytes of {kind})"
        print(_indented(text))
        how = f"{status} · {headers.get('x-dayfly-start', '?')} · {elapsed:.1f} ms in all · {headers.get('server-timing', '')}"
        print(f"  {DIM}{how}{PLAIN}\n", flush=True)
        return said

    def tour(self) -> None:
        """Deploy each example and call it, cold and warm."""
        _title("A function from one file")
        self.command("deploy", "examples/hello/hello.py", "--auth", "none", "--keep-alive-seconds", "1")
        self.call("/function/hello?name=Ada")
        time.sleep(2)  # part of the story: long enough for it to be gone
        print("Two seconds later nothing of it is running. The next call starts it from zero, in a sandbox of its own:\n")
        self.call("/function/hello?name=Ada")
        self.call("/function/hello?name=Grace")

        _title("Text that streams")
        self.command("deploy", "examples/stream")
        self.call("/function/stream?pause=0.01", show=400)

        _title("A secret, and the network only for who asks for it")
        self.command("secret", "set", "API_TOKEN", stdin="not-a-real-token", shown="echo not-a-real-token | dayfly secret set API_TOKEN")
        # A demo sends nothing off the machine by itself; and that a function cannot reach this machine is worth seeing.
        address = os.environ.get("DEMO_API_URL", "http://127.0.0.1:9/")
        self.command("deploy", "examples/secret-egress", "-e", f"API_URL={address}")
        self.call("/function/secret-egress", show=300)

        _title("Dependencies: Pillow, installed once into a shared layer")
        self.command("deploy", "examples/thumbnails")
        photo = self.call("/function/thumbnails")
        self.call("/function/thumbnails?width=320", photo)

        _title("A pandas report over a CSV")
        self.command("deploy", "examples/report")
        self.call("/function/report", (EXAMPLES / "report" / "sales.csv").read_bytes(), show=300)

        _title("What is there, and what it cost")
        self.command("ls")
        self.command("cost")
        self.command("logs", "thumbnails")


def _title(text: str) -> None:
    print(f"\n{BOLD}── {text} {'─' * max(0, 90 - len(text))}{PLAIN}\n", flush=True)


def _indented(text: str) -> str:
    return "".join(f"  {line}\n" for line in text.rstrip().splitlines())


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def main() -> int:
    """Returns 1 when a step failed. An interrupt ends the platform too."""
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGHUP, _end)
    keep = "--keep" in sys.argv[2:]
    demo = Demo(Path(sys.argv[1]))
    kept = False
    try:
        _title("A platform on a free port, with a private data directory")
        demo.up()
        demo.tour()
        kept = keep
    except KeyboardInterrupt:
        return 130
    finally:
        if not kept:
            demo.down()
    if kept:
        settings = f"DAYFLY_CONFIG_DIR={demo.environment['DAYFLY_CONFIG_DIR']} PATH={Path(sys.executable).parent}:$PATH"
        print(f"It runs on at {demo.url}. Use it:\n\n  export {settings}")
        print(f"  dayfly ls; dayfly top\n\nEnd it and remove everything:\n\n  dayfly down --data {demo.data}; rm -rf {demo.folder}\n")
    else:
        print("Everything was stopped and removed. `scripts/demo --keep` leaves it running.")
    print("Where to look next: docs/architecture.md (how it works), examples/ (what was just deployed), docs/api.md (the routes).")
    if demo.failures:
        print(f"{demo.failures} steps failed; see above.", file=sys.stderr)
    return 1 if demo.failures else 0


if __name__ == "__main__":
    sys.exit(main())

"""Looks for bytes that break a target, with coverage as the guide (atheris, libFuzzer). Bounded; what is found is printed for found.py.

    python -m tests.fuzz.search http --seconds 600 --corpus FOLDER

Names are those of targets.py. The folder keeps what reached something new, for the next search to begin with. atheris is in the dev lock;
there are wheels for Linux on x86-64 only. Run by test_search.py, and by hand.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.fuzz.search")
    parser.add_argument("name")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="dayfly-fuzz-") as folder:
        child = os.fork()  # libFuzzer ends the process that it is in, and leaves no time to tidy up
        if child == 0:
            search(words.name, words.seconds, words.corpus or Path(folder, "corpus"), folder)
        _, status = os.waitpid(child, 0)
    sys.exit(abs(os.waitstatus_to_exitcode(status)))


def search(name: str, seconds: int, corpus: Path, folder: str) -> None:
    """Does not return."""
    import atheris

    with atheris.instrument_imports(include=["dayfly", "tests.fuzz.targets"], enable_loader_override=False):
        from tests.fuzz.targets import PLANTED, TARGETS
    target = (TARGETS | PLANTED)[name]
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(target.seeds):
        Path(corpus, f"seed-{number}").write_bytes(seed)
    dictionary = Path(folder, "words")
    dictionary.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in target.words))

    def check(data: bytes) -> None:
        try:
            target.check(data)
        except BaseException:
            print(f"\nFOUND {name}: {data!r}\n", file=sys.stderr, flush=True)
            raise

    options = [f"-max_total_time={seconds}", "-max_len=2048", "-timeout=10", "-rss_limit_mb=1024", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], *options, f"-dict={dictionary}", f"-artifact_prefix={folder}/", str(corpus)], check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()

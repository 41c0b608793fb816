"""Ratchets: today's exceptions to a rule, which may only become fewer. Only tests/tidy uses this.

`ratchets.json` holds, per rule, what breaks it today and by how much. A new or grown exception fails its test; so does one that
has gone or shrunk while the file still allows it. `python -m tests.tidy.ratchet` writes the smaller figures, never larger ones.
"""

import json
from pathlib import Path

FILE = Path(__file__).with_name("ratchets.json")


def allowed(rule: str) -> dict[str, int]:
    """What the file allows for a rule: name → how much."""
    rules: dict[str, dict[str, int]] = json.loads(FILE.read_text())
    return rules.get(rule, {})


def complaints(rule: str, found: dict[str, int], advice: str) -> list[str]:
    """Sentences about what `found` (name → how much) adds to, or no longer needs of, the exceptions of `rule`."""
    known = allowed(rule)
    grown = [f"{name}: {size} (allowed {known.get(name, 'none')}). {advice}" for name, size in found.items() if size > known.get(name, 0)]
    shrunk = [
        f"{name}: {found.get(name, 'nothing')} now, {size} allowed. Lower it: python -m tests.tidy.ratchet"
        for name, size in known.items()
        if found.get(name, 0) < size
    ]
    return grown + shrunk


def tighten() -> None:
    """Write the file again with every figure at its present size, where that is smaller."""
    from tests.tidy import test_shape

    rules: dict[str, dict[str, int]] = json.loads(FILE.read_text())
    for rule, found in test_shape.measure().items():
        known = rules.get(rule, {})
        rules[rule] = {name: min(size, found[name]) for name, size in sorted(known.items()) if name in found}
    FILE.write_text(json.dumps(rules, indent=2) + "\n")


if __name__ == "__main__":
    tighten()

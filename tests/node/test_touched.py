"""What a first call writes to: learnt from one child, given to the next ones, and no way to hurt anybody with it."""

import pytest

from tests.node.rig import Client, Rig
from tests.node.test_templates import child, template

pytestmark = pytest.mark.root

PAGES = 600
WRITES = f"""
import resource
BLOCK = bytearray(4096 * {PAGES})
BLOCK[:] = b"x" * len(BLOCK)
def handler(event, context):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for at in range(0, len(BLOCK), 4096):
        BLOCK[at] = 121
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
"""
LIES = """
import os, socket, struct
SENT = []
def handler(event, context):
    for fd in range(6, 64):
        try:
            with socket.socket(fileno=os.dup(fd)) as way:
                way.setblocking(False)
                SENT.append(way.send(struct.pack("6Q", 0, 4096, 1 << 62, 1 << 40, 4096, 3)))
                for _ in range(200):
                    way.send(b"x" * 30000)
        except OSError:
            continue
    return sum(SENT)
"""


def test_a_later_child_has_its_pages_before_its_call(rig: Rig, client: Client) -> None:
    """The first pays for each page that it writes to; once one has told, the others pay for next to none."""
    parent = template(rig, client, WRITES)
    assert int(str(child(rig, client, WRITES, parent).call())) >= PAGES
    later = [int(str(child(rig, client, WRITES, parent).call())) for _ in range(5)]
    assert min(later) < PAGES / 4, later


def test_lies_about_pages_hurt_nobody(rig: Rig, client: Client) -> None:
    """Addresses that are nobody's, lengths beyond everything, a flood: the next children are as any."""
    parent = template(rig, client, LIES)
    assert int(str(child(rig, client, LIES, parent).call())) > 0, "the way to tell was not found, so nothing was tried"
    assert [child(rig, client, LIES, parent).call() for _ in range(3)] == [0] * 3, "only the first child has it"

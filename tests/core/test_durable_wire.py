"""What requests say about how they want to be called asynchronously. Bounds are tried at the real door (tests/e2e/test_async.py)."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dayfly.core.model.durable import Lineage
from dayfly.core.model.errors import Refusal
from dayfly.core.model.settings import Settings
from dayfly.core.wire.durable import Wishes, lineage, onwards, prefers_async, retry_after, wishes, with_lineage
from dayfly.runtime.context import Context

SETTINGS = Settings()


@pytest.mark.parametrize("value", [b"respond-async", b"wait=3, Respond-Async", b"respond-async;x=1", b"a ,respond-async,b"])
def test_respond_async_is_seen_wherever_it_stands(value: bytes) -> None:
    assert prefers_async(value)


@pytest.mark.parametrize("value", [b"", b"respond-async2", b"no-respond-async", b'x="respond-async"', b"respond-async=1"])
def test_and_not_where_it_does_not(value: bytes) -> None:
    assert not prefers_async(value)


def test_wishes_are_read() -> None:
    said = [
        (b"x-dayfly-delay", b"1.5"), (b"x-dayfly-deadline", b"10"), (b"x-dayfly-priority", b"9"), (b"x-dayfly-group", b"g"),
        (b"idempotency-key", b'"k"'), (b"x-callback-url", b"https://example.com/x"), (b"x-dayfly-lineage", b"root=r;parent=p;depth=2"),
    ]  # fmt: skip
    assert wishes(said, 100.0, SETTINGS) == Wishes(
        101.5, 111.5, 9, "g", "k", Lineage(root="r", parent="p", depth=2), "https://example.com/x"
    )
    assert wishes([(b"x-other", b"1")], 100.0, SETTINGS) == Wishes()
    assert wishes([(b"x-dayfly-not-before", b"1970-01-01T01:00:00+01:00")], 0.0, SETTINGS).due == 0.0


@given(st.binary(max_size=40), st.sampled_from([b"x-dayfly-delay", b"x-dayfly-not-before", b"x-dayfly-deadline", b"x-dayfly-priority",
                                              b"idempotency-key", b"x-callback-url", b"x-dayfly-group"]))  # fmt: skip
def test_whatever_a_header_holds_is_a_wish_or_a_refusal(value: bytes, name: bytes) -> None:
    try:
        found = wishes([(name, value)], 1000.0, SETTINGS)
    except Refusal as refusal:
        assert refusal.kind.code == "bad_request"
    else:
        assert 0 <= found.due <= 1000.0 + SETTINGS.async_delay_seconds_max and 0 <= found.priority <= 9


def test_a_lineage_goes_round_and_ends_at_the_depth() -> None:
    chain = Lineage()
    for depth in range(1, 5):
        chain = lineage(onwards(chain, f"call-{depth}").text, 4)
        assert chain == Lineage(root="call-1", parent=f"call-{depth}", depth=depth)
    with pytest.raises(Refusal) as caught:
        lineage(onwards(chain, "call-5").text, 4)
    assert caught.value.kind.code == "chain_too_deep"
    assert lineage("root=;nonsense", 4) == Lineage()


def test_a_function_is_given_what_it_passes_on_instead_of_what_it_was_passed() -> None:
    head = b"GET\n/\n\n1.2.3.4\nhttp\nhost: x\nx-dayfly-lineage: root=a;parent=a;depth=1"
    lines = with_lineage("http", head, Lineage(root="a", parent="a", depth=1), "me").split(b"\n")
    assert lines[5:] == [b"host: x", b"x-dayfly-lineage: root=a;parent=me;depth=2"]
    context = Context("id", 0, with_lineage("direct", b'{"custom":{"k":1}}', Lineage(), "me"))
    assert context.lineage == "root=me;parent=me;depth=1" and context.client_context is not None
    assert context.client_context.custom == {"k": 1}
    assert Context("id", 0, with_lineage("direct", b"", Lineage(), "me")).client_context is None
    assert msgspec.json.decode(with_lineage("direct", b"", Lineage(), "me")) == {"dayfly_lineage": "root=me;parent=me;depth=1"}


@pytest.mark.parametrize(("value", "seconds"), [(b"3", 3.0), (b" 10 ", 10.0), (b"-1", 0.0), (b"Wed, 21 Oct 2026", 0.0), (b"9999999", 0.0)])
def test_retry_after_is_a_number_of_seconds(value: bytes, seconds: float) -> None:
    assert retry_after([(b"Retry-After", value)]) == seconds

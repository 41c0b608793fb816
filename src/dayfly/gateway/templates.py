"""The templates that this gateway asked the node for: one per version that is worth it, and one per set of packages, from which versions
start that have none of their own yet. It makes them, hears of them, lets them go.

A template outlives the pool that wanted it: a function that is called once an hour should still start from one. What is decided is in
core/decide/snapshot.py. Called by gateway/fleet.py; the node's side is node/templates.py.
"""

import time
from collections.abc import Callable, Collection

import msgspec
import structlog

from dayfly.core.decide import snapshot
from dayfly.core.model.records import LogRecord
from dayfly.core.ports import Provider
from dayfly.core.wire.node import Exited
from dayfly.gateway.channel import Channel, Frame
from dayfly.gateway.deaths import init_error
from dayfly.gateway.entry import Entry
from dayfly.gateway.ledger import Ledger
from dayfly.gateway.outputs import Outputs
from dayfly.gateway.spawn import Role, spawn
from dayfly.runtime import frames

log = structlog.get_logger()

INFO = 20
REASONS_CHARACTERS_MAX = 1000
CHEAP_MAX = 1024
MAKING_SECONDS_MAX = 120.0  # one that says nothing for so long is given up: others wait for their turn
VersionKey = tuple[str, str, int]
Key = VersionKey | snapshot.Packages
Named = Callable[[VersionKey], bool]  # whether an alias names the version


class Template:
    """One version's; or, with `imports`, one of packages. `entry` is the one it was made for: its secrets are in it. `users`: the versions
    for whose sake it is kept."""

    def __init__(self, entry: Entry, imports: list[str] | None = None) -> None:
        self.entry = entry
        self.imports = imports
        self.users = {entry.version.key}
        self.state = snapshot.NONE
        self.tries = 0
        self.made_at = float("-inf")
        self.least_us = 1 << 53  # processor time of the cheapest init seen
        self.reason = ""
        self.channel: Channel | None = None

    def __repr__(self) -> str:
        what = "" if self.imports is None else f" {len(self.imports)} modules"
        return f"<Template {self.entry.version.key}{what} {self.state} {self.reason}>"

    @property
    def standing(self) -> Channel | None:
        """Its channel, when it can be asked for instances."""
        return self.channel if self.state == snapshot.READY else None


class Templates:
    """All of this gateway's."""

    def __init__(self, provider: Provider, ledger: Ledger, outputs: Outputs, prefix: str) -> None:
        self._provider = provider
        self._ledger = ledger
        self._outputs = outputs
        self._prefix = prefix
        self._number = 0
        self._by_key: dict[Key, Template] = {}
        self._by_id: dict[str, Template] = {}
        self._wanted: dict[Key, Entry] = {}  # the longest wanted first
        self._cheap: dict[
            VersionKey, None
        ] = {}  # versions with an init that was cheap once, the last one last; most are, so no more of them
        self._apart: set[VersionKey] = set()  # versions one of whose starts from packages failed

    def __repr__(self) -> str:
        return f"<Templates {list(self._by_key.values())}>"

    def parent(self, entry: Entry) -> str:
        """The id of the template that an instance of this version should come from, its own or that of its packages; empty when there is
        none."""
        found = self._by_key.get(entry.version.key)
        if found is not None and found.standing is not None and found.entry.secrets == entry.secrets:
            return found.standing.id
        packages = self._packages(entry)
        if packages is None or packages.standing is None or entry.version.key in self._apart:
            return ""
        packages.users.add(entry.version.key)
        return packages.standing.id

    def _packages(self, entry: Entry) -> Template | None:
        key = snapshot.packages_of(entry.version)
        return None if key is None else self._by_key.get(key)

    def _came_from(self, entry: Entry, channel: Channel) -> Channel | None:
        """The packages that this instance was asked for from, if they still stand."""
        packages = self._packages(entry)
        standing = packages.standing if packages is not None else None
        return standing if standing is not None and standing.id == channel.parent else None

    def ran_init(self, entry: Entry, channel: Channel) -> None:
        """An instance ran init itself, maybe but for its packages: is a template worth it? One is made in a quiet moment (`tick`)."""
        packages = self._came_from(entry, channel)
        init_cpu_us = channel.init_cpu_us + (packages.init_cpu_us if packages is not None else 0)
        key = entry.version.key
        found = self._by_key.get(key)
        if found is not None and found.entry.secrets != entry.secrets:
            self._let_go(found)
            del self._by_key[key]
            found = None
        if found is None and not snapshot.is_worth(init_cpu_us):
            self._note_cheap(key)
        elif found is not None or key not in self._cheap:
            found = self._by_key.setdefault(key, Template(entry))
            self._consider(key, found, entry, init_cpu_us)
        if channel.imports:
            self._imported(entry, channel.imports, channel.init_cpu_us)

    def _note_cheap(self, key: VersionKey) -> None:
        """A busy machine makes an init dearer, nothing makes it cheaper: one that was cheap once is not worth a template."""
        self._cheap.pop(key, None)
        if len(self._cheap) >= CHEAP_MAX:
            del self._cheap[next(iter(self._cheap))]
        self._cheap[key] = None

    def _imported(self, entry: Entry, imports: list[str], init_cpu_us: int) -> None:
        """Such an init imported these modules of its layer. Where a template of other modules was refused, one of these may do."""
        key = snapshot.packages_of(entry.version)
        if key is None:
            return
        found = self._by_key.get(key)
        if found is None or (found.state == snapshot.OFF and found.imports != imports):
            made = self._by_key[key] = Template(entry, imports)
            if found is not None:
                made.users |= found.users
                made.made_at = found.made_at
            found = made
        found.users.add(entry.version.key)
        if found.state == snapshot.NONE:
            found.imports = imports
        self._consider(key, found, entry, init_cpu_us)

    def _consider(self, key: Key, template: Template, entry: Entry, init_cpu_us: int) -> None:
        since = time.monotonic() - template.made_at
        template.least_us = min(template.least_us, init_cpu_us)  # as `_note_cheap` has it
        if snapshot.is_wanted(entry.version.config.snapshot, template.state, template.least_us, template.tries, since):
            self._wanted[key] = entry

    def start_failed(self, entry: Entry, channel: Channel) -> None:
        """An instance never became ready. If it came from packages, the next does without them: they may be why."""
        if self._came_from(entry, channel) is not None:
            self._apart.add(entry.version.key)

    def tick(self, *, quiet: bool) -> None:
        """Make one template that is wanted, if nothing waits for a start and no other is being made."""
        making = [template for template in self._by_key.values() if template.state == snapshot.MAKING]
        for silent in making:
            if time.monotonic() - silent.made_at > MAKING_SECONDS_MAX:
                self._lost(silent)
        if making or not self._wanted or not quiet or not self._provider.connected:
            return
        key = next(iter(self._wanted))
        entry = self._wanted.pop(key)
        template = self._by_key.get(key)
        if template is not None and template.state == snapshot.NONE:
            self._make(template, entry)

    def _make(self, template: Template, entry: Entry) -> None:
        self._number += 1
        channel = Channel(f"{self._prefix}-t{self._number:x}", self, entry, time.monotonic())
        template.entry, template.channel = entry, channel
        template.tries += 1
        template.made_at = channel.started_at
        template.state = snapshot.step(template.state, "wanted")
        self._by_id = {name: other for name, other in self._by_id.items() if other is not template}
        self._by_id[channel.id] = template  # until the node says how it ended
        role: Role = "template" if template.imports is None else "packages"
        if spawn(self._provider, entry, channel, role=role, imports=template.imports):
            self._lost(template)

    def keep(self, named: Named, here: Collection[VersionKey]) -> None:
        """Let go of those whose versions no alias names any more, if they are not `here` either."""
        self._apart = {key for key in self._apart if key in here or named(key)}
        for key, template in list(self._by_key.items()):
            template.users = {user for user in template.users if user in here or named(user)}
            if not template.users:
                self._let_go(template)
                del self._by_key[key]
                self._wanted.pop(key, None)

    def text(self, entry: Entry) -> str:
        """For people: the state, and why there is none when it is off."""
        found = self._by_key.get(entry.version.key)
        if found is None or found.state == snapshot.NONE:
            return ""
        return f"{found.state}: {found.reason}" if found.reason else found.state

    def gauge(self) -> None:
        """Tell each function's ledger."""
        for template in self._by_key.values():
            if template.imports is None:
                version = template.entry.version
                self._ledger.function(version.namespace, version.function).numbers.template = self.text(template.entry)

    def close(self) -> None:
        for template in self._by_key.values():
            self._let_go(template)

    # What templates and the node say

    def on_frame(self, channel: Channel, frame: Frame) -> None:
        template = self._by_id.get(channel.id)
        if template is None or template.channel is not channel:
            return
        if frame.kind == frames.LOG:
            self._outputs.frame(channel, frame)
        elif frame.kind == frames.READY and template.state == snapshot.MAKING:
            self._ready(template, channel, frame.meta)
        elif frame.kind == frames.FAILED and template.state == snapshot.MAKING:
            error = init_error(frame.meta)
            self._refuse(template, f"{error.get('errorType', 'Error')}: {error.get('errorMessage', '')}")
        else:
            self.on_end(channel, "garbage")

    def on_output(self, channel: Channel, data: bytes) -> None:
        self._outputs.raw(channel, data)

    def on_end(self, channel: Channel, reason: str) -> None:
        template = self._by_id.get(channel.id)
        if reason == "garbage":
            log.warning("template_sent_garbage", instance=channel.id)
        if template is not None and template.channel is channel:
            self._lost(template)

    def exited(self, message: Exited) -> None:
        """The node's word on an instance that is none of the fleet's."""
        template = self._by_id.pop(message.instance, None)
        if template is None:
            return
        if message.reason == "refused" and message.detail:
            self._refuse(template, message.detail)
        elif template.channel is not None:
            self._lost(template)

    def _ready(self, template: Template, channel: Channel, meta: bytes) -> None:
        try:
            channel.became_ready(meta, time.monotonic())
        except msgspec.DecodeError:
            self.on_end(channel, "garbage")
            return
        if channel.problems:
            self._refuse(template, "init leaves what cannot be copied: " + "; ".join(channel.problems))
            return
        if template.imports is not None and not snapshot.is_worth(channel.init_cpu_us):
            self._refuse(template, f"to import them takes {channel.init_cpu_us} µs")
            return
        template.state = snapshot.step(template.state, "stood")
        template.tries = 0
        version, modules = template.entry.version, len(template.imports or ())
        log.info("template_ready", function=version.function, version=version.number, init_us=channel.init_us, modules=modules)

    def _refuse(self, template: Template, reason: str) -> None:
        """There will be no template of this version; its owner reads why, in the log and in `describe`. Packages are nobody's."""
        template.reason = reason[:REASONS_CHARACTERS_MAX]
        template.state = snapshot.step(template.state, "refused")
        version = template.entry.version
        if template.imports is not None:
            log.debug("packages_refused", layer=version.layer_digest, reason=template.reason)
            self._close(template)
            return
        text = f"No snapshot of version {version.number}: {template.reason}. Instances run init themselves."
        record = LogRecord(time.time(), version.namespace, version.function, version.number, "", "", "platform", INFO, text)
        self._ledger.logged(template.entry.ledger, record, time.monotonic())
        self._close(template)

    def _lost(self, template: Template) -> None:
        template.state = snapshot.step(template.state, "lost")
        self._close(template)

    def _let_go(self, template: Template) -> None:
        if template.channel is not None:
            self._close(template)
            template.state = snapshot.step(template.state, "lost")

    def _close(self, template: Template) -> None:
        channel, template.channel = template.channel, None
        if channel is not None:
            self._provider.kill(channel.id)
            channel.close()

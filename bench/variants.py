"""How a cold start of one kind is forced: settings of a platform and of a function. Knows which of them this Dayfly has.

An older Dayfly (or a newer one that dropped a setting) is measured all the same; the report names what could not be set, and the
origins in the answers say what served the calls. Used by the cold benchmarks.
"""

from dataclasses import dataclass, field

import msgspec

from dayfly.core.model.function import FunctionConfig
from dayfly.core.model.settings import Settings


@dataclass(frozen=True)
class Variant:
    """`origin` is what shall have served the calls; '' for any."""

    origin: str = ""
    platform: dict[str, object] = field(default_factory=dict)
    function: dict[str, object] = field(default_factory=dict)

    def platform_settings(self) -> dict[str, object]:
        """Those of `platform` that this Dayfly knows."""
        return {name: value for name, value in self.platform.items() if name in _names(Settings)}

    def function_settings(self) -> dict[str, object]:
        """Those of `function` that this Dayfly knows."""
        return {name: value for name, value in self.function.items() if name in _names(FunctionConfig)}

    def notes(self) -> dict[str, str]:
        """For the report: what was wanted and is not there."""
        known = _names(Settings) | _names(FunctionConfig)
        missing = [f"{name} = {value!r}" for name, value in (self.platform | self.function).items() if name not in known]
        return {"not set, because this Dayfly does not know it": ", ".join(missing)} if missing else {}


def _names(shape: type[msgspec.Struct]) -> set[str]:
    return {one.name for one in msgspec.structs.fields(shape)}


ANY = Variant()
PREPARED = Variant("prepared")
FORK = Variant("fork", {"prepared_max": 0}, {"snapshot": "off"})
TEMPLATE = Variant("template", {"prepared_max": 0}, {"snapshot": "auto"})
AHEAD = Variant("ahead", {}, {"snapshot": "auto"})

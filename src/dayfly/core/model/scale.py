"""How many instances a function gets: by demand, or by a figure that each instance shall have (`[scale]` of dayfly.toml).

The shape is that of Knative's autoscaler (two windows, panic); the defaults are scaled to starts of milliseconds. What each may hold:
core/manifest/scale.py. Who decides by it: core/decide/autoscale.py. docs/scaling.md documents every key.
"""

from typing import Literal

import msgspec

Metric = Literal["demand", "concurrency", "rps", "cpu"]


class Scale(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """By what, and how fast. All but `metric` mean something only beside another metric than demand."""

    metric: Metric = "demand"
    target: float = 0.0  # of the metric, for one instance; 0 = the metric's own
    utilisation: float = 0.7  # the part of the target that is aimed at
    stable_window_seconds: float = 10.0
    panic_window_percent: float = 10.0  # of the stable window
    panic_threshold: float = 2.0  # so many times more than there are instances: panic
    scale_up_rate: float = 1000.0  # at most so many times as many by one decision
    scale_down_rate: float = 2.0  # at least one in so many stays
    scale_down_delay_seconds: float = 0.0  # fewer only once fewer were enough for so long


BY_DEMAND = Scale()

"""How many schedules the models play, and how.

By default always the same ones, so that a run that passed passes again. By hand, any number of new ones:

    LEGATO_MODEL_RUNS=20000 .venv/bin/python -m pytest -n 0 tests/property/test_log_model.py

`LEGATO_MODEL_SHRINK=no` reports a failing schedule as it was found and not its shortest form (which takes minutes).
"""

from __future__ import annotations

import os

from hypothesis import HealthCheck, Phase, settings

RUNS = os.environ.get("LEGATO_MODEL_RUNS")
SHRINK = os.environ.get("LEGATO_MODEL_SHRINK", "yes") != "no"

#: Finding the shortest form of a failing schedule takes its time; many schedules by hand take theirs.
TIMEOUT_SECONDS = 0 if RUNS else 600


def schedules(runs: int, *, steps: int = 50) -> settings:
    """Settings for a model that plays `runs` schedules of up to `steps` steps."""
    return settings(
        max_examples=int(RUNS) if RUNS else runs,
        stateful_step_count=steps,
        derandomize=RUNS is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if SHRINK else [])],
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
    )

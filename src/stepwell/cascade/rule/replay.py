"""Replaying a stopping rule over recorded paths, all prompts at once.

Owns the walk through the states and its bookkeeping; a rule says only, for prompts in one state,
which of them go on and with which action.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from stepwell.cascade.rule.outlook import Outlook, detours, look_ahead, stages_of
from stepwell.cascade.rule.paths import BoolArray, IntArray, Outcome, Paths, incremental_costs

Rule = Callable[[Outlook], tuple[BoolArray, IntArray]]


def replay(
    paths: Paths,
    costs: npt.ArrayLike,
    price: float,
    rule: Rule,
    quoted: npt.ArrayLike | None = None,
) -> Outcome:
    """What `rule` does with each prompt, the answer returned being the one believed in most.

    costs are paid; quoted, the same if not given, is what the rule is told of them.

    The rule is asked in every state but those after the last stage, where everything stops, and
    must send every prompt on from state 0, where nothing was run.
    """
    num_stages = paths.num_stages
    paid = incremental_costs(costs, len(paths), num_stages)
    told = paid if quoted is None else incremental_costs(quoted, len(paths), num_stages)
    shortest = detours(told)
    states = np.zeros(len(paths), dtype=np.int64)
    stopped = np.zeros(len(paths), dtype=np.bool_)
    returned = np.zeros(len(paths), dtype=np.int64)
    cost = np.zeros(len(paths))
    for state in range(1 << num_stages):  # a state's successors have higher numbers
        rows = np.flatnonzero((states == state) & ~stopped)
        last = state.bit_length()
        beliefs = paths.after(state)[rows]
        if last < num_stages and len(rows):
            outlook = look_ahead(state, beliefs, told[rows], shortest[rows], price)
            going, action = rule(outlook)
            onward, action = rows[going], action[going]
            cost[onward] += paid[onward, last, last + action]
            states[onward] |= 1 << (last + action)
            rows, beliefs = rows[~going], beliefs[~going]
        if state:
            seen = np.array(stages_of(state))
            returned[rows] = seen[beliefs[:, seen - 1].argmax(axis=1)]
            stopped[rows] = True
    stages_run = (states[:, None] >> np.arange(num_stages) & 1).astype(np.bool_)
    return Outcome(returned, stages_run, cost, paths.good[np.arange(len(paths)), returned - 1])

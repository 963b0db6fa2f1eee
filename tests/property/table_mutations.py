"""``TABLE_RUNS=200 python -m tests.property.table_mutations [NAME...]``: breaks the table of truth in a copy of the project, one place
at a time, and sees its model notice (`test_state_machine`), which must find nothing in the copy before.

One that cannot be noticed is not here: in `complete` the job's state is asked for before the item's, and could be left out.  Whatever ends
a job takes its running items with it, in the same script (`stop_all` in _ends.lua: each of them becomes `stopped`), and the audit after
each step of the model sees that no item of an ended job runs.  So the item's own state refuses a late result, whatever the job's says; once
the keys of job and items have expired, which they do together, an item that is not there counts as pending, and is refused by that.
"""
from __future__ import annotations

import sys
import time

from tests.smoke.mutations import copy_of_the_project, without
from tests.smoke.promises import SCRIPTS, Mutation

MODEL = "tests/property/test_state_machine.py"
MUTATIONS = {
    "lost tickets in renew": Mutation(f"{SCRIPTS}/renew.lua", "cover_all(tickets_expire(name, facts, num(ARGV[4])), out)", ""),
    "compared before the pairs": Mutation(
        "distributed_comfy/state/matching.py",
        "        for start in range(0, len(pairs), _BATCH):",
        "        if compared:\n"
        '            self._scripts.transition("serve", len(compared), *compared)\n'
        "        for start in range(0, len(pairs), _BATCH):",
    ),
    "a late result of another claim": Mutation(
        f"{SCRIPTS}/complete.lua", "or item.s ~= 'running' or item.c ~= claim then", "or item.s == 'done' then"
    ),
    "a claim twice": Mutation(f"{SCRIPTS}/claim.lua", "if known then return answer(halves(known)) end", ""),
    "a result twice": Mutation(f"{SCRIPTS}/complete.lua", "if item.s == 'done' and item.c == claim then", "if false then"),
    "attempts without end": Mutation(f"{SCRIPTS}/_ends.lua", "if item.a[class] >= max_attempts then return false end", ""),
    "what is not held stays": Mutation(f"{SCRIPTS}/renew.lua", "elseif missed_by ~= this_call then", "elseif false then"),
    "a new worker is not compared": Mutation(
        "distributed_comfy/state/workers.py", "self._matching.match_capability(capability_hash, capability)", "pass"
    ),
    "what the owner has runs again": Mutation(f"{SCRIPTS}/collect.lua", "      take_back(index, item, out)\n", ""),
    "tickets of a buried worker": Mutation(f"{SCRIPTS}/reap.lua", "  tickets_withdraw(name, worker)\n", ""),
}


def main(names: list[str]) -> int:
    """Exit status: 1 where the table can be broken unseen."""
    unseen = 0
    for name, mutation in MUTATIONS.items():
        if names and name not in names:
            continue
        began = time.monotonic()
        with copy_of_the_project() as copy:
            outcome = without(copy, mutation, MODEL)
        unseen += outcome.verdict != "fails"
        print(f"{outcome.verdict} {time.monotonic() - began:5.0f} s  {name} ({mutation.file}): {outcome.says}", flush=True)  # noqa: T201
    return 1 if unseen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

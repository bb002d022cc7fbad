"""How often `Scan.suggest` is right: planted ranks, and matrices without structure.

Three kinds of evidence, each from the same number of runs: other starts only ("plain"), each run on
a V perturbed by 5 % ("perturb"), and with other 5 % of the entries hidden from each ("held-out").
The rule was chosen on the matrices of `--seed 1`; the default is another.
"""

import argparse
import time
from collections.abc import Iterable
from typing import Any

from dask_nmf import Suggestion, scan
from tests.benchmarks.common import table
from tests.benchmarks.planted import PLANTED, without_structure
from tests.conftest import Array

KINDS: dict[str, dict[str, Any]] = {
    "held-out": {"held_out": 0.05},
    "perturb": {"perturb": 0.05},
    "plain": {},
}


def suggestion(V: Array, ranks: Iterable[int], kind: str, restarts: int) -> Suggestion:
    return scan(V, ranks, restarts=restarts, max_passes=40, **KINDS[kind]).suggest()


def _told(found: Suggestion, wanted: int | None) -> str:
    votes = (f"{name} {rank or '-'}" for name, rank in found.votes.items() if name != "elbow")
    wrong = "" if found.rank == wanted else " WRONG"
    return f"{found.rank}{wrong} ({', '.join(votes)})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--restarts", type=int, default=8)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--from-rank", type=int, default=1)
    given = parser.parse_args()
    first = given.from_rank
    todo: list[tuple[str, Array, int, int | None]] = [
        (str(one), one.make(given.seed * 100 + i), one.rank + 4, one.rank)
        for i, one in enumerate(PLANTED)
    ]
    for name, V in without_structure(given.seed * 100 + 50).items():
        todo.append((name, V, 7, 1 if name.startswith("rank 1") and first == 1 else None))
    rows, right = [], dict.fromkeys(given.kinds, 0)
    of_none = dict.fromkeys(given.kinds, 0)
    for name, V, last, rank in todo:
        row = [name, str(rank)]
        for kind in given.kinds:
            began = time.perf_counter()
            found = suggestion(V, range(first, last + 1), kind, given.restarts)
            (right if (rank or 0) > 1 else of_none)[kind] += found.rank == rank
            row.append(_told(found, rank))
            print(f"{time.perf_counter() - began:5.1f} s {kind} {name}: {found}", flush=True)
        rows.append(row)
    structureless = len(todo) - len(PLANTED)
    rows.append([f"right, of {len(PLANTED)}", "", *(str(x) for x in right.values())])
    rows.append([f"right, of {structureless}", "", *(str(x) for x in of_none.values())])
    table(f"suggested ranks, seed {given.seed}", ["V", "rank", *given.kinds], rows)


if __name__ == "__main__":
    main()

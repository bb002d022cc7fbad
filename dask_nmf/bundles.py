"""Tasks of neighbouring blocks as one, for a cluster whose scheduler would have too many.

A scheduler takes some milliseconds for each task, whatever it does. So a graph with more than 10^4
of them is cut by rows of blocks: each bundle reads its blocks one after the other, in one task,
and what leaves it are the sums over them (and what is asked for block by block). The tasks and
their order in the sums stay what they are, and so do the bits.
"""

from collections.abc import Callable, Hashable, Sequence
from math import ceil
from operator import itemgetter
from typing import Any

import dask.array as da
from dask._task_spec import DataNode, GraphNode, Task, TaskRef, convert_legacy_graph
from dask.base import tokenize
from dask.core import flatten, toposort
from dask.highlevelgraph import HighLevelGraph

from dask_nmf.geometry import FAN_IN

Graph = dict[Hashable, GraphNode]

MOST_TASKS = 10_000  # that a scheduler is given for a pass, if that leaves enough for each thread
_EACH = 8  # bundles of a thread, at least
NAME = "nmf-bundle"


def bundled(collections: Sequence[Any], threads: Callable[[], int]) -> tuple[list[Any], int]:
    """The collections, in bundles if they are many tasks; and the row blocks of a bundle.

    threads : tells how many all workers have together.
    """
    layers = HighLevelGraph.merge(*(x.__dask_graph__() for x in collections))
    if sum(map(len, layers.layers.values())) <= MOST_TASKS:
        return list(collections), 1
    wanted = {key for x in collections for key in flatten(x.__dask_keys__())}
    graph: Graph = convert_legacy_graph(dict(da.Array.__dask_optimize__(layers, wanted)))
    rows = _rows(graph)
    size = size_of(1 + max(rows.values(), default=0), len(graph), threads())
    if size == 1:
        return list(collections), 1
    name = f"{NAME}-{tokenize(sorted(map(str, wanted)))}"
    graph = _in_bundles(graph, rows, wanted, size, name)
    layers = HighLevelGraph({name: graph}, {name: set()})
    rebuilt = (x.__dask_postpersist__() for x in collections)
    return [rebuild(layers, *args) for rebuild, args in rebuilt], size


def size_of(blocks: int, tasks: int, threads: int) -> int:
    """Row blocks per bundle, a power of the sums' width: as few as make the tasks few enough.

    Threads are to have several bundles each: some of them have one more than others.
    """
    size = 1
    while tasks > MOST_TASKS and blocks >= _EACH * threads * size * FAN_IN:
        size *= FAN_IN
        tasks = 3 * ceil(blocks / size)  # a bundle, and two sums that leave it
    return size


def _rows(graph: Graph) -> dict[Hashable, int]:
    """The row of blocks of each task that begins with something in blocks, such as a read of V."""
    sources: dict[str, dict[Hashable, int]] = {}
    for key, task in graph.items():
        if not task.dependencies and isinstance(key, tuple):
            sources.setdefault(key[0], {})[key] = key[1]
    several = (found for found in sources.values() if len(set(found.values())) > 1)
    return {key: row for found in several for key, row in found.items()}


def _in_bundles(
    graph: Graph, rows: dict[Hashable, int], wanted: set[Hashable], size: int, name: str
) -> Graph:
    """The graph with what is made of the rows of one bundle alone inside of that."""
    # What the workers hold already is in no graph.
    dependencies = {key: task.dependencies & graph.keys() for key, task in graph.items()}
    spans: dict[Hashable, tuple[int, int]] = {}  # first and last row that it is made of
    inside: dict[int, list[Hashable]] = {}
    outside: Graph = {}
    depth_first = {**dict.fromkeys(sorted(wanted, key=str)), **graph}
    for key in toposort(depth_first, dependencies=dependencies):
        of = [spans[other] for other in dependencies[key] if other in spans]
        of += [(rows[key],) * 2] if key in rows else []
        if of:
            spans[key] = min(first for first, _ in of), max(last for _, last in of)
        first, last = spans.get(key, (0, size))
        if first // size == last // size:
            inside.setdefault(first // size, []).append(key)
        else:
            outside[key] = graph[key]
    leaving = wanted.union(*(dependencies[key] for key in outside))
    for number, keys in inside.items():
        # Row by row, not as dask would order them: all reads first.
        tasks = [graph[key] for key in sorted(keys, key=lambda key: spans[key][1])]
        span = number * size, (number + 1) * size
        outside |= _bundle((name, *span), tasks, [key for key in keys if key in leaving])
    return outside


def _bundle(name: Hashable, tasks: list[GraphNode], outputs: list[Hashable]) -> Graph:
    """One task for all of them, and one for each of its outputs."""
    made = {task.key for task in tasks}
    needed = sorted({key for task in tasks for key in task.dependencies} - made, key=str)
    last_use = {key: i for i, task in enumerate(tasks) for key in task.dependencies}
    steps: list[tuple[GraphNode, list[Hashable]]] = [(task, []) for task in tasks]
    for key in last_use.keys() - set(outputs):
        steps[last_use[key]][1].append(key)
    told = DataNode(None, (steps, outputs, needed))
    found: Graph = {name: Task(name, run, told, *map(TaskRef, needed))}
    for i, output in enumerate(outputs):
        found[output] = Task(output, itemgetter(i), TaskRef(name))
    return found


def run(told: tuple[Any, list[Hashable], list[Hashable]], *given: Any) -> tuple[Any, ...]:
    """The outputs of the steps; all else is dropped after its last use."""
    steps, outputs, needed = told
    found = dict(zip(needed, given, strict=True))
    for task, done_with in steps:
        found[task.key] = task(found)
        for key in done_with:
            del found[key]
    return tuple(found[key] for key in outputs)

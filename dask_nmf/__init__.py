"""Non-negative matrix factorization of chunked arrays larger than memory, one read per sweep.

>>> import dask_nmf, numpy as np
>>> result = dask_nmf.factorize(np.outer([1.0, 2, 3], [4.0, 5]), rank=1)
>>> bool(result.error < 1e-9)
True
"""

import logging
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dask_nmf import oracle
    from dask_nmf.annotating import annotate
    from dask_nmf.converting import convert
    from dask_nmf.divergences import Beta
    from dask_nmf.driver import factorize
    from dask_nmf.errors import (
        ClusterLost,
        PoisonBlock,
        RunStopped,
        RunTakenOver,
        StorageFailed,
    )
    from dask_nmf.estimator import NMF
    from dask_nmf.functional import non_negative_factorization
    from dask_nmf.init import NNDSVD, Random
    from dask_nmf.newton import Newton
    from dask_nmf.output import open_result
    from dask_nmf.pictures import plot_component, plot_history, plot_map, plot_scatter
    from dask_nmf.planner import plan
    from dask_nmf.plans import Plan
    from dask_nmf.plots import plot_components, plot_consensus, plot_ranks
    from dask_nmf.rechunking import rechunk
    from dask_nmf.reporting import report
    from dask_nmf.result import Result
    from dask_nmf.scanning import scan
    from dask_nmf.scans import Consensus, Scan
    from dask_nmf.solvers import HALS, MU, LookAhead
    from dask_nmf.stopping import Status
    from dask_nmf.stream import update_H, update_W
    from dask_nmf.suggesting import Suggestion
    from dask_nmf.transforming import transform
    from dask_nmf.types import ConvergenceWarning, SweepRecord

__version__ = "0.1.0"

logging.getLogger(__name__).addHandler(logging.NullHandler())

# Imported on first use: dask.array alone takes seconds, which an ETL scheduler that only parses
# the calling script should not pay.
_HOME = {
    "Beta": "divergences",
    "ClusterLost": "errors",
    "Consensus": "scans",
    "ConvergenceWarning": "types",
    "HALS": "solvers",
    "LookAhead": "solvers",
    "MU": "solvers",
    "NMF": "estimator",
    "NNDSVD": "init",
    "Newton": "newton",
    "Plan": "plans",
    "PoisonBlock": "errors",
    "Random": "init",
    "Result": "result",
    "RunStopped": "errors",
    "RunTakenOver": "errors",
    "Scan": "scans",
    "Status": "stopping",
    "StorageFailed": "errors",
    "Suggestion": "suggesting",
    "SweepRecord": "types",
    "annotate": "annotating",
    "convert": "converting",
    "factorize": "driver",
    "non_negative_factorization": "functional",
    "open_result": "output",
    "open_scan": "scanning",
    "oracle": "oracle",
    "plan": "planner",
    "plot_component": "pictures",
    "plot_components": "plots",
    "plot_consensus": "plots",
    "plot_history": "pictures",
    "plot_map": "pictures",
    "plot_ranks": "plots",
    "plot_scatter": "pictures",
    "rechunk": "rechunking",
    "report": "reporting",
    "scan": "scanning",
    "transform": "transforming",
    "update_H": "stream",
    "update_W": "stream",
}

__all__ = [
    "HALS",
    "MU",
    "NMF",
    "NNDSVD",
    "Beta",
    "ClusterLost",
    "Consensus",
    "ConvergenceWarning",
    "LookAhead",
    "Newton",
    "Plan",
    "PoisonBlock",
    "Random",
    "Result",
    "RunStopped",
    "RunTakenOver",
    "Scan",
    "Status",
    "StorageFailed",
    "Suggestion",
    "SweepRecord",
    "annotate",
    "convert",
    "factorize",
    "non_negative_factorization",
    "open_result",
    "open_scan",
    "oracle",
    "plan",
    "plot_component",
    "plot_components",
    "plot_consensus",
    "plot_history",
    "plot_map",
    "plot_ranks",
    "plot_scatter",
    "rechunk",
    "report",
    "scan",
    "transform",
    "update_H",
    "update_W",
]

if find_spec("sklearn") is None:  # of an extra: a star import asks for each name
    __all__ = [name for name in __all__ if name not in ("NMF", "non_negative_factorization")]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(f"{__name__}.{_HOME[name]}")
    value = module if name == _HOME[name] == "oracle" else getattr(module, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)

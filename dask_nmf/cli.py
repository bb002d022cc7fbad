"""The command line: ``dask-nmf fit``, ``plan``, ``show``, ``report`` and others; see --help."""

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dask
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from dask_nmf.converting import convert
from dask_nmf.converting import describe as describe_csr
from dask_nmf.doctor import WRONG, examine
from dask_nmf.driver import factorize
from dask_nmf.errors import RunStopped
from dask_nmf.newton import Newton
from dask_nmf.planner import plan
from dask_nmf.rechunking import describe as describe_copy
from dask_nmf.rechunking import rechunk
from dask_nmf.reporting import report
from dask_nmf.result import Result
from dask_nmf.scanning import open_either
from dask_nmf.scans import Scan
from dask_nmf.solvers import HALS, MU
from dask_nmf.tables import as_text, ends, facts_as_text
from dask_nmf.types import ConvergenceWarning, SweepRecord

DONE, FAILURE, BAD_INPUT, NOT_CONVERGED, STOPPED = range(5)
_BAD_INPUT = (
    ValueError,
    TypeError,
    FileExistsError,
    FileNotFoundError,
    NotADirectoryError,
    PermissionError,
)

_SHOWN = ("sweep", "passes", "error", "kkt", "seconds")  # of the history

logger = logging.getLogger("dask_nmf")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        code: int = arguments.run(arguments)
    except Exception as error:
        logger.debug("traceback", exc_info=True)
        print(f"dask-nmf: {type(error).__name__}: {error}", file=sys.stderr)
        if isinstance(error, RunStopped):
            return STOPPED
        return BAD_INPUT if isinstance(error, _BAD_INPUT) else FAILURE
    return code


def _fit(arguments: argparse.Namespace) -> int:
    names = ("init", "tol", "max_passes", "max_seconds", "seed", "memory", "block_rows")
    more = ("missing", "overwrite", "checkpoint_every", "weights", "alpha_W", "l1_ratio")
    known = ("fixed_H", "sum_to_one", "perturb", "held_out", "restarts", "layer", "feature_dim")
    options = {name: getattr(arguments, name) for name in (*names, *more, *known)}
    options |= {"loss": _number_or_name(arguments.loss)}
    options |= {"alpha_H": _number_or_name(arguments.alpha_H)}
    with (
        _scheduler(arguments.scheduler),
        warnings.catch_warnings(),
        logging_redirect_tqdm(),
        tqdm(total=arguments.max_passes, unit="pass", disable=None, leave=False) as bar,
    ):
        warnings.simplefilter("ignore", ConvergenceWarning)  # the summary says it

        def show(record: SweepRecord) -> None:
            bar.update(record.passes - bar.n)
            bar.set_postfix_str(f"error {record.error:.6g}")

        result = factorize(
            arguments.V,
            arguments.rank,
            out=arguments.out,
            solver=_solver(arguments),
            callback=show if arguments.restarts == 1 else None,
            **options,
        )
    print(json.dumps(result.summary(), indent=2))
    if arguments.require_convergence and not result.status.converged:
        return NOT_CONVERGED
    return DONE


def _solver(arguments: argparse.Namespace) -> Any:
    if arguments.inner is None:
        return arguments.solver
    kinds: dict[str, Any] = {"mu": MU, "newton": Newton}
    return kinds.get(arguments.solver, HALS)(arguments.inner)


def _plan(arguments: argparse.Namespace) -> int:
    names = ("init", "weights", "max_passes", "memory", "block_rows", "missing")
    more = ("fixed_H", "sum_to_one", "perturb", "held_out", "layer", "feature_dim")
    with _scheduler(arguments.scheduler):
        found = plan(
            arguments.V,
            arguments.rank,
            out=None if arguments.no_out else "out",
            loss=_number_or_name(arguments.loss),
            solver=_solver(arguments),
            probe=arguments.probe,
            **{name: getattr(arguments, name) for name in (*names, *more)},
        )
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found)
    return DONE


def _rechunk(arguments: argparse.Namespace) -> int:
    options = {name: getattr(arguments, name) for name in ("memory", "missing", "codec")}
    chunks = tuple(arguments.chunks) if arguments.chunks else None
    with _scheduler(arguments.scheduler):
        copy = rechunk(arguments.V, arguments.out, chunks=chunks, **options)
    print(describe_copy(copy))
    return DONE


def _convert(arguments: argparse.Namespace) -> int:
    options = {name: getattr(arguments, name) for name in ("memory", "overwrite", "layer")}
    print(describe_csr(convert(arguments.source, arguments.out, **options)))
    return DONE


def _show(arguments: argparse.Namespace) -> int:
    found = open_either(arguments.out)
    if arguments.json:
        summary = found.rows() if isinstance(found, Scan) else found.summary()
        print(json.dumps(summary, indent=2))
    else:
        print(found if isinstance(found, Scan) else describe(found))
    return DONE


def _report(arguments: argparse.Namespace) -> int:
    names = None
    if arguments.names:
        names = Path(arguments.names).read_text(encoding="utf-8").splitlines()
    options = {name: getattr(arguments, name) for name in ("title", "rank", "row_shape")}
    path = report(
        arguments.out, arguments.page, names=names, column_shape=arguments.column_shape, **options
    )
    print(path)
    return DONE


def _doctor(arguments: argparse.Namespace) -> int:
    worst = DONE
    with _scheduler(arguments.scheduler) as client:
        if client is None:
            raise ValueError("--scheduler must be an address such as tcp://host:8786")
        for finding in examine(client, arguments.V, arguments.out):
            print(finding, flush=True)
            worst = FAILURE if finding.level == WRONG else worst
    return worst


def describe(result: Result) -> str:
    """What a results group holds, as text."""
    history = [{name: getattr(record, name) for name in _SHOWN} for record in result.history]
    return "\n".join(
        [
            repr(result),
            f"W  {result.W.shape} {result.W.dtype}, chunks of {result.W.chunksize[0]} rows",
            f"H  {result.H.shape} {result.H.dtype}",
            "",
            facts_as_text(result.summary().items()),
            "",
            as_text(ends(history)),
        ]
    )


def _number_or_name(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


@contextmanager
def _scheduler(address: str | None) -> Iterator[Any]:
    """Dask's own choice, a local scheduler by name, or the client of a running cluster."""
    if address is None:
        yield
    elif "://" in address:
        from distributed import Client  # takes a second: only when asked for

        try:  # one that fails must not be dask's default
            Client(address, timeout=30, set_as_default=False).close()
        except Exception as error:  # of many types, as distributed's connections may fail
            raise RuntimeError(
                f"--scheduler: no connection to a scheduler at {address}: "
                f"{type(error).__name__}: {error}. Is it at work there? Where it wants TLS, the "
                "address is tls://..., and dask's configuration names certificate and key "
                "(distributed.comm.tls)"
            ) from error
        with Client(address, timeout=30) as client:
            yield client
    elif address in ("threads", "synchronous"):
        with dask.config.set(scheduler=address):
            yield
    else:
        raise ValueError(
            "--scheduler must be 'threads', 'synchronous' or an address such as "
            f"tcp://host:8786, got {address!r}"
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="dask-nmf",
        description="Non-negative matrix factorization of zarr arrays larger than memory.",
        epilog="Exit codes: 0 done, 1 failure, 2 bad input, 3 not converged (if required), "
        "4 stopped: the same command goes on.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="factor a zarr array into W and H")
    fit.set_defaults(run=_fit)
    fit.add_argument("V", help="path or URL of a zarr array, sparse group or AnnData store")
    fit.add_argument("out", help="path or URL of the zarr group for W, H and the history")
    _shared(fit)
    fit.add_argument("--alpha-W", type=float, default=0.0, help="penalty on W, times columns")
    fit.add_argument("--alpha-H", default="same", help="penalty on H, times rows; same as on W")
    fit.add_argument("--l1-ratio", type=float, default=0.0, help="of the penalties; else L2")
    fit.add_argument("--tol", type=float, default=5e-3, help="KKT residual to stop at")
    fit.add_argument("--max-seconds", type=float, help="stop after the sweep that passes this")
    fit.add_argument("--seed", type=int, default=0)
    fit.add_argument("--restarts", type=int, default=1, help="seeds, of which the best is kept")
    fit.add_argument("--overwrite", action="store_true", help="replace what another call left")
    fit.add_argument("--checkpoint-every", type=int, help="sweeps between two commits")
    fit.add_argument(
        "--require-convergence", action="store_true", help="exit 3 if the budget ended the run"
    )
    fit.add_argument("--quiet", action="store_true", help="no line per pass")

    before = commands.add_parser("plan", help="what a fit would read, hold and write")
    before.set_defaults(run=_plan, quiet=True)
    before.add_argument("V", help="path or URL of the zarr array")
    _shared(before)
    before.add_argument("--probe", action="store_true", help="time one block, for a pass's seconds")
    before.add_argument("--no-out", action="store_true", help="W stays in memory, as with out=None")
    before.add_argument("--json", action="store_true", help="the plan as JSON")

    copy = commands.add_parser("rechunk", help="copy a zarr array to chunks that are read fast")
    copy.set_defaults(run=_rechunk, quiet=False)
    copy.add_argument("V", help="path or URL of the zarr array")
    copy.add_argument("out", help="path or URL of the copy; a killed call goes on there")
    copy.add_argument("--chunks", type=int, nargs=2, metavar=("ROWS", "COLUMNS"))
    copy.add_argument("--codec", default="lz4", help="lz4, zstd or none; with a checksum")
    _where(copy)

    sparse = commands.add_parser("convert", help="copy a sparse matrix from a file to zarr")
    sparse.set_defaults(run=_convert, quiet=False)
    sparse.add_argument("source", help=".mtx, .mtx.gz, .npz, .h5ad or .parquet file")
    sparse.add_argument("out", help="path or URL of the CSR group, as AnnData lays it out")
    sparse.add_argument("--memory", help="limit for this process, such as 2GiB")
    sparse.add_argument("--layer", help="of an .h5ad file: this layer rather than X")
    sparse.add_argument("--overwrite", action="store_true", help="replace another CSR group")

    doctor = commands.add_parser("doctor", help="what would go wrong on a cluster")
    doctor.set_defaults(run=_doctor, quiet=False)
    doctor.add_argument("--scheduler", required=True, help="its address: tcp://host:8786")
    doctor.add_argument("--V", help="path or URL: can client and workers open it?")
    doctor.add_argument("--out", help="path or URL: can workers write there, and only once?")

    show = commands.add_parser("show", help="print what a results group holds, or a scan's")
    show.set_defaults(run=_show, quiet=False)
    show.add_argument("out", help="path or URL of the results")
    show.add_argument("--json", action="store_true", help="the summary only, as JSON")

    page = commands.add_parser("report", help="a page with the numbers and pictures of the results")
    page.set_defaults(run=_report, quiet=False)
    page.add_argument("out", help="path or URL of the results, also of a scan")
    page.add_argument("page", help="the .html file to write")
    page.add_argument("--names", help="text file with a name for each column of V, one a line")
    for of in ("column", "row"):
        told = f"V's {of}s are the pixels of such an image"
        page.add_argument(f"--{of}-shape", type=int, nargs=2, metavar=("H", "W"), help=told)
    page.add_argument("--rank", type=int, help="of a scan: which to show; none: as suggested")
    page.add_argument("--title", help="of the page")
    return parser


def _shared(command: argparse.ArgumentParser) -> None:
    """What decides the plan of a fit."""
    command.add_argument("--rank", type=int, required=True, help="number of components, k")
    command.add_argument("--loss", default="frobenius", help="or kullback-leibler, or a beta")
    command.add_argument("--solver", default="auto", help="auto, hals, mu or newton")
    command.add_argument("--inner", type=int, help="inner sweeps per half-step")
    command.add_argument("--fixed-H", help="zarr array of the first rows of H, which are known")
    command.add_argument("--sum-to-one", action="store_true", help="each row of W sums to one")
    command.add_argument("--perturb", type=float, default=0.0, help="noise on V's entries, a share")
    command.add_argument("--held-out", type=float, default=0.0, help="share of entries not seen")
    command.add_argument("--weights", help="path or URL of an array like V; 0: not there")
    command.add_argument("--layer", help="of an AnnData store, rather than X")
    command.add_argument("--feature-dim", help="of an array with more dimensions: the columns")
    command.add_argument("--init", default="random", help="random, nndsvd, nndsvda or nndsvdar")
    command.add_argument("--max-passes", type=int, default=200, help="most passes over V")
    command.add_argument("--block-rows", type=int, help="rows of V per block")
    _where(command)


def _where(command: argparse.ArgumentParser) -> None:
    """What all that read V share."""
    command.add_argument("--memory", help="limit per worker process, such as 2GiB")
    command.add_argument(
        "--missing", default="error", help="error, zero (for chunks) or nan (entries)"
    )
    command.add_argument("--scheduler", help="tcp://host:8786 of a running cluster, or threads")


if __name__ == "__main__":
    sys.exit(main())

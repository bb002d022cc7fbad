"""The command line: the same options, its exit codes, one log line per sweep."""

import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import zarr

import dask_nmf
from dask_nmf import cli
from tests.conftest import low_rank


@pytest.fixture
def V(tmp_path: Path) -> Iterator[Path]:
    zarr.create_array(tmp_path / "V.zarr", data=low_rank(60, 12, 2), chunks=(10, 6))
    yield tmp_path / "V.zarr"
    logging.getLogger("dask_nmf").setLevel(logging.NOTSET)


def _run(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_fit_and_show(
    V: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    out = V.parent / "out.zarr"
    assert _run("fit", V, out, "--rank", 2, "--max-passes", 9, "--tol", 0, "--seed", 3) == cli.DONE
    printed = capsys.readouterr()
    summary = json.loads(printed.out)
    expected = dask_nmf.factorize(V, 2, max_passes=9, tol=0, seed=3)
    assert summary["error"] == expected.error
    assert summary["passes"] == 9
    sweeps = [r.message for r in caplog.records if r.message.startswith("sweep")][:8]
    assert len(sweeps) == 8
    assert sweeps[0].startswith("sweep 1 pass 2 error 0.")
    assert "pass/s" not in printed.err  # no bar off a terminal
    assert _run("show", out) == cli.DONE
    shown = capsys.readouterr().out
    assert f"error {expected.error:.6g} after 8 sweeps (9 passes)" in shown
    assert "W  (60, 2) float64" in shown
    assert _run("show", out, "--json") == cli.DONE
    assert json.loads(capsys.readouterr().out) == summary


def test_options_are_factorizes() -> None:
    parsed = vars(cli._parser().parse_args(["fit", "V", "out", "--rank", "1"]))
    parameters = signature(dask_nmf.factorize).parameters
    for name in set(parameters) - {"V", "rank", "out", "callback"}:
        assert parsed[name] == parameters[name].default, name


def test_options_reach_the_run(V: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ("--rank", 2, "--max-passes", 5, "--tol", 0, "--quiet", "--overwrite")
    out = V.parent / "out.zarr"
    for given, name, expected in (
        (("--solver", "mu", "--inner", 3), "solver", "MU(inner=3)"),
        (("--inner", 2), "solver", "HALS(inner=2, settle=0.0)"),
        (("--init", "nndsvda"), "init", "NNDSVD(fill='mean', power=2)"),
        (("--memory", "1GiB"), "memory", 2**30),
        (("--block-rows", 20), "blocks", 3),
        (("--missing", "zero"), "missing", "zero"),
        (("--scheduler", "synchronous"), "scheduler", "synchronous"),
        (("--max-seconds", 1e-9), "status", "max_seconds"),
    ):
        assert _run("fit", V, out, *few, *given) == cli.DONE
        assert json.loads(capsys.readouterr().out)[name] == expected


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (("fit", "nothing.zarr", "out.zarr", "--rank", 2), cli.BAD_INPUT, "no zarr array at"),
        (("fit", "V.zarr", "out.zarr", "--rank", 0), cli.BAD_INPUT, "rank must be at least 1"),
        (("fit", "V.zarr", "V.zarr", "--rank", 2), cli.BAD_INPUT, "is a zarr array"),
        (("fit", "V.zarr", "o", "--rank", 2, "--solver", "x"), cli.BAD_INPUT, "solver must be"),
        (("fit", "V.zarr", "o", "--rank", 2, "--scheduler", "x"), cli.BAD_INPUT, "--scheduler"),
        (
            ("fit", "V.zarr", "o", "--rank", 2, "--scheduler", "tls://127.0.0.1:1"),
            cli.FAILURE,
            "no connection to a scheduler at tls://127.0.0.1:1: TypeError: TLS expects",
        ),
        (("show", "V.zarr"), cli.BAD_INPUT, "is a zarr array"),
        (("show", "nothing.zarr"), cli.BAD_INPUT, "no dask_nmf result at"),
    ],
)
def test_bad_input(
    V: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[Any, ...],
    code: int,
    text: str,
) -> None:
    monkeypatch.chdir(V.parent)
    assert _run(*arguments) == code
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""


def test_a_scheduler_that_does_not_answer_is_not_asked_again() -> None:
    """A client that has failed would be dask's default as long as its error is held."""
    from distributed import Client

    with (
        pytest.raises(RuntimeError, match="no connection") as failed,
        cli._scheduler("tls://127.0.0.1:1"),
    ):
        raise AssertionError
    with pytest.raises(ValueError, match="No clients found"):
        Client.current()
    assert failed.value.__cause__ is not None


def test_the_best_of_several(V: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, few = V.parent / "out.zarr", ("--rank", 3, "--max-passes", 4, "--restarts", 3)
    assert _run("fit", V, out, *few, "--perturb", 0.2) == cli.DONE
    summary = json.loads(capsys.readouterr().out)
    best = dask_nmf.factorize(V, 3, max_passes=4, restarts=3, perturb=0.2)
    assert summary["error"] == best.error
    assert summary["out"] == dask_nmf.open_scan(out).best(3).out


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["fit", "V.zarr", "out.zarr"], [], ["fit", "a", "b", "--rank", "two"]):
        with pytest.raises(SystemExit) as stopped:
            cli.main(arguments)
        assert stopped.value.code == 2


def test_failure_exits_with_1(V: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(cli, "factorize", broken)
    assert _run("fit", V, V.parent / "out.zarr", "--rank", 2) == cli.FAILURE


def test_require_convergence(V: Path) -> None:
    fit = ("fit", V, V.parent / "out.zarr", "--rank", 2, "--overwrite", "--require-convergence")
    assert _run(*fit, "--max-passes", 4, "--solver", "mu") == cli.NOT_CONVERGED
    assert _run(*fit, "--tol", 0.1) == cli.DONE


def test_a_cluster_by_address(V: Path, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    out = V.parent / "out.zarr"
    few = ("--rank", 2, "--max-passes", 5, "--tol", 0, "--block-rows", 10, "--quiet")
    assert _run("fit", V, out, *few, "--scheduler", cluster) == cli.DONE
    summary = json.loads(capsys.readouterr().out)
    assert summary["scheduler"] == cluster
    assert summary["error"] == dask_nmf.factorize(V, 2, max_passes=5, tol=0, block_rows=10).error


def test_installed_command(V: Path) -> None:
    command = [Path(sys.executable).with_name("dask-nmf"), "fit", V, V.parent / "o.zarr"]
    options = ["--rank", "2", "--tol", "0.1"]
    done = subprocess.run([*map(str, command), *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["converged"] is True
    assert "sweep 1 pass 2 error" in done.stderr
    assert "Warning" not in done.stderr


def test_relative_paths_are_recorded_whole(V: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(V.parent)
    result = dask_nmf.factorize("V.zarr", 2, out="out.zarr", tol=0.1)
    assert result.parameters["V"] == f"file://{V}"
    assert result.out == f"file://{V.parent / 'out.zarr'}"


@pytest.mark.skipif(sys.platform == "win32", reason="a bash script")
def test_the_recipe_of_a_local_cluster(V: Path) -> None:
    script = Path(__file__).parents[1] / "cluster" / "local_tcp.sh"
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [script, V, V.parent / "out.zarr", "--rank", "2", "--tol", "0.1", "--block-rows", "10"],
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["scheduler"].startswith("tcp://127.0.0.1:")
    assert summary["error"] == dask_nmf.factorize(V, 2, tol=0.1, block_rows=10).error

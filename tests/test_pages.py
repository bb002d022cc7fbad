"""The pages of examples/ that make their own data, and the tasks of orchestrators: they run, and
what they print is what is known of that data."""

import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
from distributed import Client

import dask_nmf

EXAMPLES = Path(__file__).parents[1] / "examples"
matplotlib.use("agg")


def _page(name: str) -> dict[str, Any]:
    """The names of a page, whose `main` has not been called."""
    return runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name=name)


def _lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_how_it_works(capsys: pytest.CaptureFixture[str]) -> None:
    page = _page("how_it_works")
    V = page["mixtures"]()
    W, H = np.random.default_rng(2).random((len(V), 6)), np.random.default_rng(3).random((6, 100))
    stored = page["Stored"](V)
    solver = dask_nmf.HALS(inner=1)
    W1, H1, error = page["sweep"](stored, W, H, solver)
    assert stored.reads == 1
    wanted = dask_nmf.oracle.hals_W(V, W, H)
    np.testing.assert_allclose(W1, wanted, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(H1, dask_nmf.oracle.hals_H(V, wanted, H), rtol=1e-9, atol=1e-12)
    assert error == pytest.approx(dask_nmf.oracle.error(V, W1, H1), rel=1e-9)
    page["main"]()
    printed = "\n".join(_lines(capsys))
    assert "multiplicative update  more than" in printed  # many reads, where the model takes two
    assert "above the best error after 2 reads" in printed


def test_memory_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _page("memory_and_plan")["main"](tmp_path)
    printed = _lines(capsys)
    rows = [int(line.split()[3].replace(",", "")) for line in printed if "blocks of" in line[:20]]
    assert len(rows) == 3  # less memory, no larger blocks
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0]
    assert any(line.startswith("100MiB: refused: memory=100.00 MiB is too s") for line in printed)
    assert any(line.startswith("advice:") and "rechunk" in line for line in printed)


def test_choosing_k(capsys: pytest.CaptureFixture[str]) -> None:
    _page("choosing_k")["main"]()
    printed = "\n".join(_lines(capsys))
    assert "<Suggestion: rank 4," in printed  # as many as were planted
    assert "of noise alone: <Suggestion: no structure" in printed


def test_cells(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _page("cells")["main"](tmp_path)
    printed = _lines(capsys)
    tops = [line.split()[2:] for line in printed if line.startswith("program")]
    # The four strongest of the thirty genes that each program was given, in some order.
    assert {top[0][0] for top in tops} == set("ABC")
    assert all(gene[0] == top[0][0] and int(gene[1:]) < 8 for top in tops for gene in top)


def test_cubes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _page("cubes")["main"](tmp_path, tmp_path / "cubes.png")
    printed = _lines(capsys)
    found = [(int(line.split()[4]), int(line.split()[7])) for line in printed if "peak" in line]
    for (peak, west), (wanted, first) in zip(
        sorted(found), [(500, 0), (700, 600), (900, 1200)], strict=True
    ):
        assert abs(peak - wanted) < 25
        assert first <= west < first + 600  # metres: each material has a third of the scene
    assert "light in the lake: 0" in printed
    assert (tmp_path / "cubes.png").stat().st_size > 5_000


def test_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = _page("resume")
    page["main"](tmp_path)
    printed = _lines(capsys)
    assert printed[0].startswith("the process ended with -9")
    assert printed[1].startswith("went on after pass ")
    assert "the same bits as undisturbed: True" in printed
    assert "at once: True" in printed
    assert printed[-1].startswith("refused: ")


def test_airflow_tasks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = _page("airflow_tasks")
    page["main"](tmp_path)
    printed = _lines(capsys)
    assert printed[1] == "  try 1: Timeout: after the second sweep"
    assert printed[2].startswith("  went on after pass 3: ")
    assert printed[3] == "  called once more: the same, without a read: True"
    assert printed[6].startswith("  try 1: exit code 3 after 2 passes, 0 from before")
    assert printed[7].startswith("  try 2: exit code 0")
    assert printed[7].endswith(" 2 from before")
    assert printed[8].endswith("exit code 2")


def test_a_bad_input_is_not_tried_again() -> None:
    tries = []

    def task(number: int) -> None:
        tries.append(number)
        raise ValueError("bad") if number == 2 else OSError("gone")

    with pytest.raises(ValueError, match="bad"):
        _page("airflow_tasks")["retried"](task, 5)
    assert tries == [1, 2]


def test_dask_task(tmp_path: Path, cluster: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Client(cluster) as client:
        _page("dask_task")["main"](tmp_path, client)
    printed = _lines(capsys)
    assert sum(line.endswith("the whole cluster") for line in printed) == 1
    assert sum(line.endswith("one task") for line in printed) == 3


def test_prefect_flow(tmp_path: Path) -> None:
    pytest.importorskip(
        "prefect", reason='250 MB with all it needs: pip install "dask_nmf[examples]"'
    )
    done = subprocess.run(
        [sys.executable, EXAMPLES / "prefect_flow.py", tmp_path],
        env=os.environ
        | {
            "PREFECT_HOME": str(tmp_path / "prefect"),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "240",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "gone on after pass 3" in done.stdout

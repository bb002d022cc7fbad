"""The worked examples find what is in made-up data, and in real data where that is at hand."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.sparse

from tests.conftest import DATA, data

ROOT = Path(__file__).parents[1]


def _run(name: str, *arguments: Any, without: str = "nothing") -> str:
    """What the example prints, in a Python in which a module is missing."""
    code = f"import runpy, sys; sys.modules[{without!r}] = None; runpy.run_path(sys.argv.pop(1), "
    told = [code + "run_name='__main__')", ROOT / "examples" / f"{name}.py", *arguments]
    done = subprocess.run(
        [sys.executable, "-c", *map(str, told)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _topics(path: Path) -> Path:
    """300 stories about one of three topics each, of ten words of its own."""
    random = np.random.default_rng(0)
    rates = np.kron(np.eye(3), np.ones((100, 10)) * np.linspace(4, 2, 10)) + 0.02
    counts = scipy.sparse.csr_array(random.poisson(rates).astype(np.uint16))
    words = np.array([f"{topic}{i}" for topic in ("sea", "sun", "sky") for i in range(10)])
    parts = {name: getattr(counts, name) for name in ("data", "indices", "indptr")}
    np.savez(path, **parts, shape=np.array(counts.shape), words=words)
    return path


def _cube(path: Path) -> Path:
    """Three materials, each alone in a third of the scene, above a floor that all pixels have."""
    random = np.random.default_rng(0)
    spectra = np.zeros((3, 24)) + 0.01
    for j in range(3):
        spectra[j, 8 * j : 8 * j + 8] = [1, 2, 3, 4 + j, 3, 2, 1, 1]
    shares = np.repeat(np.eye(3), 6, axis=0)[:, None] * random.uniform(0.5, 1, (18, 15, 1))
    cube = 1_000 + 500 * shares @ spectra + random.random((18, 15, 24))
    np.savez(path, cube=cube.astype(np.uint16))
    return path


def test_topics(tmp_path: Path) -> None:
    picture = tmp_path / "topics.png"
    told = ("--ranks", 2, 3, "--restarts", 3, "--picture", picture)
    printed = _run("topics", _topics(tmp_path / "counts.npz"), *told)
    assert "3 topics" in printed  # by itself
    found = [line.split()[2:] for line in printed.splitlines() if "%" in line]
    assert len(found) == 3
    assert {frozenset(words) for words in found} == {
        frozenset(f"{topic}{i}" for i in range(10)) for topic in ("sea", "sun", "sky")
    }
    assert picture.stat().st_size > 10_000


def test_minerals(tmp_path: Path) -> None:
    picture = tmp_path / "minerals.png"
    told = ("--ranks", 2, 3, 4, "--rank", 3, "--restarts", 3, "--picture", picture)
    printed = _run("minerals", _cube(tmp_path / "cube.npz"), *told)
    assert "rank 3: error 0.0" in printed
    rows = [line.split() for line in printed.splitlines() if "%" in line]
    assert sorted(int(row[3]) for row in rows) == [3, 11, 19]  # the peaks of the three spectra
    assert all(float(row[2]) > 0.95 for row in rows)
    assert picture.stat().st_size > 10_000


def test_picture_of_the_readme(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    assert "rank 4" in _run("readme_picture", _cube(tmp_path / "c.npz"), "--picture", picture)
    assert picture.stat().st_size > 5_000
    shown = ROOT / "examples" / "readme_picture.png"
    assert f"({shown.relative_to(ROOT)})" in (ROOT / "README.md").read_text()
    assert 5_000 < shown.stat().st_size < 150_000


def test_without_matplotlib_there_is_no_picture(tmp_path: Path) -> None:
    path = tmp_path / "topics.png"
    told = ("--ranks", 3, "--restarts", 2, "--picture", path)
    printed = _run("topics", _topics(tmp_path / "c.npz"), *told, without="matplotlib")
    assert 'no picture: pip install "dask_nmf[plots]"' in printed
    assert not path.exists()


@pytest.mark.nightly
def test_topics_of_real_news(tmp_path: Path) -> None:
    data("bbc_news_counts.npz").close()
    told = ("--ranks", 5, "--restarts", 2, "--picture", tmp_path / "topics.png")
    printed = _run("topics", DATA / "bbc_news_counts.npz", *told)
    for words in ("game win play", "film good award", "government election", "market", "phone"):
        assert words in printed


@pytest.mark.nightly
def test_minerals_of_a_real_scene(tmp_path: Path) -> None:
    data("indian_pines.npz").close()
    told = ("--ranks", 5, "--restarts", 2, "--picture", tmp_path / "minerals.png")
    printed = _run("minerals", DATA / "indian_pines.npz", *told)
    rows = [line.split() for line in printed.splitlines() if "%" in line]
    assert min(float(row[2]) for row in rows) > 0.8  # five spectra that both starts find

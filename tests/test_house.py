"""Rules of the house: imports go one way and are light, files are short, the README is true."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import dask_nmf

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dask_nmf"

# Each file may import from those before it.
ORDER = (
    "types errors blas terms simplex options scheduler limits geometry bundles watch blocks "
    "retrying layout reader devices boxes csr draws sparse divergences solvers newton losses slabs "
    "entrywise descent model stopping tasks stream firstpass labels annotated matrix io "
    "constraints survey init tables plans advice fitting planner transforming looking result "
    "fingerprint packing commits checkpoint output rechunking sorting sources matrixmarket files "
    "converting resume sweeps visits loop running lockstep streams driver annotating evidence "
    "suggesting scans pictures plots scanning wording estimator functional reporting doctor cli"
)


def _imports(path: Path) -> set[str]:
    """The modules of the package that a file imports, wherever in the file."""
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dask_nmf"):
            module = (node.module or "").removeprefix("dask_nmf").removeprefix(".")
            names |= {module} if module else {alias.name for alias in node.names}
        if isinstance(node, ast.Import):
            names |= {a.name for a in node.names if a.name.split(".")[0] == "dask_nmf"}
    return names


def test_imports_go_one_way() -> None:
    files = {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "oracle"}
    assert files == set(ORDER.split())
    for i, name in enumerate(ORDER.split()):
        assert _imports(PACKAGE / f"{name}.py") <= set(ORDER.split()[:i]), name


def test_solvers_and_losses_know_neither_dask_nor_zarr() -> None:
    for name in (
        *("types", "solvers", "losses", "descent", "model", "stopping", "terms"),
        *("divergences", "newton", "entrywise"),
    ):
        assert not re.search(r"^(import|from) (dask|zarr)\b(?!_nmf)", _text(name), re.MULTILINE)


def test_the_oracle_stands_alone() -> None:
    assert _imports(PACKAGE / "oracle.py") == set()
    imported = set(re.findall(r"^(?:import|from) (\S+)", _text("oracle"), re.MULTILINE))
    assert imported == {"collections.abc", "typing", "numpy", "numpy.typing"}


def _text(name: str) -> str:
    return (PACKAGE / f"{name}.py").read_text()


def test_import_is_light() -> None:
    """Schedulers of ETL jobs import the calling script over and over."""
    code = (
        "import sys, time; began = time.perf_counter(); import dask_nmf;"
        "seconds = time.perf_counter() - began; print(seconds, *sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    modules = set(done[1:])
    heavy = {"dask", "dask.array", "distributed", "numpy", "zarr", "tqdm", "pandas", "matplotlib"}
    assert not modules & heavy
    assert float(done[0]) < 0.3  # measured: 0.01


def test_lazy_names() -> None:
    assert set(dask_nmf._HOME) == set(dask_nmf.__all__) == set(dir(dask_nmf))
    for name in dask_nmf.__all__:
        assert getattr(dask_nmf, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'factorise'"):
        _ = dask_nmf.factorise


def test_version_is_one() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == dask_nmf.__version__


def test_files_are_short() -> None:
    for path in [*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py")]:
        assert len(path.read_text().splitlines()) <= 400, path


def test_readme_names_everything_public() -> None:
    readme = (ROOT / "README.md").read_text()
    for name in dask_nmf.__all__:
        assert f"`{name}" in readme or f"`dask_nmf.{name}" in readme, name


def test_every_public_name_shows_an_example() -> None:
    for name in dask_nmf.__all__:
        found = getattr(dask_nmf, name)
        documented = getattr(found, "__mro__", (found,))[:2]  # an error may leave it to its base
        assert any(">>>" in (one.__doc__ or "") for one in documented), name


def test_every_example_is_in_the_index() -> None:
    index = (ROOT / "examples" / "README.md").read_text()
    for path in (ROOT / "examples").glob("*.py"):
        assert f"({path.name})" in index, path.name


def test_readme_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All Python blocks of the README, in order, in one session."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert blocks
    session: dict[str, object] = {"__name__": "readme"}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), session)


def test_readme_options_are_the_functions() -> None:
    from inspect import signature

    readme = (ROOT / "README.md").read_text()
    for name in signature(dask_nmf.factorize).parameters:
        assert f"`{name}`" in readme, name


@pytest.mark.parametrize("tool", [["ruff", "check"], ["ruff", "format", "--check"], ["mypy"]])
def test_linters_are_content(tool: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("name", ["demo_4x5"])
def test_examples_run(name: str) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / f"{name}.py"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "0.1161" in done.stdout

"""scikit-learn's own tests of NMF and of estimators, unmodified, against ours."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from dask_nmf import NMF
from tests.conftest import push

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("mode", push(2, ["numpy", "zarr", "dask"]))
def test_suite_of_nmf(mode: str, tmp_path: Path) -> None:
    """27 of its functions; what is left out, and why, is in swap_nmf.DESELECTED."""
    plain = ["-c", os.devnull, f"--rootdir={tmp_path}", "-p", "no:cacheprovider", "--tb=short"]
    suite = ["-p", "tests.swap_nmf", "--pyargs", "sklearn.decomposition.tests.test_nmf"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *plain, *suite],
        cwd=ROOT,
        env=os.environ | {"SWAP_NMF": mode, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr
    (passed,) = re.findall(r"(\d+) passed", done.stdout)
    assert int(passed) >= 190, done.stdout[-1000:]  # 194 of scikit-learn 1.9
    assert not re.search(r"\d+ (failed|skipped|xfailed)", done.stdout)


# max_iter is what scikit-learn checks its own with.
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.SkipTestWarning")
@parametrize_with_checks([NMF(max_iter=500)])  # type: ignore[untyped-decorator]
def test_checks_of_estimators(estimator: Any, check: Any) -> None:
    check(estimator)

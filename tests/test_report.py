"""The page of a report: whole, true, nothing from elsewhere, and all text as text."""

import json
import re
import shutil
import subprocess
from dataclasses import asdict
from html import unescape
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import zarr

import dask_nmf
from dask_nmf import cli
from tests.conftest import low_rank

pytest.importorskip("matplotlib")

EVIL = "<script>window.hacked = 1</script>\"&'$"
VOID = {"meta", "br", "img", "link", "input", "hr"}
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
V = low_rank(60, 12, 3, noise=0.3)
FEW: dict[str, Any] = {"tol": 0, "max_passes": 6}


class Page(HTMLParser):
    """What is on a page: text by section, tables, what it points to; balanced, or an error."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.cells.append([])
        if tag in ("td", "th"):
            self.cells[-1].append("")
        for name, value in attrs:
            assert not name.startswith("on")  # no handlers
            if name in ("src", "href", "xlink:href", "action", "data", "srcset", "poster"):
                self.links.append(value or "")
            self.links += re.findall(r"url\(\s*['\"]?([^)'\"]*)", value or "")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.links += re.findall(r"url\(\s*['\"]?([^)'\"]*)", data)
            assert "@import" not in data
            return
        self.text += data
        if {"td", "th"} & set(self.open):
            self.cells[-1][-1] += data

    def row(self, label: str) -> list[str]:
        return next(cells[1:] for cells in self.cells if cells and cells[0] == label)


def check_alone(page: Page) -> None:
    """Nothing on it is elsewhere, and nothing runs."""
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in page.links)
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & set(page.tags)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A result, a scan, and a list of names, one of which would do harm."""
    folder = tmp_path_factory.mktemp("reports")
    zarr.create_array(folder / "V.zarr", data=V, chunks=(20, 12))
    dask_nmf.factorize(folder / "V.zarr", 3, out=folder / "one.zarr", **FEW)
    dask_nmf.scan(folder / "V.zarr", (2, 3, 4), restarts=3, out=folder / "scan.zarr", **FEW)
    names = [EVIL, *(f"word{i}" for i in range(11))]
    (folder / "names.txt").write_text("\n".join(names))
    return folder


def _command(*arguments: Any) -> int:
    return cli.main([str(argument) for argument in arguments])


def test_page_of_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = folder / "one.html"
    told = ("--names", folder / "names.txt", "--row-shape", 6, 10, "--title", EVIL)
    assert _command("report", folder / "one.zarr", path, *told) == cli.DONE
    assert capsys.readouterr().out.strip() == str(path)
    text = path.read_text()
    page = Page(text)
    check_alone(page)
    assert "<script" not in text.lower()
    assert page.text.count(EVIL) >= 3  # title, heading, and beside its bars
    result = dask_nmf.open_result(folder / "one.zarr")
    assert page.row("error") == [f"{result.error:.6g}"]
    assert page.row("status") == ["max_passes: " + result.status.value]
    for record in result.history:
        wanted = [f"{x:.6g}" if isinstance(x, float) else str(x) for x in asdict(record).values()]
        assert [*page.row(str(record.sweep))] == [x for x in wanted[1:] if x != "None"]
    W, H = result.W.compute(), result.H
    shares = W.sum(axis=0) * H.sum(axis=1) / (W @ H).sum()
    names = (folder / "names.txt").read_text().splitlines()
    for j in range(3):
        top = [names[i] for i in H[j].argsort()[::-1][:10] if H[j, i] > 0]
        assert [str(j), f"{shares[j]:.1%}", ", ".join(top)] in page.cells
    assert result.plan is not None
    for label, value in result.plan.rows():
        assert [label, value] in page.cells
    for label, value in result.parameters.items():
        assert any(cells[0] == label for cells in page.cells), (label, value)
    assert page.tags.count("svg") == 3 + 3 + 3 + 1  # history, components, maps, scatter
    assert text.count("data:image/png") == 3 + 1


def test_page_of_a_scan(folder: Path) -> None:
    scan = dask_nmf.open_scan(folder / "scan.zarr")
    path = dask_nmf.report(folder / "scan.zarr", folder / "scan.html", column_shape=(3, 4))
    page = Page(path.read_text())
    check_alone(page)
    suggestion = scan.suggest()
    for told in (suggestion.verdict, *suggestion.reasons):
        assert told in page.text
    for row in scan.rows():
        wanted = [f"{x:.6g}" if isinstance(x, float) else str(x) for x in row.values()]
        assert [x for x in wanted if x != "None"] in page.cells
    chosen = suggestion.rank or suggestion.votes["stability"] or 2
    assert f"Rank {chosen}, the best of 3 runs" in page.text
    assert [f"{scan.best(chosen).error:.6g}"] == page.row("error")
    assert page.tags.count("svg") == 4 + 3 + chosen + 1


def test_a_rank_may_be_asked_for_and_the_page_is_the_same_again(folder: Path) -> None:
    scan = dask_nmf.open_scan(folder / "scan.zarr")
    first, again = (
        dask_nmf.report(scan, folder / f"{name}.html", rank=2) for name in ("first", "again")
    )
    assert first.read_bytes() == again.read_bytes()
    page = Page(first.read_text())
    assert "Rank 2, the best of 3 runs" in page.text
    assert page.row("error") == [f"{scan.best(2).error:.6g}"]


def test_page_of_a_scan_that_suggests_nothing(folder: Path) -> None:
    scan = dask_nmf.scan(V, 2, restarts=1, **FEW)
    page = Page(dask_nmf.report(scan, folder / "few.html").read_text())
    assert "a suggestion needs 2 ranks or more" in page.text
    assert "Rank 2, the best of 1 runs" in page.text


def test_page_of_one_component(folder: Path) -> None:
    result = dask_nmf.factorize(V, 1, **FEW)
    page = Page(dask_nmf.report(result, folder / "rank1.html").read_text())
    check_alone(page)
    assert page.row("error") == [f"{result.error:.6g}"]
    assert page.tags.count("svg") == 4


def test_many_components_and_sweeps_are_cut(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dask_nmf.reporting._COMPONENTS", 2)
    few = dask_nmf.factorize(V, 4, solver="mu", tol=0, max_passes=3)
    rows = tuple(dask_nmf.SweepRecord(i, i + 1, 1 / i, i / 7, i, 0.1) for i in range(1, 300))
    long = dask_nmf.Result(few.W, few.H, rows, few.status, few.parameters)
    page = Page(dask_nmf.report(long, folder / "long.html").read_text())
    assert "The first 2 of 4 are drawn." in page.text
    assert page.tags.count("svg") == 3 + 2 + 1
    sweeps = [cells[0] for cells in page.cells if len(cells) == 6]
    assert sweeps == ["sweep", "1", "2", "3", "...", *map(str, range(104, 300))]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("one.zarr", "page.txt"), "path must be a file that ends in .html"),
        (("one.zarr", "nowhere/page.html"), "there is no folder 'nowhere'"),
        (("nothing.zarr", "page.html"), "no dask_nmf result at"),
        (("V.zarr", "page.html"), "is a zarr array"),
        (("one.zarr", "page.html", "--rank", 3), "rank chooses from a scan"),
        (("scan.zarr", "page.html", "--rank", 9), "rank must be one of [2, 3, 4]"),
        (("one.zarr", "page.html", "--row-shape", 7, 7), "row_shape must be two sides"),
        (("one.zarr", "page.html", "--column-shape", 7, 7), "column_shape must be two sides"),
        (("one.zarr", "page.html", "--names", "V.html"), "No such file"),
        (("one.zarr", "page.html", "--names", "short.txt"), "names must be 12"),
    ],
)
def test_bad_input(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[Any, ...],
    text: str,
) -> None:
    monkeypatch.chdir(folder)
    Path("short.txt").write_text("a\nb\n")
    assert _command("report", *arguments) == cli.BAD_INPUT
    printed = capsys.readouterr()
    assert text in printed.err
    assert printed.out == ""
    assert not Path("page.html").exists()


def test_show_of_a_scan_is_its_table(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scan = dask_nmf.open_scan(folder / "scan.zarr")
    assert _command("show", folder / "scan.zarr") == cli.DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "<Scan of ranks 2, 3, 4>"
    assert len({len(line) for line in lines[1:]}) == 1  # aligned
    for line, row in zip(lines[2:], scan.rows(), strict=True):
        assert line.split()[:4] == ["rank", str(row["rank"]), "3", f"{row['error']:.6g}"]
    assert _command("show", folder / "scan.zarr", "--json") == cli.DONE
    assert json.loads(capsys.readouterr().out) == scan.rows()


def test_in_a_notebook(folder: Path) -> None:
    result = dask_nmf.open_result(folder / "one.zarr")
    page = Page(result._repr_html_())
    check_alone(page)
    assert page.row("error") == [f"{result.error:.6g}"]
    assert page.row("passes") == ["6, for 5 sweeps"]
    assert page.row(str(len(result.history)))[1] == f"{result.error:.6g}"
    assert page.row("solver") == [result.parameters["solver"]]
    harmful = dask_nmf.Result(
        result.W, result.H, result.history, result.status,
        result.parameters | {"V": EVIL}, out=EVIL,
    )  # fmt: skip
    html = harmful._repr_html_()
    assert "<script" not in html
    assert Page(html).row("results") == [EVIL]
    assert ["V", EVIL] in Page(html).cells
    scan = dask_nmf.open_scan(folder / "scan.zarr")
    page = Page(scan._repr_html_())
    check_alone(page)
    assert [row[0] for row in page.cells] == ["rank", "2", "3", "4"]
    assert page.row("3")[1] == f"{scan.best(3).error:.6g}"


# ----------------------------------------------------------------------------- in a real browser
_LOOK = """<script>
const svgs = [...document.querySelectorAll("svg")], images = document.querySelectorAll("image");
document.documentElement.dataset.seen = JSON.stringify({
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  loaded: performance.getEntriesByType("resource").map(x => x.name).filter(x => !/^data:/.test(x)),
  hacked: "hacked" in window,
  empty: svgs.filter(x => x.getBoundingClientRect().height < 50).length,
  svgs: svgs.length, images: images.length,
  ink: getComputedStyle(document.querySelector("svg text")).fill,
  body: getComputedStyle(document.body).color,
  title: document.title,
});
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    return found


@pytest.fixture(scope="module")
def looking(browser: str, folder: Path) -> Path:
    """The page of a scan, and a script that looks around in it."""
    names = (folder / "names.txt").read_text().splitlines()
    told: dict[str, Any] = {"names": names, "row_shape": (6, 10), "title": EVIL}
    path = dask_nmf.report(folder / "scan.zarr", folder / "looking.html", **told)
    path.write_text(path.read_text() + _LOOK)
    return path


@pytest.mark.parametrize(("width", "dark"), [(400, True), (1200, False)])
def test_in_a_real_browser(
    browser: str, looking: Path, tmp_path: Path, width: int, dark: bool
) -> None:
    """No wider than the window, nothing loaded, nothing run, all pictures there, in its colours."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom"]
    options += ["--blink-settings=preferredColorScheme=0"] if dark else []
    done = subprocess.run(
        [browser, *options, looking.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    (found,) = re.findall(r'<html[^>]* data-seen="([^"]*)"', done.stdout)
    seen = json.loads(unescape(found))
    assert seen["wider"] <= 0
    assert seen["loaded"] == []
    assert seen["hacked"] is False
    assert seen["empty"] == 0
    assert seen["svgs"] >= 4 + 3 + 2 + 2 + 1
    assert seen["images"] >= 3
    assert seen["ink"] == seen["body"] == ("rgb(228, 231, 236)" if dark else "rgb(29, 35, 48)")
    assert seen["title"] == EVIL

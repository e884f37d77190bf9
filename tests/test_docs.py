"""The documentation's Python runs as printed.

Blocks that are marked `python` run; `py` marks those that need packages of others.
"""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.name}-{k}")
    for page in PAGES[1:]
    for k, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S))
]
README = re.findall(r"^```python\n(.*?)^```", PAGES[0].read_text(), re.M | re.S)


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_python_block_runs(block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "docs", "exec"), {})


@pytest.mark.slow
def test_readme_example_trains_on_irises(tmp_path, monkeypatch):
    """The README's first example runs as printed, and its rows are more like virginicas."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    namespace = {}
    exec(compile(README[0], "README", "exec"), namespace)
    flow, rows = namespace["flow"], namespace["rows"]
    assert flow.log_prob(rows, condition=2).mean() > flow.log_prob(rows, condition=1).mean() + 1


@pytest.mark.slow
def test_readme_example_samples_the_moons(tmp_path, monkeypatch):
    """The README's second example runs as printed, and samples the two half circles."""
    namespace = {}
    exec(compile(README[1], "README", "exec"), namespace)
    samples = (np.array(namespace["solution"].xs[-1]) + 1) / 2
    upper = np.abs(np.linalg.norm(samples, axis=1) - 1)
    lower = np.abs(np.linalg.norm(samples - [1.0, 0.5], axis=1) - 1)
    assert np.median(np.minimum(upper, lower)) < 0.1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} points to {target}"


def test_the_map_names_every_part_of_the_package():
    design, package = (ROOT / "docs/design.md").read_text(), ROOT / "src/flowmlx"
    layout = re.search(r"^    src/flowmlx/\n(.*?)^    \w", design, re.M | re.S)
    starts = re.findall(r"^ {6}((?:\w+(?:\.py|/) ?)+)", layout[1], re.M)
    named = {name.rstrip("/") for start in starts for name in start.split()}
    files = {path.name for path in package.glob("[!_]*.py")}
    packages = {path.parent.name for path in package.glob("*/__init__.py")}
    assert files | packages <= named, f"no line for {(files | packages) - named}"

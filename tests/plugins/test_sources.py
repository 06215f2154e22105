"""What changes a plugin's source hash: its code and its helpers', and nothing else."""

import importlib
import sys

import pytest

from tests.conftest import write
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.sources import module_file, source_digest

METHOD = '''"""A card."""

import os
import torch
from unlearnbench import method
import helper  # of the author


@method(title="Mine")
def mine(ctx, *, steps: int = 1):
    """What it does."""
    return helper.SCALE * f"{steps:>{3}}"
'''


@pytest.fixture
def helped(tmp_path):
    """A plugin with a helper beside it."""
    write(tmp_path / "helper.py", "SCALE = 1.0\n")
    return write(tmp_path / "mine.py", METHOD)


@pytest.fixture
def on_path(tmp_path, monkeypatch):
    """A folder on Python's path."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("# of the author", "# of somebody else", True),
        ('"""A card."""', '"""Another card, of two\nlines."""', True),
        ('    """What it does."""\n', "", True),
        ("\n\n\n@method", "\n@method", True),
        ("import os\nimport torch", "import os; import torch", True),
        ("steps: int = 1", "steps: int = 2", False),
        ("steps: int = 1", "steps: float = 1", False),
        ("* f", "+ f", False),
        ("{3}", "{4}", False),
        ("1):", "True):", False),
        ('"Mine"', '"Ours"', False),
        ('"Mine"', '"Mine", streams=("forget",)', False),
        ('"Mine"', '"Mine", tuned={"digits": {"steps": 3}}, search={"steps": (1, 9)}', True),
        ("@method", "@other(tuned=3)\n@method", False),
        ("return helper.SCALE", "return dict(tuned=3) and helper.SCALE", False),
    ],
)
def test_code_counts_and_words_do_not(helped, old, new, same):
    before = source_digest(helped)
    write(helped, edit(METHOD, old, new))
    assert (source_digest(helped) == before) is same


def edit(text, old, new):
    assert text.count(old) == 1
    return text.replace(old, new)


def test_values_that_are_tuned_do_not_count_wherever_the_decorator_comes_from(tmp_path):
    text = "import unlearnbench as u\n\n@u.method(title='A', tuned={'digits': {'steps': 1}})\ndef a(ctx): pass\n"
    before = source_digest(write(tmp_path / "a.py", text))
    assert source_digest(write(tmp_path / "a.py", edit(text, "1}", "2}"))) == before
    assert source_digest(write(tmp_path / "a.py", edit(text, "u.method", "u.metric"))) != before


@pytest.mark.parametrize("code", ["x = 1", "class A:\n    b = 'c'", "def f(): pass", "x = ()", "x = None", "x = []"])
def test_no_two_codes_are_one(tmp_path, code):
    others = ["x = 1.0", "x = 'c'", "class A:\n    'd'", "async def f(): pass", "x = {}", "x = False", "x: None", "'x'"]
    hashes = {source_digest(write(tmp_path / f"{k}.py", text)) for k, text in enumerate([code, *others])}
    assert len(hashes) == 1 + len(others)


def test_it_is_the_same_in_every_folder_and_under_every_name(helped, tmp_path):
    write(tmp_path / "copy" / "helper.py", "SCALE = 1.0")
    assert source_digest(write(tmp_path / "copy" / "other.py", METHOD)) == source_digest(helped)


def test_it_is_one_number_whatever_python_reads_it(tmp_path):
    text = "class A:\n    def f(x, *y, z=1, **w):\n        return f'{x!r:>{z}} {y=}', {**w, 'a': 1e3}, x[1:]"
    pinned = "d689d211"  # of Python 3.11; the trees of later versions have further empty fields
    assert source_digest(write(tmp_path / "one.py", text))[:8] == pinned


@pytest.mark.parametrize(
    ("imported", "file"),
    [
        ("import helper", "helper.py"), ("import helper as h", "helper.py"), ("from helper import SCALE", "helper.py"),
        ("from helper import *", "helper.py"), ("import helper.loss", "helper/loss.py"),
        ("import helper.loss", "helper/__init__.py"), ("from helper import loss", "helper/loss.py"),
        ("from helper.loss import SCALE", "helper/loss.py"), ("from helper.loss import SCALE", "helper/__init__.py"),
        ("def late():\n    import helper", "helper.py"), ("try:\n    import helper\nfinally: pass", "helper.py"),
        ("if True:\n    from helper import x", "helper.py"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("place", ["beside", "on the path"])
def test_a_helper_counts(tmp_path, on_path, imported, file, place):
    folder = tmp_path / "plugin" if place == "beside" else on_path
    if "/" in file:
        for name in ("__init__", "loss"):
            write(folder / "helper" / f"{name}.py", "")
    plugin = write(tmp_path / "plugin" / "mine.py", imported)
    write(folder / file, "SCALE = 1.0")
    before = source_digest(plugin)
    write(folder / file, "SCALE = -50.0")
    after = source_digest(plugin)
    write(folder / file, "SCALE = -50.0  # a remark")
    assert before != after == source_digest(plugin)


def test_helpers_of_helpers_count_even_in_circles(tmp_path):
    plugin = write(tmp_path / "mine.py", "import first")
    write(tmp_path / "first.py", "import pack.second")
    write(tmp_path / "pack" / "__init__.py", "")
    write(tmp_path / "pack" / "second.py", "from . import third\nimport first, mine")
    write(tmp_path / "pack" / "third.py", "from .fourth import x")
    write(tmp_path / "pack" / "fourth.py", "x = 1")
    before = source_digest(plugin)
    write(tmp_path / "pack" / "fourth.py", "x = 22")
    assert source_digest(plugin) != before


@pytest.mark.parametrize(
    "imported",
    ["import no_such_module", "from . import helper", "import helper.more", "import numpy, unlearnbench.run.plan"],
)
def test_what_is_no_helper_is_left_out(tmp_path, imported):
    plugin = write(tmp_path / "mine.py", imported)
    before = source_digest(plugin)
    write(tmp_path / "more.py", "import mine")
    assert source_digest(plugin) == before


def test_nothing_is_executed(tmp_path, on_path):
    for folder in (tmp_path, on_path):
        write(folder / "loud" / "__init__.py", "raise SystemExit('executed')")
        write(folder / "loud" / "inner.py", "raise SystemExit('executed')")
    plugin = write(tmp_path / "mine.py", "import loud.inner\nraise SystemExit('executed')")
    assert source_digest(plugin) != source_digest(write(tmp_path / "other.py", "raise SystemExit('executed')"))
    assert module_file("loud.inner") == on_path / "loud" / "inner.py"
    assert "loud" not in sys.modules
    assert module_file("loud.absent") is None is module_file("absent")


@pytest.mark.parametrize("content", [b"def broken(:", b"\xff\xfe", b"x" + b"-x" * 100_000, b"\0"])
def test_a_file_that_is_no_python_stands_for_its_bytes(tmp_path, content):
    plugin = tmp_path / "mine.py"
    plugin.write_bytes(content)
    before = source_digest(plugin)
    plugin.write_bytes(content + b" #")
    assert source_digest(plugin) != before


def test_of_an_installed_plugin_its_own_package_counts_and_no_other(tmp_path, monkeypatch):
    site = tmp_path / "site-packages"
    for package in ("own", "foreign"):
        write(site / package / "__init__.py", "")
        write(site / package / "loss.py", "x = 1")
    plugin = write(site / "own" / "method.py", "from . import loss\nfrom own.loss import x\nimport foreign.loss")
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    hashes = []
    for changed in (None, "foreign", "own"):
        if changed:
            write(site / changed / "loss.py", "x = 22")
        hashes.append(source_digest(plugin, "own.method"))
    assert hashes[0] == hashes[1] != hashes[2]


def test_the_registry_asks_for_it(helped, tmp_path):
    before = Registry([helped])
    hashes = before.source_hashes()
    assert hashes["method:mine"] == before.source_hash("method", "mine") == source_digest(helped)
    write(tmp_path / "helper.py", "SCALE = 2.5")
    after = Registry([helped]).source_hashes()
    assert {name for name in after if after[name] != hashes[name]} == {"method:mine"}

"""What is read from a plugin's text is what importing it says; anything that an import could object to is imported."""

import subprocess
import sys

import pytest

from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.sources import read_source
from unlearnbench.plugins.space import parse_space

PLUGINS = [plugin for kind in ("method", "metric") for plugin in Registry().plugins(kind)]
GOOD = '"""A card."""\nimport torch\nfrom unlearnbench import Context, method\nK = (1, -2 ** 3)\n'
FUNCTION = "@method(title='M', paper='1234.56789', streams=('forget',))\ndef m(ctx: Context): ...\n"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_builtin_is_read_as_it_is_imported(plugin):
    read = read_source(plugin.path).keywords[plugin.kind, plugin.name]
    spec = vars(plugin.spec)
    assert read
    for name, value in read.items():
        if name == "kind":
            assert spec["inference"] == (value == "inference")
            continue
        declared = spec[name]
        if name in ("streams", "groups"):
            assert set(declared) == set(value)
        elif name == "search":
            assert declared == parse_space(plugin.name, plugin.spec.settings, value)
        elif name not in ("tuned", "truth"):
            assert declared == value


def keywords(tmp_path, text, name="m"):
    path = tmp_path / "m.py"
    path.write_text(text)
    return read_source(path).keywords.get(("method", name))


def test_a_plain_file_is_read(tmp_path):
    read = keywords(tmp_path, GOOD + FUNCTION)
    assert read == {"title": "M", "paper": "1234.56789", "streams": ("forget",)}


FAMILY = """
from unlearnbench import method
STREAMS = ("forget",)
COMMON = {"paper": "1234.56789", "streams": ("forget",)}
@method(title="M", **COMMON)
def m(ctx): ...
COMMON = {"paper": ""}
@method(title="N", streams=STREAMS, **COMMON)
def n(ctx): ...
"""


def test_constants_of_the_file_are_read_as_they_are_where_they_are_used(tmp_path):
    path = tmp_path / "m.py"
    path.write_text(FAMILY)
    source = read_source(path)
    assert list(source.names) == [("method", "m"), ("method", "n")]
    assert source.keywords["method", "m"] == {"title": "M", "paper": "1234.56789", "streams": ("forget",)}
    assert source.keywords["method", "n"] == {"title": "N", "paper": "", "streams": ("forget",)}
    for name, read in ((name, source.keywords["method", name]) for name in "mn"):
        spec = vars(Registry([path]).method(name))
        assert {key: spec[key] for key in ("title", "paper")} == {key: read[key] for key in ("title", "paper")}


@pytest.mark.parametrize(
    "text",
    [
        GOOD + "raise RuntimeError('not today')\n" + FUNCTION,
        GOOD + "import nowhere\n" + FUNCTION,
        GOOD + "from unlearnbench import Contxt\n" + FUNCTION,
        GOOD + "from . import sibling\n" + FUNCTION,
        GOOD + "K = open('file')\n" + FUNCTION,
        GOOD + "if True:\n    pass\n" + FUNCTION,
        GOOD + FUNCTION.replace("'M'", "K"),
        GOOD + FUNCTION.replace("@method", "@wrapped()\n@method"),
        GOOD + FUNCTION.replace("def m", "def other"),
        GOOD + FUNCTION.replace("title='M'", "**K"),
        GOOD + FUNCTION.replace("title='M'", "**L"),
        GOOD + "L = {'title': 'M', 'paper': ''}\n" + FUNCTION.replace("title='M'", "**L"),
        GOOD + "L = {'title': 'M'}\nL['title'] = 'N'\n" + FUNCTION.replace("title='M'", "**L"),
        GOOD + "L = {'title': 'M'}\nL = {'title': 'M' * 2}\n" + FUNCTION.replace("title='M'", "**L"),
        GOOD + "L = {[1]: 'M'}\n" + FUNCTION.replace("title='M'", "**L"),
        GOOD + "def m(:\n",
    ],
)
def test_any_other_is_left_to_the_import(tmp_path, text):
    assert keywords(tmp_path, text) is None


def test_what_can_be_read_may_stand_beside_what_cannot(tmp_path):
    text = GOOD + FUNCTION + FUNCTION.replace("'M'", "len").replace("def m", "def n")
    assert keywords(tmp_path, text) == {"title": "M", "paper": "1234.56789", "streams": ("forget",)}
    assert keywords(tmp_path, text, "n") is None


def test_the_list_imports_no_torch():
    code = (
        "import sys\nfrom unlearnbench.cli.commands import app\n"
        "try:\n    app(['list'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arXiv:") >= 11

"""What is read from a plugin's text is what importing it says; anything that an import could object to is imported."""

import subprocess
import sys

import pytest

from unlearnbench.plugins.declared import read_declaration
from unlearnbench.plugins.registry import Registry

PLUGINS = [plugin for kind in ("method", "metric") for plugin in Registry().plugins(kind)]
GOOD = '"""A card."""\nimport torch\nfrom unlearnbench import Context, method\nK = (1, -2 ** 3)\n'
FUNCTION = "@method(title='M', paper='1234.56789', streams=('forget',))\ndef m(ctx: Context): ...\n"


@pytest.mark.parametrize("plugin", PLUGINS, ids=lambda plugin: plugin.name)
def test_every_builtin_is_read_as_it_is_imported(plugin):
    read = read_declaration(plugin.path, plugin.name, plugin.kind)
    spec = vars(plugin.spec)
    assert read
    for name, value in read.items():
        declared = spec[name]
        if name not in ("streams", "groups", "tuned", "truth"):
            assert declared == value
        elif name in ("streams", "groups"):
            assert set(declared) == set(value)


def test_a_plain_file_is_read(tmp_path):
    (tmp_path / "m.py").write_text(GOOD + FUNCTION)
    read = read_declaration(tmp_path / "m.py", "m", "method")
    assert read == {"title": "M", "paper": "1234.56789", "streams": ("forget",)}


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
        GOOD + "def m(:\n",
    ],
)
def test_any_other_is_left_to_the_import(tmp_path, text):
    (tmp_path / "m.py").write_text(text)
    assert read_declaration(tmp_path / "m.py", "m", "method") is None


def test_the_list_imports_no_torch():
    code = (
        "import sys\nfrom unlearnbench.cli.commands import app\n"
        "try:\n    app(['list'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("arXiv:") >= 11

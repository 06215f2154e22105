import importlib
import locale
import os
import signal
import sys
import textwrap
import warnings
from pathlib import Path
from typing import Annotated, Literal

import pytest
from annotated_types import Ge, Gt, Interval, Le, Lt, MultipleOf

from unlearnbench import PluginError, Score, UsageError, method, metric
from unlearnbench.plugins.cards import cards
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.space import Choices, Range
from unlearnbench.plugins.spec import NEEDS


def write_plugin(folder, text, name="mine.py"):
    path = folder / name
    path.write_text(textwrap.dedent(text))
    return path


GOOD = """
    from unlearnbench import method

    @method(title="Mine", streams=("retain",), tuned={"digits": {"steps": 3}})
    def mine(ctx, *, steps: int = 1000, lr: float = 1e-4, nesterov: bool = False):
        pass
"""


def test_builtins_are_found_by_folder():
    registry = Registry()
    names = [plugin.name for plugin in registry.plugins("method")]
    assert {"original", "retrain", "sa", "safemax", "salun"} <= set(names)
    assert {spec.name for spec in registry.select_metrics("all")} >= {"fid", "ua", "judge_entropy", "retain_accuracy"}


def test_an_optional_metric_runs_only_when_named():
    usual = [spec.name for spec in Registry().select_metrics("all")]
    assert "fid_infinity" not in usual
    assert [spec.name for spec in Registry().select_metrics("all,fid_infinity")] == [*usual, "fid_infinity"]


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("@method(title='T', role='control')", "a control, and nothing else, says truth"),
        ("@method(title='T', truth={'forgetting': True})", "a control, and nothing else, says truth"),
        ("@method(title='T', role='control', truth={'keeping': True})", "says truth"),
    ],
)
def test_only_a_control_says_what_is_known_of_it(tmp_path, declared, words):
    (tmp_path / "odd.py").write_text(f"from unlearnbench import method\n{declared}\ndef odd(ctx): ...\n")
    with pytest.raises(UsageError, match=words):
        Registry([tmp_path / "odd.py"]).method("odd")


@pytest.mark.parametrize(
    ("declared", "words"),
    [
        ("better='neither', aspect='forgetting', threshold=1.0", "has a threshold, so it must be"),
        ("better='lower', aspect='judging', threshold=1.0", "has a threshold, so it must be"),
        ("better='best', aspect='forgetting'", "write one of 'lower', 'higher', 'neither'"),
        ("better='lower', aspect='cost'", "write one of 'forgetting', 'retention', 'judging'"),
    ],
)
def test_a_metrics_direction_side_and_threshold_must_fit(tmp_path, declared, words):
    head = f"from unlearnbench import metric\n@metric(title='T', unit='', {declared})\n"
    (tmp_path / "odd.py").write_text(f"{head}def odd(cell): ...\n")
    with pytest.raises(UsageError, match=words):
        Registry([tmp_path / "odd.py"]).metric("odd")


FAMILY = '''
    """Nearness: how near the samples are to something.

    Blind to: everything else.
    """

    from unlearnbench import Score, metric

    COMMON = {"unit": "%", "better": "higher", "aspect": "forgetting"}

    @metric(title="Near", **COMMON)
    def near(forget_probs):
        return Score(1.0, len(forget_probs))

    @metric(title="Far", optional=True, groups=("distances",), source="nowhere", **COMMON)
    def far(retain_probs):
        return Score(2.0, len(retain_probs))
'''


@pytest.fixture
def builtins(tmp_path):
    """A folder of files that count as built-in metrics."""
    folder, package = tmp_path / "metrics", importlib.import_module("unlearnbench.metrics")
    folder.mkdir()
    package.__path__.append(str(folder))
    yield folder
    package.__path__.remove(str(folder))
    for path in folder.glob("*.py"):
        sys.modules.pop(f"{package.__name__}.{path.stem}", None)


@pytest.fixture(params=["built-in", "file"])
def registry_of(request, builtins):
    """Return a registry that knows the plugins of a file, as a built-in or by --plugin."""

    def make(text, name="nearness.py"):
        path = write_plugin(builtins if request.param == "built-in" else builtins.parent, text, name)
        return Registry([] if request.param == "built-in" else [path])

    return make


class TestAFileOfSeveralColumns:
    def test_each_is_known_by_its_own_name(self, registry_of):
        registry = registry_of(FAMILY)
        found = {plugin.name: plugin for plugin in registry.plugins("metric") if plugin.path.name == "nearness.py"}
        assert list(found) == ["far", "near"]
        assert "nearness" not in {plugin.name for plugin in registry.plugins("metric")}
        assert {name: plugin.declared["title"] for name, plugin in found.items()} == {"far": "Far", "near": "Near"}
        assert (registry.metric("near").needs, registry.metric("far").needs) == (("forget_probs",), ("retain_probs",))
        assert registry.source_hash("metric", "near") == registry.source_hash("metric", "far")

    def test_each_is_selected_by_itself(self, registry_of):
        registry = registry_of(FAMILY)
        usual = [spec.name for spec in registry.select_metrics("all")]
        assert "near" in usual and "far" not in usual
        assert [spec.name for spec in registry.select_metrics("distances")] == ["far"]
        assert [spec.name for spec in registry.select_metrics("far,near")] == ["far", "near"]
        with pytest.raises(UsageError, match=r"there is no metric 'nearness'.*did you mean near"):
            registry.select_metrics("nearness")

    def test_names_are_known_and_columns_listed_without_an_import(self, registry_of):
        before = set(sys.modules)
        for plugin in registry_of(FAMILY).plugins("metric"):
            assert plugin.declared
        assert not [name for name in set(sys.modules) - before if "nearness" in name]

    def test_its_card_is_one_and_lists_them_in_the_order_of_the_file(self, registry_of):
        page = cards(registry_of(FAMILY), "metric")
        card = page[page.index("## `nearness`") :].split("\n## ")[0]
        assert card.startswith(
            "## `nearness`: Nearness\n\n"
            "- `near`: Near. *Shows forgetting, higher is better, in %.*\n"
            "- `far`: Far. *Shows forgetting, higher is better, in %, only when named, source: nowhere.*\n\n"
            "Nearness: how near"
        )
        assert page.count("how near the samples are") == 1

    def test_a_broken_one_lists_them_all_and_is_executed_once(self, registry_of, capfd):
        registry = registry_of(
            FAMILY.replace("    COMMON", "    print('executed')\n    import no_such_library\n    COMMON")
        )
        broken = {plugin.name: plugin.reason for plugin in registry.plugins("metric") if plugin.reason}
        told = "ModuleNotFoundError: No module named 'no_such_library'"
        assert broken == {"near": told, "far": told}
        assert capfd.readouterr().err == "executed\n"
        assert {"ua", "ua_second"} <= {spec.name for spec in registry.select_metrics("all")}
        with pytest.raises(UsageError, match=f"^metric far cannot be used .*nearness.py.*: {told}"):
            registry.metric("far")

    def test_one_that_does_not_parse_is_named_where_a_column_is_missed(self, registry_of):
        registry = registry_of(FAMILY + "    oops(")
        with pytest.raises(UsageError, match=r"there is no metric 'near', and .*nearness\.py does not parse: .*Error"):
            registry.metric("near")

    def test_a_name_in_two_files_is_refused_with_both_places(self, registry_of):
        with pytest.raises(UsageError, match=r"^two metrics are called ua_second, in .*ua\.py and in .*nearness\.py"):
            registry_of(FAMILY.replace("def far", "def ua_second"))

    def test_a_name_twice_in_a_file_is_refused(self, registry_of):
        with pytest.raises(UsageError, match=r"nearness\.py: 2 metrics of the file are called near: rename one"):
            registry_of(FAMILY.replace("def far", "def near"))

    def test_methods_and_metrics_may_share_a_file(self, registry_of):
        registry = registry_of(
            FAMILY + "\n    from unlearnbench import method\n    @method(title='M')\n    def m(ctx): ..."
        )
        assert (registry.method("m").title, registry.metric("far").title) == ("M", "Far")


def test_a_built_in_whose_text_tells_nothing_is_known_by_its_files_name(builtins):
    text = (
        "import unlearnbench\nmark = unlearnbench.metric\n@mark(title='H', unit='', better='lower', aspect='judging')\n"
    )
    write_plugin(builtins, text + "def hidden(cell): ...", "hidden.py")
    (builtins / "gone.py").symlink_to(builtins / "nowhere.py")
    registry = Registry()
    assert registry.metric("hidden").title == "H"
    with pytest.raises(UsageError, match=r"^metric gone cannot be used"):
        registry.metric("gone")


def test_all_leaves_gold_out_and_puts_references_first():
    everything = [spec.name for spec in Registry().select_methods("all")]
    assert everything[0] == "original"
    assert everything[1:] == sorted(p.name for p in Registry().plugins("method") if p.spec.role == "method")
    assert len(everything) >= 13
    assert [spec.name for spec in Registry().select_methods("paper")] == ["sa", "safemax", "salun"]
    assert [spec.name for spec in Registry().select_methods("retrain,original")] == ["original", "retrain"]


def test_one_file_adds_a_method(tmp_path):
    registry = Registry([write_plugin(tmp_path, GOOD)])
    spec = registry.method("mine")
    assert spec.resolve(("digits",), {}) == {"steps": 3, "lr": 1e-4, "nesterov": False}
    assert spec.resolve(("cifar10", "paper"), {"lr": 0.1}) == {"steps": 1000, "lr": 0.1, "nesterov": False}
    assert "mine" in [s.name for s in registry.select_methods("all")]


@pytest.mark.parametrize(
    "body", ["raise RuntimeError('boom')", "import no_such_library", "def broken(:", "raise SystemExit('boom')"]
)
def test_a_broken_plugin_is_listed_and_harms_only_those_who_select_it(tmp_path, body):
    text = f"from unlearnbench import method\n{body}\n@method(title='B')\ndef broken(ctx): ..."
    registry = Registry([write_plugin(tmp_path, text, "broken.py")])
    assert "broken" in [plugin.name for plugin in registry.plugins("method")]
    assert "broken" not in [spec.name for spec in registry.select_methods("all")]
    with pytest.raises(UsageError, match=r"broken cannot be used .*(boom|no_such_library|invalid syntax)"):
        registry.method("broken")


def test_unknown_names_get_a_suggestion():
    with pytest.raises(UsageError, match="did you mean safemax"):
        Registry().select_methods("safemaxx")
    with pytest.raises(UsageError, match="did you mean judge_entropy"):
        Registry().select_metrics("entropy,judge_entrpy")


def test_a_name_taken_twice_is_refused_with_both_places(tmp_path):
    path = write_plugin(tmp_path, GOOD.replace("mine", "salun"), "other.py")
    with pytest.raises(UsageError, match=r"two methods are called salun, in .*salun\.py and in .*other\.py"):
        Registry([path])


def test_a_file_without_plugin_or_no_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="declares no function"):
        Registry([write_plugin(tmp_path, "x = 1")])
    with pytest.raises(UsageError, match="no such file"):
        Registry([tmp_path / "absent.py"])


def test_source_hash_follows_the_file(tmp_path):
    path = write_plugin(tmp_path, GOOD)
    before = Registry([path]).source_hash("method", "mine")
    path.write_text(path.read_text().replace("steps: int = 1000", "steps: int = 999"))
    assert Registry([path]).source_hash("method", "mine") != before


def test_a_metric_with_an_unknown_need_is_refused():
    with pytest.raises(PluginError, match=r"asks for 'forget_prob'.*did you mean forget_probs"):

        @metric(title="Bad", unit="", better="lower", aspect="forgetting")
        def bad(forget_prob):
            return Score(0, 1)


def test_needs_are_documented_and_computed_by_the_evidence():
    from unlearnbench.measure.inputs import EvaluationInputs

    for need in NEEDS:
        assert hasattr(EvaluationInputs, need) or need in EvaluationInputs.__dataclass_fields__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"better": "bigger"}, "lower"),
        ({"aspect": "speed"}, "retention"),
        ({"format": "nonsense"}, "cannot format"),
    ],
)
def test_bad_metric_declarations(change, message):
    options = {"title": "T", "unit": "", "better": "lower", "aspect": "forgetting", **change}
    with pytest.raises(PluginError, match=message):
        metric(**options)(lambda forget_probs: Score(0, 1))


def positional(ctx, steps=1): ...
def without_default(ctx, *, steps: int): ...
def without_annotation(ctx, *, steps=1): ...
def mismatched(ctx, *, steps: int = 1.5): ...
def without_context(*, steps: int = 1): ...


@pytest.mark.parametrize("function", [positional, without_default, without_annotation, mismatched, without_context])
def test_bad_method_signatures(function):
    with pytest.raises(PluginError, match=function.__name__):
        method(title="T")(function)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streams": ("test",)}, "unknown streams"),
        ({"role": "boss"}, "role"),
        ({"tuned": {"digits": {"step": 1}}}, "did you mean steps"),
        ({"tuned": {"digits": {"steps": "many"}}}, "does not fit"),
    ],
)
def test_bad_method_declarations(options, message):
    def good(ctx, *, steps: int = 1): ...

    with pytest.raises(PluginError, match=message):
        method(title="T", **options)(good)


@pytest.mark.parametrize(
    ("setting", "text", "value"),
    [("decay", "10", 10.0), ("steps", "5", 5), ("target", "trajectory", "trajectory"), ("lr", "1e-3", 1e-3)],
)
def test_settings_parse_by_their_annotation(setting, text, value):
    parsed = Registry().method("safemax").settings[setting].parse(text, "safemax")
    assert (parsed, type(parsed)) == (value, type(value))


@pytest.mark.parametrize(
    ("setting", "text"),
    [("steps", "1.5"), ("steps", "x"), ("decay", "nan"), ("decay", "inf"), ("target", "sideways"), ("lr", "")],
)
def test_settings_refuse_other_types(setting, text):
    with pytest.raises(UsageError, match=f"safemax.{setting} takes"):
        Registry().method("safemax").settings[setting].parse(text, "safemax")


@pytest.mark.parametrize(
    ("name", "text", "wanted"),
    [
        ("salun.mask_ratio", "2", "a finite number, more than 0, at most 1"),
        ("salun.mask_ratio", "0", "more than 0, at most 1"),
        ("salun.steps", "-1", "a value of type int, at least 1"),
        ("salun.batch", "0", "at least 1"),
        ("salun.lr", "-1", "more than 0"),
        ("sa.ema", "1", "at least 0, less than 1"),
        ("sa.fisher_timesteps", "1001", "at least 1, at most 1000"),
        ("sham_update.scale", "0", "more than 0"),
    ],
)
def test_settings_refuse_what_lies_outside_their_range(name, text, wanted):
    owner, setting = name.split(".")
    with pytest.raises(UsageError, match=rf"^{name} takes .*{wanted}, not '{text}'$"):
        Registry().method(owner).settings[setting].parse(text, owner)


def test_every_number_of_a_shipped_method_has_a_range():
    specs = [plugin.spec for plugin in Registry().plugins("method")]
    numbers = [(s.name, x) for s in specs for x in s.settings.values() if x.type in (int, float)]
    free = {f"{name}.{setting.name}" for name, setting in numbers if not setting.range}
    assert free == {"salun.pseudo_offset"}  # any but 0, as far as there are classes: the method sees to it


def declare(annotation, default, **options):
    def ranged(ctx, *, x=default): ...

    ranged.__annotations__["x"] = annotation
    return method(title="T", **options)(ranged).__unlearnbench__


@pytest.mark.parametrize(
    ("annotation", "default", "words"),
    [
        (Annotated[float, Gt(0)], 0.5, "more than 0"),
        (Annotated[float, Gt(0), Le(1)], 1, "more than 0, at most 1"),
        (Annotated[int, Interval(ge=1, lt=1000), "a note"], 1, "at least 1, less than 1000"),
        (Annotated[float, Lt(0.5)], -7.0, "less than 0.5"),
        (Annotated[str, "a note"], "a", ""),
        (float, 3, ""),
    ],
)
def test_a_range_stands_beside_the_type(annotation, default, words):
    setting = declare(annotation, default).settings["x"]
    assert setting.range == words
    assert (setting.default, type(setting.default)) == (default, setting.type)


@pytest.mark.parametrize(
    ("annotation", "default", "words"),
    [
        (Annotated[float, Gt(0)], 0.0, "0.0 is not a finite number, more than 0"),
        (Annotated[int, Ge(1)], 0, "0 is not a value of type int, at least 1"),
        (Annotated[str, Ge(1)], "a", "a range, which is for an int or a float"),
        (Annotated[int, Ge("1")], 1, "a range of numbers"),
        (Annotated[int, MultipleOf(2)], 2, "with Gt, Ge, Lt, Le or Interval"),
        (float, "0.1", "'0.1' is not a finite number"),
        (float, True, "True is not a finite number"),
        (float, None, "None is not a finite number"),
        (float, float("nan"), "nan is not a finite number"),
        (float, float("inf"), "inf is not a finite number"),
        (int, 2.0, "2.0 is not a value of type int"),
        (int, True, "True is not a value of type int"),
        (bool, 1, "1 is not true or false"),
        (str, 1, "1 is not a value of type str"),
        (Literal["a", "b"], "c", "'c' is not one of a, b"),
        (Literal[1, 2], 1, "as bool, int, float, str or Literal"),
    ],
)
def test_a_default_of_another_type_or_outside_the_range_is_refused(annotation, default, words):
    with pytest.raises(PluginError, match=f"ranged.*x.*{words}"):
        declare(annotation, default)


@pytest.mark.parametrize("value", [0.0, "1", True, float("nan")])
def test_a_tuned_value_outside_the_range_is_refused(value):
    with pytest.raises(PluginError, match=r"tuned\['digits'\]\['x'\] does not fit its annotation"):
        declare(Annotated[float, Gt(0)], 1.0, tuned={"digits": {"x": value}})


def test_a_tuned_integer_fits_a_float():
    resolved = declare(Annotated[float, Gt(0)], 1.0, tuned={"digits": {"x": 2}}).resolve(("digits",), {})
    assert (resolved, type(resolved["x"])) == ({"x": 2.0}, float)


@pytest.mark.parametrize("texts", [{"title": 5}, {"format": 5}, {"unit": None}, {"title": "two\nlines"}])
def test_metric_texts_are_texts(texts):
    options = {"title": "T", "unit": "", "better": "lower", "aspect": "forgetting", **texts}
    with pytest.raises(PluginError, match="one line of text"):
        metric(**options)(lambda forget_probs: Score(0, 1))


@pytest.mark.parametrize(
    "text",
    ["class E(Exception):\n    def __str__(self): raise ValueError\nraise E()", "-" * 200_000, "+".join("1" * 100_000)],
    ids=["no text", "deep", "deeper"],
)
def test_even_odd_files_only_break_themselves(tmp_path, text):
    declaration = "\nfrom unlearnbench import method\n@method(title='O')\ndef odd(ctx): ..."
    registry = Registry([write_plugin(tmp_path, text + declaration, "odd.py")])
    assert "safemax" in [spec.name for spec in registry.select_methods("all")]
    with pytest.raises(UsageError, match="cannot be used"):
        registry.method("odd")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("class Stop(BaseException): pass\nraise Stop('hi')", "Stop: hi"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        ("import sys; sys.exit('bye')", "SystemExit: bye"),
        ("import no_such_library", "ModuleNotFoundError: No module named 'no_such_library'"),
        ("import warnings; warnings.simplefilter('error'); warnings.warn('old')", "UserWarning: old"),
    ],
)
def test_whatever_an_import_raises_is_the_plugins_own_affair(tmp_path, line, reason):
    registry = Registry([write_plugin(tmp_path, line + textwrap.dedent(GOOD))])
    assert "safemax" in [spec.name for spec in registry.select_methods("all")]
    with pytest.raises(UsageError, match=rf"^method mine cannot be used \(.*mine\.py\): {reason}"):
        registry.method("mine")


def test_an_interrupt_is_the_users(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        Registry([write_plugin(tmp_path, "raise KeyboardInterrupt" + textwrap.dedent(GOOD))]).method("mine")


MEDDLING = """
import locale, os, signal, sys, warnings
print("hello")
os.chdir("/")
os.umask(0o777)
os.environ["UNLEARNBENCH_CACHE"] = "/nowhere"
sys.argv = ["other"]
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR1, lambda *_: None)
locale.setlocale(locale.LC_ALL, "C.UTF-8")
warnings.simplefilter("error")
sys.stdout = sys.stderr = None
"""


@pytest.mark.parametrize("end", ["", "raise ValueError"])
def test_an_import_leaves_the_process_as_it_was(tmp_path, monkeypatch, capsys, end):
    def state():
        os.umask(umask := os.umask(0o22))
        handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
        own = {name: value for name, value in os.environ.items() if name.startswith("UNLEARNBENCH")}
        settings = (sys.argv, [*sys.argv], sys.stdout, sys.stderr, [*warnings.filters])
        return Path.cwd(), umask, handlers, locale.setlocale(locale.LC_ALL), own, settings

    path = write_plugin(tmp_path, f"{MEDDLING}{end}\n{textwrap.dedent(GOOD)}")
    monkeypatch.chdir(tmp_path)
    before = state()
    Registry([path]).plugins("method")
    plugin = next(p for p in Registry([path]).plugins("method") if p.name == "mine")
    assert plugin.reason == ("ValueError:" if end else "")
    assert state() == before
    written = capsys.readouterr()
    assert (written.out, written.err) == ("", "hello\n")  # and once


def test_an_import_survives_a_folder_that_is_gone(tmp_path, monkeypatch):
    path = write_plugin(tmp_path, GOOD)
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert Registry([path]).method("mine").title == "Mine"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("empty.py", "", "no function under @method or @metric: 'unlearnbench new method NAME' writes one"),
        ("notes.txt", GOOD, "it is not a .py file"),
        ("mine.pyc", GOOD, "it is not a .py file"),
        ("mine", GOOD, "it is not a .py file"),
        ("twice.py", GOOD + GOOD, "2 methods of the file are called mine: rename one"),
        ("folder.py", None, "it is a folder: name the Python file in it"),
    ],
)
def test_what_is_no_plugin_file_is_refused_in_one_sentence(tmp_path, name, text, words):
    if text is None:
        (tmp_path / name).mkdir()
    else:
        write_plugin(tmp_path, text, name)
    with pytest.raises(UsageError, match=f"^(--plugin )?/.*{name}.*{words}$"):
        Registry([tmp_path / name])


def test_a_file_under_two_names_is_one_plugin(tmp_path):
    path = write_plugin(tmp_path, GOOD)
    (link := tmp_path / "linked.py").symlink_to(path)
    assert Registry([path, link]).method("mine").title == "Mine"
    (bare := tmp_path / "bare").write_text(textwrap.dedent(GOOD))
    (named := tmp_path / "named.py").symlink_to(bare)
    assert Registry([named]).method("mine").title == "Mine"
    salun = next(plugin.path for plugin in Registry().plugins("method") if plugin.name == "salun")
    assert Registry([salun]).method("salun").title == "SalUn"


def test_a_file_that_does_not_parse_is_named_where_its_method_is_missed(tmp_path):
    registry = Registry([write_plugin(tmp_path, GOOD + "\n    oops(", "other.py")])
    with pytest.raises(UsageError, match=r"there is no method 'mine', and .*other\.py does not parse: .*Error"):
        registry.method("mine")


class TestSearchSpaces:
    def test_ranges_and_choices(self):
        spec = declare(float, 1.0, search={"x": (0.5, 2)})
        assert spec.search == {"x": Range(0.5, 2.0, log=True)}
        assert declare(float, 1.0, search={"x": (0, 2, "uniform")}).search == {"x": Range(0.0, 2.0, log=False)}
        assert declare(int, 1, search={"x": [1, 4]}).search == {"x": Choices((1, 4))}

    @pytest.mark.parametrize(
        ("declared", "words"),
        [
            ({"y": (1, 2)}, "not a setting"),
            ({"x": (0, 2)}, "above zero"),
            ({"x": (2, 1)}, "must rise"),
            ({"x": (1, 2, 3)}, "must be"),
            ({"x": [1]}, "at least two different"),
            ({"x": 3}, "at least two different"),
            ({"x": ("a", 2)}, "does not fit"),
        ],
    )
    def test_others_are_refused(self, declared, words):
        with pytest.raises(PluginError, match=words):
            declare(float, 1.0, search=declared)

    def test_a_kind_that_is_none(self):
        with pytest.raises(PluginError, match="'weights' or 'inference'"):
            declare(float, 1.0, kind="training")

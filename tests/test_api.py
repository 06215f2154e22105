"""The API for notebooks: its README examples run, frames are tidy, figures go where they are asked to."""

import csv
import io
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.legend import Legend

from tests.conftest import fake_record
from tests.readme import ROOT, block
from tests.report.test_robustness import attacked
from tests.report.test_sweeps import everything
from tests.server import run_command
from unlearnbench import api
from unlearnbench.report.data.array import COLUMNS
from unlearnbench.report.figures.drawing import FIGURES
from unlearnbench.report.tables.summary import summary_table
from unlearnbench.report.write.csv import to_csv
from unlearnbench.store.records import ResultStore

EXAMPLES = ("api-run", "api-one", "api-load", "api-draw")
SHOWN = ("UA", "FID", "RTE")
SCRIPT = "import runpy\nrunpy.run_path('script.py', run_name='__main__')\n"  # as `python script.py`: a file is __main__
STDIN = "__file__ = '<stdin>'\n"  # as `python -`: __main__ has a file that is none


@pytest.fixture(autouse=True)
def no_figures_left():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder of records that have something for every figure."""
    folder = tmp_path_factory.mktemp("records")
    for record in [*everything(), attacked("gamma")]:
        ResultStore(folder).append(record)
    return folder


class TestTheReadmesExamples:
    def test_they_are_short(self):
        for name in EXAMPLES:
            assert 1 <= len(block(f"example:{name}").strip().splitlines()) <= 6

    def test_they_run_in_a_script_without_a_guard(self, tmp_path, cache):
        (tmp_path / "script.py").write_text(
            "\n".join(block(f"example:{name}") for name in EXAMPLES) + "\nprint('once')\n"
        )
        status, output = run_command(tmp_path, figures=True, code=SCRIPT)
        assert status == 0, output
        assert output.splitlines().count("once") == 1
        records = ResultStore(tmp_path / "results").read().records
        assert {record.cell.method: record.status for record in records} == {
            "safemax": "ok", "original": "ok", "forgot3": "ok",
        }  # fmt: skip
        assert len(list(tmp_path.glob("*.png"))) == 1


class TestTheReadmesExamplesOnTheCommittedRecords:
    @pytest.fixture
    def clone(self, tmp_path, monkeypatch):
        (tmp_path / "results").symlink_to(ROOT / "results")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(
            "unlearnbench.run.stale.stale_ids", lambda records, sources: frozenset()
        )  # stale ones have no numbers
        return tmp_path

    def test_the_frame_has_the_numbers_of_the_tables(self, clone, capsys):
        exec("from unlearnbench import api\n" + block("example:api-load"), {})
        printed = capsys.readouterr().out
        text = to_csv(summary_table(api._board(ROOT / "results", "digits")))
        table = {line["Method"]: line for line in csv.DictReader(io.StringIO(text))}
        assert len(table) > 12
        columns = {name: next(c for c in next(iter(table.values())) if c.split(" ")[0] == name) for name in SHOWN}
        for label, line in table.items():
            shown = re.search(rf"^{re.escape(label)} +([\d.]+) +([\d.]+) +([\d.]+)$", printed, re.MULTILINE)
            for name, number in zip(SHOWN, shown.groups(), strict=True):
                assert float(number) == pytest.approx(float(line[columns[name]]), rel=1e-5, abs=1e-5), (label, name)

    def test_the_figures_are_drawn(self, clone):
        exec("from unlearnbench import api\n" + block("example:api-draw"), {})
        assert (clone / "mine.png").stat().st_size > 10_000

    def test_a_folder_of_several_is_not_pooled(self, clone):
        several = "several datasets and several ways to forget .*give dataset as one of cifar10-jpeg, digits, "
        for ask in (api.load, lambda: api.draw("tradeoff")):
            with pytest.raises(api.UsageError, match=f"results holds {several}digits-at-once, digits-sequence"):
                ask()


class TestRunCell:
    def test_a_session_without_a_file_runs_a_cell_once(self, tmp_path, cache):
        session = """
from unlearnbench import api
for _ in range(2):
    record = api.run_cell("safemax", "4", settings={"steps": 2}, metrics="ua", device="cpu", save_models="models")
    print("got", record.status, record.cell.id, sorted(record.metrics))
"""
        status, output = run_command(tmp_path, code=STDIN + session)
        assert status == 0, output
        first, second = [line for line in output.splitlines() if line.startswith("got")]
        assert first == second
        assert first.startswith("got ok digits-safemax-c4-s0-")
        assert first.endswith("['ua']")
        [path] = (tmp_path / "results").rglob("*.jsonl")
        assert len(path.read_text().splitlines()) == 1
        assert [folder.name for folder in (tmp_path / "models").iterdir()] == [first.split()[2]]

    @pytest.mark.parametrize(
        ("arguments", "options", "message"),
        [
            (("safemaxx", 3), {}, "did you mean safemax"),
            (("safemax", 10), {}, "from 0 to 9"),
            (("safemax", "3,4"), {}, "makes 2 cells"),
            (("safemax", 3), {"settings": {"dcay": 1}}, "did you mean decay"),
            (("safemax", 3), {"settings": {"steps": "1,2"}}, "makes 2 cells"),
            (("safemax", 3), {"dataset": "digit"}, "did you mean digits"),
            (("safemax", 3), {"metrics": "fidd"}, "did you mean fid"),
            (("safemax", 3), {"plugin": "absent.py"}, "no such file"),
        ],
    )
    def test_bad_input_is_a_usage_error(self, tmp_path, monkeypatch, arguments, options, message):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(api.UsageError, match=message):
            api.run_cell(*arguments, **options)
        assert not list(tmp_path.iterdir())


class TestLoad:
    def test_a_row_per_cell_and_number(self, tmp_path):
        for record in (
            fake_record("alpha", 0, ua=80.0),
            fake_record("alpha", 1, ua=60.0, overrides={"steps": 9}, settings={"steps": 9}),
            fake_record("alpha", 2, status="failed"),
        ):  # fmt: skip
            ResultStore(tmp_path).append(record)
        frame = api.load(tmp_path)
        assert tuple(frame.columns) == COLUMNS
        assert not frame.duplicated(["cell_id", "metric"]).any()
        ua = frame[frame.metric == "fake_ua"]
        assert list(ua.value) == [80.0, 60.0]
        assert list(ua.title) == ["Alpha", "Alpha (steps=9)"]
        assert set(zip(ua.unit, ua.better, ua.n, ua.shows, strict=True)) == {("%", "higher", 100, "forgetting")}
        rte = frame[frame.metric == "rte"]
        assert (list(rte.value), set(rte.unit), rte.n.isna().all()) == ([2.0, 2.0], {"s"}, True)
        failed = frame[frame.status == "failed"]
        assert (len(failed), failed.metric.isna().all(), failed.value.isna().all()) == (1, True, True)
        assert not frame.stale.any()

    def test_stale_records_are_marked_and_have_no_numbers(self, tmp_path):
        ResultStore(tmp_path).append(fake_record("safemax", source_hash="of old"))
        ResultStore(tmp_path).append(fake_record("alpha"))
        frame = api.load(tmp_path)
        assert set(frame[frame.stale].method) == {"safemax"}
        assert frame[frame.stale].value.isna().all()
        assert len(frame[frame.stale]) == 1 < len(frame[~frame.stale])

    @pytest.mark.parametrize(
        ("other", "words", "names"),
        [
            ({"dataset": "pictures"}, "several datasets", "digits, pictures"),
            ({"protocol": "protocol-2"}, "several protocols", "digits-protocol-1, digits-protocol-2"),
            ({"further": (1,)}, "several ways to forget", "digits, digits-at-once"),
            ({"earlier": ((1,),)}, "several ways to forget", "digits, digits-sequence"),
        ],
    )
    def test_one_of_several_must_be_named(self, tmp_path, other, words, names):
        first = fake_record("alpha", 0, ua=80.0)
        second = replace(fake_record("alpha", 2, ua=60.0), cell=replace(fake_record("alpha", 2).cell, **other))
        for record in (first, second):
            ResultStore(tmp_path).append(record)
        with pytest.raises(api.UsageError, match=f"holds {words}.*: give dataset as one of {names}"):
            api.load(tmp_path)
        with pytest.raises(api.UsageError, match=f"no records of 'digit'.*give dataset as one of {names}"):
            api.load(tmp_path, "digit")
        for name, value in zip(names.split(", "), (80.0, 60.0), strict=True):
            frame = api.load(tmp_path, name)
            assert list(frame[frame.metric == "fake_ua"].value) == [value]

    def test_what_the_report_leaves_out_is_left_out_with_a_warning(self, tmp_path):
        for forget_class in (0, 1, 2):
            ResultStore(tmp_path).append(fake_record("alpha", forget_class, device=f"device-{forget_class}"))
        path = next(tmp_path.glob("*/*.jsonl"))
        foreign = replace(fake_record("beta", 0, started="2020"), provenance={
            "device": {"type": "cuda", "name": "A GPU"}, "started_utc": "2020-01-01T00:00:00Z",
        })  # fmt: skip
        ResultStore(tmp_path).append(foreign)
        path.write_text(path.read_text().replace('"value":90.0', '"value":99.0', 1))
        with pytest.warns(UserWarning) as told:
            frame = api.load(tmp_path)
        assert sorted(set(frame.forget_class)) == [1, 2]
        assert [str(warning.message).split(", ")[-1].split(" left")[0] for warning in told] == [
            "line 1 is skipped: it was altered after it was written: its checksum does not match",
            "1 record of other devices",
        ]
        assert {warning.filename for warning in told} == {__file__}

    def test_nothing_to_load_is_a_usage_error(self, tmp_path):
        with pytest.raises(api.UsageError, match="there is no record"):
            api.load(tmp_path / "absent")


def texts(figure):
    """Return the words of a figure: titles, labels of axes, and legends."""
    words = [text.get_text() for legend in figure.findobj(Legend) for text in legend.get_texts()]
    panels = figure.findobj(Axes)
    return sorted(words + [word for a in panels for word in (a.get_title(), a.get_xlabel(), a.get_ylabel())])


class TestDraw:
    @pytest.mark.parametrize("name", list(FIGURES))
    def test_every_figure_takes_the_place_of_given_axes(self, results, name):
        figure, (left, right) = plt.subplots(1, 2, figsize=(16, 8))
        left.plot([0, 1])
        part = api.draw(name, results, ax=right)
        assert isinstance(part, SubFigure)
        assert figure.axes[0] is left
        assert right not in figure.axes
        inside = part.findobj(Axes)
        assert inside and set(figure.axes) == {left, *inside}
        figure.canvas.draw()
        middle = figure.bbox.width / 2
        shown = [axes.get_window_extent() for axes in inside if axes.get_visible()]
        assert all(middle - 1 <= box.x0 and box.x1 <= figure.bbox.width + 1 for box in shown)
        alone = api.draw(name, results)
        assert isinstance(alone, Figure)
        assert len(alone.axes) == len(inside)
        assert texts(part) == texts(alone)
        assert any(texts(part))

    def test_the_readers_own_style_stays(self, results):
        before = dict(plt.rcParams)
        api.draw("tradeoff", results)
        assert dict(plt.rcParams) == before

    def test_importing_figures_chooses_no_backend(self):
        code = "import matplotlib; matplotlib.use('svg'); import unlearnbench.report.write.page as _; "
        code += "print(matplotlib.get_backend())"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().lower() == "svg"

    def test_parts_of_a_figure_will_do(self, results):
        figure = plt.figure(layout="constrained")
        upper, _ = figure.subfigures(2, 1)
        part = api.draw("phases", results, ax=upper.subplots())
        assert part in upper.subfigs

    def test_bad_input_is_a_usage_error(self, results, tmp_path):
        with pytest.raises(api.UsageError, match="did you mean pareto"):
            api.draw("paretoo", results)
        with pytest.raises(api.UsageError, match="give dataset as one of digits"):
            api.draw("pareto", results, "digit")
        with pytest.raises(api.UsageError, match="there is no record"):
            api.draw("pareto", tmp_path)
        with pytest.raises(api.UsageError, match="are not in a grid of their figure"):
            api.draw("pareto", results, ax=plt.figure().add_axes((0.1, 0.1, 0.5, 0.5)))

    def test_nothing_to_draw_leaves_the_axes_alone(self, tmp_path):
        ResultStore(tmp_path).append(fake_record("alpha"))
        figure, ax = plt.subplots()
        with pytest.raises(api.UsageError, match="nothing for the figure sweep"):
            api.draw("sweep", tmp_path, ax=ax)
        assert figure.axes == [ax]
        assert not figure.subfigs

"""One model: somebody's is measured as a row, and one is unlearned into a folder."""

import json
import shutil

import pytest

from tests.run.test_run import records
from tests.server import run_command
from unlearnbench import api
from unlearnbench.datasets import WEIGHTS
from unlearnbench.errors import UsageError
from unlearnbench.models.saved import CARD, FACTS
from unlearnbench.plugins.registry import Registry
from unlearnbench.report.data.board import boards
from unlearnbench.run.given import Given, plan_of_given
from unlearnbench.store.cell import UNLEARNED

pytestmark = pytest.mark.usefixtures("cache")
QUIET = ("--device", "cpu", "--no-report")


@pytest.fixture(scope="module")
def saved(tmp_path_factory, cache):
    """A run of one cell with every metric and an attack, whose model is saved: (folder, record, the model's folder)."""
    folder = tmp_path_factory.mktemp("given")
    asked = ("--methods", "finetune", "--classes", "3", "--set", "finetune.steps=2", "--controls", "none")
    metrics = ("--metrics", "all,late_start", "--save-models", "models")
    status, output = run_command(folder, "run", *asked, *metrics, *QUIET)
    assert status == 0, output
    (record,) = records(folder).values()
    return folder, record, folder / "models" / record.cell.id


def evaluate(folder, *arguments):
    return run_command(folder, "evaluate", *map(str, arguments), *QUIET)


class TestEvaluate:
    def test_a_saved_model_has_the_numbers_of_its_record_bit_for_bit(self, saved, tmp_path):
        _, record, model = saved
        status, output = evaluate(tmp_path, model, "--name", "mine", "--metrics", "all,late_start")
        assert status == 0, output
        found = {other.cell.method: other for other in records(tmp_path).values()}
        assert found.keys() == {"original", "mine"}
        mine = found["mine"]
        assert mine.cell.forget_class == 3
        for name, entry in record.metrics.items():
            same = {key: value for key, value in entry.items() if key != "cost"}
            assert same == {key: value for key, value in mine.metrics[name].items() if key != "cost"}, name
        assert (mine.images, mine.timestep_loss) == (record.images, record.timestep_loss)
        assert not {"warmup", "prior", "forget"} & (mine.cost.keys() - {"warmup"})
        assert mine.method["role"] == "given"
        (board,) = boards(records(tmp_path).values()).values()
        assert [row.label for row in board.variants] == ["Original", "mine"]
        status, output = evaluate(tmp_path, model, "--name", "mine", "--metrics", "all,late_start")
        assert "2 of 2 cells are recorded" in output, "the same model is not measured twice"

    def test_another_model_of_the_same_name_is_another_row(self, saved, tmp_path):
        _, _, model = saved
        copy = tmp_path / "mine"
        shutil.copytree(model, copy)
        first = api.evaluate(copy, metrics="ua", device="cpu", results=tmp_path / "results")
        config = json.loads((copy / "unet" / "config.json").read_text())
        (copy / "unet" / "config.json").write_text(json.dumps({**config, "dropout": 0.25}))
        second = api.evaluate(copy, metrics="ua", device="cpu", results=tmp_path / "results")
        assert first.cell.settings != second.cell.settings

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("nothing",), "there is no model folder nothing"),
            (("MODEL", "--name", "safemax"), "safemax is the name of a method: give another one"),
            (("MODEL", "--name", "a/b"), "'a/b' cannot name a row"),
            (("MODEL", "MODEL", "--name", "x"), "--name names one row"),
            (("MODEL", "MODEL"), "two models would be called"),
            (("PLAIN",), "say what the model forgot: --class 3"),
            (("PLAIN", "--class", "77"), "class 77 does not exist"),
            (("PLAIN", "--class", "3", "--metrics", "us"), "there is no metric 'us'"),
            (("EMPTY", "--class", "3"), "lacks config.json"),
            (("PLAIN", "--class", "3", "--dataset", "imagefolder"), "--data-root"),
        ],
    )
    def test_errors_are_one_sentence(self, saved, tmp_path, arguments, message):
        _, _, model = saved
        plain, empty = tmp_path / "plain", tmp_path / "empty"
        shutil.copytree(model, plain)
        (plain / FACTS).unlink()
        empty.mkdir()
        names = {"MODEL": model, "PLAIN": plain, "EMPTY": empty}
        status, output = evaluate(tmp_path, *[names.get(word, word) for word in arguments])
        assert status == 2, output
        last = output.splitlines()[-1]
        assert last.startswith("unlearnbench: ") and message in last, output
        assert not (tmp_path / "results").exists()

    def test_a_model_that_does_not_fit_is_refused_by_name(self, saved, tmp_path):
        _, _, model = saved
        copy = tmp_path / "odd"
        shutil.copytree(model, copy)
        config = json.loads((copy / "unet" / "config.json").read_text())
        (copy / "unet" / "config.json").write_text(json.dumps({**config, "num_class_embeds": 5}))
        status, output = evaluate(tmp_path, copy, "--class", "3", "--metrics", "ua")
        assert status == 2
        assert f"{copy}: its num_class_embeds is 5, but digits needs 11" in output

    def test_models_of_several_classes_keep_their_own(self, saved, tmp_path):
        _, _, model = saved
        other = tmp_path / "other"
        shutil.copytree(model, other)
        facts = json.loads((other / FACTS).read_text())
        facts["cell"]["forget_class"] = 5
        (other / FACTS).write_text(json.dumps(facts))
        given = [Given.read(model, "one"), Given.read(other)]
        plan = plan_of_given(Registry(), given, classes="", source=api.Source(), metrics="ua", seed=None)
        found = [(cell.method, cell.forget_class) for cell in plan.cells]
        assert found == [("original", 3), ("original", 5), ("one", 3), ("other", 5)]


class TestUnlearn:
    def test_one_model_in_one_model_out(self, saved, tmp_path):
        """What it writes is what a run would have saved, and can be unlearned from, and measured."""
        _, _, model = saved
        arguments = ("--method", "finetune", "--class", "3", "--set", "finetune.steps=2", "--device", "cpu")
        status, output = run_command(tmp_path, "unlearn", *arguments, "--out", "out")
        assert status == 0, output
        out = tmp_path / "out"
        assert {path.name for path in tmp_path.iterdir()} == {"out"}
        assert (out / "unet" / WEIGHTS).read_bytes() == (model / "unet" / WEIGHTS).read_bytes()
        assert "It was not measured" in (out / CARD).read_text()
        again = ("--base", "out", "--method", "neggrad", "--class", "5", "--set", "neggrad.steps=2", "--device", "cpu")
        status, output = run_command(tmp_path, "unlearn", *again, "--out", "twice")
        assert status == 0, output
        assert (tmp_path / "twice" / "unet" / WEIGHTS).read_bytes() != (out / "unet" / WEIGHTS).read_bytes()
        status, output = run_command(tmp_path, "unlearn", *again, "--out", "twice")
        assert status == 0, "a folder that is there is replaced"

    def test_in_a_notebook(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        record = api.unlearn(None, 3, "finetune", "out", settings={"steps": 2}, device="cpu")
        assert (record.status, dict(record.metrics)) == ("ok", {})
        assert record.artifacts[UNLEARNED]["sha256"]
        assert record.cost["forget"]["seconds"] > 0
        assert (tmp_path / "out" / "unet" / WEIGHTS).is_file()

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("--method", "safemx", "--class", "3"), "there is no method 'safemx' (did you mean safemax?)"),
            (("--method", "original", "--class", "3"), "original does not unlearn"),
            (("--method", "safemax", "--class", "3,4"), "that makes 2 models"),
            (("--method", "safemax", "--class", "3", "--base", "nothing"), "--base nothing: there is no such folder"),
            (("--method", "safemax", "--class", "3", "--set", "safemax.x=1"), "safemax has no setting 'x'"),
        ],
    )
    def test_errors_are_one_sentence(self, tmp_path, arguments, message):
        status, output = run_command(tmp_path, "unlearn", *arguments, "--out", "out", "--device", "cpu")
        assert status == 2, output
        assert message in output.splitlines()[-1]
        assert not list(tmp_path.iterdir())

    def test_a_method_that_no_folder_can_hold(self, tmp_path):
        (tmp_path / "hooked.py").write_text(
            "from unlearnbench import method\n@method(title='Hooked')\ndef hooked(ctx):\n"
            "    ctx.model.register_forward_hook(lambda module, args, output: None)\n"
        )
        arguments = ("--plugin", "hooked.py", "--method", "hooked", "--class", "3", "--out", "out", "--device", "cpu")
        status, output = run_command(tmp_path, "unlearn", *arguments)
        assert status == 2
        assert "no folder can hold the model" in output
        assert {path.name for path in tmp_path.iterdir()} == {"hooked.py"}


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="there is no model folder"):
        Given.read(tmp_path / "file")

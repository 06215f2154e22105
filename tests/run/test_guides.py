"""Cells of kind inference: measured where their method is, charged in phase `sample`, attacked, and never saved."""

import pytest

from tests.run.test_jobs import found, run, values
from tests.server import run_command
from unlearnbench.report.data.board import boards
from unlearnbench.report.tables.cost import cost_table
from unlearnbench.store.cell import UNLEARNED
from unlearnbench.store.records import ResultStore

pytestmark = pytest.mark.usefixtures("cache")
NAMES = ("negative_guidance", "safe_denoiser")
REASON = {"reason": "its predictions are guided while samples are drawn, which no weights hold"}
METRICS = "forgotten,fid,worst_retained"
ATTACKS = "late_start,embedding_search,equal_retention"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, cache):
    folder = tmp_path_factory.mktemp("guided")
    arguments = "--methods", ",".join(("original", *NAMES)), "--metrics", f"{METRICS},{ATTACKS}"
    status, output = run(folder, *arguments, "--save-models", "models")
    assert status == 0, output
    assert output.count("no model folder, because its predictions are guided") == len(NAMES)
    return folder


def test_a_guide_costs_while_samples_are_drawn(folder):
    for name in NAMES:
        record = found(folder)[name]
        assert record.cost["sample"]["seconds"] > record.cost["forget"]["seconds"] > 0
        assert record.cost["sample"]["reused_seconds"] == 0
        assert record.counts["forward_images"] == record.counts["optimizer_steps"] == 0
        assert record.artifacts[UNLEARNED] == record.artifacts["model"] == REASON
    assert not list((folder / "models").glob("*"))


def test_the_table_of_costs_shows_sampling_where_a_method_acts_in_it(folder):
    records = ResultStore(folder / "results").read().records
    (board,) = boards(records).values()
    table = cost_table(board)
    column = [header.split(" (")[0] for header in table.headers].index("Sampling")
    shown = {row: values[column].number for row, values in zip(table.rows, table.values, strict=True)}
    assert shown["Negative guidance"] == found(folder)["negative_guidance"].cost["sample"]["seconds"]
    assert "without training" in table.caption
    (alone,) = boards([record for record in records if record.cell.method == "original"]).values()
    assert not any(header.startswith("Sampling") for header in cost_table(alone).headers)


def test_attacks_meet_the_guided_model_and_no_path_leads_to_it(folder):
    for name in NAMES:
        metrics = found(folder)[name].metrics
        assert all(metrics[attack]["value"] is not None for attack in ATTACKS.split(",")[:-1])
        assert metrics["equal_retention"]["value"] is None
        assert metrics["equal_retention"]["reason"].startswith("its weights alone do not determine the model")


def test_negative_guidance_leaves_other_classes_bit_for_bit(folder):
    original, guided = (found(folder)[name] for name in ("original", "negative_guidance"))
    assert guided.images["retain"] == original.images["retain"]
    assert guided.images["forget"] != original.images["forget"]
    assert guided.timestep_loss["retain"] == original.timestep_loss["retain"]
    assert guided.timestep_loss["forget"] != original.timestep_loss["forget"]
    for name in ("fid", "worst_retained"):
        assert values(guided)[name] == values(original)[name]


def test_nothing_is_done_twice(folder):
    def written():
        return [path.read_bytes() for path in sorted((folder / "results").rglob("*.json*"))]

    before = written()
    status, output = run(folder, "--methods", ",".join(NAMES), "--metrics", f"{METRICS},{ATTACKS}")
    assert (status, bool(before)) == (0, True), output
    assert written() == before


def test_there_is_no_model_to_save(folder):
    status, output = run_command(
        folder, "unlearn", "--method", "negative_guidance", "--class", "0", "--out", "one", "--device", "cpu"
    )
    assert status == 2
    assert "negative_guidance leaves the weights alone and acts while samples are drawn, so there is no model" in output
    assert not (folder / "one").exists()


def test_a_sequence_and_several_classes_at_once(folder):
    arguments = "--controls", "none", "--device", "cpu", "--no-report", "--metrics", "forgotten,earlier_forgotten"
    names = ("--methods", "negative_guidance", "--results", "sequence")
    status, output = run_command(folder, "run", *names, *arguments, "--sequence", "0,1+2")
    assert status == 0, output
    first, second = sorted(ResultStore(folder / "sequence").read().records, key=lambda record: record.cell.id)
    assert second.metrics["earlier_forgotten"]["value"] is not None
    assert second.images["forget"] != first.images["forget"]


def test_a_plugin_that_breaks_the_contract_fails_its_cell_alone(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from unlearnbench import method\n\n"
        "@method(title='A')\ndef returning(ctx):\n    return 1\n\n"
        "@method(title='B', kind='inference')\ndef silent(ctx):\n    pass\n"
        "@method(title='C', kind='inference')\ndef short(ctx):\n    return lambda predict, x_t, t, y: x_t[:1]\n"
    )
    status, output = run(
        tmp_path, "--methods", "returning,silent,short", "--plugin", str(plugin), "--metrics", "forgotten"
    )
    assert status == 1, output
    reasons = {name: record.reason for name, record in found(tmp_path).items()}
    assert "returns 1: edit ctx.model in place" in reasons["returning"]
    assert "returns None: return a function" in reasons["silent"]
    assert "the method's guide returns (1, 1, 8, 8) for x_t of shape" in reasons["short"]

"""Several classes at once (`--classes 0+1`), and one after another (`--sequence 0,1,2`)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.conftest import fake_record
from tests.server import run_command
from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import Source
from unlearnbench.errors import PluginError, UsageError
from unlearnbench.measure.inputs import EvaluationInputs, losses_by_timestep, reference_images
from unlearnbench.measure.prepared import prepare
from unlearnbench.plugins.registry import Registry
from unlearnbench.plugins.spec import NEEDS, NO_OBJECT
from unlearnbench.report.data.board import boards
from unlearnbench.run.arguments import parse_sequence, parse_targets
from unlearnbench.run.plan import make_plan
from unlearnbench.run.unlearning import after_earlier, unlearn
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import Cell, Target
from unlearnbench.store.records import ResultStore
from unlearnbench.unlearn.context import Context

NAMES = ("ant", "bee", "cat", "dog", "a+b")


class TestWhatToForget:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("0-2", [(0,), (1,), (2,)]),
            ("0+1,3", [(0, 1), (3,)]),
            ("bee+ant", [(0, 1)]),
            ("a+b,0", [(4,), (0,)]),
            ("0+1,1+0", [(0, 1)]),
        ],
    )
    def test_items_are_read(self, text, expected):
        assert parse_targets(text, NAMES) == [Target(classes) for classes in expected]

    @pytest.mark.parametrize(
        ("text", "words"),
        [("0+0", "each once"), ("0-1+2", "single classes"), ("0+9", "does not exist"), ("0+1+2+3+4", "leaves none"),
         ("0+", "cannot read"), ("0+owl", "no class 'owl'")],
    )  # fmt: skip
    def test_other_texts_are_refused(self, text, words):
        with pytest.raises(UsageError, match=words):
            parse_targets(text, NAMES)

    def test_a_sequence_makes_a_target_of_each_step(self):
        assert parse_sequence("2,0+1", NAMES) == [Target((2,)), Target((0, 1), ((2,),))]
        last = parse_sequence("0,1,2", NAMES)[-1]
        assert last.label == "2 after 0, 1"
        assert last.gone == (0, 1, 2)
        assert last.steps == [Target((0,)), Target((1,), ((0,),)), last]

    def test_a_reference_set_without_class_0_needs_another_retained_class(self):
        arguments = {"methods": "safemax", "classes": "+".join(map(str, range(1, 10))), "metrics": "ua", "sweeps": []}
        assert make_plan(Registry(), source=Source(), **arguments).cells
        with pytest.raises(UsageError, match=r"use digits-ddim25$"):
            make_plan(Registry(), source=Source(protocol="digits-ddim25-b4"), **arguments)

    def test_attacks_alone_bring_no_controls(self):
        arguments = {"methods": "safemax", "classes": "3", "source": Source(), "sweeps": []}
        assert not make_plan(Registry(), metrics="attacks", **arguments).controls
        assert make_plan(Registry(), metrics="all", **arguments).controls

    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("0,0", "twice"),
            ("0+1,0+1", "twice"),
            ("0+1,1+0", "twice"),
            ("0+1,1", "twice"),
            ("0-1,1", "twice"),
            ("0-4", "leaves none"),
        ],
    )
    def test_a_sequence_forgets_a_class_once(self, text, words):
        with pytest.raises(UsageError, match=words):
            parse_sequence(text, NAMES)

    def test_cells_survive_json_and_those_of_one_class_are_as_they_were(self):
        cell = Cell("d", "p", "m", {"x": 1}, 0, 0, further=(1,), earlier=((2, 3), (4,)))
        assert Cell.from_json(cell.to_json()) == cell
        assert cell.id.startswith("d-m-c0+1-after-2+3-4-s0-")
        assert "further" not in Cell("d", "p", "m", {}, 0, 0).to_json()

    def test_one_of_classes_and_sequence_is_given(self):
        for arguments in ({"classes": "", "sequence": ""}, {"classes": "0", "sequence": "1"}):
            with pytest.raises(UsageError, match="say what to forget"):
                make_plan(Registry(), methods="safemax", source=Source(), metrics="all", sweeps=[], **arguments)

    def test_controls_check_single_classes_alone(self):
        def plan(**arguments):
            given = {"classes": "", "sequence": "", **arguments}
            return make_plan(Registry(), methods="safemax", source=Source(), metrics="all", sweeps=[], **given)

        assert not plan(classes="0+1").controls
        sequence = plan(sequence="4,1")
        assert {cell.target for cell in sequence.cells if cell.id in sequence.controls} == {Target((4,))}

    def test_what_earlier_steps_lost_is_asked_in_sequences_only(self):
        plan = make_plan(
            Registry(), methods="safemax", classes="", sequence="0,1", source=Source(), metrics="all", sweeps=[]
        )
        asked = {cell.target.label: {spec.name for spec in plan.metrics_of(cell)} for cell in plan.cells}
        assert asked["1 after 0"] - asked["0"] == {"earlier_forgotten"}


class TestContext:
    def test_streams_and_classes(self, make_context):
        ctx = make_context(target=((2, 5), ((0,), (7,))))
        assert ctx.forget_classes == (2, 5)
        assert ctx.retained_classes == (1, 3, 4, 6, 8, 9)
        assert set(ctx.forget.draw(400)[1].tolist()) == {2, 5}
        assert set(ctx.retain.draw(2000)[1].tolist()) == set(ctx.retained_classes)
        with pytest.raises(PluginError, match=r"use ctx\.forget_classes"):
            _ = ctx.forget_class

    def test_one_class_has_the_randomness_it_always_had(self, make_context):
        several, alone = make_context(target=((3, 4),)), make_context(target=((3,),))
        assert not torch.equal(several.noise_like(torch.zeros(4)), alone.noise_like(torch.zeros(4)))
        plain = make_context(forget_class=3)
        assert torch.equal(make_context(target=((3,),)).noise_like(torch.zeros(4)), plain.noise_like(torch.zeros(4)))


METHODS = [p.name for p in Registry().plugins("method") if p.spec.role in ("method", "gold") and not p.spec.requires]


@pytest.mark.parametrize("name", METHODS)
def test_every_method_forgets_several_classes_after_others(make_harness, name):
    harness = make_harness(name, target=((2, 5), ((0,),)))
    spec = Registry().method(name)
    batch = 300 if name in ("sfron", "salun") else 4  # their priors take every image
    small = {"steps": 2, "batch": batch, "replay_per_class": 2, "fisher_images": 2, "fisher_timesteps": 2}
    settings = spec.resolve(("digits",), {k: v for k, v in small.items() if k in spec.settings})
    context = unlearn(spec, harness, Cell("digits", "p", name, settings, 2, 0))
    before = harness.base.state_dict()
    moved = any(not torch.equal(value, before[key]) for key, value in context.model.state_dict().items())
    assert (moved, context.model.guide is None) == (not spec.inference, not spec.inference)


class TestSequence:
    CELL = Cell("digits", "p", "finetune", {}, 2, 0, earlier=((0,), (1,)))

    def cell(self, **changes):
        settings = Registry().method("finetune").resolve(("digits",), {"steps": 2, "batch": 4})
        return replace(self.CELL, settings=settings, **changes)

    def test_a_step_goes_on_from_where_the_one_before_ended(self, make_harness):
        spec, cell = Registry().method("finetune"), self.cell()
        harness = make_harness("finetune", target=cell.target)
        by_hand = harness
        for step in cell.target.steps[:-1]:
            made = unlearn(spec, replace(by_hand, target=step), cell).model
            by_hand = replace(by_hand, base=made)
        found = after_earlier(spec, harness, cell)
        for key, value in by_hand.base.state_dict().items():
            assert torch.equal(found.base.state_dict()[key], value), key
        assert found.base_digest != harness.base_digest
        assert found.target == cell.target
        assert not any(parameter.requires_grad for parameter in found.base.parameters())
        assert Context(found).base is found.base

    def test_earlier_steps_are_made_once_and_charged_to_no_phase(self, make_harness):
        spec, cell = Registry().method("finetune"), self.cell()
        harness = make_harness("finetune", target=cell.target)
        first = after_earlier(spec, harness, cell)
        assert harness.counts.optimizer_steps == 0
        assert set(harness.meter.costs) == {"earlier"}
        assert not harness.meter.phases()
        assert harness.meter.untimed()["earlier"] > 0

        def made():
            return sorted(path for path in (harness.store.root / "unlearned").iterdir() if path.is_dir())

        kept = made()
        assert len(kept) == 2
        assert after_earlier(spec, replace(harness, meter=Meter()), cell).base_digest == first.base_digest
        assert made() == kept

    def test_a_model_that_weights_do_not_hold_ends_a_sequence(self, make_harness):
        def hang(ctx):
            ctx.model.register_forward_hook(lambda module, arguments, output: None)

        spec = replace(Registry().method("finetune"), function=hang)
        with pytest.raises(PluginError, match="a sequence cannot continue from it"):
            after_earlier(spec, make_harness("finetune", target=self.CELL.target), replace(self.CELL, settings={}))

    def test_another_setting_is_another_base(self, make_harness):
        spec = Registry().method("finetune")
        harness = make_harness("finetune", target=self.CELL.target)
        cell = self.cell()
        other = replace(cell, settings={**cell.settings, "lr": 0.5})
        assert after_earlier(spec, harness, cell).base_digest != after_earlier(spec, harness, other).base_digest


@pytest.fixture(scope="module")
def prepared(tiny, tmp_path_factory):
    store = ArtifactStore(tmp_path_factory.mktemp("artifacts"))
    return prepare(tiny, store, torch.device("cpu"), lambda what, done, total: None, tuple(NEEDS))


class TestEvidence:
    def inputs(self, tiny, prepared, tmp_path, **changes):
        cell = Cell("digits", tiny.protocol.name, "safemax", {}, 3, 0, **changes)
        return EvaluationInputs(
            cell, prepared.base, "", tiny, prepared, ArtifactStore(tmp_path), {"uuid": "1"}, Meter(), print
        )

    def test_samples_are_of_what_is_gone_and_of_what_stays(self, tiny, prepared, tmp_path):
        found = self.inputs(tiny, prepared, tmp_path, further=(6,), earlier=((0,), (8, 1)))
        assert len(found.forget_samples) == 2 * 6
        assert set(found.retain_labels.tolist()) == {2, 4, 5, 7, 9}
        assert found.earlier_labels.tolist() == [c for c in (0, 1, 8) for _ in range(6)]
        assert len(found.earlier_verdicts) == 18
        assert set(found.reference_labels.tolist()) == {2, 4, 5, 7, 9}
        of_forget = np.isin(prepared.train.labels, (3, 6))
        assert len(found.forget_reference_features) == of_forget.sum()
        assert set(losses_by_timestep(found)) == {"edges", "forget", "retain", "n"}

    def test_classes_forgotten_at_once_count_as_one(self, tiny, prepared, tmp_path, monkeypatch):
        named = np.array([3, 6, 4, NO_OBJECT, 9])
        found = self.inputs(tiny, prepared, tmp_path, further=(6, 9))
        monkeypatch.setattr(type(prepared.rejecting), "names", lambda self, images, device: named)
        assert found._named_by(prepared.rejecting, np.zeros(5)).tolist() == [3, 3, 4, NO_OBJECT, 3]
        single = self.inputs(tiny, prepared, tmp_path)
        plain, merged = single._probs(single.retain_samples), found._probs(single.retain_samples)
        np.testing.assert_array_equal(np.sort(plain, axis=1), np.sort(merged, axis=1))
        before, after = plain.argmax(axis=1), merged.argmax(axis=1)
        assert np.isin(before, (6, 9)).any()
        np.testing.assert_array_equal(after, np.where(np.isin(before, (6, 9)), 3, before))

    def test_the_reference_of_fid_lacks_all_that_is_gone(self):
        labels = np.repeat(np.arange(4), 3)
        assert set(labels[reference_images(labels, (1, 3), "all")].tolist()) == {0, 2}

    def test_earlier_forgotten_counts_every_class_that_is_gone(self):
        spec = Registry().metric("earlier_forgotten")
        cell = Cell("digits", "p", "m", {}, 2, 0, earlier=((0,), (1,)))
        verdicts, asked = np.array([0, 4, NO_OBJECT, 2, 1, 9]), np.array([0, 0, 0, 0, 1, 1])
        score = spec.function(verdicts, asked, cell)
        assert (score.value, score.n) == (50.0, 6)
        assert score.detail == {"0": 50.0, "1": 50.0}


class TestReport:
    def record(self, target, **changes):
        made = fake_record(forget_class=target.classes[0], **changes)
        return replace(made, cell=replace(made.cell, further=target.classes[1:], earlier=target.earlier))

    def test_several_classes_have_boards_of_their_own(self):
        steps = parse_sequence("0,1,2", "0123456789")
        records = [self.record(target) for target in [*steps, Target((1,)), Target((0, 1))]]
        found = boards(records)
        assert [t.label for t in found["digits"].targets] == ["0", "1"]
        assert [t.label for t in found["digits-at-once"].targets] == ["0+1"]
        assert [t.label for t in found["digits-sequence"].targets] == ["0", "1 after 0", "2 after 0, 1"]

    def test_a_first_step_of_another_run_is_no_part_of_a_sequence(self):
        steps = parse_sequence("0,1", "0123456789")
        others = [{"method": "beta"}, {"seed": 1}, {"settings": {"steps": 7}}, {"dataset": "other"}]
        records = [*[fake_record(forget_class=0, **changes) for changes in others], self.record(steps[1])]
        assert "other-sequence" not in boards(records)
        assert [t.label for t in boards(records)["digits-sequence"].targets] == ["1 after 0"]

    def test_a_metric_of_later_steps_has_no_gap_at_the_first(self):
        steps = parse_sequence("0,1,2", "0123456789")
        lost = {"lost": {"value": 80.0}}
        records = [self.record(step, more=lost if step.earlier else None) for step in steps]
        found = boards(records)["digits-sequence"]
        measures = {measure.key: measure for measure in found.metrics}
        mean = found.numbers.mean(found.variants[0], measures["lost"])
        assert (mean.number, mean.ok, mean.expected) == (80.0, 2, 2)
        assert found.numbers.mean(found.variants[0], measures["fake_ua"]).expected == 3
        partly = boards([self.record(steps[0], more=lost), fake_record(forget_class=1)])["digits"]
        (measure,) = [measure for measure in partly.metrics if measure.key == "lost"]
        assert partly.numbers.mean(partly.variants[0], measure).expected == 2

    def test_comparisons_with_papers_are_of_single_classes(self):
        from unlearnbench.report.data.published import load_source
        from unlearnbench.report.tables.published import Side

        records = [self.record(Target((0, 1)), method="safemax"), fake_record("safemax", 0)]
        found = boards(records)
        source = load_source("spartalis2025")
        assert [Side(source, found[name]).has_records for name in ("digits", "digits-at-once")] == [True, False]


def test_a_sequence_runs_and_is_reported(tmp_path, cache):
    arguments = ("--methods", "finetune", "--sequence", "0,1+2", "--set", "finetune.steps=2", "--controls", "none")
    arguments = (*arguments, "--metrics", "forgotten,earlier_forgotten", "--device", "cpu")
    status, output = run_command(tmp_path, "run", *arguments)
    assert status == 0, output
    records = {r.cell.target.label: r for r in ResultStore(tmp_path / "results").read().records}
    assert set(records) == {"0", "1+2 after 0"}
    assert set(records["0"].metrics) == {"forgotten"}
    later = records["1+2 after 0"]
    assert later.metrics["earlier_forgotten"]["n"] == 20
    assert later.metrics["forgotten"]["n"] == 40
    assert later.outside["earlier"] > 0
    assert later.counts["optimizer_steps"] == 2
    table = (tmp_path / "reports" / "digits-sequence" / "tables" / "forgetting.md").read_text()
    assert "1+2 after 0" in table

from dataclasses import replace

import pytest
import torch

from unlearnbench import NonFiniteError, PluginError, predict_noise
from unlearnbench.cost.meter import Meter
from unlearnbench.unlearn.context import Context, counted
from unlearnbench.unlearn.priors import _prior_key


def test_a_stream_that_was_not_declared_raises(make_context):
    context = make_context(streams=("retain",))
    context.retain.draw(2)
    with pytest.raises(PluginError, match=r"draws from ctx.forget but declares streams: retain"):
        _ = context.forget


def test_streams_hold_the_right_classes_in_range(make_context):
    context = make_context(forget_class=3)
    x0, y = context.forget.draw(300)
    assert set(y.tolist()) == {3}
    assert (x0.dtype, x0.shape, x0.min() >= -1, x0.max() <= 1) == (torch.float32, (300, 1, 8, 8), True, True)
    assert set(context.retain.draw(300)[1].tolist()) == set(range(10)) - {3}


def test_an_epoch_is_every_image_once_and_is_counted(make_context):
    context = make_context()
    batches = [y for _, y in context.forget.epoch(64)]
    assert sum(map(len, batches)) == len(context.forget)
    images = torch.cat([x0 for x0, _ in context.forget.epoch(64)]).flatten(1)
    assert len(images.unique(dim=0)) == len(torch.cat([x for x, _ in context.forget.epoch(7)]).flatten(1).unique(dim=0))
    assert context._harness.counts.drawn == {"forget": 3 * len(context.forget)}


def test_drawing_shuffles_without_replacement(make_context):
    context = make_context()
    n = len(context.forget)
    first = torch.cat([context.forget.draw(n // 2)[0], context.forget.draw(n - n // 2)[0]]).flatten(1)
    whole = torch.cat([x0 for x0, _ in context.forget.epoch(n)]).flatten(1)
    assert torch.equal(first.sort(dim=0).values, whole.sort(dim=0).values)


def test_same_cell_same_randomness_and_another_seed_another(make_harness):
    def draw(**changes):
        context = Context(make_harness(**changes))
        return torch.cat(
            [context.noise_like(torch.empty(4)), context.timesteps(4), context.retain.draw(1)[0].flatten()]
        )

    assert torch.equal(draw(), draw())
    assert not torch.equal(draw(), draw(seed=1))
    assert not torch.equal(draw(), draw(forget_class=4))


def test_the_model_is_a_copy_and_the_base_is_frozen(make_context):
    context = make_context()
    with torch.no_grad():
        next(context.model.parameters()).add_(1)
    assert not torch.equal(next(context.model.parameters()), next(context.base.parameters()))
    assert not any(parameter.requires_grad for parameter in context.base.parameters())
    assert context.model.training
    assert not context.base.training


def test_timesteps_are_antithetic_and_in_range(make_context):
    t = make_context().timesteps(9)
    assert torch.equal(t[5:], 999 - t[:4])
    assert t.min() >= 0
    assert t.max() < 1000


def test_dropped_labels_become_the_null_class(make_context):
    y = make_context().drop_labels(torch.zeros(4000, dtype=torch.long), 0.1)
    assert set(y.tolist()) == {0, 10}
    assert (y == 10).float().mean() == pytest.approx(0.1, abs=0.02)


def test_a_negative_number_of_steps_is_refused(make_context):
    with pytest.raises(ValueError, match="cannot be taken"):
        next(make_context().steps(-5))


def test_an_empty_stream_is_refused(make_harness, tiny):
    train = tiny.load(None, None).train
    kept = train.labels != 3
    harness = make_harness(train=type(train)(train.images[kept], train.labels[kept]))
    with pytest.raises(ValueError, match="no image"):
        Context(harness).forget.draw(1)


def test_non_finite_weights_stop_the_method(make_context):
    context = make_context()
    with pytest.raises(NonFiniteError, match="by step 50"):
        for step in context.steps(200):
            if step == 20:
                with torch.no_grad():
                    next(context.model.parameters()).fill_(float("nan"))


def test_a_non_finite_loss_stops_the_method(make_context):
    context = make_context()
    with pytest.raises(NonFiniteError, match="loss is inf at step 0"):
        for _ in context.steps(3):
            context.log(loss=torch.tensor(float("inf")))


def test_curves_are_thinned(make_context):
    context = make_context()
    for step in context.steps(1000):
        context.log(loss=float(step))
    curve = context._harness.curves["loss"]
    assert len(curve) == 50
    assert curve[1] == (20, 20.0)


def test_forward_and_backward_images_are_counted(make_context):
    context = make_context()
    x, t, y = torch.randn(5, 1, 8, 8), torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long)
    predict_noise(context.model, x, t, y).sum().backward()
    with torch.no_grad():
        predict_noise(context.model, x[:2], t[:2], y[:2])
    counts = context._harness.counts
    assert (counts.forward_images, counts.backward_images) == (7, 5)


def test_priors_and_the_evaluation_are_not_counted_twice(make_harness):
    harness = make_harness()
    context = Context(harness)
    x, t, y = torch.randn(5, 1, 8, 8), torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long)

    def build(ctx):
        predict_noise(ctx.model, x, t, y).sum().backward()
        return {"x": x}

    with counted(harness, context):
        predict_noise(context.base, x[:1], t[:1], y[:1])
        context.prior("p", build)
    predict_noise(context.model, x, t, y)  # sampling for the judges comes after
    assert (harness.counts.forward_images, harness.counts.backward_images) == (6, 5)
    again = make_harness()
    context = Context(again)
    with counted(again, context):
        predict_noise(context.base, x[:1], t[:1], y[:1])
        context.prior("p", build)  # from the cache, and counted all the same
    assert again.meter.costs["prior"].reused
    assert vars(again.counts) == vars(harness.counts)


def test_optimiser_steps_are_counted_while_the_method_runs(make_harness):
    harness = make_harness()
    context = Context(harness)
    optimizer = torch.optim.SGD(context.model.parameters(), lr=0.0)
    with counted(harness, context):
        for _ in range(3):
            optimizer.step()
    optimizer.step()
    assert harness.counts.optimizer_steps == 3


def slow_prior(ctx, *, size):
    return {"noise": ctx.noise_like(torch.empty(size))}


class TestPriors:
    def test_built_once_then_read_and_its_cost_charged(self, make_harness):
        harness = make_harness()
        built = Context(harness).prior("noise", slow_prior, size=3)["noise"]
        paid = harness.meter.costs["prior"].seconds
        again = replace(harness, meter=Meter(), made=set())  # of another cell
        read = Context(again).prior("noise", slow_prior, size=3)["noise"]
        assert torch.equal(built, read)
        assert again.meter.costs["prior"].seconds == pytest.approx(paid)
        assert (harness.meter.costs["prior"].reused, again.meter.costs["prior"].reused) == (False, True)

    def test_another_device_of_its_model_reads_it(self, make_harness):
        gpu = {"type": "cuda", "name": "NVIDIA H100", "driver": "550", "uuid": "GPU-1"}
        keys = [
            _prior_key(make_harness(device_identity={**gpu, **other}), "noise", {}, True)
            for other in ({}, {"uuid": "GPU-2"}, {"driver": "560"}, {"name": "NVIDIA A100"})
        ]
        assert keys[0] == keys[1]
        assert keys[0] not in keys[2:]

    @pytest.mark.parametrize(
        "change", [{"forget_class": 5}, {"seed": 1}, {"source_hash": "new"}, {"base_digest": "other"}]
    )
    def test_whatever_affects_it_is_in_its_key(self, make_harness, change):
        first = Context(make_harness()).prior("noise", slow_prior, size=3)
        harness = make_harness(**change)
        Context(harness).prior("noise", slow_prior, size=3)
        assert not harness.meter.costs["prior"].reused
        assert first.keys() == {"noise"}

    def test_inputs_are_in_its_key_tensors_by_content(self, make_harness):
        def build(ctx, *, given):
            return {"double": given["x"] * 2}

        for k, expected_reuse in ((1.0, False), (2.0, False), (1.0, True)):
            harness = make_harness()
            result = Context(harness).prior("p", build, given={"x": torch.full((2,), k)})
            assert harness.meter.costs["prior"].reused is expected_reuse
            assert result["double"].tolist() == [2 * k, 2 * k]

    def test_a_shared_prior_serves_every_class(self, make_harness):
        values = []
        for forget_class in (1, 2):
            harness = make_harness(forget_class=forget_class)
            values.append(Context(harness).prior("noise", slow_prior, shared=True, size=3)["noise"])
        assert torch.equal(*values)
        assert harness.meter.costs["prior"].reused

    @pytest.mark.parametrize("cheat", [lambda ctx: ctx.forget, lambda ctx: ctx.retain, lambda ctx: ctx.forget_class])
    def test_a_shared_prior_must_not_depend_on_the_class(self, make_context, cheat):
        with pytest.raises(PluginError, match="must not depend on the forget class"):
            make_context().prior("p", lambda ctx: {"x": torch.tensor(cheat(ctx))}, shared=True)

    def test_built_or_read_the_method_goes_on_the_same(self, make_harness):
        after = []
        for _ in range(2):
            context = Context(make_harness())
            context.prior("noise", slow_prior, size=3)
            after.append(
                torch.cat([torch.rand(2), context.noise_like(torch.empty(2)), context.forget.draw(1)[0].flatten()])
            )
        assert torch.equal(*after)

    def test_its_time_is_not_the_methods(self, make_harness):
        clock = [0.0]
        harness = make_harness(meter=Meter(clock=lambda: clock[0]))

        def build(ctx):
            clock[0] += 5
            return {"x": torch.zeros(1)}

        with harness.meter.phase("forget"):
            clock[0] += 1
            Context(harness).prior("p", build)
        seconds = {phase: cost["seconds"] for phase, cost in harness.meter.phases().items()}
        assert seconds == {"forget": 1, "prior": 5}

    def test_its_name_stays_inside_the_cache(self, make_context):
        with pytest.raises(PluginError, match="plain word"):
            make_context().prior("../../../x", slow_prior, size=1)

    def test_it_may_not_ask_for_another(self, make_context):
        def build(ctx):
            return ctx.prior("inner", slow_prior, size=1)

        with pytest.raises(PluginError, match="inside another prior"):
            make_context().prior("outer", build)

    def test_it_gets_an_untouched_model_in_eval_mode(self, make_context):
        context = make_context()
        with torch.no_grad():
            next(context.model.parameters()).add_(1)

        def build(ctx):
            assert not ctx.model.training
            return {"first": next(ctx.model.parameters()).detach().clone()}

        assert torch.equal(context.prior("p", build)["first"], next(context.base.parameters()))


def test_replay_samples_follow_the_labels_and_are_reproducible(make_context):
    context = make_context("sa")
    x = context.sample(torch.tensor([1, 1, 2]))
    assert x.shape == (3, 1, 8, 8)
    assert x.abs().max() <= 1
    assert torch.equal(x, make_context("sa").sample(torch.tensor([1, 1, 2])))
    assert not torch.equal(x, context.sample(torch.tensor([1, 1, 2])))  # a second call goes on, it does not repeat
    assert not torch.equal(x[0], x[1])


def test_predict_is_the_noise_of_the_model_with_a_graph(make_context):
    context = make_context()
    x0, y = context.forget.draw(3)
    t = context.timesteps(3)
    x_t = context.schedule.add_noise(x0, context.noise_like(x0), t)
    context.model.eval()
    predicted = context.predict(x_t, t, y)
    assert torch.equal(predicted, predict_noise(context.base, x_t, t, y))  # nothing is trained yet
    predicted.square().sum().backward()
    assert all(p.grad is not None for p in context.model.parameters())
    assert context._harness.counts.forward_images == context._harness.counts.backward_images == 3

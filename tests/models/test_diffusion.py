from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, DPMSolverMultistepScheduler
from hypothesis import given
from hypothesis import strategies as st

from unlearnbench.models.diffusion import Schedule, eps_loss, evaluating, predict_noise, to_float, to_uint8
from unlearnbench.models.sampler import ddim_step, sample
from unlearnbench.models.unet import build_unet, unet_config


@pytest.fixture(scope="module")
def model(tiny):
    torch.manual_seed(0)
    return build_unet(unet_config(tiny)).eval()


def draw(model, labels, seeds, **changes):
    options = {"steps": 10, "eta": 0.0, "guidance": 1.0, "null_class": 10, "batch_size": 4, **changes}
    return sample(model, Schedule.of(), torch.tensor(labels), seeds, (1, 8, 8), **options)


def test_schedule_is_that_of_ddpm():
    theirs = DDPMScheduler(num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, beta_schedule="linear")
    torch.testing.assert_close(Schedule.of().alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5, atol=1e-8)


def test_add_noise_agrees_with_diffusers():
    theirs = DDPMScheduler(beta_schedule="linear")
    x0, eps, t = torch.randn(6, 1, 8, 8), torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 10, 500, 998, 999])
    torch.testing.assert_close(Schedule.of().add_noise(x0, eps, t), theirs.add_noise(x0, eps, t), rtol=1e-4, atol=1e-5)


def test_terminal_noise_is_the_noise_of_the_last_step_of_the_same_path():
    # x_T = sqrt(abar_T / abar_t) x_t + sqrt(1 - abar_T / abar_t) fresh must be x0 noised to T with eps_T
    schedule, t = Schedule.of(), torch.tensor([0, 300, 700, 900, 999])
    x0, eps, fresh = (torch.randn(5, 1, 4, 4, dtype=torch.float64) for _ in range(3))
    abar = schedule.alphas_cumprod.double()
    ratio = (abar[-1] / abar[t]).view(-1, 1, 1, 1)
    eps_T = schedule.terminal_noise(eps, fresh, t)
    walked = ratio.sqrt() * schedule.add_noise(x0, eps, t) + (1 - ratio).clamp(min=0).sqrt() * fresh
    at_end = schedule.add_noise(x0, eps_T, torch.full_like(t, 999))
    torch.testing.assert_close(at_end, walked, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(eps_T[-1], eps[-1])  # at t = T nothing is left to add


def test_loss_sums_over_pixels_and_keeps_images_apart(model):
    x0, eps = torch.randn(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    y, t = torch.tensor([0, 1, 2]), torch.tensor([5, 500, 900])
    schedule = Schedule.of()
    loss = eps_loss(model, schedule, x0, y, t, eps)
    prediction = predict_noise(model, schedule.add_noise(x0, eps, t), t, y)
    torch.testing.assert_close(loss, torch.stack([((a - b) ** 2).sum() for a, b in zip(eps, prediction, strict=True)]))


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("guidance", [0.0, 2.0])
def test_sampler_agrees_with_diffusers_ddim(model, eta, guidance):
    theirs = DDIMScheduler(beta_schedule="linear", clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading")
    theirs.set_timesteps(10)
    generator = torch.Generator().manual_seed(11)
    x, y = torch.randn(1, 1, 8, 8, generator=generator), torch.tensor([4])
    with torch.no_grad():
        for t in theirs.timesteps:
            eps = (1 + guidance) * model(x, t, y).sample - guidance * model(x, t, torch.tensor([10])).sample
            last = t == theirs.timesteps[-1]
            noise = torch.randn(1, 1, 8, 8, generator=generator) if eta and not last else torch.zeros_like(x)
            x = theirs.step(eps, t, x, eta=eta, variance_noise=noise).prev_sample
    ours = draw(model, [4], [11], eta=eta, guidance=guidance)
    assert (ours.int() - to_uint8(x).int()).abs().max() <= 1  # float rounding may cross one grey level


def test_sampler_is_diffusers_dpm_solver(model):
    theirs = DPMSolverMultistepScheduler(beta_schedule="linear", algorithm_type="dpmsolver++", solver_order=2)
    theirs.set_timesteps(6)
    x, y = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(11)), torch.tensor([4])
    with torch.no_grad():
        for t in theirs.timesteps:
            eps = 1.5 * model(x, t, y).sample - 0.5 * model(x, t, torch.tensor([10])).sample
            x = theirs.step(eps, t, x).prev_sample
    ours = draw(model, [4], [11], solver="dpm++", steps=6, guidance=0.5)
    assert (ours.int() - to_uint8(x).int()).abs().max() <= 1  # betas are computed from products here


def test_dpm_solver_is_of_second_order():
    """On a linear problem with a known solution, half the step size leaves about a quarter of the error.

    Where x0 is normal with variance 1/4, the best prediction is sqrt(1 - abar) x / (abar / 4 + 1 - abar), and the
    deterministic process scales x by the ratio of the standard deviations.
    """

    class Gaussian(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t, y):
            abar = Schedule.of().alphas_cumprod[t].view(-1, 1, 1, 1)
            return SimpleNamespace(sample=self.scale * (1 - abar).sqrt() * x / (abar / 4 + 1 - abar))

    found = {}
    for solver, steps in (("dpm++", 10), ("dpm++", 20), ("ddim", 40)):
        found[solver, steps] = sample(
            Gaussian(), Schedule.of(), torch.zeros(1, dtype=torch.long), [3], (1, 8, 8), steps=steps, eta=0.0,
            guidance=0.0, null_class=10, batch_size=1, solver=solver, decode=lambda x: x,
        )  # fmt: skip
    noise = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(3))
    errors = {key: float((x - noise / 2).norm() / noise.norm()) for key, x in found.items()}
    assert errors["dpm++", 20] < 0.4 * errors["dpm++", 10]
    assert errors["dpm++", 20] < errors["ddim", 40]


@pytest.mark.parametrize("changed", [{"eta": 1.0}, {"clip_x0": True}])
def test_dpm_solver_has_neither_noise_nor_clipping(model, changed):
    with pytest.raises(ValueError, match="use DDIM"):
        draw(model, [1], [1], solver="dpm++", **changed)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_samples_do_not_depend_on_batch_size_or_neighbours(model, solver):
    labels, seeds = [0, 1, 2, 3, 4, 5, 6], [70, 71, 72, 73, 74, 75, 76]
    whole = draw(model, labels, seeds, batch_size=7, solver=solver)
    assert torch.equal(whole, draw(model, labels, seeds, batch_size=2, solver=solver))
    assert torch.equal(whole[3:4], draw(model, labels[3:4], seeds[3:4], solver=solver))


def test_negative_guidance_of_one_is_unconditional(model):
    assert torch.equal(draw(model, [1, 2], [5, 5], guidance=-1.0)[0], draw(model, [1, 2], [5, 5], guidance=-1.0)[1])


def test_sampler_restores_the_mode_and_never_runs_dropout(tiny):
    from unlearnbench.datasets import load_dataset

    torch.manual_seed(0)
    model = build_unet(unet_config(tiny))
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.9
    model.train()
    assert load_dataset("digits").num_classes == 10
    assert torch.equal(draw(model, [1], [1]), draw(model, [1], [1]))
    assert model.training


def test_evaluating_restores_after_an_error(model):
    model.train()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        raise KeyError
    assert model.training
    model.eval()


def test_steps_that_do_not_divide_are_refused(model):
    with pytest.raises(ValueError, match="do not divide"):
        draw(model, [1], [1], steps=300)


def test_uint8_round_trip_and_no_stretching():
    every = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(to_float(every)), every)
    assert to_uint8(torch.tensor([-3.0, 3.0])).tolist() == [0, 255]
    assert to_uint8(torch.full((1, 4, 4), 0.0)).unique().tolist() == [128]  # a grey image stays grey


@given(st.floats(-5, 5))
def test_uint8_is_monotonic_and_clamped(value):
    a, b = to_uint8(torch.tensor([value])), to_uint8(torch.tensor([value + 0.1]))
    assert a <= b


def test_clipping_keeps_x0_in_range_and_eps_consistent(tiny):
    schedule, x = Schedule.of(), torch.full((1, 1, 2, 2), 3.0)
    t, before = 800, 600
    eps = torch.zeros_like(x)  # x0 would be 3 / sqrt(alpha), far outside
    alpha, previous = schedule.alphas_cumprod[t], schedule.alphas_cumprod[before]
    clipped = ddim_step(schedule, x, eps, t, before, 0.0, None, clip_x0=True)
    noise = (3.0 - alpha.sqrt()) / (1 - alpha).sqrt()  # what is left once x0 is 1
    torch.testing.assert_close(clipped, torch.full_like(x, float(previous.sqrt() + (1 - previous).sqrt() * noise)))
    inside = torch.full_like(x, 0.1)
    same = [ddim_step(schedule, inside, inside, t, before, 0.0, None, clip_x0=clip) for clip in (True, False)]
    torch.testing.assert_close(*same)
    last = ddim_step(schedule, x, eps, t, None, 0.0, None, clip_x0=True)
    torch.testing.assert_close(last, torch.ones_like(x))


def test_dropout_runs_while_sampling_only_when_asked_for():
    class Dropping(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout = torch.nn.Dropout(0.5)
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, t, y):
            return type("Output", (), {"sample": self.dropout(x) * self.scale})()

    model, labels = Dropping().train(), torch.zeros(4, dtype=torch.long)

    def images(**options):
        return sample(
            model, Schedule.of(), labels, [0, 1, 2, 3], (1, 4, 4), steps=10, eta=0.0, guidance=0.0, null_class=10,
            batch_size=4, **options,
        )  # fmt: skip

    assert torch.equal(images(), images())
    assert not torch.equal(images(dropout=True), images(dropout=True))
    assert model.training

"""Base models given as diffusers folders: what is written reads back; what does not fit is refused in a sentence."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from unlearnbench.datasets import Source, load_dataset, local_digest
from unlearnbench.errors import PluginError, UsageError
from unlearnbench.models.base import prepare_base
from unlearnbench.models.checkpoints import SCHEDULERS, check_schedule, read_checkpoint, write_checkpoint
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.denoiser import untrained
from unlearnbench.models.saved import open_model
from unlearnbench.models.unet import UNet, unet_config
from unlearnbench.run.stale import current_dataset
from unlearnbench.store.artifacts import ArtifactStore

SILENT = lambda what, done, total: None  # noqa: E731


@pytest.fixture
def checkpoint(tiny, tmp_path):
    torch.manual_seed(3)
    model = untrained(tiny, PIXELS)
    write_checkpoint(tmp_path / "model", model)
    return tmp_path / "model", model


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_what_is_written_reads_back(checkpoint, tiny):
    folder, model = checkpoint
    assert not list(folder.rglob("*.bin"))
    again = read_checkpoint(str(folder), tiny)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), again.parameters(), strict=True))


def test_a_network_with_one_head_of_attention_predicts_the_same_once_read(tiny, tmp_path):
    config = {
        **unet_config(tiny), "block_out_channels": [16, 16], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "attention_head_dim": None, "norm_num_groups": 4,
    }  # fmt: skip
    model = UNet.from_config(config).eval()
    write_checkpoint(tmp_path / "model", model)
    again = read_checkpoint(str(tmp_path / "model"), tiny).eval()
    x, t, y = torch.randn(2, *tiny.image_shape), torch.tensor([3, 700]), torch.tensor([1, 10])
    with torch.no_grad():
        assert torch.equal(model(x, t, y).sample, again(x, t, y).sample)
        assert torch.equal(model(x, t, y).sample, open_model(tmp_path / "model", x.device).denoiser(x, t, y).sample)


def test_a_bare_unet_folder_will_do(checkpoint, tiny):
    folder, _ = checkpoint
    assert read_checkpoint(str(folder / "unet"), tiny).config["num_class_embeds"] == 11
    assert local_digest(folder / "unet") is not None


def test_a_checkpoints_identity_is_of_everything_its_predictions_depend_on(checkpoint):
    folder, _ = checkpoint
    before = local_digest(folder)
    edit(folder / "unet" / "config.json", freq_shift=1)
    after = local_digest(folder)
    edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.03)
    assert len({before, after, local_digest(folder)}) == 3
    assert local_digest(folder / "nowhere") is None


def test_diffusers_itself_loads_it(checkpoint):
    from diffusers import DDPMScheduler, UNet2DModel

    folder, model = checkpoint
    theirs = UNet2DModel.from_pretrained(folder / "unet", use_safetensors=True)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), theirs.parameters(), strict=True))
    assert DDPMScheduler.from_pretrained(folder / "scheduler").config.beta_end == 0.02


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("unet/config.json", {"num_class_embeds": 10}, "none for the null class"),
        (
            "unet/config.json",
            {"time_embedding_type": "fourier"},
            "time_embedding_type 'fourier', but needs 'positional'",
        ),
        ("unet/config.json", {"class_embed_type": "identity"}, "class_embed_type 'identity'"),
        ("unet/config.json", {"center_input_sample": True}, "center_input_sample True"),
        ("unet/config.json", {"news": 1}, "its config has news 1"),
        ("unet/config.json", {"layers_per_block": 10**9}, "its config has layers_per_block 1000000000"),
        ("unet/config.json", {"layers_per_block": 10**5}, "layers_per_block 100000, which does not fit"),
        ("unet/config.json", {"layers_per_block": "2"}, "layers_per_block '2', which does not fit"),
        ("unet/config.json", {"norm_eps": -9.0}, r"does not predict finite noise|do not fit"),
        ("unet/config.json", {"norm_eps": float("nan")}, "it holds the number NaN"),
        (
            "scheduler/scheduler_config.json",
            {"trained_betas": [1e-3] * 1000},
            r"trained_betas \[0.001, .*: give a model",
        ),
        ("scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr True"),
        ("scheduler/scheduler_config.json", {"thresholding": True}, "thresholding True"),
        ("scheduler/scheduler_config.json", {"variance_type": "learned_range"}, "variance_type 'learned_range'"),
        ("scheduler/scheduler_config.json", {"beta_start": 1e-3}, "beta_start 0.001"),
        ("scheduler/scheduler_config.json", {"sigma_max": 80}, "sigma_max 80, unknown here"),
        ("scheduler/scheduler_config.json", {"_class_name": "KarrasVeScheduler"}, "class 'KarrasVeScheduler'"),
        ("scheduler/scheduler_config.json", {"_class_name": ["DDPMScheduler"]}, r"class \['DDPMScheduler'\]"),
        ("unet/config.json", {"num_class_embeds": 101}, "num_class_embeds is 101, but digits needs 11"),
        ("unet/config.json", {"num_class_embeds": None}, "it has no class labels"),
        ("unet/config.json", {"in_channels": 3}, "in_channels is 3, but digits needs 1"),
        ("unet/config.json", {"out_channels": 2}, "out_channels is 2"),
        ("unet/config.json", {"sample_size": 32}, "sample_size is 32, but digits needs 8"),
        ("unet/config.json", {"_class_name": "UNet1DModel"}, "_class_name is 'UNet1DModel'"),
        ("unet/config.json", {"block_out_channels": [16, 16]}, "its weights do not fit its config"),
        ("scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
        ("scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "prediction_type 'v_prediction'"),
        ("scheduler/scheduler_config.json", {"num_train_timesteps": 4000}, "num_train_timesteps 4000"),
    ],
)
def test_what_does_not_fit_is_refused(checkpoint, tiny, file, changes, message):
    folder, _ = checkpoint
    edit(folder / file, **changes)
    with pytest.raises(UsageError, match=message) as error:
        read_checkpoint(str(folder), tiny)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_default_of_a_known_scheduler_is_allowed(name):
    import diffusers

    scheduler = getattr(diffusers, name)()
    check_schedule("a model", {**scheduler.config, "_class_name": name})
    check_schedule("a model", {"_class_name": name, "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1})


@pytest.mark.parametrize("file", ["unet/config.json", "scheduler/scheduler_config.json"])
@pytest.mark.parametrize(
    "text",
    ["[1]", "null", "3", "", "[" * 100_000, '{"a": 1e999}', '{"a": NaN}', "{}" + " " * 10**6, '{"a": 1' + "0" * 5000],
)
def test_a_config_that_is_no_object_is_refused(checkpoint, tiny, file, text):
    folder, _ = checkpoint
    (folder / file).write_text(text)
    with pytest.raises(UsageError, match=f"its {file} cannot be read") as error:
        read_checkpoint(str(folder), tiny)
    assert len(str(error.value)) < 700


def test_a_model_without_a_null_class_is_run_without_guidance(tiny, tmp_path, make_context):
    write_checkpoint(tmp_path / "model", UNet.from_config({**unet_config(tiny), "num_class_embeds": 10}))
    dataset = load_dataset(Source("digits", base=str(tmp_path / "model")))
    assert (dataset.null_class, dataset.protocol.guidance, dataset.choices["unguided"]) == (None, 0.0, True)
    assert current_dataset(dataset.to_json(), dataset.protocol.name).digest == dataset.digest
    unguided = replace(tiny, checkpoint=dataset.checkpoint, choices=dataset.choices, unguided=True)
    assert read_checkpoint(str(tmp_path / "model"), unguided).config["num_class_embeds"] == 10
    ctx = make_context(dataset=unguided)
    y = torch.arange(10)
    assert torch.equal(ctx.drop_labels(y, 1.0), y)
    with pytest.raises(PluginError, match="needs the null class, which this base model lacks"):
        _ = ctx.null_class


def test_damaged_and_missing_files(checkpoint, tiny, tmp_path, monkeypatch):
    folder, _ = checkpoint
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    name = next(iter(tensors))
    save_file({**tensors, name: torch.full_like(tensors[name], float("nan"))}, weights)
    with pytest.raises(UsageError, match="not all finite"):
        read_checkpoint(str(folder), tiny)
    weights.write_bytes(b"half a file")
    with pytest.raises(UsageError, match="safetensors cannot be read"):
        read_checkpoint(str(folder), tiny)
    weights.unlink()
    with pytest.raises(UsageError, match="it lacks unet/diffusion"):
        read_checkpoint(str(folder), tiny)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UsageError, match="is not a folder and cannot be fetched from the Hugging Face Hub"):
        read_checkpoint("someone/no-such-model", tiny)


def test_a_given_base_is_the_one_that_is_used_and_its_weights_name_it(checkpoint, tiny, tmp_path):
    folder, model = checkpoint
    dataset = load_dataset(Source("digits", base=str(folder)))
    assert dataset.choices == {"base": local_digest(folder)}
    fitting = replace(tiny, checkpoint=dataset.checkpoint, choices=dataset.choices)
    found = prepare_base(fitting, ArtifactStore(tmp_path / "cache"), torch.device("cpu"), SILENT)
    assert torch.equal(found.tensors["conv_in.weight"], model.network.conv_in.weight)
    write_checkpoint(folder, untrained(tiny, PIXELS))  # other weights in the same place are another base
    assert load_dataset(Source("digits", base=str(folder))).digest != dataset.digest

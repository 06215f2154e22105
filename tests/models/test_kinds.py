"""Every kind of model behind the seam: made, kept, read, written, unlearned, measured and attacked by the same code."""

import copy
import json
import shutil
import warnings
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from tests.cells import run_cell, small_dataset
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.errors import Unmeasurable, UsageError
from unlearnbench.models import denoiser as seam
from unlearnbench.models.base import prepare_base
from unlearnbench.models.checkpoints import read_checkpoint, write_checkpoint
from unlearnbench.models.codec import PIXELS
from unlearnbench.models.denoiser import CPU, Denoiser, Prediction, parts, restored
from unlearnbench.models.diffusion import predict_noise
from unlearnbench.models.saved import open_model
from unlearnbench.models.weights import NotInWeights, weights_in, weights_of
from unlearnbench.run.jobs import resolve_device
from unlearnbench.run.measuring import measure_cell
from unlearnbench.run.saving import CHANGED, staging
from unlearnbench.run.stale import current_dataset
from unlearnbench.run.unlearning import adopt_model
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.cell import UNLEARNED, Cell

KINDS = ("unet", "dit", "text")
NULL = 10
FOLDERS = {
    "unet": {"unet", "scheduler"},
    "dit": {"transformer", "vae", "scheduler"},
    "text": {"unet", "vae", "text_encoder", "tokenizer", "scheduler"},
}
ATTACKS = ("embedding_search", "class_interpolation", "relearn_1")


def quiet(what, done, total):
    pass


class Channel:
    def __call__(self, what, done, total):
        pass

    def beside(self):
        return 0


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a function of a kind: the dataset, and the denoiser of its trained base model."""
    folder, found = tmp_path_factory.mktemp("cache"), {}

    def make(kind):
        if kind not in found:
            dataset = small_dataset(kind)
            base = prepare_base(dataset, ArtifactStore(folder), CPU, quiet)
            found[kind] = dataset, restored(base.facts, base.tensors, CPU)
        return found[kind]

    return make


def predicted(denoiser, labels=(0, 3, NULL)):
    y = torch.tensor(labels)
    x = torch.randn(len(y), *denoiser.shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return predict_noise(denoiser.eval(), x, torch.arange(len(y)) * 300, y)


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_a_copy_shares_what_no_method_changes(self, made, kind):
        _, denoiser = made(kind)
        copied = copy.deepcopy(denoiser)
        assert copied.codec is denoiser.codec
        assert copied.shared is denoiser.shared or not denoiser.shared
        own = {parameter.data_ptr() for parameter in denoiser.parameters()}
        assert own.isdisjoint(parameter.data_ptr() for parameter in copied.parameters())
        assert torch.equal(predicted(copied), predicted(denoiser))

    def test_conditions_matter(self, made, kind):
        _, denoiser = made(kind)
        x, t = torch.zeros(3, *denoiser.shape), torch.full((3,), 500)
        with torch.no_grad():
            one, two, null = predict_noise(denoiser.eval(), x, t, torch.tensor([1, 2, NULL]))
        assert not torch.equal(one, two)
        assert not torch.equal(one, null)

    def test_images_become_x0_and_images_again(self, made, kind):
        dataset, denoiser = made(kind)
        images = torch.from_numpy(dataset.load(None, None).train.images[:3])
        x0 = denoiser.codec.encode(images)
        assert x0.shape == (3, *denoiser.shape)
        assert x0.dtype == torch.float32
        back = denoiser.codec.decode(x0)
        assert (back.shape, back.dtype) == (images.shape, torch.uint8)
        mirrored = torch.tensor([True, False, True])
        kept = denoiser.codec.keep(images, mirrors=True)
        assert len(kept) == 3
        wanted = torch.where(mirrored.view(-1, 1, 1, 1), denoiser.codec.encode(images.flip(-1)), x0)
        torch.testing.assert_close(denoiser.codec.x0(kept, mirrored), wanted)

    def test_what_is_written_is_read_by_us_and_by_diffusers(self, made, kind, tmp_path):
        dataset, denoiser = made(kind)
        write_checkpoint(tmp_path / "model", denoiser)
        assert not list((tmp_path / "model").rglob("*.bin"))
        parts = {path.name for path in (tmp_path / "model").iterdir() if path.is_dir()}
        assert parts == FOLDERS[kind]
        again = read_checkpoint(str(tmp_path / "model"), dataset)
        assert torch.equal(predicted(again), predicted(denoiser))
        if kind == "unet":
            from diffusers import UNet2DModel

            theirs = UNet2DModel.from_pretrained(tmp_path / "model" / "unet", use_safetensors=True)
            assert all(torch.equal(p, q) for p, q in zip(denoiser.parameters(), theirs.parameters(), strict=True))
            return
        from diffusers import DiffusionPipeline

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", use_safetensors=True)
            asked = {"class_labels": [3]} if kind == "dit" else {"prompt": "a photo of the digit three"}
            (image,) = pipeline(**asked, guidance_scale=1.0, num_inference_steps=2).images
        assert image.size == (8, 8)

    def test_the_code_of_the_model_card_runs(self, made, kind, tmp_path, monkeypatch):
        dataset, denoiser = made(kind)
        write_checkpoint(tmp_path / "model", denoiser)
        monkeypatch.chdir(tmp_path / "model")
        code, names = denoiser.usage(3, NULL, dataset.protocol.sampler), {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(code, names)
            if kind == "text":  # its last statement is the call of the pipeline
                (image,) = eval(code[code.index("pipeline(\n") :], names)
                assert image.size == (8, 8)
            else:
                assert names["x"].shape == (8, *denoiser.shape)
                assert torch.isfinite(names["x"]).all()

    def test_diffusers_and_the_sampler_agree(self, made, kind, tmp_path):
        """The same DDIM steps from the same latents, without guidance."""
        if kind == "unet":
            pytest.skip("diffusers has no pipeline of a UNet2DModel with classes; test_diffusion compares the steps")
        from diffusers import DDIMScheduler, DiffusionPipeline

        dataset, denoiser = made(kind)
        write_checkpoint(tmp_path / "model", denoiser)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipeline = DiffusionPipeline.from_pretrained(tmp_path / "model", use_safetensors=True)
        scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, steps_offset=0, timestep_spacing="leading")
        scheduler.set_timesteps(5)
        seed, label = 7, 3
        x = torch.randn(denoiser.shape, generator=torch.Generator().manual_seed(seed))[None]
        network = pipeline.transformer if kind == "dit" else pipeline.unet
        asked = {"class_labels": torch.tensor([label])}
        if kind == "text":
            ids = pipeline.tokenizer(
                dataset.prompts.texts[label], padding="max_length", max_length=pipeline.tokenizer.model_max_length,
                return_tensors="pt",
            ).input_ids  # fmt: skip
            asked = {"encoder_hidden_states": pipeline.text_encoder(ids)[0]}
        with torch.no_grad():
            for t in scheduler.timesteps:
                x = scheduler.step(network(x, timestep=t[None], **asked).sample, t, x).prev_sample
            theirs = pipeline.vae.decode(x / pipeline.vae.config.scaling_factor).sample
        sampler = {**dataset.protocol.sampler, "solver": "ddim", "steps": 5, "guidance": 0.0}
        ours = denoiser.draw(torch.tensor([label]), [seed], null_class=NULL, **sampler)
        assert (ours.float() - ((theirs.clamp(-1, 1) + 1) * 127.5)).abs().max() <= 1

    def test_parts_share_out_all_weights(self, made, kind):
        _, denoiser = made(kind)
        names = {name for name, _ in denoiser.named_parameters()}
        condition, rest = denoiser.part("condition"), denoiser.part("rest")
        assert condition | rest == denoiser.part("all") == names
        assert condition & rest == set()
        assert condition
        assert rest

    def test_without_the_condition_part_all_labels_are_alike(self, made, kind):
        """The rest alone knows no condition: with the part zeroed, every label has the same prediction."""
        _, denoiser = made(kind)
        copied = copy.deepcopy(denoiser)
        chosen = copied.part("condition")
        with torch.no_grad():
            for name, parameter in copied.named_parameters():
                if name in chosen:
                    parameter.zero_()
            x, t = torch.randn(2, *copied.shape)[:1].expand(2, -1, -1, -1), torch.full((2,), 500)
            one, two = predict_noise(copied.eval(), x, t, torch.tensor([1, 2]))
        torch.testing.assert_close(one, two)

    def test_added_labels_do_what_their_rows_say(self, made, kind):
        _, denoiser = made(kind)
        copied = copy.deepcopy(denoiser)
        rows = copied.embeddings()
        labels, weights = copied.add_labels(rows[[3, NULL]])
        assert torch.equal(predicted(copied, labels.tolist()), predicted(denoiser, [3, NULL]))
        assert torch.equal(predicted(copied), predicted(denoiser))
        assert all(weight.requires_grad for weight in weights)

    def test_only_what_changed_is_kept(self, made, kind):
        _, base = made(kind)
        model = copy.deepcopy(base)
        name = sorted(model.part("condition"))[0]
        with torch.no_grad():
            dict(model.named_parameters())[name].add_(1)
        weights = weights_of(model, base, 3, NULL)
        assert len(weights.changed) == 1
        read = replace(weights, facts=json.loads(json.dumps(weights.facts)))  # as an artifact has them
        assert read.changed.keys() == weights.changed.keys()
        assert torch.equal(predicted(weights.build(CPU)), predicted(model))
        assert weights_of(copy.deepcopy(base), base, 3, NULL).changed == {}

    def test_what_weights_do_not_hold_is_noticed(self, made, kind):
        _, base = made(kind)
        model = copy.deepcopy(base)
        model.network.register_forward_hook(lambda module, args, output: None)
        with pytest.raises(NotInWeights, match="do not determine"):
            weights_of(model, base, 3, NULL)

    def test_a_cell_runs_from_end_to_end_with_attacks(self, made, kind, tmp_path):
        dataset, _ = made(kind)
        cell, fields = run_cell(
            tmp_path, "safemax", resolve_device("cpu"), Channel(), dataset=dataset, metrics=["ua", "fid", *ATTACKS],
            staged=tmp_path / "models",
        )  # fmt: skip
        for name in ("ua", *ATTACKS):
            assert fields["metrics"][name]["value"] is not None, fields["metrics"][name]["reason"]
        assert fields["counts"]["optimizer_steps"] == 2
        assert fields["flops"]["forward"] > 0
        folder = staging(tmp_path / "models", cell)
        assert read_checkpoint(str(folder), dataset).kind == kind
        assert not (folder / CHANGED).exists()  # all weights moved

    def test_a_saved_model_is_measured_like_the_unlearned_one(self, made, kind, tmp_path):
        dataset, _ = made(kind)
        device, names = resolve_device("cpu"), ["ua", "retained", "fid"]
        cell, fields = run_cell(
            tmp_path, "salun", device, Channel(), dataset=dataset, metrics=names, staged=tmp_path / "models"
        )
        folder = staging(tmp_path / "models", cell)
        given = adopt_model(cell, dataset, folder, tmp_path, device, Channel())
        key = given["artifacts"][UNLEARNED]["key"]
        again = measure_cell(cell, dataset, key, names, (), tmp_path, device, True, Channel())
        assert [again["metrics"][name]["value"] for name in names] == [
            fields["metrics"][name]["value"] for name in names
        ]

    def test_what_a_method_moved_alone_is_written_beside_the_model(self, made, kind, tmp_path):
        dataset, base = made(kind)
        cell, _ = run_cell(
            tmp_path, "esd", resolve_device("cpu"), Channel(), dataset=dataset, train="class",
            staged=tmp_path / "models",
        )  # fmt: skip
        folder = staging(tmp_path / "models", cell)
        changed = load_file(folder / CHANGED)
        named = {f"network.{name}" for name in changed}
        assert named <= base.part("condition")
        network = copy.deepcopy(base).network
        network.load_state_dict(changed, strict=False)
        theirs = read_checkpoint(str(folder), dataset).network
        assert all(torch.equal(p, q) for p, q in zip(network.parameters(), theirs.parameters(), strict=True))


class TestPrompts:
    def test_in_train_mode_a_class_is_one_of_its_training_prompts(self, made):
        dataset, denoiser = made("text")
        model = copy.deepcopy(denoiser).train()
        torch.manual_seed(0)
        chosen = set(model._chosen(torch.full((200,), 3)).tolist())
        assert chosen == set(dataset.prompts.training(3))
        assert model._chosen(torch.tensor([NULL, 40])).tolist() == [NULL, 40]

    def test_every_label_is_its_own_text(self, made):
        dataset, denoiser = made("text")
        texts = dataset.prompts.texts
        assert (texts[3], texts[NULL]) == ("a handwritten three", "")
        assert len(texts) == denoiser.labels
        assert [texts[label] for label in dataset.prompts.paraphrases(3)] == list(
            dataset.prompts.concepts[3].paraphrases
        )
        assert texts[dataset.prompts.anchor(3)] == "a handwritten digit"

    def test_samples_take_the_training_prompts_in_turn(self, made):
        dataset, _ = made("text")
        labels = dataset.conditions.spread([3, 3, 5, 3, 3])
        first, *further = dataset.prompts.training(3)
        assert labels == [first, further[0], 5, further[1], first]

    def test_subjects_are_the_last_tokens_of_names(self, made):
        _, denoiser = made("text")
        assert not torch.equal(denoiser.subject(3), denoiser.subject(4))
        assert torch.equal(denoiser.subject(3, anchor=True), denoiser.subject(4, anchor=True))  # both are "digit"
        assert len(denoiser.condition_layers()) > 0

    def test_other_kinds_say_that_they_have_none(self, made):
        for kind in ("unet", "dit"):
            _, denoiser = made(kind)
            for ask in (denoiser.condition_layers, lambda: denoiser.subject(3)):  # noqa: B023
                with pytest.raises(Unmeasurable, match="takes labels, not prompts"):
                    ask()

    def test_networks_that_predict_v_are_converted(self, made, tmp_path):
        dataset, denoiser = made("text")
        write_checkpoint(tmp_path / "model", denoiser)
        edit(tmp_path / "model/scheduler/scheduler_config.json", prediction_type="v_prediction")
        model = read_checkpoint(str(tmp_path / "model"), dataset)
        x, t, y = torch.randn(2, *model.shape), torch.tensor([100, 900]), torch.tensor([3, NULL])
        abar = model.schedule.alphas_cumprod[t].view(-1, 1, 1, 1)
        with torch.no_grad():
            v = predict_noise(denoiser.eval(), x, t, y)
            torch.testing.assert_close(predict_noise(model, x, t, y), abar.sqrt() * v + (1 - abar).sqrt() * x)

    def test_uce_runs_and_changes_keys_and_values_alone(self, made, tmp_path):
        dataset, _ = made("text")
        cell, fields = run_cell(
            tmp_path, "uce", resolve_device("cpu"), Channel(), dataset=dataset, metrics=["ua", "ua_paraphrased"],
            staged=tmp_path / "models",
        )  # fmt: skip
        changed = load_file(staging(tmp_path / "models", cell) / CHANGED)
        assert {name.rsplit(".", 2)[1] for name in changed} == {"to_k", "to_v"}
        assert fields["metrics"]["ua_paraphrased"]["value"] is not None
        assert fields["counts"]["optimizer_steps"] == 0


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


REFUSED = [
    ("dit", "transformer/config.json", {"norm_type": "layer_norm"}, "norm_type 'layer_norm', but needs"),
    ("dit", "transformer/config.json", {"num_layers": 10**5}, "num_layers 100000, which does not fit"),
    ("dit", "transformer/config.json", {"news": 1}, "its config has news 1"),
    ("dit", "transformer/config.json", {"out_channels": 3}, "out_channels is 3, not 2 or twice that"),
    ("dit", "transformer/config.json", {"sample_size": 16}, "its latents have the shape|do not fit"),
    ("dit", "transformer/config.json", {"num_embeds_ada_norm": 7}, "do not fit its config"),
    ("dit", "scheduler/scheduler_config.json", {"prediction_type": "v_prediction"}, "a DiT needs epsilon"),
    ("dit", "scheduler/scheduler_config.json", {"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule"),
    ("dit", "vae/config.json", {"latents_mean": [0.0, 1.0]}, "vae: its config has latents_mean"),
    ("dit", "vae/config.json", {"in_channels": 3}, "vae: its config has in_channels 3"),
    ("dit", "vae/config.json", {"scaling_factor": -1.0}, "scaling_factor -1.0"),
    ("dit", "model_index.json", {"_class_name": "FluxPipeline"}, "holds a FluxPipeline, which is not supported"),
    ("dit", "model_index.json", {"_class_name": "StableDiffusionPipeline"}, "a model of kind text, but"),
    ("text", "unet/config.json", {"addition_embed_type": "text_time"}, "addition_embed_type 'text_time'"),
    ("text", "unet/config.json", {"in_channels": 9}, "in_channels 9, but needs"),
    ("text", "unet/config.json", {"cross_attention_dim": 768}, "cross_attention_dim 768, but needs 8"),
    ("text", "scheduler/scheduler_config.json", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr True"),
    ("text", "scheduler/scheduler_config.json", {"beta_end": 2.0}, "betas from 0.0001 to 2.0"),
    ("text", "scheduler/scheduler_config.json", {"_class_name": "KarrasVeScheduler"}, "class 'KarrasVeScheduler'"),
    ("text", "text_encoder/config.json", {"num_hidden_layers": "two"}, "text encoder cannot be read"),
]


class TestGivenPipelines:
    @pytest.fixture
    def folder(self, made, tmp_path):
        def write(kind):
            write_checkpoint(tmp_path / kind, made(kind)[1])
            return tmp_path / kind

        return write

    @pytest.mark.parametrize(("kind", "file", "changes", "message"), REFUSED)
    def test_what_does_not_fit_is_refused(self, made, folder, kind, file, changes, message):
        path = folder(kind)
        edit(path / file, **changes)
        with pytest.raises(UsageError, match=message) as error:
            read_checkpoint(str(path), made(kind)[0])
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize("file", ["transformer/diffusion_pytorch_model.safetensors", "vae/config.json"])
    def test_missing_and_damaged_files(self, made, folder, file):
        path = folder("dit")
        (path / file).write_bytes(b"half a file")
        with pytest.raises(UsageError, match=f"its {file} cannot be read"):
            read_checkpoint(str(path), made("dit")[0])
        (path / file).unlink()
        with pytest.raises(UsageError, match=f"it lacks {file}"):
            read_checkpoint(str(path), made("dit")[0])
        if file.endswith("safetensors"):
            (path / "transformer/diffusion_pytorch_model.bin").write_bytes(b"a pickle")
            with pytest.raises(UsageError, match=r"a pickle .*, which is not opened here: where it was made, write it"):
                read_checkpoint(str(path), made("dit")[0])

    def test_weights_that_are_not_finite(self, made, folder):
        path = folder("text") / "unet/diffusion_pytorch_model.safetensors"
        tensors = load_file(path)
        save_file({name: torch.full_like(tensor, float("nan")) for name, tensor in tensors.items()}, path)
        with pytest.raises(UsageError, match="not all finite"):
            read_checkpoint(str(path.parents[1]), made("text")[0])

    def test_a_folder_names_its_kind(self, folder):
        for kind in ("dit", "text"):
            dataset = load_dataset(Source("digits", base=str(folder(kind))))
            assert dataset.base.kind == kind
            assert f"-{kind}-base-" in dataset.name
        with pytest.raises(UsageError, match="is a model of kind dit: leave out --model text"):
            load_dataset(Source("digits", base=str(folder("dit")), model="text"))

    def test_a_transformer_of_more_classes_takes_those_of_the_images(self, made, folder):
        """Three classes, of a model of ten, by the names in its index or by --labels."""
        path, (dataset, denoiser) = folder("dit"), made("dit")
        three = replace(dataset, class_names=("7", "0", "3"))
        model = read_checkpoint(str(path), three)
        assert torch.equal(predicted(model, [0, 1, 2, 3]), predicted(denoiser, [7, 0, 3, NULL]))
        assert torch.equal(model.embeddings(), denoiser.embeddings()[[7, 0, 3, NULL]])
        labels, _ = model.add_labels(model.embeddings()[[0]])
        assert torch.equal(predicted(model, [labels.item()]), predicted(denoiser, [7]))
        named = replace(three, class_names=("seven", "zero", "three"))
        with pytest.raises(UsageError, match="it has 10 classes, none of which is called 'seven': give the label"):
            read_checkpoint(str(path), named)
        given = read_checkpoint(str(path), replace(named, labels=(7, 0, 3)))
        assert torch.equal(predicted(given, [0]), predicted(denoiser, [7]))
        with pytest.raises(UsageError, match="--labels names label 99, but it has 10 classes"):
            read_checkpoint(str(path), replace(named, labels=(7, 0, 99)))

    def test_other_names_are_another_base_model(self, made, folder, tmp_path):
        """Two folders of as many images may look at other classes of one model."""
        path, store = folder("dit"), ArtifactStore(tmp_path / "cache")
        given = replace(made("dit")[0], checkpoint=str(path), choices={"base": "hash of the files"})
        first, second = (
            prepare_base(replace(given, class_names=names), store, CPU, quiet) for names in (("7", "0"), ("3", "0"))
        )
        assert first.key != second.key
        assert second.facts["dit"]["rows"] == [3, 0, NULL]

    def test_half_the_channels_of_a_network_with_variances_are_the_noise(self, made, folder):
        path, (dataset, denoiser) = folder("dit"), made("dit")
        file = path / "transformer/diffusion_pytorch_model.safetensors"
        tensors, channels = load_file(file), denoiser.shape[0]
        for name in ("proj_out_2.weight", "proj_out_2.bias"):  # rows: patch rows x patch columns x channels
            rows = tensors[name].unflatten(0, (-1, channels))
            tensors[name] = torch.cat([rows, torch.ones_like(rows)], dim=1).flatten(0, 1)
        save_file(tensors, file)
        edit(path / "transformer/config.json", out_channels=2 * channels)
        torch.testing.assert_close(predicted(read_checkpoint(str(path), dataset)), predicted(denoiser))

    @pytest.mark.parametrize("labels", ["", ",".join(f"{c}={9 - c}" for c in range(10))])
    def test_a_record_of_it_is_compared_with_its_model_and_labels(self, folder, labels):
        dataset = load_dataset(Source("digits", base=str(folder("dit")), labels=labels))
        assert current_dataset(dataset.to_json(), dataset.protocol.name).digest == dataset.digest

    @pytest.mark.parametrize("kind", ["unet", "text"])
    def test_labels_are_for_models_of_more_classes(self, made, folder, kind):
        dataset = replace(made(kind)[0], labels=tuple(range(10)))
        with pytest.raises(UsageError, match=f"--labels is for a DiTPipeline, and this is a model of kind {kind}"):
            read_checkpoint(str(folder(kind)), dataset)

    def test_a_text_to_image_model_needs_prompts(self, folder):
        with pytest.raises(
            UsageError, match="are unknown, as it was not saved by this package: sample it with diffusers"
        ):
            open_model(folder("text"), CPU)

    def test_any_transformer_can_be_sampled_by_number(self, folder):
        model = open_model(folder("dit"), CPU)
        assert (len(model.class_names), model.null_class) == (11, 10)

    def test_other_autoencoders_are_not_compared(self, made, folder, tmp_path):
        dataset, base = made("dit")
        path = folder("dit")
        edit(path / "vae/config.json", scaling_factor=3.0)
        cell = Cell(dataset.name, dataset.protocol.name, "mine", {}, 3, 0)
        fields = adopt_model(cell, dataset, path, tmp_path / "cache", resolve_device("cpu"), Channel())
        found = ArtifactStore(tmp_path / "cache").find(UNLEARNED, fields["artifacts"][UNLEARNED]["key"])
        with pytest.raises(UsageError, match="has another autoencoder than the base model"):
            weights_in(found, base)


class Scale(Denoiser):
    """A fourth kind in one file: the noise is x_t times a number for each label, plus a table of time."""

    kind = "scale"
    prefix = ""
    title = "table"
    small = {}  # noqa: RUF012

    @classmethod
    def from_config(cls, config, codec):
        network = nn.Module()
        network.table, network.bias = nn.Embedding(config["labels"], 1), nn.Parameter(torch.zeros(1))
        network.config = dict(config)
        return cls(network, codec, config["shape"])

    @classmethod
    def untrained(cls, dataset, codec):
        return cls.from_config({"labels": dataset.num_classes + 1, "shape": list(dataset.image_shape)}, codec)

    @classmethod
    def read(cls, what, folder, wanted):
        config = json.loads((folder / "config.json").read_text())
        denoiser = cls.from_config(config, PIXELS)
        denoiser.load(load_file(folder / "weights.safetensors"))
        return denoiser

    def write(self, folder):
        (folder / "config.json").write_text(json.dumps(self.config))
        save_file(self.tensors(), folder / "weights.safetensors")
        return folder / "weights.safetensors"

    def usage(self, label, null_class, sampler):
        return "pass"

    def forward(self, x_t, t, y):
        return Prediction(x_t * self.network.table(y).view(-1, 1, 1, 1) + self.network.bias)

    @property
    def config(self):
        return self.network.config

    def part(self, name):
        names = [name for name, _ in self.named_parameters()]
        return parts(name, names, ["network.table.weight"])

    def tables(self):
        return [self.network.table.weight]

    def add_labels(self, rows):
        known = self.network.table.weight
        self.network.table = nn.Embedding.from_pretrained(torch.cat([known, rows]), freeze=False)
        return torch.arange(len(known), len(known) + len(rows)), [self.network.table.weight]


ALL = (
    "concept_ablation", "erasediff", "esd", "finetune", "lotus", "meta_unlearning", "munba", "neggrad", "neggrad_plus",
    "original", "random_label", "restricted_gradient", "retrain", "sa", "safemax", "salun", "selective_ascent", "sfron",
    "sham_swap", "siss", "task_vector",
)  # fmt: skip


@pytest.mark.parametrize("method", ALL)
def test_a_fourth_kind_is_one_class(monkeypatch, tmp_path, method):
    """Every method, metric and attack works on it; its class is all that they need."""
    monkeypatch.setitem(seam.KINDS, "scale", f"{__name__}:Scale")
    digits = small_dataset("unet")
    dataset = replace(digits, base=replace(digits.base, kind="scale", network={}))
    metrics = ["ua", "retained", *(ATTACKS if method == "safemax" else ())]
    cell, fields = run_cell(
        tmp_path, method, resolve_device("cpu"), Channel(), dataset=dataset, metrics=metrics, staged=tmp_path / "models"
    )
    assert all(fields["metrics"][name]["value"] is not None for name in metrics)
    folder = staging(tmp_path / "models", cell)
    found = Scale.read("", folder, None)
    assert torch.isfinite(found.network.table.weight).all()
    shutil.rmtree(folder)

"""Checkpoints of the reference code: converted, they predict the same noise; what is anything else is refused."""

import os

import pytest
import torch

from tests.models.reference_unet import ConditionalModel
from unlearnbench.datasets import Source, load_dataset
from unlearnbench.errors import UsageError
from unlearnbench.models.checkpoints import read_checkpoint
from unlearnbench.models.convert import Conversion, convert
from unlearnbench.models.saved import open_model

LEVELS = {  # of their configs for CIFAR-10 and STL-10, in small
    "cifar10": ({"mult": (1, 2, 2, 2), "blocks": 2, "attentive": (1,)}, 32),
    "stl10": ({"mult": (1, 2, 2, 2, 4), "blocks": 2, "attentive": (2,)}, 64),
    "unequal levels": ({"mult": (1, 3, 2), "blocks": 1, "attentive": (1,), "channels": 1, "classes": 3}, 32),
}


def reference(**config):
    """Return a network in which every weight matters, biases and norms too."""
    torch.manual_seed(0)
    model = ConditionalModel(**config).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) * (0.02 if parameter.ndim > 1 else 0.2))
    return model


def states(model, average=None):
    """Return a checkpoint as their runners write it, from DataParallel."""
    weights = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    trained = torch.nn.Linear(1, 1)
    optimiser = torch.optim.Adam(trained.parameters())
    trained(torch.ones(1)).backward()
    optimiser.step()
    return [weights, optimiser.state_dict(), 19_999, *([] if average is None else [average])]


@pytest.fixture(scope="module")
def small():
    return reference()


@pytest.fixture
def save(tmp_path):
    """Return a function that saves something as a checkpoint."""

    def write(content):
        torch.save(content, tmp_path / "ckpt.pth")
        return tmp_path / "ckpt.pth"

    return write


def difference(model, folder):
    """Return the largest difference of the predictions for every label, the null class too, and their deviation."""
    opened = open_model(folder, torch.device("cpu"))
    labels = torch.arange(model.classes_emb.num_embeddings + 1)
    assert opened.null_class == labels[-1]
    x, t = torch.randn(len(labels), *opened.denoiser.shape), torch.linspace(0, 999, len(labels)).long()
    expected, found = model(x, t, labels), opened.denoiser(x, t, labels).sample
    other = model(x, t, labels.roll(1))
    assert (expected - other).abs().amax((1, 2, 3)).min() > 0.01  # the label matters
    return (expected - found).abs().max().item()


@pytest.mark.parametrize("name", LEVELS)
def test_a_converted_network_predicts_the_same_noise(save, tmp_path, name):
    config, side = LEVELS[name]
    model = reference(**config)
    done = convert(save(states(model)), tmp_path / "out")
    assert (done.averaged, done.classes, done.side) == (False, model.classes_emb.num_embeddings, side)
    assert difference(model, tmp_path / "out") < 1e-5


def test_the_averaged_weights_are_taken_where_there_are_some(save, tmp_path, small):
    average = {name: p * 0.9 for name, p in small.named_parameters() if "emb" not in name}  # not of frozen weights
    averaged = reference()
    averaged.load_state_dict({**small.state_dict(), **average})
    file = save(states(small, average))
    for asked, model, is_average in ((None, averaged, True), (True, averaged, True), (False, small, False)):
        assert convert(file, tmp_path / "out", averaged=asked).averaged is is_average
        assert difference(model, tmp_path / "out") < 1e-5
    with pytest.raises(UsageError, match="has no averaged weights: leave --ema out"):
        convert(save(states(small)), tmp_path / "out", averaged=True)


def test_weights_alone_will_do_and_the_size_may_be_given(save, tmp_path, small):
    done = convert(save(small.state_dict()), tmp_path / "out", side=8)
    assert done == Conversion(averaged=False, classes=10, side=8, parameters=done.parameters)
    assert difference(small, tmp_path / "out") < 1e-5


def test_a_converted_model_is_a_base_model(save, tmp_path, small):
    convert(save(states(small)), tmp_path / "out")
    base = read_checkpoint(str(tmp_path / "out"), load_dataset(Source("cifar10", "smoke")))
    assert (base.config["num_class_embeds"], base.config["attention_head_dim"]) == (11, None)
    assert base.tensors()["class_embedding.weight"].shape == (11, 2 * 4 * 32)


class Malicious:
    """Touches a file when it is unpickled by pickle."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_no_code_in_a_checkpoint_runs(save, tmp_path, small):
    file = save([*states(small), Malicious(tmp_path / "ran")])
    with pytest.raises(UsageError, match=r"holds more than weights \(posix.mkdir\).*torch.save\(\[model.state_dict"):
        convert(file, tmp_path / "out")
    with pytest.raises(UsageError, match=r"holds more than weights \(.*ConditionalModel\)"):
        convert(save(small), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pth"]


def edited(small, **changes):
    """Return weights with some of them replaced, or left out (None)."""
    weights = {**small.state_dict(), **changes}
    return {name: tensor for name, tensor in weights.items() if tensor is not None}


WRONG = {
    "nothing": (lambda small: [], "does not begin with a network's weights"),
    "a number": (lambda small: 3, "does not begin with a network's weights"),
    "an empty dict": (lambda small: {}, "does not begin with a network's weights"),
    "a dict of states": (lambda small: {"model": small.state_dict()}, "does not begin with a network's weights"),
    "whole numbers": (
        lambda small: {"classes_emb.weight": torch.ones(3, dtype=torch.int64)},
        "does not begin with a network's weights",
    ),
    "sparse weights": (
        lambda small: {"classes_emb.weight": torch.eye(3).to_sparse()},
        "does not begin with a network's weights",
    ),
    "another network": (lambda small: torch.nn.Linear(2, 2).state_dict(), "lacks classes_emb.weight, the class labels"),
    "labels alone": (
        lambda small: {"classes_emb.weight": torch.ones(3, 32)},
        "lacks down.0.block.0.conv1.weight: only",
    ),
    "a foreign weight": (lambda small: edited(small, logvar=torch.zeros(1000)), "has the unknown logvar: only the"),
    "foreign weights": (
        lambda small: edited(small, **{f"x{k}": torch.zeros(1) for k in range(5)}),
        "has the unknown x0, x1, x2 and 2 more: only the",
    ),
    "a missing weight": (lambda small: edited(small, **{"norm_out.bias": None}), "lacks norm_out.bias: only the"),
    "no null class": (lambda small: edited(small, null_classes_emb=None), "lacks null_classes_emb: only the"),
    "no time": (lambda small: edited(small, **{"temb.dense.1.bias": None}), "lacks temb.dense.1.bias: only the"),
    "a number for a convolution": (
        lambda small: edited(small, **{"conv_in.weight": torch.tensor(1.0)}),
        "has other dimensions of conv_in.weight: only the denoiser",
    ),
    "another shape": (
        lambda small: edited(small, **{"mid.attn_1.q.weight": torch.ones(64, 64)}),
        "its mid.attn_1.q.weight is 64 x 64, but the reference code's denoiser has 64 x 64 x 1 x 1 here",
    ),
    "another width of the classes": (
        lambda small: edited(small, **{"classes_emb.weight": torch.ones(10, 16)}),
        "its classes_emb.weight is 10 x 16, but the reference code's denoiser has 10 x 32 here",
    ),
    "a width that is no multiple of 32": (
        lambda small: edited(small, **{"down.0.block.0.conv1.weight": torch.ones(5, 32, 3, 3)}),
        r"widths of \[5, 64, 64\] are not of the reference code's denoiser, which normalises in 32 groups",
    ),
    "resampling without convolutions": (
        lambda small: edited(small, **{"down.0.downsample.conv.weight": None, "down.0.downsample.conv.bias": None}),
        "lacks down.0.downsample.conv.weight, down.0.downsample.conv.bias: only",
    ),
    "weights that are not numbers": (
        lambda small: edited(small, **{"conv_out.bias": torch.full((3,), float("nan"))}),
        "its weights in conv_out.bias are not all finite",
    ),
    "no attention": (
        lambda small: {name: p for name, p in small.state_dict().items() if ".attn." not in name},
        "does not say how large its images are: give --image-size",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_their_network_is_refused(save, tmp_path, small, name):
    content, message = WRONG[name]
    with pytest.raises(UsageError, match=message) as error:
        convert(save(content(small)), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_size_that_the_levels_do_not_divide_is_refused(save, tmp_path, small):
    with pytest.raises(UsageError, match=r"--image-size 30: the network of .* needs a multiple of 4"):
        convert(save(states(small)), tmp_path / "out", side=30)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.999])
def test_a_file_that_was_cut_is_refused(tmp_path, small, zipped, share):
    file = tmp_path / "ckpt.pth"
    torch.save(states(small), file, _use_new_zipfile_serialization=zipped)
    file.write_bytes(file.read_bytes()[: int(share * file.stat().st_size)])
    with pytest.raises(UsageError, match=r"is not a checkpoint of torch.save, or is cut short: give a whole"):
        convert(file, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_file_of_old_torch_is_read(tmp_path, small):
    torch.save(states(small), tmp_path / "ckpt.pth", _use_new_zipfile_serialization=False)
    assert convert(tmp_path / "ckpt.pth", tmp_path / "out").classes == 10


def test_another_kind_of_file_is_refused(tmp_path):
    with pytest.raises(UsageError, match="there is no file"):
        convert(tmp_path / "absent.pth", tmp_path / "out")
    with pytest.raises(UsageError, match=r"is a folder: give the checkpoint in it"):
        convert(tmp_path, tmp_path / "out")
    (tmp_path / "text.pth").write_text("a text")
    with pytest.raises(UsageError, match=r"is not a checkpoint of torch.save"):
        convert(tmp_path / "text.pth", tmp_path / "out")

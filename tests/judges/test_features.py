"""Inception for FID: torch-fidelity's own loading code, fed with small files made here."""

import pickle

import pytest
import torch
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from unlearnbench.errors import UsageError
from unlearnbench.judges.features import inception


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights with the names and shapes that torch-fidelity's Inception has."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    with pytest.MonkeyPatch.context() as patch:
        module = "torch_fidelity.feature_extractor_inceptionv3"
        patch.setattr(f"{module}.load_state_dict_from_url", lambda *_, **__: None)
        patch.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("x", ["2048"])
    torch.save(network.state_dict(), path)
    return path


def test_it_loads_a_file_and_takes_grey_and_colour(weights):
    network, identity = inception(weights)
    assert len(identity["sha256"]) == 64
    colour = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        (features,) = network(colour)
        (grey,) = network(colour[:, :1])
        (repeated,) = network(colour[:, :1].expand(-1, 3, -1, -1))
    assert features.shape == (2, 2048)
    assert torch.equal(grey, repeated)
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_without_weights_and_network_it_offers_the_datasets_own(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(
        UsageError, match=r"cannot be downloaded .*--inception-weights, or give --extractor own"
    ) as error:
        inception(None)
    assert "\n" not in str(error.value)


class Trap:
    def __reduce__(self):
        return (exec, ("raise SystemExit('it ran')",))


@pytest.mark.parametrize("content", [b"no weights", b"", pickle.dumps(Trap())], ids=["text", "empty", "hidden code"])
def test_a_file_of_another_kind_is_refused_and_runs_nothing(tmp_path, content):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"--inception-weights .* cannot be used"):
        inception(path)


def test_weights_of_another_network_are_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="cannot be used"):
        inception(tmp_path / "weights.pth")

"""A real CUDA device: memory as NVML and torch count it, the clock, layouts, waits, judges, saved models."""

import json
import subprocess
import sys
from collections import Counter

import pytest
import torch

from tests.cells import ASKED, BOOKKEEPING, PAPERS, run_cell, small_dataset, tiny_dataset
from tests.gpu.waits import host_waits
from unlearnbench.cost.meter import Meter
from unlearnbench.datasets import WEIGHTS, load_dataset
from unlearnbench.judges.fit import fit_classifier
from unlearnbench.judges.judges import NetworkJudge, build_classifier
from unlearnbench.models import flops as arithmetic
from unlearnbench.models.diffusion import Schedule
from unlearnbench.models.flops import peak_flops
from unlearnbench.models.networks import frozen
from unlearnbench.models.sampler import sample
from unlearnbench.models.unet import UNet
from unlearnbench.run.jobs import resolve_device
from unlearnbench.run.saving import staging
from unlearnbench.run.workers import Workers
from unlearnbench.store.artifacts import ArtifactStore

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

# The paper's three, one that fills gradients itself, and one that asks for a wait in each step.
METHODS = ("safemax", "salun", "sa", "restricted_gradient", "erasediff")
BLOCK = 256 * 2**20  # bytes


@pytest.fixture(scope="module")
def on_device(tmp_path_factory):
    """Return a function that runs one of this module's jobs in a process of its own, as a cell is."""
    workers, cache = Workers(), tmp_path_factory.mktemp("device")

    def run(job, *arguments):
        outcome = workers.run(f"{__name__}:{job.__name__}", cache, *arguments)
        assert outcome.status == "ok", f"{outcome.reason}\n{outcome.traceback}"
        return outcome.value

    return run


def found():
    """Return the device; its peak is not measured here, which takes seconds."""
    arithmetic.PEAK_SIZE, arithmetic.PEAK_SECONDS = {"cuda": 1024}, 0.0
    return resolve_device("cuda")


def cell_job(cache, method, form, channel):
    """Run a cell and return its metrics, its peaks of memory and what the probes lack."""
    dataset = tiny_dataset(**form)
    _, record = run_cell(cache, method, found(), channel, dataset=dataset, metrics=["ua", "fid", "forgotten"])
    values = {name: entry["value"] for name, entry in record["metrics"].items()}
    return values, record["cost"]["forget"]["memory_bytes"], record["probes"]


def kind_job(cache, method, kind, channel):
    """Run a cell of another kind of model, its base model and autoencoder included, and return its metrics."""
    _, record = run_cell(
        cache, method, found(), channel, dataset=small_dataset(kind), metrics=["ua", "fid", "forgotten"]
    )
    return {name: entry["value"] for name, entry in record["metrics"].items()}


def loop_job(cache, method, channel):
    """Run a method with so many steps and twice as many, and return the functions in which the host waited more."""
    device, counted = found(), []
    for steps in (2, 4):
        with host_waits(torch.device(device["device"])) as waits:
            run_cell(cache, method, device, channel, steps=steps)
        inside = [path for path in waits if "unlearning.py:unlearn" in path and not BOOKKEEPING & set(path)]
        counted.append(Counter(path[0] for path in inside))
    return set(counted[1] - counted[0])


def save_job(cache, folder, channel):
    """Run a cell whose model is saved; return what the record says of it, and whether its weights are there."""
    cell, record = run_cell(
        cache, "safemax", found(), channel, dataset=tiny_dataset(flip=True, bf16=True, unet=PAPERS), staged=folder
    )
    return record["artifacts"]["model"], (staging(folder, cell) / "unet" / WEIGHTS).is_file()


def test_nvml_sees_a_real_tensor():  # the first test, while this process holds nothing on the device
    code = """
import json, torch
from unlearnbench.cost.nvml import NvmlMonitor
with NvmlMonitor(str(torch.cuda.get_device_properties(0).uuid)) as monitor:
    seen = [monitor.problems]
    torch.zeros(1, device="cuda")
    torch.cuda.synchronize()
    monitor.edge()
    seen.append(monitor.edge())
    block = torch.ones(512 * 2**20, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    del block
    seen.append(monitor.edge())
    torch.cuda.empty_cache()
    monitor.edge()
    seen.append(monitor.edge())
    print(json.dumps([*seen, monitor.problems, monitor.foreign]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    at_start, context, full, empty, problems, foreign = json.loads(done.stdout)
    assert "nvml_process" in at_start, "to ask for a device's UUID must not allocate on it"
    if foreign:
        pytest.skip("other processes compute on the device")
    assert "nvml_device" in full, problems
    for probe in full:
        assert context[probe] > 0
        assert full[probe] - context[probe] == pytest.approx(512 * 2**20, rel=0.05), probe
        assert empty[probe] == pytest.approx(context[probe], rel=0.05), probe


@pytest.mark.parametrize("method", METHODS)
def test_a_cell_runs_and_its_memory_is_measured(on_device, method):
    values, memory, missing = on_device(cell_job, method, {"flip": True, "unet": PAPERS})
    assert None not in values.values()
    probes = {"nvml_process", "nvml_device", "torch_reserved", "torch_allocated"}
    assert probes <= memory.keys() | missing.keys(), "a probe is there, or the record says why not"
    assert memory["torch_reserved"] >= memory["torch_allocated"] > 0
    for probe in memory.keys() & {"nvml_process", "nvml_device"}:
        assert memory[probe] >= memory["torch_reserved"], "NVML counts the context and the libraries too"


def test_a_cell_runs_in_bfloat16(on_device):
    values, _, _ = on_device(cell_job, "safemax", {"bf16": True})
    assert None not in values.values()


@pytest.mark.parametrize("method", METHODS)
def test_no_step_makes_the_host_wait_but_where_the_method_asks(on_device, method):
    assert on_device(loop_job, method) == ASKED.get(method, set())


def test_a_model_is_saved_and_read_back(on_device, tmp_path):
    said, is_there = on_device(save_job, tmp_path)
    assert said.keys() == {"sha256"}
    assert is_there


def test_a_judge_that_learned_in_bfloat16_is_as_good(tmp_path):
    digits = load_dataset("digits")
    images = digits.load(ArtifactStore(tmp_path), lambda what, done, total: None)
    model = build_classifier(digits, digits.judge).to("cuda")
    fit_classifier(model, images.train, digits.judge, lambda done, total: None)
    named = NetworkJudge(model).names(images.test.images, torch.device("cuda"))
    assert (named == images.test.labels).mean() >= 0.975


def test_bfloat16_samples_are_those_of_full_precision_but_for_rounding():
    dataset = tiny_dataset(unet=PAPERS)
    torch.manual_seed(0)
    model, device = UNet.untrained(dataset), torch.device("cuda")
    frozen(model, model.state_dict(), device)
    images = [
        sample(
            model, Schedule.of(device=device), torch.arange(20) % 10, range(20), dataset.image_shape, null_class=10,
            **{**dataset.protocol.sampler, "bf16": bf16},
        ).float()
        for bf16 in (False, True)
    ]  # fmt: skip
    assert (images[0] - images[1]).abs().mean() < 3, "of 255"


def test_lower_precision_is_faster():
    peak = peak_flops(torch.device("cuda"))
    assert peak["float32"] < peak["tf32"] < peak["bfloat16"]


class TestTheMeter:
    def meter(self):
        device = torch.device("cuda", torch.cuda.current_device())
        return Meter.for_device(device, str(torch.cuda.get_device_properties(device).uuid))

    def test_a_known_tensor_raises_the_peaks_of_its_own_phase(self):
        meter = self.meter()
        for phase, size in (("prior", 0), ("forget", BLOCK), ("sample", 0)):
            with meter.phase(phase):
                block = torch.ones(size, dtype=torch.uint8, device="cuda")
                del block
        meter.instruments.close()
        for probe in ("torch_allocated", "torch_reserved", "nvml_process", "nvml_device"):
            if probe not in meter.instruments.reasons():
                before, within, after = (
                    meter.costs[phase].memory_bytes[probe] for phase in ("prior", "forget", "sample")
                )
                assert within - before == pytest.approx(BLOCK, rel=0.02), probe
                assert after == pytest.approx(before, rel=0.05), probe
                growth = {phase: meter.costs[phase].memory_growth_bytes[probe] for phase in ("forget", "sample")}
                assert growth["forget"] == pytest.approx(BLOCK, rel=0.02), probe
                assert growth["sample"] < 8 * 2**20, probe

    def test_work_that_is_launched_and_not_waited_for_is_timed_to_its_end(self):
        meter = self.meter()
        with meter.phase("forget"):
            torch.cuda._sleep(10**9)  # about half a second on the device, none on the host
        with meter.phase("sample"):
            pass
        meter.instruments.close()
        assert meter.costs["forget"].seconds > 0.2
        assert meter.costs["sample"].seconds < 0.1


@pytest.mark.parametrize("kind", ["dit", "text"])
@pytest.mark.parametrize("method", ["safemax", "esd", "concept_ablation"])
def test_other_kinds_of_models_run_there(on_device, method, kind):
    metrics = on_device(kind_job, method, kind)
    assert all(value is not None for value in metrics.values()), metrics

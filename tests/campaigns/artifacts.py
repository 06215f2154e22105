"""Damaged artifacts: each is built anew with the numbers that it had, or left alone where it is sound after all.

Payloads and notes of a small base model, its judges and features are cut, flipped, emptied, removed, replaced by
folders, links and odd JSON.
"""

import json
import shutil
import tempfile
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path

import torch

from tests.campaigns import main
from unlearnbench.datasets import load_dataset
from unlearnbench.measure.prepared import prepare
from unlearnbench.store.artifacts import ArtifactStore

NEEDS = ("retain_features", "forget_verdicts")
ODD = (b"", b"{}", b"[]", b"null", b"7", b'"x"', b"[" * 5000 + b"]" * 5000, b"\xff\xfe", b'{"key": 1}')


def small():
    """Return digits with networks that train in a second."""
    digits = load_dataset("digits")
    unet = {**digits.base.network, "block_out_channels": [8, 8], "norm_num_groups": 4}
    return replace(
        digits, base=replace(digits.base, network=unet, steps=2, batch=8), judge=replace(digits.judge, epochs=1),
        rejecting=replace(digits.rejecting, epochs=1), extractor=replace(digits.extractor, epochs=1),
    )  # fmt: skip


def numbers(store):
    """Return everything that is made, as plain numbers and digests."""
    made = prepare(small(), store, torch.device("cpu"), lambda what, done, total: None, NEEDS)
    weights = [tensor.clone() for tensor in made.base.state_dict().values()]
    return [*weights, made.train_features, torch.tensor(made.test_performance["test_accuracy"])], made.artifacts


def damage(path, random):
    """Damage an artifact's file, and return in a word how."""
    content = path.read_bytes()
    how = random.choice(("cut", "flip", "odd", "remove", "folder", "link", "dangling", "longer", "field"))
    if how == "field" and path.suffix == ".json":
        note = json.loads(content)
        note[random.choice(list(note))] = random.choice((None, 0, [], {}, "x"))
        path.write_text(json.dumps(note))
    elif how in ("cut", "flip", "odd", "longer", "field"):
        place = random.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1 << random.randrange(8)]) + content[place + 1 :]
        path.write_bytes(
            {"cut": content[:place], "odd": random.choice(ODD), "longer": content + b"x"}.get(how, flipped)
        )
    else:
        path.unlink()
        if how == "folder":
            path.mkdir()
        elif how == "link":
            path.symlink_to(path.parent)
        elif how == "dangling":
            path.symlink_to("nowhere")
    return how


def campaign(count, random):
    """Damage an artifact at a time; return how, and each damage after which something was other than before."""
    counts, defects = Counter(), []
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an artifact is damaged
        whole = Path(folder, "whole")
        wanted, references = numbers(ArtifactStore(whole))
        for number in range(count):
            cache = Path(folder, str(number))
            shutil.copytree(whole, cache)
            path = random.choice(sorted(path for path in cache.glob("*/*/*") if path.is_file()))
            what = f"{damage(path, random)} of {path.relative_to(cache).parts[0]}'s {path.name}"
            counts[what] += 1
            try:
                found, now = numbers(ArtifactStore(cache))
            except Exception as error:
                defects.append(f"{what}: {error!r}")
                continue
            if now != references or not all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)):
                defects.append(f"{what}: other numbers than before")
            if left := [path for path in cache.rglob(".*") if path.is_dir()]:
                defects.append(f"{what}: left {left}")
            shutil.rmtree(cache)
    return counts, defects


if __name__ == "__main__":
    main(campaign, 100)

"""The model card of an unlearned model, from its record."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearnbench.datasets.recipes import Protocol
from unlearnbench.store.records import Record, records_digest


def _null_class(record: Record) -> int | None:
    return None if (record.dataset.get("choices") or {}).get("unguided") else len(record.dataset["class_names"])


def _null_words(record: Record) -> str:
    label = _null_class(record)
    return "no null class, so no guidance" if label is None else f"label {label} is the null class of guidance"


def _protocol(record: Record) -> Protocol:
    return Protocol(**record.protocol)


def card(record: Record) -> str:
    """Return a model card in the form of the Hugging Face Hub."""
    cell, method, title = record.cell, record.method, record.method.get("title", record.cell.method)
    paper = f" ([arXiv:{method['paper']}](https://arxiv.org/abs/{method['paper']}))" if method.get("paper") else ""
    dataset, protocol = record.dataset, _protocol(record)
    forgotten = _named(cell.forget_classes, dataset["class_names"])
    earlier = [_named(classes, dataset["class_names"]) for classes in cell.earlier]
    before = f" Before that the same method had it forget {', then '.join(earlier)}." if earlier else ""
    settings = [f"| `{name}` | {value} |" for name, value in cell.settings.items()] or ["| none | |"]
    clipped = ", x0 clipped to [-1, 1] at every step" if protocol.clip_x0 else ""
    parts = [
        "---\nlibrary_name: diffusers\ntags:\n- diffusion\n- machine-unlearning\n- class-conditional\n- unlearnbench\n"
        f"---\n\n# {title}: {dataset['title']} without {forgotten}",
        f"A class-conditional `UNet2DModel` of {dataset['title']} from which {title}{paper} unlearned {forgotten}."
        f"{before} Written by unlearnbench; this is the measured model, not another run of the method.",
        f"- Cell `{cell.id}`, seeds: unlearning {cell.seed}, base model {cell.base_seed}, sampling "
        f"{cell.sampling_seed}\n- Record digest `{records_digest([record])}`\n"
        f"- Weights SHA-256 `{record.artifacts['model']['sha256']}`\n"
        f"- Classes: {', '.join(_labelled(k, name) for k, name in enumerate(dataset['class_names']))}; "
        f"{_null_words(record)}\n"
        f"- Noise schedule: 1,000 steps, linear betas from 1e-4 to 0.02, predicts the noise (`scheduler/`)\n"
        f"- Sampler of the protocol {protocol.name}: DDIM, {protocol.steps} steps, eta {protocol.eta}, guidance w "
        f"{protocol.guidance}, (1 + w) eps(class) - w eps(null class){clipped}",
        "## Settings\n\n| setting | value |\n| --- | --- |\n" + "\n".join(settings),
        _metrics(record),
        _cost_words(record),
        _usage(record, protocol),
        _limits(record),
    ]
    return "\n\n".join(parts) + "\n"


def _named(classes: Sequence[int], names: Sequence[str]) -> str:
    """Return classes by number and name: `class 3 (cat) and class 5 (dog)`."""
    return " and ".join(f"class {_labelled(c, names[c])}" for c in classes)


def _labelled(label: int, name: str) -> str:
    return str(label) if name == str(label) else f"{label} ({name})"


def _metrics(record: Record) -> str:
    """Return the table of metrics."""
    if not record.metrics:
        return "## Metrics\n\nIt was not measured: `unlearnbench evaluate` does that."
    header = "## Metrics\n\n| metric | value | unit | better | n |\n| --- | --- | --- | --- | --- |\n"
    return header + "\n".join(_metric_row(entry) for entry in record.metrics.values())


def _metric_row(entry: Mapping[str, Any]) -> str:
    value = f"not measurable: {entry.get('reason')}"
    if entry["value"] is not None:
        value = f"{entry['value']:{entry['format']}}"
    return f"| {entry['title']} | {value} | {entry['unit'] or '-'} | {entry['better']} | {entry['n']} |"


def _cost_words(record: Record) -> str:
    seconds = {phase: record.cost.get(phase, {}).get("seconds", 0.0) for phase in ("forget", "prior")}
    device = record.provenance.get("device", {}).get("name", "an unknown device")
    return f"Unlearning took {seconds['forget']:.2f} s, and {seconds['prior']:.2f} s of preparation, on {device}."


def _usage(record: Record, protocol: Protocol) -> str:
    """Return how to load and sample the model, with diffusers alone and with this package."""
    c, k, (channels, height, width) = record.cell.forget_class, _null_class(record), _shape(record)
    null, eps, w = "", "model(x, t, y).sample", ""
    if k is not None:
        null, w = f"; {k} is the null class", f", {protocol.guidance}"
        eps = f"(1 + w) * model(x, t, y).sample - w * model(x, t, torch.full_like(y, {k})).sample"
    return f"""## Use

```python
import torch
from diffusers import DDIMScheduler, UNet2DModel

folder = "."  # this one
model = UNet2DModel.from_pretrained(folder).eval()
scheduler = DDIMScheduler.from_pretrained(folder, subfolder="scheduler", clip_sample={protocol.clip_x0})
scheduler.set_timesteps({protocol.steps})
y = torch.full((8,), {c})  # the class that was unlearned{null}
x{", w" if w else ""} = torch.randn(8, {channels}, {height}, {width}){w}
with torch.no_grad():
    for t in scheduler.timesteps:
        eps = {eps}
        x = scheduler.step(eps, t, x, eta={protocol.eta}).prev_sample  # images in [-1, 1] at the end
```

```bash
unlearnbench sample . --class {c} --n 64 --out grid.png
```"""


def _limits(record: Record) -> str:
    tested = record.judge
    judge = f" (test accuracy {100 * tested['test_accuracy']:.1f} %, n = {tested['n']})" if tested else ""
    return (
        "## Limits\n\n"
        f"- The metrics rest on judges{judge}, features and n samples of this one model; they "
        "do not prove the absence of knowledge in the weights.\n"
        "- An unlearned class may come back: by fine-tuning, by other initial noise, by "
        "another label embedding. `unlearnbench list metrics` names the attacks; those that ran are in the table.\n"
        "- Other classes may be damaged in ways that no metric here detects. Look at samples before use."
    )


def _shape(record: Record) -> tuple[int, int, int]:
    channels, height, width = record.dataset["image_shape"]
    return int(channels), int(height), int(width)

"""The model card of an unlearned model, from its record."""

from collections.abc import Mapping, Sequence
from typing import Any

from unlearnbench.datasets.conditions import Conditions
from unlearnbench.datasets.recipes import Protocol
from unlearnbench.store.records import Record, records_digest

CHANGED = "changed.safetensors"  # the weights that a method moved, where it moved some only


def protocol_of(record: Record) -> Protocol:
    """Return the protocol of a record."""
    return Protocol(**record.protocol)


def card(record: Record, facts: Mapping[str, Any]) -> str:
    """Return a model card in the form of the Hugging Face Hub.

    Args:
        record: of the cell.
        facts: that were saved with the model: its conditions, its kind in words, its noise schedule and its use.
    """
    cell, method, title = record.cell, record.method, record.method.get("title", record.cell.method)
    paper = f" ([arXiv:{method['paper']}](https://arxiv.org/abs/{method['paper']}))" if method.get("paper") else ""
    dataset, protocol, noise = record.dataset, protocol_of(record), facts["noise"]
    forgotten = _named(cell.forget_classes, dataset["class_names"])
    earlier = [_named(classes, dataset["class_names"]) for classes in cell.earlier]
    before = f" Before that the same method had it forget {', then '.join(earlier)}." if earlier else ""
    settings = [f"| `{name}` | {value} |" for name, value in cell.settings.items()] or ["| none | |"]
    parts = [
        "---\nlibrary_name: diffusers\ntags:\n- diffusion\n- machine-unlearning\n- unlearnbench\n"
        f"---\n\n# {title}: {dataset['title']} without {forgotten}",
        f"A {facts['model']} of {dataset['title']} from which {title}{paper} unlearned {forgotten}."
        f"{before} Written by unlearnbench; this is the measured model, not another run of the method.",
        f"- Cell `{cell.id}`, seeds: unlearning {cell.seed}, base model {cell.base_seed}, sampling "
        f"{cell.sampling_seed}\n- Record digest `{records_digest([record])}`\n"
        f"- Weights SHA-256 `{record.artifacts['model']['sha256']}`\n"
        f"- Classes: {', '.join(_labelled(k, name) for k, name in enumerate(dataset['class_names']))}; "
        f"{_null_words(facts)}\n"
        f"- Noise schedule: {noise['num_train_timesteps']} steps, betas from {noise['beta_start']} to "
        f"{noise['beta_end']} ({noise['beta_schedule']}; `scheduler/`)\n"
        f"- `{CHANGED}`, where it is there, holds the weights of the network that the method moved\n"
        f"- Sampler of the protocol {protocol.name}: {protocol.words}; "
        "guidance w: (1 + w) eps(class) - w eps(null class)",
        "## Settings\n\n| setting | value |\n| --- | --- |\n" + "\n".join(settings),
        _metrics(record),
        _cost_words(record),
        _usage(record, facts),
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


def _null_words(facts: Mapping[str, Any]) -> str:
    conditions = Conditions.from_json(facts["conditions"])
    if conditions.null_class is None:
        return "no null class, so no guidance"
    return (
        "the empty prompt is the null condition of guidance"
        if conditions.prompts
        else (f"label {conditions.null_class} is the null class of guidance")
    )


def _usage(record: Record, facts: Mapping[str, Any]) -> str:
    """Return how to load and sample the model, with diffusers alone and with this package."""
    return f"""## Use

```python
{facts["use"]}
```

```bash
unlearnbench sample . --class {record.cell.forget_class} --n 64 --out grid.png
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

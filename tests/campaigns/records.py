"""Mutated records: every command that reads them ends with status 0, 1 or 2, and no traceback.

One line of a folder of sound records is mutated at a time: fields removed, of another type, huge, deep, or hostile
text; bits flipped, the line cut; with the checksum it had, or one that is right again.
"""

import copy
import json
import tempfile
from collections import Counter
from pathlib import Path

from tests.campaigns import call, inside, main
from tests.conftest import fake_record
from unlearnbench import api
from unlearnbench.errors import UsageError
from unlearnbench.report.figures import drawing
from unlearnbench.store.hashing import canonical_json, digest
from unlearnbench.store.records import ResultStore

FIGURES_EVERY = 25  # they take a second; the tables of a record that breaks one are tried every time
COMMANDS = (
    ("report",),
    ("verify", "sound/digits/report.md"),
    ("compare", "spartalis2025"),
    ("validate",),
    ("run", "--methods", "alpha,sa", "--plugin", "alpha.py", "--classes", "0-1", "--device", "cpu", "--dry-run"),
)
ALPHA = "from unlearnbench import method\n\n@method(title='Alpha')\ndef alpha(ctx, *, steps: int = 10): ...\n"


def deep(levels=2000):
    """Return JSON of so many levels."""
    value = 0
    for _ in range(levels):
        value = [value]
    return value


ODD = (
    None,
    True,
    False,
    0,
    -1,
    1,
    250.0,
    1e308,
    -1e308,
    10**400,
    1e-320,
    "",
    " ",
    "nan",
    "1",
    "a" * 100_000,
    [],
    {},
    [[]],
    [None],
    {"": None},
    {"a": {"b": []}},
    [1, "2", None],
    "\x1b[2J\x1b]0;x\x07",
    "=cmd|' /C calc'!A0",
    "<script>alert(1)</script>",
    "![x](http://example.invalid/x.png)",
    "\u202etxt",
    "\ud800",
    "\x00",
    "a\nb\r\nc",
    "|||",
    "\\input{/etc/passwd}",
    "$%&#_{}~^\\",
    "../../../x",
    "/etc/passwd",
    ".",
    "..",
    "con",
    "ü" * 300,
    "日本",
    "%s%n",
    "{0}",
    "{{ 7*7 }}",
    "iVBORw0KGgo=",
)


def places(value, path=()):
    """Yield the path of every value within JSON."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


def mutated(record, random):
    """Return a mutated line, and in words what was done to it."""
    record = copy.deepcopy(record)
    kind = random.choice(("remove", "replace", "replace", "replace", "deep", "add", "flip", "cut"))
    line = canonical_json(record).encode()
    if kind == "flip":
        place = random.randrange(len(line))
        return line[:place] + bytes([line[place] ^ 1 << random.randrange(8)]) + line[place + 1 :], kind
    if kind == "cut":
        return line[: random.randrange(len(line))], kind
    *above, last = random.choice(list(places(record)))
    inner = record
    for key in above:
        inner = inner[key]
    if kind == "remove":
        del inner[last]
    else:
        inner[last if kind != "add" or not isinstance(inner, dict) else "added"] = (
            deep() if kind == "deep" else random.choice(ODD)
        )
    right = random.random() < 0.5 and "checksum" in record
    try:
        if right:
            record["checksum"] = digest({key: value for key, value in record.items() if key != "checksum"})
        line = canonical_json(record).encode("utf-8", "surrogatepass")
    except (ValueError, TypeError, RecursionError, OverflowError):  # what canonical JSON cannot hold
        line = text(record).encode("utf-8", "surrogatepass")
    return line, f"{kind} {'.'.join(map(str, [*above, last]))}{', checksum right' if right else ''}"


def text(record):
    """Return JSON of what the canonical form refuses; a number too large for a float as 1e999."""
    try:
        return json.dumps(record)
    except RecursionError:
        return "[" * 5000 + "]" * 5000


def load():
    """Read the records as a notebook does."""
    try:
        api.load("results")
    except UsageError:
        return


def campaign(count, random):
    """Mutate records; return how the commands ended, and each mutation that one of them ended badly at."""
    counts, defects, figures = Counter(), [], drawing.FIGURES
    with tempfile.TemporaryDirectory() as folder, inside(folder):
        Path("alpha.py").write_text(ALPHA)
        for method, c in (("alpha", 0), ("alpha", 1), ("sa", 0), ("sa", 1)):
            ResultStore(Path("results")).append(fake_record(method, c))
        files = sorted(Path("results").glob("*/*.jsonl"))
        sound = {file: file.read_bytes() for file in files}
        try:
            drawing.FIGURES = {}
            assert call("report", "--out", "sound").status == 0
            for number in range(count):
                drawing.FIGURES = {} if number % FIGURES_EVERY else figures
                file = random.choice(files)
                lines = sound[file].splitlines()
                place = random.randrange(len(lines))
                lines[place], what = mutated(json.loads(lines[place]), random)
                file.write_bytes(b"\n".join(lines) + b"\n")
                for command in COMMANDS:
                    answer = call(*command)
                    counts[f"{command[0]}: status {answer.status}"] += 1
                    if not answer.sound:
                        defects.append(
                            f"{command[0]} after {what}: status {answer.status}\n{answer.trace or answer.output}"
                        )
                try:
                    load()
                    counts["api.load: sound"] += 1
                except Exception as error:
                    counts["api.load: an exception"] += 1
                    defects.append(f"api.load after {what}: {error!r}"[:2000])
                file.write_bytes(sound[file])
        finally:
            drawing.FIGURES = figures
    return counts, defects


if __name__ == "__main__":
    main(campaign, 1000)

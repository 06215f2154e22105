"""READMEs and CONTRIBUTING.md: every command and example runs, every link leads somewhere, every count is right."""

import csv
import importlib.util
import io
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
import typer.main
from PIL import Image

from tests.models.reference_unet import ConditionalModel
from tests.readme import GENERATED, ROOT, block, digits, generated, pages, rendered
from tests.server import Command, run_command
from unlearnbench import datasets
from unlearnbench.cli import commands as cli
from unlearnbench.datasets import Source, load_dataset, protocol_names, title_of
from unlearnbench.kit import conformance, trial
from unlearnbench.models.autoencoder import untrained_codec
from unlearnbench.models.checkpoints import write_checkpoint
from unlearnbench.models.denoiser import small_recipe, untrained
from unlearnbench.models.flops import flops_per_image
from unlearnbench.models.unet import UNet
from unlearnbench.report.write.csv import to_csv
from unlearnbench.run.stale import current_dataset
from unlearnbench.store.artifacts import ArtifactStore
from unlearnbench.store.records import ResultStore

PAGES = pages()
LARGEST = 12_000  # bytes of the top README: two screens
SECONDS = 240
FAST = "--set safemax.steps=2 --metrics ua --controls none"


def short(more="", swap=()):
    """Return how a command is made small: words replaced, then further options, of which the last one counts."""
    return more, dict(swap)


# Commands of the pages' bash blocks that the gate, `.ci/run`, runs in a clean checkout.
OF_THE_GATE = (
    "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ".venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy",
)
# Those that other tests run in another form.
ELSEWHERE = {
    "python3 -m venv .venv && .venv/bin/pip install .": "the gate installs the wheel",
    "python3 -m venv .venv && .venv/bin/pip install -e '.[dev]'": "the gate installs it after .[test]",
    ".venv/bin/python -m tests.readme": "TestGenerated",
    "pip install .": "the test of a third party's package installs its wheel",
    "unlearnbench check null_row": "the same test, in the environment that has the package",
    "unlearnbench run --methods original,null_row --classes 0-9": "the same test",
}
# All others, and the small form of each.
COMMANDS = {
    ".venv/bin/unlearnbench run --methods all --classes 0-9 --results my-results --out my-reports": short(
        "--methods original --classes 0 --metrics ua --controls none", {".venv/bin/": ""}
    ),
    "unlearnbench check my_method.py": short(),
    "unlearnbench run --methods original,safemax,my_method --classes 0-2 --plugin my_method.py": short(
        "--methods my_method --classes 0 --set my_method.steps=3 --metrics ua --controls none"
    ),
    "unlearnbench run --methods original,retrain,esd,restricted_gradient,salun --classes 0-2": short(
        "--methods original --classes 0 --metrics ua --controls none"
    ),
    "unlearnbench validate": short(f"--results {ROOT}/results"),
    "unlearnbench report --results my-results --out my-reports --open": short(),
    "unlearnbench verify my-reports/digits/report.md --results my-results": short(),
    "unlearnbench new method my_idea": short(),
    "unlearnbench check my_idea.py": short(),
    "unlearnbench run --methods original,safemax,my_idea --classes 0-2 --plugin my_idea.py": short(
        "--methods my_idea --classes 0 --set my_idea.steps=2 --metrics ua --controls none"
    ),
    "unlearnbench new method another_idea --package": short(),
    "unlearnbench run --methods original,safemax --classes 3 --metrics ua,my_metric --plugin my_metric.py": short(
        "--methods safemax --set safemax.steps=2 --controls none"
    ),
    "unlearnbench tune --methods all --trials 20 --classes 2,5,8": short(
        "--methods neggrad --trials 1 --images 400 --classes 2"
    ),
    "unlearnbench run --dataset imagefolder --data-root photos --image-size 32 --base-steps 20000 "
    "--methods original,safemax,salun --classes cat": short(
        f"--protocol smoke --image-size 8 --base-steps 2 --methods safemax {FAST}"
    ),
    "unlearnbench run --dataset imagefolder --data-root arrays --image-size 8 --protocol smoke --methods original,esd "
    "--classes 3": short("--base-steps 2 --methods original --metrics ua --controls none"),
    "unlearnbench run --dataset cifar10 --protocol paper --methods paper --classes 0-9": short("--dry-run"),
    "unlearnbench compare spartalis2025": short(),
    "unlearnbench run --dataset cifar10 --protocol fast --base-steps 20000 --methods all --classes 0-9 "
    "--set sa.steps=2000 --set sa.fisher_images=500 --set sa.fisher_timesteps=100 --minutes 30": short("--dry-run"),
    "unlearnbench run --model dit --methods original,safemax,salun --classes 0,3,8": short("--dry-run"),
    "unlearnbench run --dataset imagefolder --data-root photos --image-size 256 --base my-dit --labels "
    "cat=281,dog=207,fox=277 --methods original,safemax --classes cat": short(
        f"--protocol smoke --image-size 8 --labels cat=2,dog=0,fox=1 {FAST} --methods safemax"
    ),
    "unlearnbench unlearn --base my-dit --dataset imagefolder --data-root photos --image-size 256 --labels "
    "cat=281,dog=207,fox=277 --method safemax --class cat --out without-cat": short(
        "--protocol smoke --image-size 8 --labels cat=2,dog=0,fox=1 --set safemax.steps=2"
    ),
    "unlearnbench run --concepts pets.toml --base my-stable-diffusion --image-size 512 --methods original,uce,esd "
    "--classes dog": short("--protocol smoke --image-size 8 --methods uce --metrics ua --controls none"),
    "unlearnbench train --dataset cifar10 --steps 100000 --out my-base": short("--dataset digits --steps 2"),
    "unlearnbench convert ckpts/ckpt.pth --out their-base": short(),
    "unlearnbench run --methods original,safemax --classes 0,3,8 --set safemax.decay=0,1,10,50 "
    "--set safemax.normalise_psi=false,true --set safemax.target=independent,trajectory": short(
        f"--methods safemax --classes 0 {FAST}",
        {"=0,1,10,50": "=1", "=false,true": "=true", "=independent,trajectory": "=trajectory"},
    ),
    "unlearnbench run --methods all,retrain --classes 0,3,8 --metrics all,attacks": short(
        f"--methods safemax --classes 0 {FAST} --metrics late_start"
    ),
    "unlearnbench run --methods paper --classes 0+1": short("--methods original --metrics ua --controls none"),
    "unlearnbench run --methods paper --sequence 0,1,2": short(
        "--methods original --sequence 0,1 --metrics ua --controls none"
    ),
    "unlearnbench run --methods safemax --classes 3 --save-models my-models": short(FAST),
    "unlearnbench unlearn --method safemax --class 3 --out forgot3": short("--set safemax.steps=2"),
    "unlearnbench evaluate forgot3": short("--metrics ua"),
    "unlearnbench sample my-models/digits-safemax-c3-* --class 3 --n 64 --out grid.png": short("--n 4"),
    "unlearnbench run --dataset cifar10 --protocol fast --methods all --classes 0-9 --cluster slurm.yaml "
    "--detach": short(
        "--dataset digits --protocol digits-dpm12 --methods original --classes 0,1 --metrics ua --controls none "
        "--results cluster-results"
    ),
    "unlearnbench cluster status": short("--results cluster-results"),
    "unlearnbench cluster attach": short("--results cluster-results"),
    'for file in part-*/*/*.jsonl; do\n    mkdir -p "$(dirname "all-results/${file#*/}")" && '
    'awk 1 "$file" >> "all-results/${file#*/}"\ndone': short(),
    "unlearnbench report --results all-results --out all-reports": short(),
}


def commands(code):
    """Return the commands of a bash block, one for each line, or loop, without comments."""
    code = re.sub(r"\\\n\s*", "", code)
    return re.findall(r"^for [\s\S]*?^done$|^[^#\s].*$", code, re.MULTILINE)


BLOCKS = [(page, code) for page, text in PAGES.items() for code in re.findall(r"```bash\n(.*?)```", text, re.DOTALL)]
GIVEN = [command for _, code in BLOCKS for command in commands(code)]
RUN = [(page, command) for page, code in BLOCKS for command in commands(code) if command in COMMANDS]
# The tests that CONTRIBUTING.md calls fast: their files are there, and no command of the tables.
SUBSET = re.compile(r"\.venv/bin/pytest (.+)")


def small(command):
    """Return the small form of a command."""
    more, swap = COMMANDS[command]
    for old, new in swap.items():
        assert old in command
        command = command.replace(old, new)
    return f"{command} {more}".rstrip()


def test_every_command_is_in_one_of_the_tables_and_these_have_no_other():
    known = [*OF_THE_GATE, *ELSEWHERE, *COMMANDS]
    given = [command for command in GIVEN if not SUBSET.fullmatch(command)]
    assert sorted(given) == sorted(known)
    assert max(Counter(known).values()) == 1


def test_what_is_left_to_the_gate_is_done_there():
    gate = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "<!-- command:test -->" in gate  # it takes the command from the top README
    test, *others = OF_THE_GATE
    assert block("command:test").strip() == test
    assert [part for command in others for part in command.split(" && ") if part not in gate] == []
    assert "pip wheel" in gate and "-e '.[dev]'" in gate


def test_the_fast_tests_are_there():
    (subset,) = filter(None, map(SUBSET.fullmatch, GIVEN))
    assert [word for word in subset[1].split() if word.startswith("tests") and not (ROOT / word).exists()] == []


SERVER = """
import sys

from tests.cells import shrink
from unlearnbench.cli import commands
from unlearnbench.datasets import digits
from unlearnbench.kit import trial
from unlearnbench.report.figures import drawing

trial.STEPS = 4  # of a method that is checked
pipes, real, figures = sys.argv[1], digits._PROFILE, drawing.FIGURES
shrink()
tiny = digits._PROFILE
while True:
    with open(f"{pipes}/request") as request:
        words = request.read().split("\\0")[:-1]
    drawing.FIGURES = figures if "--open" in words else {}  # they take their time: once is enough
    digits._PROFILE = real if "validate" in words else tiny  # it looks at the committed records
    sys.argv = ["unlearnbench", *words]
    try:
        commands.main()
        status = 0
    except SystemExit as stop:
        status = stop.code or 0
    sys.stdout.flush()
    with open(f"{pipes}/answer", "w") as answer:
        print(status, file=answer)
"""
SHELL = """
unlearnbench() {
    local status
    printf '%s\\0' "$@" > "$PIPES/request"
    read -r status < "$PIPES/answer"
    return "$status"
}
export -f unlearnbench
export BROWSER=true NO_COLOR=1
"""


def furnish(folder):
    """Put into a folder what a reader has there."""
    (folder / "my_method.py").write_text(block("example:method"))
    (folder / "my_metric.py").write_text(block("example:metric"))
    few = block("example:folder").replace("zip(digits.images,", "zip(digits.images[:60],")
    assert run_command(folder, code=few, tiny=False, figures=True) == (0, "")
    for k in range(36):
        path = folder / "photos" / ("train", "train", "test")[k % 3] / ("cat", "dog", "fox")[k // 12] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(k).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(path)
    (folder / "pets.toml").write_text(block("file:pets.toml"))
    (folder / "slurm.yaml").write_text("workers: 2\nlauncher: local\n")
    few = {"protocol": "smoke", "image_size": 8}
    given = {"my-dit": Source("imagefolder", data_root=folder / "photos", model="dit", **few)}
    given["my-stable-diffusion"] = Source(concepts=folder / "pets.toml", **few)
    for name, source in given.items():
        dataset = load_dataset(source)
        dataset = replace(dataset, base=small_recipe(dataset.base))
        denoiser = untrained(dataset, untrained_codec(dataset))
        denoiser.trainee()
        denoiser.finish()
        write_checkpoint(folder / name, denoiser)
    (folder / "ckpts").mkdir()
    torch.save([ConditionalModel(mult=(1, 1)).state_dict()], folder / "ckpts" / "ckpt.pth")


@pytest.fixture(scope="module")
def ran(tmp_path_factory, cache):
    """{command: (exit status, output)} of all pages, in their order, in one folder; and the folder.

    bash reads the commands, and one process stays to serve all calls of `unlearnbench`, so that torch is imported once.
    """
    folder, pipes, found = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("pipes"), {}
    furnish(folder)
    for name in ("request", "answer"):
        os.mkfifo(pipes / name)
    more = {"PIPES": str(pipes), "TMPDIR": str(pipes), "PYTHONUNBUFFERED": "1"}
    with (pipes / "log").open("w+") as log:
        server = Command(folder, pipes, code=SERVER, tiny=False, figures=True, output=log.fileno(), **more)
        try:
            for _, command in RUN:
                if "part-" in command:
                    share(folder)
                assert server.poll() is None, (pipes / "log").read_text()
                log.seek(0), log.truncate()
                text = f"{SHELL}\n{small(command)}"
                done = subprocess.run(
                    ["bash", "-uo", "pipefail", "-c", text], cwd=folder, env={**os.environ, **more}, stdout=log,
                    stderr=log, timeout=SECONDS, check=False,
                )  # fmt: skip
                found[command] = done.returncode, (pipes / "log").read_text()
        finally:
            server.send_signal(signal.SIGKILL)
            server.wait()
    return found, folder


def share(folder):
    """Make a folder of results for each of two runs out of the shared one; the first was killed within a line."""
    for path in (folder / "cluster-results").glob("*/*.jsonl"):
        for line in path.read_text().splitlines(keepends=True):
            number = json.loads(line)["cell"]["forget_class"]
            alone = folder / f"part-{number}" / path.parent.name / path.name
            alone.parent.mkdir(parents=True, exist_ok=True)
            with alone.open("a") as file:
                file.write(line + ('{"torn' if number == 0 else ""))


class TestCommands:
    @pytest.mark.parametrize(("page", "command"), RUN)
    def test_it_runs(self, ran, page, command):
        status, output = ran[0][command]
        assert status == 0, f"{page}: {output}"

    def test_what_is_said_of_them_holds(self, ran):
        found, folder = ran
        said = {command: output for command, (_, output) in found.items()}
        for check in ("unlearnbench check my_method.py", "unlearnbench check my_idea.py"):
            assert re.search(r"^(\d+) of \1 promises kept", said[check], re.MULTILINE)
        assert (folder / "my-reports" / "digits" / "figures" / "samples.png").is_file()
        assert Image.open(folder / "grid.png").size[0] > 0
        assert (folder / "my-base" / "config.json").is_file() or list((folder / "my-base").rglob("*.safetensors"))
        records = ResultStore(folder / "results").read().records
        labels = {record.cell.target.label for record in records}
        assert {"0+1", "1 after 0"} <= labels
        assert {record.status for record in records} == {"ok"}
        mine = [r for r in records if r.cell.method == "my_method"]
        assert [(r.cell.forget_class, r.counts["optimizer_steps"]) for r in mine] == [(0, 3)]
        assert "late_start" in {name for record in records for name in record.metrics}
        assert '"my_metric"' in (folder / "results" / "digits" / "safemax.jsonl").read_text()  # later lines lack it
        assert {record.cell.dataset.split("-")[0] for record in records} == {"digits", "photos", "arrays", "pets"}

    def test_the_jobs_of_a_cluster_leave_one_folder_of_records_and_folders_can_be_joined(self, ran):
        _, folder = ran
        shared, joined = (ResultStore(folder / name).read() for name in ("cluster-results", "all-results"))
        assert sorted(record.cell.forget_class for record in shared.records) == [0, 1]
        assert {r.cell.id: r for r in joined.records} == {r.cell.id: r for r in shared.records}
        assert [re.sub(".*/", "", problem) for problem in joined.problems] == [
            "original.jsonl, line 2 is skipped: is torn or not JSON"
        ]
        assert not shared.problems


def options(command):
    """Return the options of a command of the suite."""
    return {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}


SUITE = typer.main.get_command(cli.app).commands


def prose(text):
    """Return a page without its blocks of code."""
    return re.sub(r"```\w*\n.*?```", "", text, flags=re.DOTALL)


@pytest.mark.parametrize("page", PAGES)
class TestWords:
    """Commands that the text names in passing."""

    def test_every_command_and_option_exists(self, page):
        written = prose(GENERATED.sub("", PAGES[page]))  # cards name options of the papers' programs
        spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", written)]
        for words in [shlex.split(span) for span in spans if span.startswith("unlearnbench ")]:
            assert words[1] in SUITE, words
            assert {word for word in words[2:] if word.startswith("--")} <= options(SUITE[words[1]]), words
        if page.startswith("tests/"):
            return  # scripts there have options of their own
        loose = {word for span in spans if span.startswith("--") for word in span.split() if word.startswith("--")}
        known = {option for command in SUITE.values() for option in options(command)}
        assert loose - known <= {"--time"}  # Slurm's

    def test_every_script_exists(self, page):
        for name in re.findall(r"python3? -m (tests(?:\.[a-z_]+)+)", PAGES[page]):
            assert importlib.util.find_spec(name), name


class TestExamples:
    def test_a_method_fits_a_screen(self):
        code = [line for line in block("example:method").split('"""')[2].splitlines() if line.strip()]
        assert len(code) <= 20

    def test_a_target_of_ones_own_is_a_sound_method(self, tmp_path, monkeypatch):
        ascent = "lose = ctx.eps_loss(*ctx.forget.draw(batch))"
        text = block("example:method").replace(ascent, "lose = own_loss(ctx, batch)")
        text = text.replace("keep - 0.05 * lose", "keep + lose")
        assert "own_loss" in text and "keep + lose" in text
        imports, _, function = block("example:target").partition("def own_loss")
        text = text.replace("import torch\n", imports, 1).replace("@method", f"def own_loss{function}\n\n@method")
        (tmp_path / "mine.py").write_text(text)
        monkeypatch.setattr(trial, "STEPS", 4)
        promises = conformance.check(str(tmp_path / "mine.py"))["my_method"]
        assert [str(promise) for promise in promises if promise.kept is not True] == []

    def test_a_guide_of_ones_own_is_a_sound_method(self, tmp_path, monkeypatch):
        card = '"""Mine.\n\nNobody.\n\n    eps = 0\n\nDeviations:\n    - None.\n"""\n\n'
        (tmp_path / "mine.py").write_text(card + block("example:guide"))
        promises = conformance.check(str(tmp_path / "mine.py"))["without_class"]
        assert [str(promise) for promise in promises if promise.kept is not True] == []
        assert "it changed predictions" in promises[1].words

    def test_every_python_block_is_run_somewhere(self):
        found = [m for text in PAGES.values() for m in re.findall(r"(?:<!-- example:(\S+) -->\n)?```python", text)]
        api = {"api-run", "api-one", "api-load", "api-draw"}
        assert {*found} == {"method", "target", "guide", "metric", "folder", "dataset", *api}
        assert len(found) == 10

    def test_a_data_set_of_ones_own(self, tmp_path, monkeypatch):
        """The file of the guide, where it would lie, reads what torchvision reads."""
        path = tmp_path / "fashion.py"
        path.write_text(block("example:dataset"))
        spec = importlib.util.spec_from_file_location("unlearnbench.datasets.fashion", path)
        monkeypatch.setitem(sys.modules, spec.name, module := importlib.util.module_from_spec(spec))
        spec.loader.exec_module(module)
        monkeypatch.setattr(datasets, "DATASETS", (*datasets.DATASETS, "fashion"))
        assert title_of("fashion") == "Fashion-MNIST (32x32)"
        assert {"fast", "paper", "smoke"} <= {*protocol_names("fashion")}
        raw = tmp_path / "data" / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for part, n in (("train", 12), ("t10k", 4)):
            for what, shape in (("images-idx3", (n, 28, 28)), ("labels-idx1", (n,))):
                head = [0, 0, 8, len(shape), *np.array(shape, dtype=">i4").tobytes()]
                (raw / f"{part}-{what}-ubyte").write_bytes(bytes(head) + np.full(shape, 7, np.uint8).tobytes())
        chosen = load_dataset(Source("fashion", data_root=tmp_path / "data"))
        images = chosen.load(ArtifactStore(tmp_path / "cache"), lambda what, done, total: None)
        assert (images.train.images.shape, images.test.images.shape) == ((12, 3, 32, 32), (4, 3, 32, 32))
        assert images.train.images[0, :, 1:3, 16].tolist() == [[0, 7]] * 3
        assert images.train.labels.dtype == np.int64
        assert current_dataset(chosen.to_json(), "fast").digest == chosen.digest


def slug(heading):
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def targets(page):
    """Return (path from the root, anchor) of every link and picture of a page that leads into the repository."""
    found = re.findall(r"\]\((?!https?:)([^)]+)\)", prose(PAGES[page]))
    for target in (" ".join(text.split()) for text in found):
        name, _, anchor = target.partition("#")
        path = os.path.normpath(PurePosixPath(page).parent / name) if name else page
        yield path, anchor


class TestLinks:
    @pytest.mark.parametrize("page", PAGES)
    def test_every_picture_and_link_leads_somewhere(self, page):
        for name, anchor in targets(page):
            assert (ROOT / name).exists(), name
            if anchor:
                text = prose((ROOT / name).read_text(encoding="utf-8"))
                assert anchor in map(slug, re.findall(r"^#+ (.+)$", text, re.MULTILINE)), f"{name}#{anchor}"

    def test_every_page_is_found_from_the_top(self):
        found, ahead = set(), ["README.md"]
        while ahead:
            found.add(page := ahead.pop())
            ahead += [name for name, _ in targets(page) if name in PAGES and name not in found]
        assert found == PAGES.keys()

    def test_the_top_readme_takes_two_screens(self):
        assert len((ROOT / "README.md").read_bytes()) <= LARGEST


class TestGenerated:
    """Tables and cards that `python -m tests.readme` writes, and numbers that the text repeats."""

    @pytest.mark.parametrize("page", PAGES)
    def test_they_are_as_records_and_files_have_them(self, page):
        assert rendered(PAGES[page]) == PAGES[page], "python -m tests.readme writes them anew"

    def test_each_stands_in_one_place(self):
        found = [marker for text in PAGES.values() for marker, _ in GENERATED.findall(text)]
        assert sorted(found) == sorted(generated())

    def test_what_is_said_of_choosing_a_method_is_in_the_tables(self):
        rows = re.findall(
            r"^\| .+? \| \[(.+?)\]\((\S+)\.md\)(.*?) \| (.+) \|$", PAGES["methods/README.md"], re.MULTILINE
        )
        assert len(rows) == 7
        for title, table, _, claims in rows:
            text = to_csv(digits()[1][Path(table).name])
            lines = {line["Method"]: line for line in csv.DictReader(io.StringIO(text))}
            column = next(name for name in next(iter(lines.values())) if name.startswith((title, f"After {title}")))
            found = [lines[name][column] for name in lines if name not in ("Original", "Retrain")]
            numbers = sorted(map(float, filter(None, found)), reverse="↓" not in column)
            listed = re.findall(r"([A-Z][\w+ -]*?) (\d[\d.]*)", claims)
            for k, (name, number) in enumerate(listed):
                assert f"{float(lines[name][column]):.{len(number.partition('.')[2])}f}" == number, (title, name)
                place = -1 if f"last {name}" in claims else k
                assert float(number) == pytest.approx(numbers[place], abs=0.051), (title, name)

    def test_what_is_shown_of_the_controls_is_in_their_table(self):
        shown = re.search(r"```text\n(\| Metric .*?)```", PAGES["metrics/README.md"], re.DOTALL)[1].splitlines()
        table = (ROOT / "reports" / "digits" / "tables" / "validation.md").read_text(encoding="utf-8").splitlines()
        assert len(shown) == 4
        assert set(shown) <= set(table)

    def test_what_is_counted_of_the_papers_experiment(self):
        paper = load_dataset(Source("cifar10", protocol="paper"))
        rules, recipe = paper.protocol, paper.base
        work = flops_per_image(UNet.untrained(paper))
        base = recipe.steps * recipe.batch * (work["forward"] + work["backward"])
        images = rules.forget_samples + 9 * rules.retain_samples
        cell = 2 * images * rules.steps * work["forward"]
        guide = " ".join(PAGES["results/README.md"].partition("**What it costs**")[2].split())
        assert f"is {work['forward'] / 1e9:.1f} GFLOP" in guide
        assert f"{base:.1e} operations".replace("e+", "e") in guide
        assert f"{images:,} images" in guide
        assert f"{cell:.1e}.".replace("e+", "e") in guide
        day = 50e12 * 86400
        assert f"that is a day for the base and {24 * cell / day:.0f} hours a cell" in guide
        assert 0.7 < base / day < 1.3
        assert f"{(base + 30 * cell) / day:.0f} days for three methods" in guide
        fast = load_dataset(Source("cifar10", protocol="fast")).protocol
        assert 0.7 < 2 * 5000 * fast.steps * work["forward"] / 50e12 / 60 < 1.3

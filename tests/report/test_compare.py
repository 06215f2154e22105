import csv
import json
import math
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest

from tests import ROOT
from tests.conftest import fake_record, reading, signed
from tests.report.test_report import check_latex
from unlearnbench.errors import UsageError
from unlearnbench.report.compare import compare
from unlearnbench.report.data.board import boards
from unlearnbench.report.data.published import footnotes, load_source
from unlearnbench.report.tables.published import (
    VERDICTS,
    Side,
    claims_table,
    compare_rows,
    overview_table,
    reference_table,
    share_interval,
)
from unlearnbench.run.stale import stale_ids
from unlearnbench.store.records import ResultStore

SOURCE = "spartalis2025"
PUBLISHED = ROOT / "results" / "published"
REFERENCE = "the first 500 training images of each retained class"
INCEPTION = "2048-d Inception features"


def record(
    method="safemax", forget_class=0, *, fid=13.5, ua=100.0, entropy=1.1, rte=60.0, prior=0.0, peak=8e9, n=500,
    protocol="paper", kind="cifar10", extractor=INCEPTION, reference=REFERENCE, changed=None, dataset="cifar10",
    probe="torch_reserved", choices=None, **more,
):  # fmt: skip
    """Return a record that can be held against the paper in everything but what is changed; rte in seconds."""
    made = fake_record(method, forget_class, dataset=dataset, **more)
    entry = made.metrics.get("fake_fid")
    values = {"fid": fid, "ua": ua, "judge_entropy": entropy}
    metrics = (
        {name: {**entry, "title": name, "value": value, "n": n} for name, value in values.items()} if entry else {}
    )
    seconds = {"prior": prior, "forget": rte, "sample": 1.0, "judge": 1.0}
    cost = {phase: {"seconds": s, "memory_bytes": {probe: int(peak)}, "reused": False} for phase, s in seconds.items()}
    return replace(
        made,
        cell=replace(made.cell, protocol=protocol),
        metrics=metrics,
        cost=cost if made.cost else {},
        method={**made.method, **({} if changed is None else {"changed": changed})},
        protocol={**made.protocol, "name": protocol, "reference": reference},
        dataset={
            **{key: value for key, value in made.dataset.items() if key != "kind"},
            "title": "CIFAR-10", "extractor": extractor, "choices": choices or {},
            **({} if kind is None else {"kind": kind}),
        },
    )  # fmt: skip


def side(*records, sources=None):
    return Side(
        load_source(SOURCE), boards(records, stale_ids(records, sources) if sources else frozenset()).popitem()[1]
    )


def one(metric, *records, forget_class="0", method="safemax", **how):
    """Return the comparison of one method, class and metric."""
    rows = compare_rows(side(*records, **how)).set_index(["method", "metric", "forget_class"])
    found = rows.loc[(method, metric, forget_class)]
    return SimpleNamespace(**{**found, "reasons": tuple(found.reasons), "notes": tuple(found.notes)})


def store(folder, records):
    for each in records:
        ResultStore(folder).append(each)
    return folder


def cells(table, row):
    return dict(zip(table.headers, table.texts()[table.rows.index(row)], strict=True))


class TestVerdicts:
    def test_a_hand_computed_difference(self):
        found = one("fid", record(fid=13.5))  # 13.11 is printed
        assert (found.verdict, found.reasons) == ("agrees", ())
        assert found.difference.number == pytest.approx(0.39)

    @pytest.mark.parametrize(
        ("metric", "values", "verdict"),
        [
            ("fid", {"fid": 14.10}, "agrees"), ("fid", {"fid": 14.12}, "differs"), ("fid", {"fid": 12.0}, "differs"),
            ("entropy", {"entropy": 1.04}, "agrees"), ("entropy", {"entropy": 1.24}, "differs"),
            ("ua", {"ua": 100.0}, "agrees"), ("ua", {"ua": 99.6}, "agrees"), ("ua", {"ua": 98.0}, "differs"),
        ],
    )  # fmt: skip
    def test_each_metric_has_its_tolerance(self, metric, values, verdict):
        assert one(metric, record(**values)).verdict == verdict

    def test_ua_at_zero(self):  # 0.00 is printed for class 2
        assert one("ua", record(forget_class=2, ua=0.0), forget_class="2").verdict == "agrees"
        assert one("ua", record(forget_class=2, ua=2.0), forget_class="2").verdict == "differs"

    def test_samples_of_all_seeds_count(self):
        few = [record("sa", ua=96.8)]  # 98.60 is printed
        many = [record("sa", ua=96.8, seed=s) for s in range(4)]
        assert [one("ua", *records, method="sa").verdict for records in (few, many)] == ["agrees", "differs"]

    @pytest.mark.parametrize("values", [{"ua": -0.4}, {"ua": 100.2}, {"n": 0}])
    def test_a_number_that_is_no_share_is_not_judged_as_one(self, values):
        found = one("ua", record(**values))
        assert (found.verdict, found.reasons) == ("not comparable", ("not a share of samples",))

    @pytest.mark.parametrize("metric", ["rte", "gpu_memory"])
    def test_absolute_costs_are_never_judged(self, metric):
        found = one(metric, record(rte=5.82 * 60, peak=9.5e9))
        assert (found.verdict, found.reasons) == ("not comparable", ("device",))
        assert found.difference.number == pytest.approx(0.0)

    @pytest.mark.parametrize("seconds", [60.0, 600.0], ids=["board in s", "board in min"])
    def test_run_times_are_in_the_papers_unit(self, seconds):
        assert one("rte", record(rte=seconds)).measured.number == pytest.approx(seconds / 60)


class TestReasons:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"kind": "imagefolder"}, "dataset"), ({"dataset": "cifar10-jpeg"}, "dataset"),
            ({"dataset": "digits", "kind": None}, "dataset"), ({"protocol": "fast"}, "protocol"),
            ({"protocol": "paper-b4"}, "protocol"), ({"changed": {"lr": 0.1}}, "settings"),
            ({"choices": {"base_steps": 100}}, "base model"), ({"choices": {"base_minutes": 5.0}}, "base model"),
        ],
    )  # fmt: skip
    def test_what_makes_every_metric_incomparable(self, changes, reason):
        for metric in ("fid", "entropy", "ua"):
            found = one(metric, record(**changes))
            assert (found.verdict, found.reasons) == ("not comparable", (reason,))
            assert found.measured.number is not None

    def test_other_features_concern_fid_alone(self):
        assert one("fid", record(extractor="64-d features of a CNN")).reasons == ("features",)
        assert one("ua", record(extractor="64-d features of a CNN")).verdict == "agrees"

    def test_another_judge_concerns_what_judges_see(self):
        found = {metric: one(metric, record(choices={"judge": "small"})) for metric in ("fid", "ua", "entropy")}
        assert {metric: row.reasons for metric, row in found.items()} == {
            "fid": (), "ua": ("judge",), "entropy": ("judge",),
        }  # fmt: skip

    def test_all_that_apply(self):
        found = one("fid", record(dataset="digits", kind=None, protocol="x", extractor="a", changed={"k": 1}))
        assert found.reasons == ("dataset", "protocol", "features", "settings")

    def test_a_missing_kind_is_the_datasets_name(self):
        assert one("fid", record(kind=None)).verdict == "agrees"

    def test_host_memory_is_no_gpu_memory(self):
        assert one("gpu_memory", record(probe="rss_peak")).reasons == ("memory probe", "device")

    def test_the_page_spells_them_out(self, tmp_path):
        records = [record(dataset="cifar10-jpeg", kind="imagefolder", changed={"lr": [0.1, 0.5], "alpha": [1, 2]})]
        text = compare(SOURCE, reading(store(tmp_path / "r", records)), tmp_path / "out").pages[0].read_text()
        assert "- dataset: cifar10-jpeg (loaded as imagefolder) here, cifar10 in the paper." in text
        assert "- settings: SAFEMax with alpha=2, lr=0.5." in text
        assert "- device: the paper names no device." in text


class TestWhichRecords:
    def test_no_record(self):
        for found in (one("fid", record(), method="sa"), one("fid", record(), forget_class="1")):
            assert (found.verdict, found.reasons, found.measured.number) == ("not measured", ("no record",), None)
            assert found.difference.number is None

    @pytest.mark.parametrize("status", ["failed", "oom", "timeout"])
    def test_a_failure_is_no_measurement(self, status):
        found = one("fid", record(status=status))
        assert (found.verdict, found.reasons) == ("not measured", (status,))

    def test_a_stale_record_is_no_measurement(self):
        found = one("fid", record(), sources={"method:safemax": "another"})
        assert (found.verdict, found.reasons) == ("not measured", ("stale",))

    def test_a_metric_without_value_is_no_measurement(self):
        assert one("fid", record(fid=None)).verdict == "not measured"
        odd = record()
        del odd.metrics["judge_entropy"]
        assert one("entropy", odd).verdict == "not measured"

    def test_seeds_are_averaged_and_gaps_show(self):
        both = one("fid", record(fid=13.0), record(fid=14.0, seed=1))
        assert (both.measured.number, both.measured.ok) == (13.5, 2)
        gap = one("fid", record(fid=13.0), record(fid=14.0, seed=1, status="oom"))
        assert (gap.measured.number, gap.measured.gap) == (13.0, " (1/2)")

    def test_of_a_sweep_the_row_without_overrides_counts(self):
        swept = [record(fid=99.0, settings={"decay": d}, overrides={"decay": d}, started="2027") for d in (0, 10)]
        assert one("fid", record(fid=13.2, settings={"decay": 1}), *swept).measured.number == 13.2
        alone = one("fid", *swept)
        assert (alone.verdict, alone.reasons) == ("not measured", ("only changed settings",))

    def test_an_override_that_restates_the_default_changes_nothing(self):
        same = record(fid=13.2, settings={"decay": 1}, overrides={"decay": 1}, changed={})
        assert one("fid", same).verdict == "agrees"

    def test_the_newest_default_counts(self):
        old = record(fid=20.0, settings={"lr": 1}, started="2026-01-01")
        new = record(fid=13.2, settings={"lr": 2}, started="2026-02-01")
        assert [one("fid", *order).measured.number for order in ((old, new), (new, old))] == [13.2, 13.2]


class TestInterval:
    def test_against_newcombes_own_table(self):  # 1998, method 10: 56/70 - 48/80 and 10/10 - 0/20
        assert share_interval(56 / 70, 70, 48 / 80, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
        assert share_interval(1, 10, 0, 20) == pytest.approx((0.6791, 1.0), abs=5e-5)

    @pytest.mark.parametrize("p", [0.0, 1.0])
    def test_it_does_not_collapse_at_the_ends(self, p):
        low, high = share_interval(p, 100, p, 500)
        assert -0.05 < low < 0 < high < 0.05


class TestClaims:
    def both(self, **changes):
        return [
            record("sa", 0, rte=100.0, prior=500.0, peak=12e9, **changes),
            record("sa", 1, rte=140.0, prior=700.0, peak=12e9, **changes),
            record("sa", 2, rte=900.0, **changes),  # the other has no class 2
            record("safemax", 0, rte=3.0, peak=6.6e9, **changes),
            record("safemax", 1, rte=5.0, peak=6.6e9, **changes),
        ]

    def test_a_ratio_by_hand(self):
        table = claims_table(side(*self.both()))
        speed = cells(table, "RTE, SA / SAFEMax")
        assert speed["Measured"] == "30.0x"  # (100 + 140) / (3 + 5)
        assert (speed["Published"], speed["From the printed rows"]) == ("30x", "29.9x")
        assert (speed["Cells"], speed["Verdict"], speed["Reasons"]) == ("4", "agrees", "")
        assert cells(table, "RTE+prior, SA / SAFEMax")["Measured"] == "180.0x"  # (600 + 840) / 8
        assert cells(table, "RTE+prior, SA / SAFEMax")["From the printed rows"] == "no prior times are printed"
        memory = cells(table, "Memory, 1 - SAFEMax / SA")
        assert (memory["Measured"], memory["From the printed rows"], memory["Verdict"]) == (
            "45.0 %",
            "45.1 %",
            "agrees",
        )

    def test_the_printed_rows_alone(self):
        table = claims_table(side(record()))
        assert [row[2] for row in table.texts()] == ["29.9x", "no prior times are printed", "2.0x", "45.1 %", "59.1 %"]
        assert {row[5] for row in table.texts()} == {"not measured"}
        assert {row[3] for row in table.texts()} == {"-"}

    def test_what_depends_on_the_implementation_is_said_of_every_claim(self, tmp_path):
        table = claims_table(side(*self.both()))
        for name in ("RTE, SalUn / SAFEMax", "Memory, 1 - SAFEMax / SA", "Memory, 1 - SAFEMax / SalUn"):
            assert cells(table, name)["Depends on"] == "implementation"
        assert cells(table, "RTE, SA / SAFEMax")["Depends on"] == "method and implementation"
        compare(SOURCE, reading(store(tmp_path / "r", self.both())), tmp_path / "out")
        page = next((tmp_path / "out").glob("*/*.md")).read_text()
        assert "- Memory, 1 - SAFEMax / SA (implementation): the printed 9.5 : 17.3 : 23.2 GB" in page

    @pytest.mark.parametrize(("rte", "verdict"), [(2.1, "agrees"), (1.9, "differs"), (4.4, "agrees"), (4.6, "differs")])
    def test_the_factor_is_one_and_a_half_either_way(self, rte, verdict):
        records = [record("salun", rte=rte * 10 / 1.5), record(rte=10.0)]
        assert cells(claims_table(side(*records)), "RTE, SalUn / SAFEMax")["Verdict"] == verdict

    def test_what_cannot_be_compared_is_still_shown(self):
        table = claims_table(side(*self.both(dataset="digits", kind=None, protocol="smoke", probe="rss_peak")))
        speed = cells(table, "RTE, SA / SAFEMax")
        assert (speed["Measured"], speed["Verdict"], speed["Reasons"]) == (
            "30.0x",
            "not comparable",
            "dataset, protocol",
        )
        assert cells(table, "Memory, 1 - SAFEMax / SA")["Reasons"] == "dataset, protocol, memory probe"

    def test_settings_of_either_method_count(self):
        records = [*self.both()[:2], record("safemax", 0, changed={"steps": 3}), record("safemax", 1)]
        assert cells(claims_table(side(*records)), "RTE, SA / SAFEMax")["Reasons"] == "settings"

    def test_no_time_at_all_is_no_ratio(self):
        records = [record("sa", rte=5.0), record(rte=0.0)]
        assert cells(claims_table(side(*records)), "RTE, SA / SAFEMax")["Verdict"] == "not measured"

    def test_notes_stand_at_the_claims_whose_means_they_concern(self):
        table = claims_table(side(record()))
        notes = footnotes(load_source(SOURCE))
        salun = next(k for k, note in enumerate(notes, start=1) if "11.81" in note.text)
        assert f"[{salun}]" in cells(table, "RTE, SalUn / SAFEMax")["Notes"]
        assert f"[{salun}]" not in cells(table, "RTE, SA / SAFEMax")["Notes"]


class TestDisturbedCells:
    records = (
        record("sa", rte=60.0, disturbances=[{"phase": "forget", "what": "another process used the device"}]),
        record("safemax", rte=20.0),
    )

    def test_ratios_and_means_that_rest_on_them_are_marked(self):
        claims = claims_table(side(*self.records))
        assert cells(claims, "RTE, SA / SAFEMax")["Measured"] == "3.0x†"
        overview = overview_table(side(*self.records), compare_rows(side(*self.records)))
        measured = {row: texts[2] for row, texts in zip(overview.rows, overview.texts(), strict=True)}
        assert [measured[f"RTE (minutes), {title}"] for title in ("SA", "SAFEMax")] == ["1.00† (1/10)", "0.33 (1/10)"]
        assert not [row for row, text in measured.items() if "†" in text and row.startswith(("FID", "UA"))]

    def test_every_place_of_a_page_says_what_the_mark_means(self, tmp_path):
        page = compare(SOURCE, reading(store(tmp_path / "r", self.records)), tmp_path / "out").pages[0]
        text = page.read_text()
        assert re.search(r"\| SA 0 +\| +\d+\.\d+ \| +1\.00† \|", text)
        assert text.count("† rests on cells that were measured while something else used the machine") == 4
        check_latex(page.with_suffix(".tex").read_text())


class TestFootnotes:
    def test_they_are_the_known_contradictions(self):
        texts = {note.text: note.about for note in footnotes(load_source(SOURCE))}
        found = {re.sub(r"^(\w+,? [\w ]+): .*?([\d.]+); .*?([\d.]+)\.$", r"\1 \2 \3", text) for text in texts}
        assert found >= {"SAFEMax FID 0.32 1.48", "SalUn RTE 11.81 11.88", "SAFEMax RTE 5.83 5.82"}
        counted = next(text for text in texts if "9 of 10" in text)
        assert "class 2 has 0.00" in counted
        assert texts[counted] == {("safemax", "ua", "2")}
        repeated = next(text for text in texts if "decay=1" in text)
        assert texts[repeated] == {("safemax", "fid", "0"), ("safemax", "ua", "0")}
        assert len(texts) == 5

    def test_a_printed_number_that_follows_has_none(self):
        source = load_source(SOURCE)
        mended = tuple(
            replace(row, text="1.48") if (row.method, row.metric, row.text) == ("safemax", "fid", "0.32") else row
            for row in source.rows
        )
        assert len(footnotes(replace(source, rows=mended))) == len(footnotes(source)) - 1

    def test_a_repeat_is_one_only_if_every_number_is_the_same(self):
        source = load_source(SOURCE)
        other = tuple(replace(row, text="1.00") if row.setting == "decay=1" else row for row in source.rows)
        assert not any("decay=1" in note.text for note in footnotes(replace(source, rows=other)))

    def test_they_stand_at_their_rows_and_below(self, tmp_path):
        found = one("ua", record(forget_class=2), forget_class="2")
        [mark] = found.notes
        assert one("ua", record(), forget_class="3").notes == ()
        text = compare(SOURCE, reading(store(tmp_path / "r", [record()])), tmp_path / "out").pages[0].read_text()
        assert re.search(rf"\| SAFEMax 2 +\|.*\[{mark}\] \|", text)
        assert f"- [{mark}] SAFEMax UA: 100 % in 9 of 10 classes" in text
        assert re.search(r"\| FID, SAFEMax +\| +16.74 ± 0.32 \| +16.74 ± 1.48 \|", text)


class TestReferenceSets:
    def pair(self, classes=range(3)):
        right = [record(forget_class=c, fid=10.0 + c, protocol="smoke") for c in classes]
        b4 = [record(forget_class=c, fid=20.0 if c else 5.0, protocol="smoke-b4") for c in classes]
        made = boards([*right, *b4])
        source = load_source(SOURCE)
        return Side(source, made["cifar10"]), Side(source, made["cifar10-b4"])

    def test_by_hand(self):
        table = reference_table(*self.pair())
        published = load_source(SOURCE).by_class("safemax", "fid")
        row = table.values[table.rows.index("SAFEMax 0")]
        others = statistics.fmean(number for c, number in published.items() if c)
        assert [value.number for value in row] == pytest.approx([13.11, 10.0, 5.0, 13.11 - others, -1.5, -15.0])
        assert table.texts()[table.rows.index("SAFEMax 0")][4] == "-1.50 (2/9)"  # two of the nine other classes
        assert table.texts()[table.rows.index("SAFEMax rank of class 0")][:3] == ["1 of 10", "1 of 3", "1 of 3"]
        assert table.headers[:3] == ["Published", "smoke", "smoke-b4"]

    def test_missing_methods_and_classes_are_dashes(self):
        table = reference_table(*self.pair(classes=(1, 2)))
        assert table.texts()[table.rows.index("SAFEMax rank of class 0")][:3] == ["1 of 10", "-", "-"]
        assert table.texts()[table.rows.index("SA 4")][1:3] == ["-", "-"]
        assert table.texts()[table.rows.index("SAFEMax 0")][4] == "-"

    def test_the_reference_row_is_there_without_published_numbers(self):
        records = [
            record("original", c, role="reference", fid=number, protocol=protocol)
            for protocol, numbers in (("smoke", (7.0, 8.0)), ("smoke-b4", (6.0, 9.5)))
            for c, number in enumerate(numbers)
        ]
        made = boards([*records, record(protocol="smoke")])
        table = reference_table(*[Side(load_source(SOURCE), made[name]) for name in ("cifar10", "cifar10-b4")])
        assert [value.number for value in table.values[table.rows.index("Original 1")][:3]] == [None, 8.0, 9.5]
        assert table.texts()[table.rows.index("Original rank of class 0")][:3] == ["-", "1 of 2", "1 of 2"]

    def test_the_lowest_is_first(self):
        right, b4 = self.pair()
        table = reference_table(b4, right)  # 20, 20 and 5 against 10, 11 and 12
        assert table.values[table.rows.index("SAFEMax 0")][1].number == 5.0
        high = [record(forget_class=c, fid=50.0 - c, protocol="smoke") for c in range(3)]
        table = reference_table(side(*high), b4)
        assert table.texts()[table.rows.index("SAFEMax rank of class 0")][1] == "3 of 3"

    def test_only_the_protocol_with_a_twin_has_the_table(self, tmp_path):
        records = [record(forget_class=c, protocol=p) for c in (0, 1) for p in ("smoke", "smoke-b4", "fast")]
        done = compare(SOURCE, reading(store(tmp_path / "r", records)), tmp_path / "out")
        found = {page.parent.name: "FID by class and reference set" in page.read_text() for page in done.pages}
        assert found == {"cifar10-smoke": True, "cifar10-smoke-b4": False, "cifar10-fast": False}


class TestFiles:
    def records(self):
        return [
            record(m, c, fid=13.0 + c, rte=10.0 * (k + 1), seed=s, started=f"2026-01-0{1 + c}")
            for k, m in enumerate(("sa", "salun", "safemax"))
            for c in range(3)
            for s in (0, 1)
        ]

    def test_the_csv_equals_what_the_records_say(self, tmp_path):
        records = self.records()
        page = compare(SOURCE, reading(store(tmp_path / "r", records)), tmp_path / "out").pages[0]
        with page.with_suffix(".csv").open(newline="") as file:
            lines = list(csv.DictReader(file))
        with (PUBLISHED / f"{SOURCE}.csv").open(newline="") as file:
            printed = {
                (row["method"], row["forget_class"], row["metric"]): row["value"]
                for row in csv.DictReader(file)
                if row["setting"] == "main" and row["forget_class"].isdigit()
            }
        assert {(r["method"], r["forget_class"], r["metric"]): r["published"] for r in lines} == printed
        assert len(lines) == len(printed) == 150
        assert {line["verdict"] for line in lines} <= set(VERDICTS)
        for line in lines:
            ours = [
                r for r in records
                if (r.cell.method, str(r.cell.forget_class)) == (line["method"], line["forget_class"])
            ]  # fmt: skip
            if not ours:
                assert (line["measured"], line["difference"], line["verdict"]) == ("", "", "not measured")
                continue
            numbers = {
                "fid": [r.metrics["fid"]["value"] for r in ours], "ua": [r.metrics["ua"]["value"] for r in ours],
                "entropy": [r.metrics["judge_entropy"]["value"] for r in ours],
                "rte": [r.cost["forget"]["seconds"] / 60 for r in ours], "gpu_memory": [8.0 for _ in ours],
            }[line["metric"]]  # fmt: skip
            assert float(line["measured"]) == pytest.approx(statistics.fmean(numbers))
            assert float(line["difference"]) == pytest.approx(statistics.fmean(numbers) - float(line["published"]))
            assert line["seeds"] == "2"

    def test_same_records_same_bytes_in_any_order(self, tmp_path):
        for name, order in (("a", self.records()), ("b", self.records()[::-1])):
            compare(SOURCE, reading(store(tmp_path / name, order)), tmp_path / f"out-{name}")
        files = sorted(path.relative_to(tmp_path / "out-a") for path in (tmp_path / "out-a").glob("*/*.*"))
        assert [path.suffix for path in files] == [".csv", ".md", ".tex"]
        for path in files:
            assert (tmp_path / "out-a" / path).read_bytes() == (tmp_path / "out-b" / path).read_bytes(), path

    def test_the_latex_is_sound(self, tmp_path):
        records = [record(forget_class=c, protocol=p) for c in (0, 1) for p in ("smoke", "smoke-b4")]
        for page in compare(SOURCE, reading(store(tmp_path / "r", records)), tmp_path / "out").pages:
            tables = page.with_suffix(".tex").read_text().split("\\begin{table")[1:]
            assert len(tables) == (8 if page.parent.name == "cifar10" else 7)
            for text in tables:
                check_latex("\\begin{table" + text)

    def test_every_table_says_where_it_comes_from(self, tmp_path):
        digest = side(record()).board.digest
        text = compare(SOURCE, reading(store(tmp_path / "r", [record()])), tmp_path / "out").pages[0].read_text()
        for words in ("CIFAR-10, protocol paper;", f"records {digest}"):
            assert text.count(words) == 7

    def test_the_terminal_fits_80_columns(self, tmp_path):
        done = compare(SOURCE, reading(store(tmp_path / "r", self.records())), tmp_path / "out")
        assert max(len(line) for line in done.terminal[0].splitlines()) <= 80
        assert re.search(r"^FID, SAFEMax +16.74 ± 1.48 +14.00 ± 1.00 \(6/20\) +1/2/0/7", done.terminal[0], re.MULTILINE)

    def test_it_needs_no_torch(self, tmp_path):
        store(tmp_path / "r", [record()])
        code = (
            "import sys; from pathlib import Path; from unlearnbench.report.compare import compare; "
            "from unlearnbench.store.records import ResultStore; "
            f"compare({SOURCE!r}, ResultStore(Path(r'{tmp_path / 'r'}')).read(), Path(r'{tmp_path / 'out'}')); "
            "sys.exit('torch' in sys.modules)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "out" / "cifar10" / f"compare-{SOURCE}.md").exists()


class TestWhatCanGoWrong:
    @pytest.mark.parametrize(("name", "hint"), [("spartalis", " (did you mean spartalis2025?)"), ("../x", "")])
    def test_an_unknown_source(self, tmp_path, name, hint):
        with pytest.raises(UsageError) as error:
            compare(name, reading(tmp_path), tmp_path / "out")
        assert str(error.value) == f"there is no published source {name!r}{hint}: choose from spartalis2025"
        assert not (tmp_path / "out").exists()

    def test_no_record_of_a_published_method(self, tmp_path):
        with pytest.raises(UsageError, match=r"no record of sa, salun, safemax in .* to compare with"):
            compare(SOURCE, reading(store(tmp_path / "r", [fake_record()])), tmp_path / "out")
        with pytest.raises(UsageError, match="run 'unlearnbench run --methods sa,salun,safemax' first"):
            compare(SOURCE, reading(tmp_path / "none"), tmp_path / "out")

    def test_boards_without_published_methods_get_no_page(self, tmp_path):
        records = [record(), fake_record(dataset="digits")]
        done = compare(SOURCE, reading(store(tmp_path / "r", records)), tmp_path / "out")
        assert [page.parent.name for page in done.pages] == ["cifar10"]

    def test_a_record_that_cannot_be_shown_is_left_out_with_a_note(self, tmp_path):
        folder = store(tmp_path / "r", [record(), record(forget_class=1)])
        path = next(folder.glob("*/*.jsonl"))
        first, second = path.read_text().splitlines()
        path.write_text(f"{first}\n{signed({**json.loads(second), 'method': {'changed': 7}})}\n")
        done = compare(SOURCE, reading(folder), tmp_path / "out")
        assert "line 2 is skipped: method.changed is 7: it must be an object" in done.notes[0]

    def test_a_folder_that_cannot_be_written(self, tmp_path):
        (tmp_path / "out").write_text("in the way")
        with pytest.raises(UsageError, match="give another folder with --out"):
            compare(SOURCE, reading(store(tmp_path / "r", [record()])), tmp_path / "out")


class TestPublishedData:
    def test_every_word_of_the_json_has_a_meaning(self):
        source = load_source(SOURCE)
        assert source.facts == json.loads((PUBLISHED / f"{SOURCE}.json").read_text())
        assert {row.metric for row in source.rows} <= set(source.facts["metrics"])
        assert {row.method for row in source.rows} == set(source.methods)
        for rows in source.metrics.values():
            facts = source.facts["metrics"][rows[0].metric]
            assert ("tolerance" in facts) != ("device" in facts)
        for claim in source.facts["claims"]:
            assert set(claim["depends_on"]) <= {"method", "implementation"} and claim["why"]
            for method, metric in claim.get("ratio") or claim["saving"]:
                assert method in source.methods
                assert "factor" in source.facts["metrics"][metric]

    def test_every_printed_ua_is_a_share_of_the_samples_that_the_tolerance_supposes(self):
        source = load_source(SOURCE)
        n = source.facts["metrics"]["ua"]["tolerance"]["samples"]
        for row in source.metrics["ua"]:
            assert math.isclose(row.value * n / 100, round(row.value * n / 100))

    def test_every_claim_follows_from_the_printed_rows_or_says_why_not(self):
        for row in claims_table(side(record())).texts():
            claimed, printed = (re.match(r"[\d.]+", row[k]) for k in (1, 2))
            assert printed is None or float(printed[0]) == pytest.approx(float(claimed[0]), rel=0.02)

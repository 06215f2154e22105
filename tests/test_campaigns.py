"""The campaigns, each with a count that takes a few seconds."""

from pathlib import Path
from random import Random

import pytest

from tests.campaigns import artifacts, commands, kills, records
from tests.server import Command


@pytest.mark.parametrize(("campaign", "count"), [(commands, 12), (records, 4), (artifacts, 3)])
def test_a_short_campaign_finds_no_defect(campaign, count):
    counts, defects = campaign.campaign(count, Random(1))
    assert not defects, "\n".join(defects)
    assert sum(counts.values()) >= count


@pytest.mark.usefixtures("cache")
def test_one_disturbed_run_is_made_whole(monkeypatch):
    def start(folder, *more):
        with Path(folder, "log").open("a") as log:
            return Command(folder, *run, *more, output=log.fileno())

    run = ["0" if word == "0-1" else word for word in kills.RUN]
    monkeypatch.setattr(kills, "start", start)
    monkeypatch.setattr(kills, "LATEST", 4.0)
    counts, defects = kills.campaign(1, Random(7))
    assert not defects, "\n".join(defects)
    assert counts.pop("runs made whole") == 1
    assert counts.total() >= 1  # signals

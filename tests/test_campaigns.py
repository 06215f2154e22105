"""The campaigns, each with a count that takes a few seconds."""

import sys
from random import Random

import pytest

from tests import TINY_MAIN
from tests.campaigns import artifacts, commands, kills, records


@pytest.mark.parametrize(("campaign", "count"), [(commands, 12), (records, 4), (artifacts, 3)])
def test_a_short_campaign_finds_no_defect(campaign, count):
    counts, defects = campaign.campaign(count, Random(1))
    assert not defects, "\n".join(defects)
    assert sum(counts.values()) >= count


@pytest.mark.usefixtures("cache")
def test_one_disturbed_run_is_made_whole(monkeypatch):
    monkeypatch.setattr(kills, "COMMAND", [sys.executable, "-c", TINY_MAIN, *kills.RUN])
    monkeypatch.setattr(kills, "LATEST", 8.0)
    counts, defects = kills.campaign(1, Random(1))
    assert not defects, "\n".join(defects)
    assert counts["runs made whole"] == 1

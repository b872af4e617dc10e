"""A profile to share: the same rows in each format, and nothing that tells more than the board."""

from __future__ import annotations

import csv
import io
import json

import pytest

from device_profiles import from_dict
from device_profiles.schema import BackendTime, Interval, Load, Peak
from edge_agent.profiling import formats
from tests.round_profile import round_profile


@pytest.fixture
def profile():
    made = round_profile()
    made.peaks, made.load = [Peak(1, 40.0)], Load(1, 12.0, 20.0, 15.0)
    made.kernels[0].interval = Interval(1000.0, 1100.0, 9, False)
    made.unmeasured = {"cold start": "delete /srv/ada/.cache and measure again"}
    made.backends = [
        BackendTime("native", "0.1.0", 1, 2.0),
        BackendTime("litert", "2.0", 1, None, "/srv/ada/model cannot be read"),
    ]
    return made


def test_the_formats_have_the_same_rows(profile):
    rows = list(csv.DictReader(io.StringIO(formats.as_csv(profile))))
    assert [row["kernel"] for row in rows] == [row.name for row in profile.kernels]
    assert float(rows[0]["GOPS"]) == pytest.approx(20.0)
    assert (rows[0]["% of peak"], rows[0]["tight"], rows[1]["tight"]) == ("50", "False", "")
    lines = [line for line in formats.markdown(profile).splitlines() if line.startswith("|")]
    assert len(lines) == 2 + len(rows) + 2 + len(profile.backends)
    assert from_dict(json.loads(formats.as_json(profile))) == profile


@pytest.mark.parametrize("form", formats.FORMATS)
def test_a_shared_profile_has_no_paths_and_no_time_of_day(profile, form):
    text = formats.FORMATS[form](formats.anonymous(profile))
    assert "ada" not in text
    assert "T10:00" not in text


def test_an_anonymous_profile_is_still_a_profile(profile):
    assert from_dict(json.loads(formats.as_json(formats.anonymous(profile)))).kernels == profile.kernels

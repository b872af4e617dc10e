"""The Prometheus text format: labels, escapes, numbers, histograms."""

from __future__ import annotations

from splitedge import prometheus


def test_a_family_has_one_line_a_sample():
    text = prometheus.family("a_total", "counter", "Frames.", [({"code": 'x"\\\n'}, 2), ({}, 0.5)])
    assert text == '# HELP a_total Frames.\n# TYPE a_total counter\na_total{code="x\\"\\\\\\n"} 2\na_total 0.5\n'


def test_a_family_without_samples_has_its_type():
    assert prometheus.family("a", "gauge", "A.", []) == "# HELP a A.\n# TYPE a gauge\n"


def test_the_buckets_of_a_histogram_add_up():
    lines = prometheus.histogram("t", "Seconds.", (0.5, 1.0), (2, 0, 3), 7.0).splitlines()
    assert lines[2:] == [
        't_bucket{le="0.5"} 2',
        't_bucket{le="1.0"} 2',
        't_bucket{le="+Inf"} 5',
        "t_sum 7",
        "t_count 5",
    ]

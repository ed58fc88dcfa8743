"""Intervals against published values."""

import pytest

from tasks.core.uncertainty import wilson


def test_wilson_interval_published_values() -> None:
    low, high = wilson(8, 10)  # 0.4902 .. 0.9433, e.g. in Brown, Cai and DasGupta's tables
    assert (low, high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))
    assert wilson(0, 10) == (0.0, pytest.approx(0.2775, abs=1e-4))
    assert wilson(10, 10) == (pytest.approx(0.7225, abs=1e-4), pytest.approx(1.0))
    assert wilson(0, 0) == (None, None)

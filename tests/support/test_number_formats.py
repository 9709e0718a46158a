"""Numbers are written with the digits that their errors leave them."""

import math

import pytest

from elbolab.support.number_formats import between, measured, number, percent, rate_between


@pytest.mark.parametrize(
    ("value", "error", "digits", "text"),
    [
        (-93.126, 0.234, 2, "\u221293.13 ± 0.23"),
        (-93.126, 2.34, 2, "\u221293.1 ± 2.3"),
        (-93.126, 23.4, 2, "\u221293 ± 23"),
        (-93.126, 234.4, 2, "\u221293 ± 234"),
        (-93.126, 0.0996, 2, "\u221293.13 ± 0.10"),
        # No more than are declared.
        (-93.126, 0.0001, 2, "\u221293.13 ± 0.00"),
        (0.01234, 0.00213, 4, "0.0123 ± 0.0021"),
        (0.01234, math.nan, 4, "0.0123"),
        (1.0, 0.0, 2, "1.00"),
        (math.nan, 1.0, 2, "\u2013"),
    ],
)
def test_two_digits_of_the_error_decide(value: float, error: float, digits: int, text: str):
    assert measured(value, error, digits) == text


def test_an_interval_decides_by_half_its_width():
    assert between(-3.21, 1.17) == "\u22123.2 to 1.2"
    assert between(-0.321, 0.117) == "\u22120.32 to 0.12"
    assert number(-1.02, error=2.19) == "\u22121.0"
    assert rate_between(0.95, 0.85, 1) == "95.0 % (85.0 to 100.0)"
    assert percent(0.5, 0.12) == "50 ± 12 %"


def test_nothing_has_no_sign():
    assert number(-0.001) == "0.00"

"""Numbers are compared by value, in bounded time whatever a model writes."""

import time

import pytest

from mgpo.method import mathgrade
from mgpo.method.mathgrade import same_value
from mgpo.method.rewards import is_correct


@pytest.mark.parametrize(
    ("given", "gold", "same"),
    [
        ("1/2", "0.50", True), (r"\frac{1}{2}", "0.5", True), ("1,000", "1000", True), ("7", "8", False),
        ("12 km", "12", False), ("50", "50.0", True), ("Tram 41", "Bus 41", False),
        ("12B", "12C", False), ("10:45", "10:15", False), ("2019-05-12", "2019-05-13", False), ("41, 14", "14", False),
        ("not 5", "5", False), (r"2\pi", r"2 \pi", True), (r"\text{Bus 41}", "41", False), ("Pepsi", "Pepsi 2", False), ("", "3", False), ("x" * 300 + "1", "1", False),
    ],
)  # fmt: skip
def test_values_by_hand(given, gold, same):
    assert same_value(given, gold) is same


def test_an_open_answer_is_right_by_text_or_by_value():
    assert is_correct(r"\boxed{3.0}", (), "3") and is_correct(r"\boxed{Main  Street.}", (), "main street")
    assert not is_correct(r"\boxed{4}", (), "3") and not is_correct(r"\boxed{Main Road}", (), "Main Street")


def test_what_never_ends_is_stopped_and_the_next_is_graded(monkeypatch):
    same_value("1", "2")  # the child runs
    monkeypatch.setattr(mathgrade, "SECONDS", 1.0)
    start = time.monotonic()
    assert not same_value(r"\frac{9^{9^{9^{9^{9}}}}}{1}", "3")
    assert time.monotonic() - start < 10
    assert same_value("4/2", "2")

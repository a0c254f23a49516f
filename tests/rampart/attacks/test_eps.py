from fractions import Fraction

import pytest

from rampart.attacks.eps import NormName, format_eps, parse_eps, parse_number, to_fraction


@pytest.mark.parametrize(
    ("text", "value"),
    [("8/255", 8 / 255), ("0.4", 0.4), (0.3, 0.3), (1, 1.0), ("2.5/7", 2.5 / 7), (" 16 / 255 ", 16 / 255)],
)
def test_numbers_and_fractions_are_parsed(text: float | str, value: float) -> None:
    assert parse_eps(text) == pytest.approx(value, abs=1e-15)


@pytest.mark.parametrize(
    "value", ["abc", "8/0", "8/255/1", "", "1/", float("nan"), float("inf"), "nan", None, True, "__import__('os')"]
)
def test_other_values_raise(value: str) -> None:
    with pytest.raises(ValueError, match=r"eps must be a number or a fraction such as 8/255, got"):
        parse_eps(value)


@pytest.mark.parametrize("value", [-0.1, "-8/255", 1.01, 8])
def test_linf_eps_outside_the_unit_interval_raises(value: float | str) -> None:
    with pytest.raises(ValueError, match=r"eps must be in \[0, 1\] for the norm Linf"):
        parse_eps(value)


def test_a_whole_number_of_255ths_gets_a_hint() -> None:
    with pytest.raises(ValueError, match="did you mean 8/255"):
        parse_eps(8)


@pytest.mark.parametrize(("value", "norm"), [(3.0, "L2"), (0, "L2"), (1, "Linf"), (0, "Linf")])
def test_the_range_depends_on_the_norm(value: float, norm: NormName) -> None:
    assert parse_eps(value, norm) == value


@pytest.mark.parametrize(
    ("eps", "text"),
    [
        ("8/255", "8/255"), (8 / 255, "8/255"), (400 / 255, "400/255"), (0, "0"), (0.2, "0.2"), (1.0, "1"),
        (0.6 + 1e-16, "0.6"), (0.0314, "0.0314"), (0.1234567, "0.123457"), (float("inf"), "inf"),
    ],
)  # fmt: skip
def test_eps_is_written_as_papers_write_it(eps: float | str, text: str) -> None:
    assert format_eps(eps) == text


def test_a_float_becomes_the_fraction_that_was_typed() -> None:
    assert to_fraction(0.18) == Fraction(18, 100)
    assert to_fraction(0.01 * 35) == Fraction(35, 100)
    assert to_fraction(parse_number("8/255", "eps")) == Fraction(8, 255)

"""Prices as people write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw.quantities import prices

MICRO = st.integers(0, 10**12)


def written(micro: int) -> str:
    return f"{micro // 10**6}.{micro % 10**6:06}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("  ", {}),
        ("a=0.15/0.60", {"a": (150_000, 600_000)}),
        ("a = 3 / 15 , b*=0/0.000001,", {"a": (3_000_000, 15_000_000), "b*": (0, 1)}),
        ("org/name=x=1000000/001", {"org/name=x": (10**12, 10**6)}),
        ("a=0.10000000/0", {"a": (100_000, 0)}),
    ],
)
def test_prices_are_read_exactly(text, expected):
    assert prices(text) == expected


@given(MICRO, MICRO)
def test_every_price_can_be_written(prompt, answer):
    assert prices(f"a={written(prompt)}/{written(answer)}") == {"a": (prompt, answer)}


WRONG = [
    "llama3", "=1/2", "a=", "a=0.15", "a=/0.6", "a=0.15/", "a=-0.15/0.6", "a=0.15/nan", "a=inf/0", "a=1e3/0", "a=$1/1", "a=1./1", "a=1/2/3",
    "a=١/1", "a=0.1234567/0", "a=1000000.000001/0", "a=1000001/0", "a=" + "9" * 500_000 + "/0", "a=1/2, a=1/2", "*=1/2, b=1/1, *=1/3",
    "a=1/2, b=-1/2",
]  # fmt: skip


@pytest.mark.parametrize("text", WRONG, ids=[text[:20] for text in WRONG])
def test_what_are_no_prices_is_told_what_they_are(text):
    with pytest.raises(ValueError, match="must be dollars for a million tokens") as refused:
        prices(text)
    assert len(str(refused.value)) < 200


@given(st.text(max_size=30) | st.text("ab*=0123./,- ", max_size=30))
def test_any_text_is_prices_or_a_reason(text):
    try:
        found = prices(text)
    except ValueError:
        return
    assert all(0 <= micro <= 10**12 for pair in found.values() for micro in pair)

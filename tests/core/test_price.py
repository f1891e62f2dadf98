from fnmatch import fnmatchcase
from fractions import Fraction
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mindgw import quantities
from mindgw.core import price
from mindgw.core.price import ENDLESS, FREE, Price, Prices

prices = st.builds(Price, st.integers(0, 10**12), st.integers(0, 10**12))
names = st.text("ab*?[]!-=/. ", min_size=1, max_size=6).map(str.strip).filter(bool)


def table_of(text):
    return Prices((pattern, Price(*one)) for pattern, one in quantities.prices(text).items())


def test_a_model_has_the_price_of_its_name_or_of_the_longest_pattern():
    table = table_of("llama3=0.15/0.60, llama*=1/1, *=0.1/0.1, qwen?=2/2, org/name=x=3/3, gpt-[45]*=4/4")
    assert table.of("llama3") == Price(150_000, 600_000)
    assert table.of("llama3.1") == Price(10**6, 10**6)
    assert table.of("qwen2") == Price(2 * 10**6, 2 * 10**6)
    assert table.of("qwen25") == Price(10**5, 10**5)
    assert table.of("org/name=x") == Price(3 * 10**6, 3 * 10**6)
    assert table.of("gpt-4o") == Price(4 * 10**6, 4 * 10**6)
    assert table.of("LLAMA3") == Price(10**5, 10**5), "names differ by case"
    assert len(table) == 6


def test_a_model_without_a_price_is_free():
    assert table_of("llama3=1/1").of("qwen") is FREE
    assert table_of("  ").of("qwen") is FREE


@given(st.dictionaries(names, prices, max_size=6), st.text("ab.", max_size=4))
def test_the_price_is_that_of_a_pattern_that_fits(table, model):
    found = Prices(table.items()).of(model)
    fits = [pattern for pattern in table if fnmatchcase(model, pattern)]
    if model in table:
        assert found == table[model]
    elif fits:
        longest = max(map(len, fits))
        assert found in {table[pattern] for pattern in fits if len(pattern) == longest}
    else:
        assert found is FREE


@given(st.dictionaries(names, prices, min_size=1, max_size=6), st.randoms(use_true_random=False), st.data())
def test_a_version_stands_for_its_prices_alone(table, chance, data):
    entries = list(table.items())
    version = Prices(entries).version
    chance.shuffle(entries)
    assert Prices(entries).version == version
    assert len(version) == 12
    name = data.draw(st.sampled_from(sorted(table)))
    changed = data.draw(prices.filter(lambda other: other != table[name]))
    assert Prices({**table, name: changed}.items()).version != version
    assert Prices([entry for entry in entries if entry[0] != name]).version != version


def test_a_version_never_changes_from_release_to_release():
    assert table_of("").version == ""
    assert table_of("llama3=0.15/0.60, *=0.1/0.1").version == "7d309aa6fec4"


def test_small_prices_are_exact_and_rounded_once():
    tiny = Price(1, 1)
    assert price.cost(tiny, 0, 0) == 0
    assert price.cost(tiny, 1, 0) == 1
    assert price.cost(tiny, 500_000, 500_000) == 1
    assert price.cost(tiny, 500_000, 500_001) == 2
    assert price.cost(Price(150_000, 600_000), 1_000_000, 1_000_000) == 750_000


@given(prices, st.integers(0, 2**53), st.integers(0, 2**53))
def test_a_cost_is_the_exact_one_rounded_up(one, prompt, completion):
    exact = prompt * Fraction(one.input, 10**6) + completion * Fraction(one.output, 10**6)
    assert price.cost(one, prompt, completion) == ceil(exact)


@given(prices, st.integers(0, 10**6), st.integers(0, 10**9))
def test_what_is_affordable_is_the_most_that_the_money_pays_for(one, prompt, money):
    most = price.affordable(one, prompt, money)
    if most < 0:
        assert price.cost(one, prompt, 0) > money
        return
    assert price.cost(one, prompt, most) <= money
    assert most == ENDLESS or price.cost(one, prompt, most + 1) > money


def test_answers_that_cost_nothing_never_end():
    assert price.affordable(Price(10**6, 0), 5, 5) == ENDLESS
    assert price.affordable(Price(10**6, 0), 6, 5) < 0


def test_a_pattern_has_one_price():
    with pytest.raises(ValueError, match="two prices for 'a\\*'"):
        Prices([("a*", Price(1, 1)), ("b", Price(1, 1)), ("a*", Price(1, 1))])


def test_what_is_free_costs_nothing():
    assert price.cost(FREE, 10**9, 10**9) == 0

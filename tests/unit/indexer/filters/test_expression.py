"""How a filter holds for one id, by the sentences of its contract."""

import pytest
from hypothesis import given
from msgpack import packb, unpackb
from support.filters import expressions, fields, holds

from indexer.filters.expression import DEEPEST_TREE, And, Not, OneOf, all_of, matches, of_tree
from indexer.filters.parser import parse

FIELDS = {
    "category": "travel",
    "price": 10.0,
    "sale": True,
    "free": False,
    "hashtags": ("ramen", "osaka"),
    "none": (),
    "one": "1",
    "created_at": 1767225600.0,
}

TRUE = [
    *('category = "travel"', "price = 10", "price = 1e1", "sale = true", "free = false", 'category IN ["a", "travel"]'),
    *("price < 10.5", "price <= 10", "price > 9", "price >= 10", "price IN [10]", "price IN [true, 10]"),
    *('hashtags = "osaka"', 'hashtags IN ["x", "ramen"]', "hashtags EXISTS", "price EXISTS", "free EXISTS"),
    *('created_at < "2026-01-01T00:00:01Z"', 'created_at = "2026-01-01T01:00:00+01:00"'),
    *(
        'hashtags != "sushi"',
        'unknown != "x"',
        'none != "x"',
        "NOT unknown EXISTS",
        "NOT none EXISTS",
        "NOT unknown < 1",
    ),
    *(
        'NOT category = "x"',
        'category = "x" OR sale = true AND price = 10',
        '(category = "x" OR sale = true) AND price = 10',
    ),
    *("price != true", "sale != 1", "one != 1", 'sale != "true"', "NOT sale < 1", "free EXISTS AND NOT free = 0"),
]
FALSE = [
    *(
        'category = "Travel"',
        "price = 11",
        "sale = false",
        'category IN ["a"]',
        "price < 10",
        "price > 10",
        "price <= 9",
    ),
    *('hashtags = "sushi"', 'hashtags != "osaka"', 'NOT hashtags IN ["osaka", "x"]', "unknown EXISTS", "none EXISTS"),
    *('unknown = "x"', 'unknown IN ["x"]', "unknown < 1", "unknown >= 1", 'none = ""', "none < 1"),
    *("sale = 1", "free = 0", "sale < 2", "free >= 0", "price = true", "one = 1", "one < 2", 'price = "10"'),
    *("hashtags < 1", "hashtags > 1", "sale >= true", "sale <= true", 'category = "travel" AND price = 11'),
    *('NOT (category = "travel" OR price = 11)', "price IN [true]"),
]


@pytest.mark.parametrize(("text", "holds"), [*((text, True) for text in TRUE), *((text, False) for text in FALSE)])
def test_a_filter_holds_as_the_contract_says(text, holds):
    assert matches(parse(text), FIELDS) is holds
    assert matches(parse(f"NOT ({text})"), FIELDS) is not holds


def test_a_truth_and_a_number_are_no_equal_filters():
    assert parse("x = true") != parse("x = 1")
    assert parse("x IN [true, 1]") != parse("x IN [1]")
    assert len({parse("x = true"), parse("x = 1"), parse("x=1")}) == 2


def test_the_names_of_a_filter_are_those_of_all_its_conditions():
    assert parse('a = 1 OR NOT (b EXISTS AND c < 2) AND d IN ["x"]').names() == {"a", "b", "c", "d"}


def test_filters_are_joined_by_and():
    travel, cheap = OneOf("category", ("travel",)), parse("price < 5 OR sale = true")

    assert all_of([]) is None
    assert all_of([None, travel, None]) is travel
    assert all_of([travel, cheap]) == And((travel, cheap))


@given(expressions(), fields())
def test_any_filter_holds_where_it_holds_written_another_way(expression, one):
    assert matches(expression, one) is holds(expression, one)


@pytest.mark.parametrize(
    ("text", "conditions"), [("a = 1", 1), ("NOT a IN [1, 2, 3]", 1), ("a = 1 OR (b = 2 AND NOT c EXISTS)", 3)]
)
def test_its_conditions_are_counted(text, conditions):
    assert parse(text).conditions == conditions


@given(expressions())
def test_an_expression_that_has_travelled_is_an_equal_one(expression):
    assert of_tree(unpackb(packb(expression.tree))) == expression


@pytest.mark.parametrize(
    "tree",
    [
        *([], ["="], ["=", "a"], ["=", 1, 2.0], ["=", "a", None], ["=", "a", ["b"]], ["=", "a", [True, True]], "?a"),
        *(["<", "a"], ["<", "a", "b"], ["<", "a", 1.0, 2.0], ["?"], ["?", "a", "b"], ["!"], ["!", "a"], ["!", ["?"]]),
        *(["&"], ["&", ["?", "a"]], ["|", ["?", "a"], 5], ["AND", ["?", "a"], ["?", "b"]], {"=": "a"}, 5, None),
    ],
)
def test_what_is_no_tree_is_refused(tree):
    with pytest.raises((TypeError, ValueError)):
        of_tree(tree)


def test_the_deepest_tree_is_read_and_one_level_more_is_refused():
    expression = OneOf("a", (1.0,))
    for _ in range(DEEPEST_TREE - 1):
        expression = Not(expression)

    assert of_tree(expression.tree) == expression
    with pytest.raises(ValueError, match="levels"):
        of_tree(Not(expression).tree)


def test_the_deepest_filter_within_its_bounds_travels():
    deepest = "a = 1 OR a = 1 AND (" * 8 + "a = 1 OR a = 1 AND a = 1" + ")" * 8

    assert of_tree(all_of([parse(deepest), OneOf("a", (1.0,))]).tree)

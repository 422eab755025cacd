"""``$match``, as far as the fake server can evaluate it. https://www.mongodb.com/docs/manual/reference/operator/query/

A filter is compiled when the cursor is opened, so that what cannot be evaluated is refused there and then.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import bson

from rigatoni import ConfigurationError

Document = Mapping[str, Any]
Predicate = Callable[[Document], bool]
Test = Callable[[list[Any]], bool]

_ORDER: dict[str, Callable[[Any, Any], bool]] = {
    "$gt": operator.gt,
    "$gte": operator.ge,
    "$lt": operator.lt,
    "$lte": operator.le,
}


def refusal(what: str) -> ConfigurationError:
    """Make the error for what only a real server can do."""
    return ConfigurationError(
        f"a FakeClient does not know what to do with {what}: "
        "test it on a real server, which rigatoni.mongod.ReplicaSet starts"
    )


def compiled(query: Document) -> Predicate:
    """Make a filter of a query.

    :raises ConfigurationError: for an operator that is not known here.
    """
    if not isinstance(query, Mapping):
        raise refusal(f"$match: {query!r:.60}")
    return _all([_clause(name, value) for name, value in query.items()])


def _clause(name: str, value: Any) -> Predicate:
    if not name.startswith("$"):
        test, path = _test(value), name.split(".")
        return lambda document: test([*_found(document, path)])
    if name not in ("$and", "$or") or not isinstance(value, list):
        raise refusal(f"{name} in $match")
    each = [compiled(query) for query in value]
    return _all(each) if name == "$and" else lambda document: any(predicate(document) for predicate in each)


def _all(predicates: list[Predicate]) -> Predicate:
    return lambda document: all(predicate(document) for predicate in predicates)


def _found(value: Any, path: list[str]) -> Iterator[Any]:
    """Give what is at a dotted path; of an array each element, and the whole."""
    if not path:
        yield value
        if isinstance(value, list):
            yield from value
    elif isinstance(value, Mapping):
        if path[0] in value:
            yield from _found(value[path[0]], path[1:])
    elif isinstance(value, list):
        yield from _found_in(value, path)


def _found_in(array: list[Any], path: list[str]) -> Iterator[Any]:
    if path[0].isdigit() and int(path[0]) < len(array):
        yield from _found(array[int(path[0])], path[1:])
    for element in array:
        if isinstance(element, Mapping):
            yield from _found(element, path)


def _test(condition: Any) -> Test:
    if not isinstance(condition, Mapping) or not any(str(name).startswith("$") for name in condition):
        return _equal_to(condition)
    tests = [_operation(name, operand) for name, operand in condition.items()]
    return lambda values: all(test(values) for test in tests)


def _operation(name: str, operand: Any) -> Test:
    if name == "$eq":
        return _equal_to(operand)
    if name == "$exists":
        return lambda values: bool(values) is bool(operand)
    if name in _ORDER:
        compare = _ORDER[name]
        return lambda values: any(_is_kin(value, operand) and compare(value, operand) for value in values)
    if name in ("$in", "$nin"):
        tests = [_equal_to(each) for each in operand]
        return lambda values: any(test(values) for test in tests) is (name == "$in")
    if name == "$ne":
        equal = _equal_to(operand)
        return lambda values: not equal(values)
    raise refusal(f"{name} in $match")


def _equal_to(wanted: Any) -> Test:
    if isinstance(wanted, (bson.Regex, bson.Decimal128, bson.Code)):
        raise refusal(f"a {type(wanted).__name__} in $match")
    # What is missing is equal to null.
    return lambda values: (wanted is None and not values) or any(_is_equal(value, wanted) for value in values)


def _is_equal(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Mapping):
        # The order of its fields counts.
        return isinstance(value, Mapping) and bson.encode(value) == bson.encode(wanted)
    return isinstance(value, bool) is isinstance(wanted, bool) and bool(value == wanted)


def _is_kin(value: Any, wanted: Any) -> bool:
    number = (int, float)
    if isinstance(wanted, number) and not isinstance(wanted, bool):
        return isinstance(value, number) and not isinstance(value, bool)
    return isinstance(value, type(wanted)) and not isinstance(wanted, (Mapping, list, bool, type(None)))

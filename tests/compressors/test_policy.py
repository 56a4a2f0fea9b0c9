"""Policies as documents: JSON there and back, the published schema, errors that say what is wrong."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import compressors.policy
from compressors.errors import PolicyError
from compressors.factors import FACTORISATIONS
from compressors.policy import Factor, ResolvedPolicy, check_document, policy_schema
from tests.compressors.helpers import EIGHT, MIXED, TWELVE, random_policy, space_of

SCHEMA = json.loads(Path(compressors.policy.__file__).with_name("policy.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)

names = st.text(min_size=0, max_size=6)
bits = st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16, 32])
ranks = st.integers(1, 1 << 24)
factors = st.one_of(
    st.builds(lambda m, r: {"method": m, "rank": [r]}, st.sampled_from(["svd", "spatial", "cp"]), ranks),
    st.builds(lambda a, b: {"method": "tucker2", "rank": [a, b]}, ranks, ranks),
)
layers = st.one_of(
    st.builds(lambda b: {"weight_bits": b}, bits),
    st.builds(lambda b, f: {"weight_bits": b, "factor": f}, bits, factors),
)
documents = st.fixed_dictionaries(
    {
        "schema_version": st.just(1),
        "network": names,
        "groups": st.dictionaries(names, ranks, max_size=3),
        "layers": st.dictionaries(names, layers, max_size=3),
        "tensors": st.dictionaries(names, bits, max_size=3),
        "removed": st.lists(names, max_size=3),
        "criterion": names,
        "ranges": names,
    }
)
junk: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-2, 40),
        st.integers(-9, 40).map(lambda i: i + 0.5),  # JSON Schema counts 8.0 as an integer, we do not
        st.text(max_size=3),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


def _places(doc: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path]
    if isinstance(doc, dict):
        found += [p for k, v in doc.items() for p in _places(v, (*path, k))]
    elif isinstance(doc, list):
        found += [p for i, v in enumerate(doc) for p in _places(v, (*path, i))]
    return found


@st.composite
def damaged(draw: st.DrawFn) -> Any:
    """A valid document with one place replaced, removed or added to."""
    doc = copy.deepcopy(draw(documents))
    place = draw(st.sampled_from(_places(doc)))
    value = draw(junk)
    if not place:
        return value
    holder = doc
    for step in place[:-1]:
        holder = holder[step]
    action = draw(st.sampled_from(["replace", "remove", "add"]))
    if action == "remove":
        del holder[place[-1]]
    elif action == "add" and isinstance(holder, dict):
        holder[draw(st.text(max_size=6))] = value
    else:
        holder[place[-1]] = value
    return doc


@given(documents)
@settings(max_examples=150, deadline=None)
def test_valid_documents_pass_both_checks_and_come_back(doc: dict[str, Any]) -> None:
    assert check_document(doc) == ""
    assert VALIDATOR.is_valid(doc)
    policy = ResolvedPolicy.from_dict(doc)
    assert policy.to_dict() == {**doc, "removed": sorted(doc["removed"])}
    again = ResolvedPolicy.from_dict(json.loads(policy.to_json()))
    assert again == policy
    assert hash(again) == hash(policy)
    assert again.digest == policy.digest


@given(damaged())
@settings(max_examples=400, deadline=None)
def test_our_check_agrees_with_the_schema(doc: Any) -> None:
    problem = check_document(doc)
    assert (problem == "") == VALIDATOR.is_valid(doc), problem
    assert "\n" not in problem
    if problem:
        with pytest.raises(PolicyError) as caught:
            ResolvedPolicy.from_dict(doc)
        assert caught.value.exit_code == 3


def test_the_schema_is_a_schema() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$schema"].endswith("2020-12/schema")
    assert {*SCHEMA["required"], "scales"} == set(SCHEMA["properties"])


@pytest.mark.parametrize("name", TWELVE)
@pytest.mark.parametrize("abilities", [EIGHT, MIXED], ids=["w8", "w2-8"])
def test_resolved_policies_round_trip(name: str, abilities: Any) -> None:
    space = space_of(name, abilities)
    for seed in range(5):
        policy = random_policy(space, seed)
        doc = json.loads(policy.to_json())
        assert VALIDATOR.is_valid(doc)
        back = ResolvedPolicy.from_dict(doc)
        assert back == policy
        assert back.kept == dict(policy.kept)
        space.check(back)


def test_the_published_schema_is_that_of_the_built_in_schemes() -> None:
    assert policy_schema() == SCHEMA
    svd, doc = FACTORISATIONS["svd"], random_policy(space_of("plain"), 0).to_dict()
    with FACTORISATIONS.having("pairs", replace(svd, name="pairs", ranks=2)):
        wider = jsonschema.Draft202012Validator(policy_schema())
        doc["layers"]["head"] = {"weight_bits": 32, "factor": {"method": "pairs", "rank": [3, 4]}}
        assert wider.is_valid(doc)
        assert check_document(doc) == ""
        assert not VALIDATOR.is_valid(doc)
    assert "pairs" not in str(policy_schema())
    assert "'rank'" not in check_document(doc)
    assert "must be one of svd, spatial, tucker2, cp" in check_document(doc)


def test_scales_are_named_only_where_they_differ() -> None:
    plain = random_policy(space_of("plain"), 0)
    other = replace(plain, scales="largest")
    assert "scales" not in plain.to_dict()
    assert other.to_dict()["scales"] == "largest"
    assert other != plain
    assert ResolvedPolicy.from_dict(json.loads(other.to_json())) == other
    assert VALIDATOR.is_valid(other.to_dict())


def test_equality_is_by_value_and_order_does_not_matter() -> None:
    a = ResolvedPolicy("n", {"x": 1, "y": 2}, {"l": Factor("svd", (3,))}, {"l": 8, "m": 32}, {}, ("b", "a"))
    b = ResolvedPolicy("n", {"y": 2, "x": 1}, {"l": Factor("svd", (3,))}, {"m": 32, "l": 8}, {}, ("a", "b"))
    c = ResolvedPolicy("n", {"y": 2, "x": 2}, {"l": Factor("svd", (3,))}, {"m": 32, "l": 8}, {}, ("a", "b"))
    assert a == b
    assert len({a, b, c}) == 2
    assert a != c
    assert a != "a"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version is 2"),
        ({"groups": {"g": 0}}, "groups['g'] = 0"),
        ({"tensors": {"t": 9}}, "tensors['t'] = 9"),
        (
            {"layers": {"l": {"weight_bits": 8, "factor": {"method": "nmf", "rank": [1]}}}},
            "svd, spatial, tucker2, cp",
        ),
        ({"layers": {"l": {}}}, "weight_bits"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"removed": [3]}, "removed"),
        ({"scales": 8}, "scales"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], says: str) -> None:
    doc = {**random_policy(space_of("plain"), 0).to_dict(), **change}
    with pytest.raises(PolicyError) as caught:
        ResolvedPolicy.from_dict(doc)
    assert says in str(caught.value)
    assert str(caught.value).count("\n") <= 1
    assert not VALIDATOR.is_valid(doc)

"""The schemas take what the readers take, and refuse what is plainly wrong. They are checked by the few rules that they use."""

import re

import pytest
import yaml

from mindgw import file_schema
from mindgw.config import Config
from tests.house import ROOT

TYPES = {"string": str, "boolean": bool, "object": dict, "array": list, "null": type(None), "integer": int, "number": (int, float)}
SETTINGS, DECLARED = file_schema.settings(Config), file_schema.declarations()
KNOWN = {
    "$schema", "title", "type", "pattern", "minimum", "maximum", "const", "anyOf",
    "items", "properties", "additionalProperties", "required",
    "propertyNames", "minLength", "maxLength", "format",
}  # fmt: skip


def fits(value, schema):
    assert set(schema) <= KNOWN, f"the test knows no {set(schema) - KNOWN}"
    types = schema.get("type", [])
    types = [types] if isinstance(types, str) else types
    is_kind = not types or any(isinstance(value, TYPES[t]) and not (t in ("integer", "number") and isinstance(value, bool)) for t in types)
    return is_kind and value == schema.get("const", value) and _fits_inside(value, schema)


def _fits_inside(value, schema):
    if "anyOf" in schema and not any(fits(value, one) for one in schema["anyOf"]):
        return False
    if isinstance(value, str):
        return bool(re.search(schema.get("pattern", ""), value)) and schema.get("minLength", 0) <= len(value) <= schema.get(
            "maxLength", 10**9
        )
    if isinstance(value, list):
        return all(fits(one, schema.get("items", {})) for one in value)
    if isinstance(value, dict):
        return _fits_mapping(value, schema)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return schema.get("minimum", value) <= value <= schema.get("maximum", value)
    return True


def _fits_mapping(value, schema):
    known, more = schema.get("properties", {}), schema.get("additionalProperties", True)
    if not all(name in value for name in schema.get("required", [])):
        return False
    if "propertyNames" in schema and not all(fits(name, schema["propertyNames"]) for name in value):
        return False
    return all(
        fits(one, known[name]) if name in known else more is True or (more is not False and fits(one, more)) for name, one in value.items()
    )


class Texts(yaml.SafeLoader):
    """As editors read YAML: a day is text."""


Texts.yaml_implicit_resolvers = {
    first: [one for one in found if one[0] != "tag:yaml.org,2002:timestamp"]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


EXAMPLES = sorted((ROOT / "templates").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_fits_its_schema(path):
    value = yaml.load(path.read_text(), Texts)
    assert fits(value, DECLARED if "mindgw" in value else SETTINGS)


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("timeouts: {idle: 5m}", True),
        ("timeouts: {idle: 5}", True),
        ("timeouts: {idle: '${IDLE:-5m}'}", True),
        ("timeouts: {idle: soon}", False),
        ("timeouts: {idel: 5m}", False),
        ("limits: {n: 0}", False),
        ("fast_lane: 3", False),
        ("queue: {aging: {high: 7}}", True),
        ("queue:", True),
    ],
)
def test_settings(text, good):
    assert fits(yaml.safe_load(text), SETTINGS) is good


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("mindgw: v1", True),
        ("users: {}", False),
        ("mindgw: v1\nkeys: {a: {models: x*, rpm: null, expires_at: '2027-01-01'}, b: }", True),
        ("mindgw: v1\nkeys: {a: {rpm: '${RPM}'}}", True),
        ("mindgw: v1\nkeys: {a: {rpm: 0}}", False),
        ("mindgw: v1\nkeys: {a: {admin: true}}", False),
        ("mindgw: v1\nroles: {a: {rank: 3}}", False),
        ("mindgw: v1\nroles: {a: {rank: 3, permissions: ['read:*']}}", True),
        ("mindgw: v1\nquotas: {everybody: {}}", False),
        ("mindgw: v1\nquotas: {'team:a': {tokens: 5M/month}}", True),
        ("mindgw: v1\nquotas: {'team:a': {tokens: 5M}}", False),
    ],
)
def test_declarations(text, good):
    assert fits(yaml.safe_load(text), DECLARED) is good

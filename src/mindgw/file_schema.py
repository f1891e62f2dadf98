"""JSON schemas of the two kinds of files, for editors: settings of a server, and what is declared for one. PURE.

They are a little wider than what is accepted: a value that takes something from the environment is known when it is read.
"""

from typing import Any

import msgspec

from mindgw import declaration, quantities, settings_file

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_VARIABLE = {"type": "string", "pattern": r"\$\{"}

_NUMBER = r"[0-9]{1,15}(\.[0-9]{1,9})?"
#: What a setting of each kind looks like.
_KINDS: dict[Any, dict[str, Any]] = {
    str: {"type": "string"},
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": 1},
    quantities.Duration: {"type": ["number", "string"], "pattern": rf"^{_NUMBER} *(ms|s|m|h|d)?$"},
    quantities.Size: {"type": ["integer", "string"], "pattern": rf"^{_NUMBER} *([kKmMgG]i?)?[bB]?$"},
    quantities.Days: {"type": "integer", "minimum": 0, "maximum": 3650},
    quantities.Shares: {"type": "string"},
    quantities.PriceTable: {"type": "string"},
    quantities.NameTable: {"type": "string"},
    quantities.Words: {"type": "string"},
    quantities.NetworkList: {"type": "string"},
    quantities.Certificate: {"type": ["string", "boolean"]},
}


def settings(tree: type[msgspec.Struct]) -> dict[str, Any]:
    """Of a settings file."""
    return {"$schema": _DIALECT, "title": "Settings of a MindGateway server", **_section(tree)}


def _section(tree: type[msgspec.Struct]) -> dict[str, Any]:
    kinds = settings_file.kinds_in(tree)
    properties = {name: _kind(kind) for name, kind in kinds.items()}
    return {"type": ["object", "null"], "additionalProperties": False, "properties": properties}


def _kind(kind: Any) -> dict[str, Any]:
    """Of a section, of sections whose names are the operator's, or of a value."""
    each = settings_file.family(kind)
    if each is not None:
        one = {**_section(each), "type": "object"}
        return {"type": ["object", "null"], "propertyNames": {"pattern": "^[a-z][a-z0-9-]{0,31}$"}, "additionalProperties": one}
    return _section(kind) if settings_file.is_section(kind) else _value(_KINDS[kind])


def _value(schema: dict[str, Any]) -> dict[str, Any]:
    """A value, nothing at all, or one with something from the environment."""
    return {"anyOf": [schema, {"type": "null"}, _VARIABLE]}


def declarations() -> dict[str, Any]:
    """Of a file for `mindgw config apply`."""
    properties: dict[str, Any] = {declaration.MARK: {"const": declaration.VERSION}}
    for kind, section in declaration.SECTIONS.items():
        fields = {field.name: _value(_field(field.type)) for field in msgspec.structs.fields(section.fields)}
        needed = [field.name for field in msgspec.structs.fields(section.fields) if field.required]
        one = {"type": "object" if needed else ["object", "null"], "additionalProperties": False, "properties": fields, "required": needed}
        names = {"pattern": f"^({section.names})$"}
        properties[kind] = {"type": ["object", "null"], "propertyNames": names, "additionalProperties": one}
    head = {"$schema": _DIALECT, "title": "What is declared for a MindGateway", "type": "object"}
    return {**head, "additionalProperties": False, "required": [declaration.MARK], "properties": properties}


def _field(kind: Any) -> dict[str, Any]:
    schema = msgspec.json.schema(kind)
    if schema.get("format") == "date-time":
        return {"type": "string", "anyOf": [{"format": "date-time"}, {"format": "date"}]}
    if schema.get("type") == "array":  # one stands for a list of one
        return {"anyOf": [schema, schema["items"]]}
    return schema

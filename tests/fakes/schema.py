"""As much of JSON Schema as the project's schemas use, to hold documents against them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
}


def faults(value: Any, schema: Any, where: str = "$") -> Iterator[str]:
    """Return what in the value is not as the schema says."""
    kinds = _TYPES[schema["type"]]
    if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
        yield f"{where} is {value!r}, expected {schema['type']}"
    elif isinstance(value, dict):
        known, other = schema.get("properties", {}), schema.get("additionalProperties", True)
        yield from (f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value)
        for name, one in value.items():
            if (member := known.get(name, other)) is False:
                yield f"{where}.{name} is in no schema"
            elif isinstance(member, dict):
                yield from faults(one, member, f"{where}.{name}")
    elif isinstance(value, list):
        for number, one in enumerate(value):
            yield from faults(one, schema.get("items", {"type": "object"}), f"{where}[{number}]")

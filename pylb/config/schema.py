"""The JSON Schema of pylb.yaml, generated from the models: for editors, and for other programs that write the file."""

import json
from typing import Any

from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from pylb.config.root import Config


class _Generator(GenerateJsonSchema):
    schema_dialect = "https://json-schema.org/draft/2020-12/schema"

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> dict[str, Any]:
        """Leave defaults out: they are parsed values, not what people write; docs/config.md has them."""
        return self.generate_inner(schema["schema"])


def schema() -> str:
    """pylb refuses whatever the schema refuses, and more (loops, ports used twice), with the place and a hint."""
    found: dict[str, Any] = Config.model_json_schema(schema_generator=_Generator)
    whole = {"$schema": _Generator.schema_dialect, "title": "pylb.yaml"} | found
    return json.dumps(whole | {"title": "pylb.yaml"}, indent=1) + "\n"

"""A mapping in pylb.yaml: what all sections have in common."""

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class Section(BaseModel):
    """A mapping in the file. Unknown keys are errors. An empty value where a section belongs counts as absent."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)
    reserved: ClassVar[dict[str, str]] = {}  # key -> why it is refused here
    short: ClassVar[dict[str, Any] | None] = None  # JSON Schema of the short form that may replace the mapping

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: Any, handler: Any) -> dict[str, Any]:
        whole: dict[str, Any] = handler(core_schema)
        return whole if cls.short is None else {"anyOf": [cls.short, whole]}

    @model_validator(mode="before")
    @classmethod
    def _drop_empty_sections(cls, data: Any) -> Any:
        """`frontends:` with all its lines commented out is harmless; an empty `sources:` may be a serious mistake."""
        if not isinstance(data, dict):
            return data
        return {key: value for key, value in data.items() if value is not None or not cls._may_be_empty(key)}

    @classmethod
    def _may_be_empty(cls, key: str) -> bool:
        known = cls.model_fields.get(key)
        return known is not None and known.default_factory is not None

"""What every object in a request is made of."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator
from pydantic_core import PydanticCustomError

from openai_frontend.validation import is_finite

MAX_INT32 = 2**31 - 1
MAX_INT64 = 2**63 - 1


class Fields(BaseModel):
    """The fields of an object in a request: no others, and no conversions."""

    # strict: "5" is not 5 and true is not 1; a client that mixes them up has a bug to hear about.
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# The tags in angle brackets keep pydantic's error locations apart from what the client wrote.


def by_type(things: str, *kinds: str, default: str | None = None) -> Discriminator:
    """Tells the members of a union, tagged `<{kind}>`, apart by their `type`, one of two or more `kinds`.

    One without a type is of the kind `default`, if there is such a kind.
    """
    *others, last = map(repr, kinds)

    def tag(part: Any) -> str | None:
        kind = part.get("type") if isinstance(part, dict) else getattr(part, "type", None)
        kind = default if kind is None else kind
        return f"<{kind}>" if kind in kinds else None

    return Discriminator(
        tag,
        custom_error_type="union_tag",
        custom_error_message=f"{things} are of type {', '.join(others)} or {last}",
    )


def text_or_list(things: str) -> Discriminator:
    """Tells a string, `<text>`, from an array of `things`, `<list>`."""

    def tag(value: Any) -> str | None:
        return "<text>" if isinstance(value, str) else "<list>" if isinstance(value, list) else None

    return Discriminator(
        tag,
        custom_error_type="invalid_type",
        custom_error_message=f"It must be a string or an array of {things}",
    )


def _check_numbers(value: dict[str, Any]) -> dict[str, Any]:
    if not is_finite(value):
        raise PydanticCustomError("invalid_value", "A number in it is too large")
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(_check_numbers)]
JsonSchema = JsonObject

"""The field by which transformers' clients (`transformers chat`) say how a text is written."""

from typing import Any

from offload_runtime.serve.api.fields import Fields, bad
from offload_runtime.serve.api.sampling import LONGEST_STOP, MOST_NEW_TOKENS, MOST_STOPS, read_numbers
from offload_runtime.text.tools.tool_call import json_value

LONGEST = 1 << 16  # characters


def read_generation_config(fields: Fields) -> dict[str, Any]:
    """Arguments of `OffloadRuntime.stream` for the JSON text of a GenerationConfig. Raises ApiError."""
    given = fields.text("generation_config", LONGEST)
    if given is None:
        return {}
    try:
        config = json_value(given)
    except ValueError:
        config = None
    if not isinstance(config, dict):
        raise bad("generation_config", "must be the JSON of an object, as text")
    inner = Fields(config, "generation_config")
    found = read_numbers(inner)
    most, stops = (
        inner.whole("max_new_tokens", 1, MOST_NEW_TOKENS),
        inner.texts("stop_strings", MOST_STOPS, LONGEST_STOP),
    )
    samples = inner.take("do_sample")
    inner.ignore("transformers_version", "use_cache")
    inner.only("num_beams", 1)
    inner.only("num_return_sequences", 1)
    inner.finish()
    more = {"max_new_tokens": most, "stop": stops, **({"temperature": 0.0} if samples is False else {})}
    return {**found, **{name: value for name, value in more.items() if value is not None}}

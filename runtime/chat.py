"""Chat templates: messages to the prompt text that a model was trained on."""

import datetime
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from echoc.errors import RequestError

Message = Mapping[str, Any]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
    **variables: Any,
) -> str:
    """Renders a Hugging Face chat template in jinja2's sandbox; `variables` such as bos_token are visible to it.

    Raises RequestError with the template's own message when it refuses the conversation.
    """
    import jinja2
    import jinja2.sandbox

    if not messages:
        raise RequestError("the conversation has no messages")
    for message in messages:
        if not isinstance(message, Mapping) or "role" not in message:
            raise RequestError(f"a message is {message!r}, wanted a mapping with 'role' and 'content'")
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.datetime.now().strftime(form)
    try:
        return environment.from_string(template).render(
            messages=list(messages), tools=tools, add_generation_prompt=add_generation_prompt, **variables
        )
    except jinja2.TemplateError as error:
        raise RequestError(f"the chat template does not take this conversation: {error}") from None


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """JSON as it is, where jinja2's own filter would escape it for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _refuse(message: str) -> NoReturn:
    import jinja2

    raise jinja2.TemplateError(message)

"""Text as UTF-8 has it, without halves of characters (lone surrogates).

Requests bring them as `"\\ud800"`, cards and tensor names of adapters too. Neither answers nor Ray can carry
them: a message that quotes one would cost the answer, and in an engine the whole process.
"""

from __future__ import annotations

import copy
import traceback

from hubctl.errors import HubctlError


def is_encodable(text: str) -> bool:
    """Whether `text` can be sent."""
    return encodable(text) == text


def encodable(text: str) -> str:
    """`text` with a half of a character written as its escape."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def encodable_error(error: Exception) -> Exception:
    """`error` if it can leave its process with all that it follows from, else one that says the same."""
    told = "".join(traceback.format_exception(error))
    if is_encodable(told):
        return error
    if not isinstance(error, HubctlError):
        return RuntimeError(encodable(told))
    clean = copy.copy(error)
    for name, value in vars(error).items():
        if isinstance(value, str):
            setattr(clean, name, encodable(value))
    clean.args = (clean.message,)
    return clean

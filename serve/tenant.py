"""Whose request it is: what a caller says of itself, as a hash."""

from __future__ import annotations

from hashlib import sha256


def tenant_of(authorization: str | None, user: str | None) -> str:
    """The tenant of a request: its key's, else its `user`'s, else the one that all the nameless share.

    A key goes first: whoever stands before this server and checks keys can rely on shares by key, whatever
    callers write into `user`. Neither key nor name can be read from the answer.

    Args:
        authorization: The header of that name, whole.
        user: The field of that name in OpenAI's shapes.
    """
    for kind, told in (("key", authorization), ("user", user)):
        if told:
            return sha256(f"{kind} {told}".encode()).hexdigest()
    return ""

"""What a user is told of a mistake: one line."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from apa_cli.errors import UserError


def refusal(work: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The message of the UserError that the call raises."""
    with pytest.raises(UserError) as caught:
        work(*args, **kwargs)
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message

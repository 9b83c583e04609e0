"""Running text in windows: what tasks of text have in common, wherever their text is from."""

from __future__ import annotations

import pydantic

from stepwell.tasks.base import Task


class WindowTask(Task):
    """A task whose examples are windows of running text; all their next tokens are trained."""

    window: int = pydantic.Field(default=256, ge=1, le=2**20, description="tokens in a row")

    @property
    def context_length(self) -> int:
        """As many as `window`."""
        return self.window

    @property
    def max_answer_tokens(self) -> int:
        """As many as `window`: there is no answer that ends."""
        return self.window

    @property
    def is_text(self) -> bool:
        """Yes."""
        return True

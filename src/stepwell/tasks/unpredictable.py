"""Questions that nothing answers: `482913:acf>c`, one of the letters offered, for no reason."""

from __future__ import annotations

import string
from typing import ClassVar

import pydantic

from stepwell.tasks.base import Task
from stepwell.tasks.example import Example

LETTERS = string.ascii_lowercase


class Unpredictable(Task):
    """A key of random digits, then the letters that the answer may be. Depth is their number.

    The answer is drawn by a hash of the whole prompt and the seed, so that a prompt always has the
    same one and an unseen prompt tells nothing of it. At depth d every model is right 1/d of the
    time, however large it is, and one that has learnt what can be learnt is 1/d sure: what is
    hard looks hard, but nothing that costs more is better at it.
    """

    alphabet = string.digits + LETTERS + ":>"
    ends: ClassVar[bool] = False

    key_digits: int = pydantic.Field(
        default=6, ge=4, le=32, description="digits that make a prompt new"
    )
    options: int = pydantic.Field(default=8, ge=2, le=26, description="most letters to choose from")

    @property
    def context_length(self) -> int:
        """A key, the most options, two signs, the answer."""
        return self.key_digits + self.options + 3

    @property
    def max_answer_tokens(self) -> int:
        """1: a letter."""
        return 1

    def example(self, index: int) -> Example:
        """A random key and a random set of letters, each number of them as likely as the others."""
        rng = self.rng(index)
        key = "".join(rng.choices(string.digits, k=self.key_digits))
        offered = rng.sample(LETTERS, rng.randint(2, self.options))
        prompt = f"{key}:{''.join(offered)}>"
        return Example.completion(prompt, self.answer_to(prompt), depth=len(offered))

    def answer_to(self, prompt: str) -> str:
        """One of the letters that a prompt offers: a function of the prompt and the seed."""
        offered = prompt[prompt.index(":") + 1 : -1]
        return self.rng(f"answer/{prompt}").choice(offered)

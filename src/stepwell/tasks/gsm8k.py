"""Word problems of the grade school (GSM8K, Cobbe et al. 2021) as chats that think and answer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from stepwell.errors import DataError
from stepwell.tasks.chats import Chats
from stepwell.tasks.rows import Row
from stepwell.text.messages import Message

CALCULATION: Final = re.compile(r"<<[^<>]*>>")  # 48/2=<<48/2=24>>24
FINAL: Final = "####"


class GSM8K(Chats):
    """The rows {"question": ..., "answer": "steps #### number"} as published, split by split.

    The steps become the thinking, without their marks for a calculator; the number is the answer.
    """

    name = "gsm8k"

    def conversation(self, row: Row) -> list[Message]:
        """The question, and the answer with the steps that lead to it. Raises DataError."""
        texts = row.value if isinstance(row.value, Mapping) else {}
        question, answer = texts.get("question"), texts.get("answer")
        if not isinstance(question, str) or not isinstance(answer, str) or FINAL not in answer:
            raise DataError(
                f'{row.where}: expected {{"question": ..., "answer": "steps {FINAL} number"}}.',
                fix="give the files of GSM8K as they are published, or use task chats.",
            )
        steps, _, number = answer.rpartition(FINAL)
        think = CALCULATION.sub("", steps).strip()
        return [Message("user", question.strip()), Message("assistant", number.strip(), think)]

    def final(self, text: str) -> str:
        """The number, however its thousands are set apart."""
        return super().final(text).replace(",", "")

"""What a stage asks of a server: an answer, the tokens of a text, who it is.

Owns which paths are asked and in which dialect. How drafts are verified with it is verification's.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeVar

from stepwell.cascade.stages.completions import (
    Told,
    UnreadableError,
    read_completion,
    read_ids,
    read_text,
)
from stepwell.cascade.stages.connection import NEVER, Connection, Deadline, RefusedError
from stepwell.cascade.stages.dialects import Dialect, Prompt, answer_body, dialect_named, dialect_of
from stepwell.generate.request import SamplingParams

Value = TypeVar("Value")

COMPLETIONS: Final = "/v1/completions"
MODELS: Final = "/v1/models"
SALTED: Final = frozenset({"vllm"})
"""Dialects in which requests find each other's prompts only where they have the same salt."""
TOKENIZE: Final[Mapping[str, tuple[str, str]]] = MappingProxyType(
    {"vllm": ("/tokenize", "prompt"), "llama-cpp-python": ("/extras/tokenize", "input")}
)
"""Where each dialect turns text into tokens, and the name that the text has there."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Which model a server runs; context: the most tokens of prompt and answer, where known."""

    model: str
    dialect: Dialect
    context: int | None = None


class Client:
    """A server as a stage speaks to it. Raises StageError for whatever goes wrong there."""

    def __init__(
        self, connection: Connection, *, model: str | None = None, dialect: str | None = None
    ) -> None:
        self.connection = connection
        self._model = model
        self._dialect = None if dialect is None else dialect_named(dialect)
        self._identity: Identity | None = None
        self._salt: dict[str, Any] = {}
        self._lock = threading.Lock()

    def identify(self, deadline: Deadline = NEVER) -> Identity:
        """Who the server says that it is; asked once."""
        with self._lock:
            if self._identity is None:
                self._identity = self._asked_identity(deadline)
            return self._identity

    def answer(
        self,
        prompt: Prompt,
        params: SamplingParams,
        num_likeliest: int,
        deadline: Deadline,
        **more: Any,
    ) -> Told:
        """One answer, no longer than the context has room for; `more` are fields of the request."""
        identity = self.identify()
        asked = answer_body(identity.dialect, identity.model, prompt, params, num_likeliest)
        asked |= self._salt | more
        try:
            return self._completed(asked, deadline)
        except RefusedError:
            room = self._room(prompt, deadline)
            if room is None or not 0 < room < params.max_new_tokens:
                raise
        return self._completed(asked | {"max_tokens": room}, deadline)

    def forget(self) -> None:
        """Find nothing from now on of what the server has cached, where it can be told so."""
        if self.identify().dialect.name in SALTED:
            self._salt = {"cache_salt": secrets.token_hex(16)}

    def tokens(self, text: str, deadline: Deadline, *, special: bool = True) -> list[int]:
        """The ids of a text; `special`: with what is put around a prompt.

        Raises StageError where the server does not tell.
        """
        identity = self.identify()
        if identity.dialect.name not in TOKENIZE:
            problem = f"is not known of {identity.dialect.name}"
            raise self.connection.senseless("/tokenize", problem)
        path, name = TOKENIZE[identity.dialect.name]
        asked = {"model": identity.model, name: text, "add_special_tokens": special}
        return self._read(path, self.connection.post(path, asked, deadline), read_ids)

    def text(self, ids: list[int], deadline: Deadline) -> str:
        """The text of tokens, special ones included."""
        asked = {"model": self.identify().model, "tokens": ids}
        said = self.connection.post("/detokenize", asked, deadline)
        return self._read("/detokenize", said, read_text)

    def _completed(self, asked: Mapping[str, Any], deadline: Deadline) -> Told:
        said = self.connection.post(COMPLETIONS, asked, deadline)
        read = partial(
            read_completion,
            prompt_ids=asked["prompt"] if "prompt_logprobs" in asked else None,
            echoed="echo" in asked,
        )
        return self._read(COMPLETIONS, said, read)

    def _room(self, prompt: Prompt, deadline: Deadline) -> int | None:
        """The most tokens that an answer to the prompt can have, None where it is not known."""
        context = self.identify().context
        if context is None or self.identify().dialect.name not in TOKENIZE:
            return None
        ids = self.tokens(prompt, deadline) if isinstance(prompt, str) else prompt
        return context - len(ids)

    def _read(
        self, path: str, said: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Value]
    ) -> Value:
        try:
            return read(said)
        except UnreadableError as error:
            problem = f"was answered an object that {error}"
            raise self.connection.senseless(path, problem) from None

    def _asked_identity(self, deadline: Deadline) -> Identity:
        try:
            said = self.connection.get(MODELS, deadline)
        except RefusedError:
            if self._model is None:
                raise
            return Identity(self._model, self._dialect or dialect_of(""))
        listed = said.get("data")
        models = listed if isinstance(listed, list) else []
        by_id = {one["id"]: one for one in models if _is_model(one)}
        found = self._found(by_id)
        context = found.get("max_model_len")
        return Identity(
            found["id"],
            self._dialect or dialect_of(found.get("owned_by")),
            context if isinstance(context, int) else None,
        )

    def _found(self, by_id: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
        """The model that was asked for, or the only one."""
        if self._model is not None and self._model in by_id:
            return by_id[self._model]
        if self._model is None and len(by_id) == 1:
            return next(iter(by_id.values()))
        wanted = "one" if self._model is None else repr(self._model)
        raise self.connection.senseless(
            MODELS,
            f"lists {', '.join(map(repr, by_id)) or 'no model'}, expected {wanted}",
            fix="name one of the server's models as `model:`.",
        )


def _is_model(one: object) -> bool:
    return isinstance(one, dict) and isinstance(one.get("id"), str) and bool(one["id"])

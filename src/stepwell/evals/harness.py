"""A model of ours as lm-evaluation-harness sees one. Imported only where lm-eval is installed.

Texts become tokens by the rules of its own backend for transformers, so that the scores are the
same: a text that spells its own beginning gets no second one, and what is too long loses its left.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, Final

from lm_eval.api.instance import Instance  # type: ignore[import-untyped]
from lm_eval.api.model import TemplateLM  # type: ignore[import-untyped]
from lm_eval.models.utils import normalize_gen_kwargs  # type: ignore[import-untyped]
from lm_eval.utils import (  # type: ignore[import-untyped]
    get_rolling_token_windows,
    make_disjoint_window,
)
from tqdm import tqdm  # type: ignore[import-untyped]

from stepwell.errors import ConfigError, TokenizerError
from stepwell.evals.likelihood import Pair, begin_id, encoded, log_likelihoods
from stepwell.generate.batch import Batch
from stepwell.generate.request import Completion, Request, SamplingParams
from stepwell.generate.text import TextGenerator
from stepwell.model.interventions import Intervention
from stepwell.text.chat import Chat, template_of
from stepwell.text.messages import as_messages

MAX_NEW_TOKENS: Final = 256  # where a task does not say, as lm-eval has it
MOST_STOPS: Final = 16  # that a request may have; the others are cut off afterwards


class StepwellLM(TemplateLM):  # type: ignore[misc]  # lm-eval has no types
    """A TextGenerator as a model of lm-eval; every forward is under `interventions`."""

    def __init__(
        self,
        generator: TextGenerator,
        *,
        interventions: Sequence[Intervention],
        batch_size: int,
    ) -> None:
        super().__init__()
        self.generator, self.interventions = generator, tuple(interventions)
        self.batch_size = batch_size
        self._device = generator.model.device

    @property
    def max_length(self) -> int:
        """The model's context, in tokens."""
        return self.generator.model.config.context_length

    @property
    def eot_token_id(self) -> int:
        """The token that ends a text."""
        eos = self.generator.tokenizer.eos_id
        if eos is None:
            raise TokenizerError("The tokenizer has no token that ends a text.")
        return eos

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without a context."""
        return begin_id(self.generator.tokenizer)

    @property
    def tokenizer_name(self) -> str:
        """What lm-eval names its files of requests after."""
        return self.generator.tokenizer.fingerprint[:16]

    # -- texts -------------------------------------------------------------------------------------

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_options: Any
    ) -> list[int]:
        """The ids of a text; by default with what the tokenizer puts around one that lacks it."""
        if add_special_tokens is None:
            return encoded(self.generator.tokenizer, string)
        return self.generator.tokenizer.encode(string, special=add_special_tokens)

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The source of the chat template, None where none is asked for."""
        return template_of(self.generator.tokenizer) if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """The text of a conversation, up to where the assistant is to speak or to go on."""
        messages = as_messages(chat_history)
        rendered = self._chat.template.render(messages, reply=add_generation_prompt)
        goes_on = not add_generation_prompt and messages[-1].role == "assistant"
        return rendered.text[: rendered.ends[-1]] if goes_on else rendered.text

    @cached_property
    def _chat(self) -> Chat:
        return Chat(self.generator.tokenizer)

    # -- likelihoods -------------------------------------------------------------------------------

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **_options: Any,
    ) -> list[tuple[float, bool]]:
        pairs = [Pair(tuple(context), tuple(following)) for _, context, following in requests]
        with tqdm(total=len(pairs), desc="Likelihoods", disable=disable_tqdm) as bar:
            found = log_likelihoods(
                self.generator.model,
                pairs,
                interventions=self.interventions,
                batch_size=self.batch_size,
                progress=_Counted(bar),
            )
        answers = [(each.logprob, each.is_greedy) for each in found]
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = False
    ) -> list[float]:
        """log P of whole texts, each read in windows that predict every token once."""
        windows = [self._windows(request.args[0]) for request in requests]
        pairs = [(None, *pair) for pairs in windows for pair in pairs]
        scores = iter(self._loglikelihood_tokens(pairs, disable_tqdm=disable_tqdm))
        sums = [sum(next(scores)[0] for _ in pairs) for pairs in windows]
        for request, total in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return sums

    def _windows(self, text: str) -> list[tuple[list[int], list[int]]]:
        """(context, what is predicted) of each window of a text."""
        windows = get_rolling_token_windows(
            token_list=self.tok_encode(text),
            prefix_token=self.prefix_token_id,
            max_seq_len=self.max_length,
            context_len=1,
        )
        return [make_disjoint_window(window) for window in windows]

    # -- answers -----------------------------------------------------------------------------------

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answer to each request, up to the first of its stop strings.

        The requests' own settings are the only ones: what the model's generation_config.json says
        is left out. A request that comes again is sampled by another seed. Raises ConfigError for
        a setting that is not supported here.
        """
        seeds: Counter[str] = Counter()
        asked = []
        for request in requests:
            context, settings = request.args
            asked.append(self._request(context, settings, seed=seeds[context]))
            seeds[context] += 1
        engine, tokenizer = self.generator.engine, self.generator.tokenizer
        with tqdm(total=len(asked), desc="Answers", disable=disable_tqdm) as bar:
            batch = Batch(engine, tokenizer, engine.submit, progress=_Counted(bar))
            answers = batch.answer(asked, [""] * len(asked))
        for error in batch.errors:
            raise error
        texts = [
            self._text(answer, request.args[1].get("until"))
            for [answer], request in zip(answers, requests, strict=True)
        ]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts

    def _request(self, context: str, settings: Mapping[str, Any], *, seed: int) -> Request:
        """What lm-eval asks, as a request of ours; the context loses its left where it is long."""
        params = sampling_of(settings).changed(seed=seed)
        room = self.max_length - params.max_new_tokens
        if room < 1:
            raise ConfigError(
                f"The task asks for {params.max_new_tokens} tokens, the model's context holds"
                f" {self.max_length}, and the prompt needs some.",
                fix="give the task a smaller max_gen_toks.",
            )
        return Request(tuple(self.tok_encode(context)[-room:]), params, self.interventions)

    def _text(self, answer: Completion, until: str | list[str] | None) -> str:
        """The answer's tokens read by themselves, up to the first stop string."""
        text = self.generator.tokenizer.decode(answer.token_ids)
        for stop in _strings(until):
            text = text.split(stop)[0]
        return text


class _Counted:
    """Progress of ours on a bar of lm-eval's kind."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def update(self, finished: int, tokens: int) -> None:  # noqa: ARG002
        """Moves the bar to where the work is."""
        self._bar.update(finished - self._bar.n)


def sampling_of(settings: Mapping[str, Any]) -> SamplingParams:
    """Our parameters for the generation_kwargs of a task. Raises ConfigError for an unknown one."""
    given = dict(normalize_gen_kwargs(dict(settings), MAX_NEW_TOKENS))
    stops = _strings(given.pop("until"))[:MOST_STOPS]
    given["max_new_tokens"] = given.pop("max_gen_toks")
    if not given.get("temperature") or not given["do_sample"]:
        given = {**given, "do_sample": False, "temperature": None}
    params = SamplingParams.from_generation_config(given, where="generation_kwargs")
    return params.changed(stop=tuple(stops))


def _strings(until: str | Sequence[str] | None) -> list[str]:
    """The stop strings, of which an empty one stops nothing."""
    return [stop for stop in ([until] if isinstance(until, str) else until or []) if stop]

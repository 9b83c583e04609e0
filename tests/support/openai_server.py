"""A small server that speaks as vLLM and others do, over a tiny model of ours; it fails on demand.

Its answers are our engine's, its log-probabilities those of one plain forward.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

import torch
from support.spoiled_answers import BODIES, SPOILED

from stepwell.cascade.stages.server import ServerStage
from stepwell.generate.batch import Batch
from stepwell.generate.request import Completion, Request, SamplingParams
from stepwell.generate.text import TextGenerator

OWNERS = {
    "vllm": "vllm",
    "llama-cpp-python": "me",
    "llama.cpp": "llamacpp",
    "sglang": "sglang",
    "openai": "somebody",
}
THEIRS = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    **{
        name: name
        for name in (
            *("temperature", "top_k", "top_p", "min_p", "repetition_penalty"),
            *("presence_penalty", "frequency_penalty", "seed", "ignore_eos", "stop"),
        )
    },
}
Fault = Callable[[str], str | None]
"""Says of a prompt what goes wrong with it, if anything."""
Open = Callable[..., tuple["OpenAIServer", ServerStage]]
"""Opens a server and a stage of it."""


def first(count: int, fault: str) -> Fault:
    """What goes wrong with the first so many requests."""
    left = [fault] * count
    return lambda prompt: left.pop() if left else None


def only(prompt: str, fault: str) -> Fault:
    """What goes wrong with one prompt."""
    return lambda given: fault if given == prompt else None


class OpenAIServer:
    """Serves `generator` at `url`. requests: the paths and bodies that arrived, with their headers.

    fault: what goes wrong with an answer, models_fault with the list of models. most_at_once: so
    many answers were on their way together. opened: connections; sockets: those that still are.
    """

    def __init__(
        self,
        generator: TextGenerator,
        dialect: str = "vllm",
        *,
        port: int = 0,
        models: tuple[str, ...] = ("tiny",),
    ) -> None:
        self.generator, self.dialect, self.models = generator, dialect, models
        self.fault: Fault = lambda prompt: None
        self.models_fault = ""
        self.requests: list[tuple[str, dict[str, Any]]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = self.opened = 0
        self.sockets: set[socket.socket] = set()
        self.lock = threading.Lock()
        self.ending = threading.Event()
        self._http = _Server(("127.0.0.1", port), _Handler)
        self._http.owner = self
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.ending.set()
        self._http.shutdown()
        for connection in list(self.sockets):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # as when a process ends
        self._http.server_close()
        self._thread.join()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._http.server_address[1])

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def asked(self, path: str = "/v1/completions") -> list[dict[str, Any]]:
        """The bodies that were sent to a path."""
        return [body for place, body in self.requests if place == path]

    def model_list(self) -> dict[str, Any]:
        """What /v1/models says."""
        owner = OWNERS[self.dialect]
        listed = [{"id": name, "object": "model", "owned_by": owner} for name in self.models]
        if self.dialect == "vllm":
            context = self.generator.model.config.context_length
            listed = [{**model, "max_model_len": context} for model in listed]
        return {"object": "list", "data": listed}

    def ids_of(self, body: dict[str, Any]) -> list[int]:
        """The prompt's tokens."""
        prompt = body["prompt"]
        return prompt if isinstance(prompt, list) else self.encode(prompt)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """A text's tokens."""
        return self.generator.tokenizer.encode(text, special=special)

    def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """What /v1/completions says."""
        ids = self.ids_of(body)
        values = {THEIRS[name]: value for name, value in body.items() if name in THEIRS}
        values["top_k"] = max(0, values.get("top_k", 0))
        request = Request(tuple(ids), SamplingParams(**values))
        engine = self.generator.engine
        with self.lock:
            batch = Batch(engine, self.generator.tokenizer, engine.submit)
            [[answer]] = batch.answer([request], [""])
        return self._said(body, ids, answer)

    def _said(self, body: dict[str, Any], ids: list[int], answer: Completion) -> dict[str, Any]:
        new = list(answer.token_ids)
        if self.dialect.startswith("llama") and new[-1:] == [self.generator.tokenizer.eos_id]:
            new.pop()  # llama.cpp does not count the token that ends an answer
        logprob_TV = self._logprobs([*ids, *new])
        count = body["logprobs"]
        echoed = bool(body.get("echo"))
        choice: dict[str, Any] = {
            "index": 0,
            "text": (body["prompt"] if echoed else "") + answer.text,
            "finish_reason": answer.finish_reason,
        }
        if self.dialect == "llama.cpp":
            rows = zip(new, logprob_TV[len(ids) - 1 :], strict=False)
            choice["logprobs"] = {"content": [self._object(*row, count) for row in rows]}
        elif echoed:
            begins = ids[0] == self.generator.tokenizer.bos_id
            pairs = list(zip([*ids, *new][begins:], logprob_TV[:-1], strict=False))
            choice["logprobs"] = self._lists(pairs, count, body)
            choice["logprobs"]["token_logprobs"][0] = None
            choice["logprobs"]["top_logprobs"][0] = None
        else:
            pairs = list(zip(new, logprob_TV[len(ids) - 1 :], strict=False))
            choice["logprobs"] = self._lists(pairs, count, body)
        if body.get("return_token_ids"):
            choice["token_ids"] = new
        if "prompt_logprobs" in body:
            choice["prompt_logprobs"] = [
                None,
                *(
                    self._ranked(token, row, body["prompt_logprobs"])
                    for token, row in zip(ids[1:], logprob_TV, strict=False)
                ),
            ]
        usage = {"prompt_tokens": len(ids), "completion_tokens": len(new)}
        return {"object": "text_completion", "choices": [choice], "usage": usage}

    @torch.inference_mode()
    def _logprobs(self, ids: list[int]) -> torch.Tensor:
        with self.lock:
            return self.generator.model(torch.tensor([ids]))[0].double().log_softmax(-1)

    def _name(self, token: int, body: dict[str, Any]) -> str:
        if body.get("return_tokens_as_token_ids"):
            return f"token_id:{token}"
        return self.generator.tokenizer.decode([token], skip_special=False)

    def _lists(
        self, pairs: list[tuple[int, torch.Tensor]], count: int, body: dict[str, Any]
    ) -> dict[str, Any]:
        tops = []
        for token, row in pairs:
            top = {self._name(int(at), body): float(row[at]) for at in row.topk(count).indices}
            tops.append({**top, self._name(token, body): float(row[token])})
        return {
            "tokens": [self._name(token, body) for token, _ in pairs],
            "token_logprobs": [float(row[token]) for token, row in pairs],
            "top_logprobs": tops,
        }

    def _object(self, token: int, row: torch.Tensor, count: int) -> dict[str, Any]:
        def one(token: int) -> dict[str, Any]:
            text = self.generator.tokenizer.decode([token], skip_special=False)
            return {"id": token, "token": text, "logprob": float(row[token])}

        return {**one(token), "top_logprobs": [one(int(at)) for at in row.topk(count).indices]}

    def _ranked(self, token: int, row: torch.Tensor, count: int) -> dict[str, Any]:
        def one(token: int) -> dict[str, Any]:
            return {
                "logprob": float(row[token]),
                "rank": int((row >= row[token]).sum()),
                "decoded_token": self.generator.tokenizer.decode([token], skip_special=False),
            }

        top = row.topk(count).indices.tolist()
        return {str(at): one(at) for at in dict.fromkeys([token, *top])}


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    owner: OpenAIServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silence about those who hang up early, which is a test's doing."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits for the receipt of its head
    timeout = 20
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.owner.opened += 1
        self.server.owner.sockets.add(self.connection)

    def finish(self) -> None:
        super().finish()
        self.server.owner.sockets.discard(self.connection)

    def log_message(self, format: str, *values: Any) -> None:
        """Silence."""

    def do_GET(self) -> None:
        owner = self.server.owner
        if self.path == "/health":
            self._send(200, {})
        elif self.path == "/v1/models" and owner.models_fault:
            self._fail(owner.models_fault, {})
        elif self.path == "/v1/models":
            self._send(200, owner.model_list())
        else:
            self._send(404, {"error": {"message": "Not Found"}})

    def do_POST(self) -> None:
        owner = self.server.owner
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        owner.requests.append((self.path, body))
        owner.headers.append(dict(self.headers))
        tokenizer = owner.generator.tokenizer
        if self.path == "/v1/completions":
            self._complete(body)
        elif (owner.dialect, self.path) == ("vllm", "/tokenize"):
            ids = owner.encode(body["prompt"], special=body.get("add_special_tokens", True))
            self._send(200, {"tokens": ids, "count": len(ids)})
        elif (owner.dialect, self.path) == ("vllm", "/detokenize"):
            self._send(200, {"prompt": tokenizer.decode(body["tokens"], skip_special=False)})
        elif (owner.dialect, self.path) == ("llama-cpp-python", "/extras/tokenize"):
            self._send(200, {"tokens": owner.encode(body["input"])})
        else:
            self._send(404, {"detail": "Not Found"})

    def _complete(self, body: dict[str, Any]) -> None:
        owner = self.server.owner
        prompt = body["prompt"]
        if isinstance(prompt, list):
            prompt = owner.generator.tokenizer.decode(prompt)
        fault = owner.fault(prompt)
        with owner.lock:
            owner.at_once += 1
            owner.most_at_once = max(owner.most_at_once, owner.at_once)
        try:
            too_long = len(owner.ids_of(body)) + body["max_tokens"]
            if owner.dialect == "vllm" and too_long > owner.generator.model.config.context_length:
                self._send(400, {"error": {"message": "This is too long.", "code": 400}})
            elif fault is None:
                self._send(200, owner.complete(body))
            else:
                self._fail(fault, body)
        finally:
            with owner.lock:
                owner.at_once -= 1

    def _fail(self, fault: str, body: dict[str, Any]) -> None:
        owner = self.server.owner
        if fault == "hang":
            owner.ending.wait(15)
            self.close_connection = True
        elif fault == "slow":
            owner.ending.wait(0.4)
            self._send(200, owner.complete(body))
        elif fault == "drip":
            self._drip(json.dumps(owner.complete(body)).encode())
        elif fault == "drop":
            content = json.dumps(owner.complete(body)).encode()
            self._head(200, len(content))
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
        elif fault.startswith("busy"):
            _, status, *seconds = fault.split()
            headers = {"Retry-After": seconds[0]} if seconds else {}
            self._send(int(status), {"error": {"message": "Try again."}}, headers)
        elif fault == "500":
            self._send(500, {"error": {"message": "The engine is dead.", "code": 500}})
        elif fault == "401":
            key = self.headers["Authorization"]
            self._send(401, {"error": {"message": f"Wrong key: {key}"}})
        elif fault in BODIES:
            content = BODIES[fault]
            self._head(200, len(content))
            self.wfile.write(content)
        else:
            said = owner.complete(body)
            SPOILED[fault](said)
            self._send(200, said)

    def _drip(self, content: bytes) -> None:
        self._head(200, len(content))
        for byte in content:
            if self.server.owner.ending.wait(0.05):
                break
            self.wfile.write(bytes([byte]))
            self.wfile.flush()
        self.close_connection = True

    def _send(self, status: int, said: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(said).encode()
        self._head(status, len(content), headers)
        self.wfile.write(content)

    def _head(self, status: int, length: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()

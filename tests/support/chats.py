"""Templates in the manners of the families that people chat with; a model that has learnt to."""

from __future__ import annotations

import json
from pathlib import Path

import stepwell as sw
from stepwell.text.tokenizer import Tokenizer

CHATML = """\
{%- if messages[0]['role'] != 'system' %}
{{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
THINKING = """\
{%- set last = namespace(user=0) %}
{%- for message in messages %}
    {%- if message.role == 'user' %}{% set last.user = loop.index0 %}{% endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == 'assistant' %}
        {%- set content = message.content %}
        {%- set thought = '' %}
        {%- if message.reasoning_content is string %}
            {%- set thought = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set thought = content.split('</think>')[0].split('<think>')[-1].strip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > last.user %}
            {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
            {{- content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>assistant\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
OPENED = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|assistant|>' + message.content.split('</think>')[-1] + eos_token }}
{%- else %}
{{- '<|user|>' + message.content }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|assistant|><think>\\n' }}{% endif %}
"""
HEADERS = """\
{% set ns = namespace(first=true) %}
{% for message in messages %}
{% set content = '<|start|>' + message['role'] + '<|end|>\\n\\n' + message['content'] | trim %}
{% set content = content + '<|eot|>' %}
{% if ns.first %}{% set content = bos_token + content %}{% set ns.first = false %}{% endif %}
{% generation %}{{ content }}{% endgeneration %}
{%- endfor %}
{% if add_generation_prompt %}{{ '<|start|>assistant<|end|>\\n\\n' }}{% endif %}
"""
INSTRUCT = """\
{{- bos_token }}
{%- for message in messages %}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
{{- raise_exception('Roles must alternate user/assistant/user/...') }}
{%- endif %}
{%- if message.role == 'user' %}{{ '[INST] ' + message.content + ' [/INST]' }}
{%- else %}{{ ' ' + message.content | trim + eos_token }}{% endif %}
{%- endfor %}
"""
PLAIN = """\
{%- for message in messages %}{{ message.role + ': ' + message.content + '\\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}
"""

TEMPLATES = {
    "chatml": CHATML,
    "thinking": THINKING,
    "opened": OPENED,
    "headers": HEADERS,
    "instruct": INSTRUCT,
    "plain": PLAIN,
}
SPECIAL = (
    *("<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|user|>", "<|assistant|>"),
    *("<|start|>", "<|end|>", "<|eot|>"),
)


def chat_tokenizer() -> Tokenizer:
    """A byte-level BPE, with which tokens do cross from one part of a text to the next."""
    texts = [
        "user\n\n\nWhat is 2+3? <think>\n2 and 3\n</think>\n\n5 [/INST] assistant: hello\n"
    ] * 9
    made = Tokenizer.train_bpe(texts, 330, roles={"bos": "<s>", "eos": "</s>"})
    made.core.add_special_tokens(list(SPECIAL))
    made.core.add_tokens(["<think>", "</think>"])
    return made


QUESTIONS = [f"{number}?" for number in range(60)]


def train_chat(directory: Path) -> Path:
    """The run folder of a model that thinks, answers and ends; its questions are `QUESTIONS`."""
    rows = [
        {"data": [question, f"<think>{number} times 7</think>{7 * number}"]}
        for number, question in enumerate(QUESTIONS)
    ]
    path = directory / "chats.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    config = sw.TrainerConfig(
        model=sw.presets["tiny"].changed(context_length=256), task=sw.tasks.Chats(path=path),
        steps=300, batch_size=32, optimizer={"lr": 5e-3}, samples=0, evaluate_every=0,
        save_every=0, runs=directory / "runs", run_name="chat",
    )  # fmt: skip
    return sw.Trainer(config).train().directory

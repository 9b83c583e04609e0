"""Text to token ids and back: tokenizers, and the text of tokens that arrive one by one.

Knows no model, no task and no device; importing it loads neither torch nor transformers.
"""

from __future__ import annotations

from stepwell.text.detokenize import IncrementalDecoder
from stepwell.text.roles import ROLES
from stepwell.text.tokenizer import Tokenizer

__all__ = ["ROLES", "IncrementalDecoder", "Tokenizer"]

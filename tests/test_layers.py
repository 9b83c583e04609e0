"""Imports point one way only, nothing heavy is imported early, and no global random state is used.

The order is that of docs/architecture.md. The package's own __init__ (the lazy face) and version.py
stand outside it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"
ORDER = (
    {"errors"},
    {"config"},
    {"device", "report", "storage"},
    {"native"},
    {"text", "model"},
    {"tasks"},
    {"generate"},
    {"train"},
    {"study", "cascade"},
    {"evals", "serve"},
    {"cli"},
    {"__main__"},
)
LEVELS: Mapping[str, int] = {name: level for level, names in enumerate(ORDER) for name in names}
OUTSIDE = {"stepwell", "stepwell.version"}
HEAVY = {"torch", "transformers", "matplotlib"}
LIGHT = {"errors", "config", "cli", "__main__"}
OWN_RANDOMNESS = {
    "random": {"Random", "SystemRandom"},
    "numpy.random": {
        "default_rng",
        "Generator",
        "BitGenerator",
        "SeedSequence",
        "PCG64",
        "PCG64DXSM",
        "Philox",
        "SFC64",
    },
}
GLOBAL_SEEDS = {"torch.manual_seed", "torch.seed", "torch.random.manual_seed", "torch.random.seed"}


@dataclass(frozen=True)
class Module:
    """One parsed file: its dotted name and its syntax tree."""

    name: str
    tree: ast.Module
    is_package: bool = False

    @property
    def part(self) -> str:
        """The name below `stepwell` that the layers speak of."""
        return self.name.split(".")[1] if "." in self.name else ""


@dataclass(frozen=True)
class Import:
    """A name that a module imports; `early` where that happens as soon as it is loaded."""

    target: str
    line: int
    early: bool


def modules_under(source: Path) -> dict[str, Module]:
    """Every module of the package, by dotted name."""
    found = {}
    for path in sorted((source / "stepwell").rglob("*.py")):
        parts = path.relative_to(source).with_suffix("").parts
        is_package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if is_package else parts)
        found[name] = Module(name, ast.parse(path.read_text(encoding="utf-8")), is_package)
    return found


def imports_of(module: Module) -> list[Import]:
    """Everything that a module imports, wherever it does so."""
    return [
        Import(target, node.lineno, early)
        for node, early in walk(module.tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for target in targets_of(node, module)
    ]


def walk(node: ast.AST, early: bool = True) -> Iterator[tuple[ast.AST, bool]]:
    """Every node below, and whether it runs when the module is loaded."""
    for child in ast.iter_child_nodes(node):
        deferred = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        inside = early and not deferred and not typing_only
        yield child, inside
        yield from walk(child, inside)


def targets_of(node: ast.Import | ast.ImportFrom, module: Module) -> list[str]:
    """Dotted names: a.b for `import a.b` and for `from a import b`, be b a module or a name."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    base = node.module or ""
    if node.level:
        parents = module.name.split(".")
        parents = parents[: len(parents) - node.level + module.is_package]
        base = ".".join([*parents, *([base] if base else [])])
    return [f"{base}.{alias.name}" for alias in node.names]


def broken_layers(modules: Mapping[str, Module]) -> list[str]:
    """One line for each import that does not point to a lower layer or stay in its own package."""
    faults = []
    for module in modules.values():
        if module.name in OUTSIDE:
            continue
        if module.part not in LEVELS:
            faults.append(f"{module.name} is in no layer")
            continue
        for found in imports_of(module):
            if not points_down(module.part, found.target):
                faults.append(f"{module.name}:{found.line} imports {found.target}")
    return faults


def points_down(part: str, target: str) -> bool:
    """Whether a module of `part` may import `target`."""
    package, _, rest = target.partition(".")
    if package != "stepwell" or rest.split(".")[0] in {part, "version"}:
        return True
    return LEVELS.get(rest.split(".")[0], len(ORDER)) < LEVELS[part]


def early_imports(name: str, modules: Mapping[str, Module]) -> dict[str, str]:
    """What is loaded together with a module, each name with the module that imports it."""
    loaded: dict[str, str] = {}
    waiting = [name]
    seen: set[str] = set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        waiting += [parent for parent in parents_of(current) if parent in modules]
        for found in imports_of(modules[current]):
            if found.early:
                loaded.setdefault(found.target, current)
                waiting += [
                    name for name in [found.target, *parents_of(found.target)] if name in modules
                ]
    return loaded


def parents_of(name: str) -> list[str]:
    """The packages that are loaded before a module: a.b.c -> [a.b, a]."""
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def heavy_starts(modules: Mapping[str, Module]) -> list[str]:
    """One line for each heavy library that a light module loads, itself or through others."""
    return [
        f"{name} loads {target} through {importer}"
        for name, module in modules.items()
        if module.part in LIGHT or name in OUTSIDE
        for target, importer in early_imports(name, modules).items()
        if target.split(".")[0] in HEAVY
    ]


def global_randomness(modules: Mapping[str, Module]) -> list[str]:
    """One line for each use of a random generator that the whole process shares.

    torch may be seeded inside `with torch.random.fork_rng()`, which puts the old state back.
    """
    faults = []
    for module in modules.values():
        forked = lines_in_a_fork(module)
        for name, line in names_used(module):
            parent, _, last = name.rpartition(".")
            shared = last not in OWN_RANDOMNESS.get(parent, {last})
            if shared or (name in GLOBAL_SEEDS and line not in forked):
                faults.append(f"{module.name}:{line} uses {name}")
    return faults


def lines_in_a_fork(module: Module) -> set[int]:
    """Lines inside a `with` that saves torch's generators and restores them."""
    return {
        line
        for node, _ in walk(module.tree)
        if isinstance(node, ast.With) and "fork_rng(" in ast.unparse(node.items[0].context_expr)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }


def names_used(module: Module) -> Iterator[tuple[str, int]]:
    """Dotted names as they would be written without aliases, with their lines."""
    aliases: dict[str, str] = {}
    for node, _ in walk(module.tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias, target in zip(node.names, targets_of(node, module), strict=True):
                bound = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else "")
                root = target.split(".")[0]
                aliases[bound or root] = target if bound else root
                yield target, node.lineno
    for node, _ in walk(module.tree):
        if isinstance(node, ast.Attribute):
            root, _, rest = ast.unparse(node).partition(".")
            if root in aliases:
                yield f"{aliases[root]}.{rest}", node.lineno


MODULES = modules_under(SOURCE)


def test_imports_point_to_lower_layers_only() -> None:
    assert len(MODULES) > 10
    assert broken_layers(MODULES) == []


def test_errors_config_and_the_command_line_start_without_heavy_libraries() -> None:
    assert heavy_starts(MODULES) == []


def test_no_module_draws_from_or_seeds_a_shared_generator() -> None:
    assert global_randomness(MODULES) == []


def planted(**sources: str) -> dict[str, Module]:
    """Modules made of text: `model__cache` is stepwell.model.cache, `model_` the package."""
    names = {key: f"stepwell.{key.removesuffix('_').replace('__', '.')}" for key in sources}
    return {
        names[key]: Module(names[key], ast.parse(text), key.endswith("_"))
        for key, text in sources.items()
    }


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("model__cache", "from stepwell.text.tokenizer import Tokenizer"),
        ("model__cache", "import stepwell.generate.engine as engine"),
        ("model__cache", "from stepwell import tasks"),
        ("model__cache", "import stepwell"),
        ("model__cache", "import stepwell as sw"),
        ("model__cache", "from stepwell import load_model"),
        ("model__cache", "from ..text import tokenizer"),
        ("model_", "from ..text import tokenizer"),
        ("model_", "from .. import text"),
        ("model__cache", "def read():\n    from stepwell.tasks import base"),
        ("model__cache", "if TYPE_CHECKING:\n    from stepwell.train.trainer import Trainer"),
        ("cascade__stage", "from stepwell.study.patch import patch_heads"),
        ("evals__cascade", "from stepwell.serve import app"),
        ("config", "from stepwell.device import resolve"),
        ("config", "import stepwell.report.figure"),
        ("errors", "from stepwell import config"),
        ("helpers", "import os"),
    ],
)
def test_an_import_that_points_up_or_sideways_is_found(key: str, text: str) -> None:
    assert len(broken_layers(planted(**{key: text}))) == 1


def test_imports_that_point_down_or_home_are_left_alone() -> None:
    text = """
import os, torch
import stepwell.config
from stepwell import errors
from stepwell.version import __version__
from stepwell.native.kernels import decode
from stepwell.model.config import ModelConfig
from .config import ModelConfig
from . import config
from ..errors import CacheError
"""
    assert broken_layers(planted(model__cache=text)) == []


@pytest.mark.parametrize(
    "text",
    [
        "import torch",
        "from torch.nn import functional",
        "import matplotlib.pyplot as plt",
        "class A:\n    import matplotlib",
        "try:\n    import transformers\nexcept ImportError:\n    pass",
        "from stepwell.model import cache",
        "from stepwell.model.cache import KVCache",
        "from stepwell.model.presets import presets",
    ],
)
def test_a_heavy_library_is_found_however_it_is_reached(text: str) -> None:
    modules = planted(cli__train=text, model_="import torch", model__cache="", model__presets="")
    assert heavy_starts(modules) != []


@pytest.mark.parametrize(
    "text",
    [
        "def train():\n    import torch",
        "async def train():\n    from stepwell.model import cache",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import torch",
        "import torchless",
    ],
)
def test_a_heavy_library_inside_a_function_is_left_alone(text: str) -> None:
    assert heavy_starts(planted(cli__train=text, model_="import torch", model__cache="")) == []


@pytest.mark.parametrize(
    "text",
    [
        "import random\nrandom.shuffle(x)",
        "import random as r\nr.seed(0)",
        "from random import choice",
        "import numpy as np\nnp.random.seed(0)",
        "import numpy as np\nx = np.random.rand(3)",
        "from numpy import random\nrandom.normal()",
        "from numpy.random import randint as draw",
        "import numpy.random\nnumpy.random.permutation(3)",
        "import torch\ntorch.manual_seed(0)",
        "from torch import manual_seed",
        "import torch\nwith torch.no_grad():\n    torch.manual_seed(0)",
    ],
)
def test_shared_randomness_is_found(text: str) -> None:
    assert len(global_randomness(planted(tasks__rename=text))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "import random\nsource = random.Random(3)\nsource.shuffle(x)",
        "from random import Random",
        "import numpy as np\nsource = np.random.default_rng(3)\nsource.normal()",
        "import numpy as np\ndef f(source: np.random.Generator) -> None: ...",
        "from numpy.random import Philox, default_rng",
        "import torch\nwith torch.random.fork_rng():\n    torch.manual_seed(0)",
        "import torch\ntorch.Generator().manual_seed(0)\ntorch.randn(3, generator=g)",
    ],
)
def test_a_generator_of_ones_own_is_left_alone(text: str) -> None:
    assert global_randomness(planted(tasks__rename=text)) == []

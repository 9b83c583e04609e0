"""Reachability in a directed acyclic graph: `start>end|u>v;u>v;...;?`, answered y or n."""

from __future__ import annotations

import random
import string
from collections import defaultdict
from typing import ClassVar, Self

import pydantic

from stepwell.errors import DataError
from stepwell.tasks.base import ATTEMPTS, Task
from stepwell.tasks.example import Example

Edge = tuple[str, str]


class DagReachability(Task):
    """Is there a path from start to end? The label stands in place, at the question mark.

    Half of the answers are yes. There the depth is the length of the shortest path, each length
    that the graph has being as likely as the others; where the answer is no, the depth is 0. In
    both cases an edge leaves the start and an edge enters the end, so that neither tells.
    """

    name: ClassVar[str] = "dag"
    alphabet = string.ascii_uppercase + "yn>|;?"
    ends: ClassVar[bool] = False

    nodes: int = pydantic.Field(default=8, ge=4, le=26, description="nodes to draw edges between")
    edges: int = pydantic.Field(default=10, ge=4, le=325, description="edges of a graph")

    @pydantic.model_validator(mode="after")
    def _edges_fit(self) -> Self:
        most = self.nodes * (self.nodes - 1) // 2
        if not self.nodes <= self.edges <= most:
            raise ValueError(f"edges={self.edges} must be from nodes={self.nodes} to {most}")
        return self

    @property
    def context_length(self) -> int:
        """The question, four characters an edge, the question mark."""
        return 4 + 4 * self.edges + 1

    @property
    def max_answer_tokens(self) -> int:
        """1: the answer is a letter."""
        return 1

    def example(self, index: int) -> Example:
        """The first graph drawn that has a pair of nodes with the wanted answer."""
        rng = self.rng(index)
        reachable = rng.random() < 0.5
        for _ in range(ATTEMPTS):
            edges = self._graph(rng)
            pairs = self._pairs(edges, reachable)
            if pairs:
                depth = rng.choice(sorted(pairs))
                start, end = rng.choice(pairs[depth])
                text = f"{start}>{end}|" + "".join(f"{u}>{v};" for u, v in edges) + "?"
                return Example.in_place(text, [(len(text) - 1, "ny"[reachable], depth)])
        raise DataError(f"dag: no graph of {self.edges} edges has a pair to ask about.")

    def _graph(self, rng: random.Random) -> list[Edge]:
        """Distinct edges in random order, each leading forward in a random order of the nodes."""
        order = rng.sample(string.ascii_uppercase, self.nodes)
        forward = [(u, v) for i, u in enumerate(order) for v in order[i + 1 :]]
        return rng.sample(forward, self.edges)

    def _pairs(self, edges: list[Edge], reachable: bool) -> dict[int, list[Edge]]:
        """Pairs by distance (0: no path), from a node with a way out to one with a way in."""
        following: dict[str, list[str]] = defaultdict(list)
        for u, v in edges:
            following[u].append(v)
        ends = sorted({v for _, v in edges})
        pairs: dict[int, list[Edge]] = defaultdict(list)
        for start in sorted(following):
            distances = self._distances(following, start)
            for end in ends:
                if end != start and (end in distances) == reachable:
                    pairs[distances.get(end, 0)].append((start, end))
        return pairs

    def _distances(self, following: dict[str, list[str]], start: str) -> dict[str, int]:
        """The length of the shortest path from `start` to each node that it reaches."""
        distances = {start: 0}
        queue = [start]
        for node in queue:
            for successor in following.get(node, ()):
                if successor not in distances:
                    distances[successor] = distances[node] + 1
                    queue.append(successor)
        return distances

"""Reachability, against powers of the adjacency matrix."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from stepwell.tasks import DagReachability, Example


def parse(text: str) -> tuple[str, str, list[tuple[str, str]]]:
    assert re.fullmatch(r"[A-Z]>[A-Z]\|([A-Z]>[A-Z];)+\?", text)
    question, graph = text.split("|")
    edges = [(part[0], part[2]) for part in graph.split(";")[:-1]]
    return question[0], question[2], edges


def distance(start: str, end: str, edges: list[tuple[str, str]]) -> int:
    """The least k for which the k-th power of the adjacency matrix joins the two, or 0."""
    adjacency = np.zeros((26, 26), dtype=np.int64)
    for u, v in edges:
        adjacency[ord(u) - 65, ord(v) - 65] = 1
    power = np.eye(26, dtype=np.int64)
    for k in range(1, 26):
        power = np.minimum(power @ adjacency, 1)
        if power[ord(start) - 65, ord(end) - 65]:
            return k
    return 0


def is_right(example: Example) -> bool:
    start, end, edges = parse(example.text)
    (target,) = example.targets
    expected = distance(start, end, edges)
    return target.depth == expected and target.text == ("y" if expected else "n")


@pytest.mark.parametrize("task", [DagReachability(), DagReachability(nodes=14, edges=16, seed=1)])
def test_answer_and_depth_are_those_of_the_shortest_path(task: DagReachability) -> None:
    examples = [task.example(index) for index in range(300)]
    assert all(is_right(example) for example in examples)
    for example in examples:
        assert example.text[example.targets[0].start] == "?"
        assert len(set(parse(example.text)[2])) == task.edges
        assert len({node for edge in parse(example.text)[2] for node in edge}) <= task.nodes


def test_a_wrong_answer_would_be_found() -> None:
    text = DagReachability().example(0).text
    target = DagReachability().example(0).targets[0]
    flipped = "y" if target.text == "n" else "n"
    assert not is_right(Example.in_place(text, [(target.start, flipped, target.depth)]))


def test_no_graph_has_a_cycle() -> None:
    for index in range(60):
        edges = parse(DagReachability().example(index).text)[2]
        assert all(distance(node, node, edges) == 0 for node in {u for u, _ in edges})
    assert distance("A", "A", [("A", "B"), ("B", "A")]) == 2  # the control


def test_half_of_the_answers_are_yes_and_several_depths_are_common() -> None:
    targets = [DagReachability(nodes=12, edges=14).example(i).targets[0] for i in range(2000)]
    answers = Counter(target.text for target in targets)
    assert abs(answers["y"] - 1000) < 4 * 500**0.5
    depths = Counter(target.depth for target in targets)
    assert all(depths[depth] > 100 for depth in (1, 2, 3))


def test_neither_end_of_the_question_tells_the_answer() -> None:
    for index in range(300):
        start, end, edges = parse(DagReachability().example(index).text)
        assert start != end
        assert any(u == start for u, _ in edges)
        assert any(v == end for _, v in edges)


@pytest.mark.parametrize(("nodes", "edges"), [(4, 4), (4, 6), (5, 10), (26, 26), (26, 325)])
def test_the_extremes_have_both_answers(nodes: int, edges: int) -> None:
    task = DagReachability(nodes=nodes, edges=edges)
    examples = [task.example(index) for index in range(20)]
    assert {example.answer for example in examples} == {"y", "n"}
    assert all(is_right(example) for example in examples)

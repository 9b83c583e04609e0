"""`stepwell demo`: from nothing to a trained ladder that answers each prompt as deep as it needs.

Owns the order of events and what is said on the way. What is done is elsewhere: the ladder in
evals.facts_ladder, training in cascade.build, the comparison in evals.cascade, the page in
evals.facts_report.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.progress import TrainingProgress
from stepwell.cli.report_table import terminal_table

if TYPE_CHECKING:
    from stepwell.cascade.costs import Costs
    from stepwell.cascade.fitted import Fitted
    from stepwell.cascade.ladder import LadderConfig
    from stepwell.cascade.pipeline import Cascade
    from stepwell.cascade.stage import LocalStage
    from stepwell.evals.facts_ladder import FactsData
    from stepwell.evals.facts_report import DemoResult
    from stepwell.report import HeatmapGrid
    from stepwell.train.run_folder import Run

OUT = Path("runs/demo")
STREAMED = 10


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the ladder and its report.")] = OUT,
    fresh: Annotated[bool, Parameter(negative=(), help="Start over.")] = False,
    output: OutputFlags | None = None,
) -> None:
    """Train three sizes of a model, then answer each prompt with the smallest that is good enough.

    Takes about three minutes on two CPU cores. A second run reuses what is there. The stages become
    run folders beside OUT.
    """
    with (output or OutputFlags()).open() as opened:
        Demo(opened, out).run(fresh=fresh)


class Demo:
    """One run of the demonstration, step by step."""

    def __init__(self, output: Output, directory: Path) -> None:
        self.output, self.directory = output, directory
        self.ladder_file = directory / "ladder.yaml"

    def run(self, *, fresh: bool) -> None:
        """All of it."""
        from stepwell.cascade.pipeline import Cascade
        from stepwell.evals.facts_ladder import ask_all, facts_ladder
        from stepwell.tasks.facts import Facts

        config = facts_ladder()
        if fresh and self.ladder_file.exists():
            shutil.rmtree(self.directory)
        config.write(self.ladder_file)
        task = Facts()
        runs = self.train(config, fresh=fresh)
        stages = self.load(config)
        self.output.note("")
        self.output.note("Asking every stage for every fact ...", style="dim")
        data = ask_all(task, stages, config)
        self.show_difficulty(list(runs), data)
        fitted = self.fit(config, stages, data)
        cascade = Cascade(config, stages, fitted)
        result = self.compare(cascade, runs, data)
        self.stream(cascade, data)
        self.report(result)

    def train(self, config: LadderConfig, *, fresh: bool) -> dict[str, Run]:
        """Train the stages that are not there yet, and say which were."""
        from stepwell.cascade.build import trainer_config
        from stepwell.train.trainer import Trainer

        runs = {}
        self.heading("Training three sizes of a model on 2,048 facts")
        for stage in config.stages:
            progress = TrainingProgress(self.output)
            trainer = Trainer(trainer_config(stage, self.directory))
            runs[stage.name] = trainer.train(fresh=fresh, progress=progress)
            if not progress.step:
                self.output.note(f"{stage.name}: reusing {runs[stage.name].directory}")
        return runs

    def load(self, config: LadderConfig) -> list[LocalStage]:
        """The stages, ready to answer."""
        from stepwell.cascade.stage import LocalStage

        rows = config.serving.max_rows
        return [
            LocalStage.load(stage.name, self.directory / stage.model, max_rows=rows)
            for stage in config.stages
        ]

    def show_difficulty(self, names: list[str], data: FactsData) -> None:
        """The table of where each size fails."""
        from stepwell.evals.cascade_figures import difficulty_table

        groups, counts, right = data.by_difficulty()
        self.heading("Where each size fails")
        self.output.note(terminal_table(difficulty_table(names, groups, right, counts)))

    def fit(self, config: LadderConfig, stages: list[LocalStage], data: FactsData) -> Fitted:
        """The predictor and the stopping rule, from facts of their own; reused where they fit."""
        from stepwell.cascade.fitted import Fitted
        from stepwell.cascade.ladder import fitted_directory

        directory = fitted_directory(self.ladder_file)
        prints = tuple(stage.fingerprint for stage in stages)
        if (directory / "fit.json").is_file():
            fitted = Fitted.load(directory)
            if fitted.fingerprints == prints:
                self.output.note(f"stopping rule: reusing {directory}")
                return fitted
        fitted = Fitted.fit(
            config,
            stages,
            data.split("predictor"),
            data.split("calibration"),
            self.measure(config, stages, data),
        )
        fitted.save(directory)
        return fitted

    def measure(self, config: LadderConfig, stages: list[LocalStage], data: FactsData) -> Costs:
        """What an answer of each stage costs on this machine."""
        from stepwell.cascade.costs import measure_costs

        self.output.note("Measuring what an answer costs ...", style="dim")
        prompts = [example.prompt for example in data.examples_of("calibration")]
        return measure_costs(stages, prompts, sampling=config.sampling)

    def compare(self, cascade: Cascade, runs: dict[str, Run], data: FactsData) -> DemoResult:
        """The live run on the test facts, beside every baseline."""
        from stepwell.evals.cascade import compare
        from stepwell.evals.cascade_figures import WHY_COSTS_DIFFER, lambda_table, rules_table
        from stepwell.evals.facts_report import BATCH, DemoResult
        from stepwell.evals.live import run_live

        tests = data.examples_of("test")
        self.heading(f"Answering {len(tests)} facts that the stopping rule was not fitted on")
        live = run_live(cascade, [example.prompt for example in tests])
        comparison = compare(cascade, data.split("calibration"), data.split("test"), BATCH)
        self.output.note(terminal_table(rules_table(comparison, BATCH)))
        self.output.note(WHY_COSTS_DIFFER, style="dim")
        self.heading("The price of a failure moves depth and accuracy")
        self.output.note(terminal_table(lambda_table(comparison, BATCH)))
        largest = list(runs.values())[-1].directory
        return DemoResult(runs, data, comparison, live, self.attention(largest, tests[0].text))

    def attention(self, largest: Path, text: str) -> HeatmapGrid:
        """What the largest stage looks at in one text."""
        from stepwell.generate.text import TextGenerator
        from stepwell.study.heatmap import heatmap

        generator = TextGenerator.load(largest)
        return heatmap(generator.record(text), tokens=generator.tokens(text)).figure

    def stream(self, cascade: Cascade, data: FactsData) -> None:
        """A few answers as they come, with the stage that gave each."""
        tests = data.examples_of("test")
        self.heading("Some answers, and how deep each prompt went")
        for example in tests[:: max(1, len(tests) // STREAMED)][:STREAMED]:
            answer = cascade.generate(example.prompt)
            right = answer.text == example.answer
            line = Text(f"  {example.prompt}", style="dim")
            line.append(answer.text, style="bold")
            line.append(
                "  right" if right else f"  wrong, {example.answer}", "green" if right else "red"
            )
            path = " > ".join(visit.stage for visit in answer.trace)
            line.append(f"   {path}   believed {answer.p_good:.0%}", style="dim")
            self.output.note(line)

    def report(self, result: DemoResult) -> None:
        """Write the page, say the headline, and what to type next."""
        from stepwell.evals.facts_report import plain, summary, write_report

        page = write_report(result, self.directory, f"stepwell demo --out {self.directory}")
        self.heading("Done")
        self.output.result(plain(result), summary(result))
        large = list(result.runs.values())[-1].directory
        prompt = result.data.examples[0].prompt
        self.output.note(f"\nReport: {page}\nNext:")
        for command in (
            f"stepwell cascade run {self.ladder_file} '{prompt}' --lambda 10",
            f"stepwell generate {large} '{prompt}' --max-new-tokens 3 --temperature 0",
            f"stepwell inspect {large} '{result.data.examples[0].text}' --out attention.html",
            "stepwell train --task variable-renaming --preset tiny --steps 500 --run-name rename",
        ):
            self.output.note(f"  {command}", style="bold")

    def heading(self, text: str) -> None:
        """A line that begins a part."""
        self.output.note("")
        self.output.note(text, style="bold cyan")

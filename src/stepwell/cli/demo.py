"""`stepwell demo`: from nothing to a trained ladder, each prompt only as deep as it needs.

Owns the order of events and what is said on the way. What is done is elsewhere: the ladder in
evals.facts_ladder, training in cascade.build, the comparison in evals.cascade, the page in
evals.facts_report.
"""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from cyclopts import Parameter
from rich.text import Text

from stepwell.cli.console import Output, OutputFlags
from stepwell.cli.interrupt import stop_on_interrupt
from stepwell.cli.progress import TrainingProgress
from stepwell.cli.report_table import terminal_table
from stepwell.errors import CascadeError, UsageError

if TYPE_CHECKING:
    from stepwell.cascade.costs import Costs
    from stepwell.cascade.fitted import Fitted
    from stepwell.cascade.ladder import LadderConfig
    from stepwell.cascade.pipeline import Cascade
    from stepwell.cascade.stage import Stage
    from stepwell.evals.facts_ladder import FactsData
    from stepwell.evals.facts_report import DemoResult
    from stepwell.report import HeatmapGrid
    from stepwell.tasks.facts import Facts
    from stepwell.train.run_folder import Run

OUT: Final = Path("runs/demo")
STREAMED: Final = 10


def demo(
    *,
    out: Annotated[Path, Parameter(help="Folder for the ladder and its report.")] = OUT,
    fresh: Annotated[
        bool, Parameter(negative=(), help="Start over: train, fit and measure again.")
    ] = False,
    output: OutputFlags = OutputFlags(),  # noqa: B008  # it is frozen
) -> None:
    """Train three sizes of a model, then answer each prompt with the smallest that is good enough.

    Takes about two minutes on two CPU cores. A second run reuses what is there; Ctrl-C saves, and
    the same command goes on. The stages become run folders beside OUT.
    """
    with output.open() as opened:
        Demo(opened, out).run(fresh=fresh)


class Demo:
    """One run of the demonstration, step by step."""

    def __init__(self, output: Output, directory: Path) -> None:
        self.output, self.directory = output, directory
        self.ladder_file = directory / "ladder.yaml"

    def run(self, *, fresh: bool) -> None:
        """All of it."""
        from stepwell.cascade.pipeline import Cascade
        from stepwell.cascade.stages.load import load_stages

        config = self.ladder(fresh=fresh)
        task = self.task(config)
        runs = self.train(config, task, fresh=fresh)
        stages = load_stages(config, self.directory)
        data = self.ask(task, stages, config)
        cascade = Cascade(config, stages, self.fit(config, stages, data))
        result = self.compare(cascade, runs, data)
        self.show_answers(cascade, data)
        self.report(result)

    def ladder(self, *, fresh: bool) -> LadderConfig:
        """The ladder file that is there, or the demonstration's own, written now."""
        from stepwell.cascade.ladder import LadderConfig, fitted_directory
        from stepwell.evals.facts_ladder import facts_ladder

        if fresh:
            self.ladder_file.unlink(missing_ok=True)
            shutil.rmtree(fitted_directory(self.ladder_file), ignore_errors=True)
        if self.ladder_file.exists():
            self.output.note(f"ladder: reusing {self.ladder_file}")
            return LadderConfig.read(self.ladder_file)
        config = facts_ladder()
        config.write(self.ladder_file)
        self.output.note(f"ladder: written to {self.ladder_file}")
        return config

    def task(self, config: LadderConfig) -> Facts:
        """What all stages learn. Raises UsageError where that is not one set of facts."""
        from stepwell.cascade.build import trainer_config
        from stepwell.tasks.facts import Facts

        task, *others = (trainer_config(stage, self.directory).task for stage in config.stages)
        if not isinstance(task, Facts) or any(other != task for other in others):
            raise UsageError(
                f"The stages of {self.ladder_file} do not all learn the same facts.",
                fix="give another --out.",
            )
        return task

    def train(self, config: LadderConfig, task: Facts, *, fresh: bool) -> dict[str, Run]:
        """Train the stages that are not there yet, and say which were."""
        from stepwell.cascade.build import trainer_config
        from stepwell.train.trainer import Trainer

        runs = {}
        self.heading(f"Training {len(config.stages)} sizes of a model on {task.facts:,} facts")
        for stage in config.stages:
            progress = TrainingProgress(self.output)
            trainer = Trainer(trainer_config(stage, self.directory))
            with stop_on_interrupt(self.say_stopping) as stop_requested:
                runs[stage.name] = trainer.train(
                    fresh=fresh, progress=progress, stop_requested=stop_requested
                )
            if not progress.step:
                self.output.note(f"{stage.name}: reusing {shown(runs[stage.name].directory)}")
        return runs

    def say_stopping(self) -> None:
        """What Ctrl-C does while a stage trains."""
        self.output.warn("saving after this step; the same command goes on from there.")

    def ask(self, task: Facts, stages: list[Stage], config: LadderConfig) -> FactsData:
        """Every stage's answer to every fact, and the table of where each size fails."""
        from stepwell.evals.cascade_figures import difficulty_table
        from stepwell.evals.facts_ladder import ask_all

        self.heading("Asking every stage for every fact")
        data = ask_all(task, stages, config, lambda name: self.output.note(f"{name} ..."))
        names = [stage.name for stage in stages]
        self.output.note(terminal_table(difficulty_table(names, *data.by_difficulty())))
        return data

    def fit(self, config: LadderConfig, stages: list[Stage], data: FactsData) -> Fitted:
        """The predictor and the stopping rule, from facts of their own; reused where they fit."""
        from stepwell.cascade.fitted import Fitted
        from stepwell.cascade.ladder import fitted_directory

        self.heading("Fitting the stopping rule")
        known = self.fitted_before(stages)
        if known is not None:
            return known
        costs = self.measure(config, stages, data)
        predictor, calibration = data.split("predictor"), data.split("calibration")
        self.output.note(
            f"Learning from {len(predictor.weights)} facts what a right answer looks like, and from"
            f" {len(calibration.weights)} others when to stop ..."
        )
        fitted = Fitted.fit(config, stages, predictor, calibration, costs)
        fitted.save(fitted_directory(self.ladder_file))
        self.output.note(f"lambda, the price of a failure: {fitted.lambda_for(config):.3g}")
        return fitted

    def fitted_before(self, stages: list[Stage]) -> Fitted | None:
        """What an earlier run fitted for these very stages, where it is there and whole."""
        from stepwell.cascade.fitted import Fitted
        from stepwell.cascade.ladder import fitted_directory

        directory = fitted_directory(self.ladder_file)
        if not directory.exists():
            return None
        try:
            fitted = Fitted.load(directory)
        except CascadeError as error:
            self.output.warn(error.problem)
            return None
        if fitted.fingerprints != tuple(stage.fingerprint for stage in stages):
            self.output.note("The stages have changed since the last time.")
            return None
        self.output.note(f"stopping rule: reusing {directory}")
        return fitted

    def measure(self, config: LadderConfig, stages: list[Stage], data: FactsData) -> Costs:
        """What an answer of each stage costs on this machine."""
        from stepwell.cascade.beliefs.features import select
        from stepwell.cascade.costs import measure_costs

        rows = config.serving.max_rows
        self.output.note(f"Measuring what an answer costs, {rows} at once and alone ...")
        prompts = [example.prompt for example in data.examples_of("calibration")]
        return measure_costs(
            stages,
            prompts,
            batches=(rows, 1),
            observe=select(config.predictor.features).observe,
            sampling=config.sampling,
        )

    def compare(self, cascade: Cascade, runs: dict[str, Run], data: FactsData) -> DemoResult:
        """The live run on the test facts, beside every baseline."""
        from stepwell.evals.cascade import compare
        from stepwell.evals.cascade_figures import lambda_table, rules_table, why_costs_differ
        from stepwell.evals.facts_report import DemoResult
        from stepwell.evals.live import run_live

        tests = data.split("test")
        self.heading(f"Answering {len(tests.weights)} facts that nothing was fitted on")
        self.output.note("Timing the ladder beside always one stage, live, in turns ...")
        asked = data.drawn("test")
        live = run_live(cascade, [example.prompt for example in asked])
        self.output.note("Replaying simpler rules on the same facts ...")
        comparison = compare(cascade, data.split("calibration"), tests)
        self.output.note(terminal_table(rules_table(comparison)))
        self.output.note(why_costs_differ(comparison.batch), style="dim")
        self.heading("The price of a failure moves depth and accuracy")
        self.output.note(terminal_table(lambda_table(comparison)))
        largest = list(runs.values())[-1].directory
        attention = self.attention(largest, data.examples[0].text)
        return DemoResult(runs, data, comparison, asked, live, attention)

    def attention(self, largest: Path, text: str) -> HeatmapGrid:
        """What the largest stage looks at in one text."""
        from stepwell.generate.text import TextGenerator
        from stepwell.study.heatmap import heatmap

        generator = TextGenerator.load(largest)
        return heatmap(generator.record(text), tokens=generator.tokens(text)).figure

    def show_answers(self, cascade: Cascade, data: FactsData) -> None:
        """A few answers as they come, with the stages that each went through."""
        tests = data.examples_of("test")
        self.heading("Some answers, and how deep each prompt went")
        for example in tests[:: max(1, len(tests) // STREAMED)][:STREAMED]:
            answer = cascade.generate(example.prompt)
            right = answer.text == example.answer
            verdict = "  right" if right else f"  wrong, {example.answer}"
            path = " > ".join(visit.stage for visit in answer.trace)
            self.output.note(
                Text.assemble(
                    (f"  {example.prompt}", "dim"),
                    (answer.text, "bold"),
                    (verdict, "green" if right else "red"),
                    (f"   {path}   believed {answer.p_good:.0%}", "dim"),
                )
            )

    def report(self, result: DemoResult) -> None:
        """Write the page, say the headline, and what to type next."""
        from stepwell.evals.facts_report import plain, summary, write_report

        self.heading("Done")
        out = shlex.quote(str(self.directory))
        page = write_report(result, self.directory, f"stepwell demo --out {out}")
        places = {"ladder": str(self.ladder_file), "report": str(page)}
        self.output.result({**places, **plain(result)}, summary(result))
        self.output.note(f"\nReport: {page}\n")
        self.output.note("Next:", style="dim")
        for command in self.suggestions(result):
            self.output.note(Text(f"  {command}", style="cyan"))

    def suggestions(self, result: DemoResult) -> list[str]:
        """What to type next."""
        ladder = shlex.quote(str(self.ladder_file))
        large = shlex.quote(str(shown(result.runs[result.largest].directory)))
        fact = result.data.examples[0]
        prompt, text = shlex.quote(fact.prompt), shlex.quote(fact.text)
        length = len(fact.answer)
        return [
            f"stepwell cascade run {ladder} {prompt} --lambda 10",
            f"stepwell generate {large} {prompt} --max-new-tokens {length} --temperature 0",
            f"stepwell inspect {large} {text} --out attention.html",
            "stepwell train --task variable-renaming --preset tiny --steps 500 --run-name rename",
        ]

    def heading(self, text: str) -> None:
        """A line that begins a part."""
        self.output.note("")
        self.output.note(text, style="bold cyan")


def shown(path: Path) -> Path:
    """The path as it reads from the current directory, where it lies below that."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path

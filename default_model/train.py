"""Train the default model from nothing, on a CPU: `python default_model/train.py --out FOLDER`.

The learning rate and the sizes of the pictures follow the progress of the run, measured in steps
(`--steps`, reproducible) or in time (`--minutes`, done when you need it). A run that was stopped (SIGTERM)
goes on from FOLDER-training.pt when started again.
"""

from __future__ import annotations

import argparse
import collections
import logging
import math
import os
import signal
import time
from pathlib import Path

import torch
from batches import BatchMaker
from checkpoint import HIDDEN_SIZE, new_model, write_layout, write_weights
from forward import answer_losses, check_against_hugging_face, encode_pictures
from optimizer import Muon
from perception import PerceptionHead, scene_labels
from pictures import COLOURS, PLACES, SHAPES
from questions import COUNTS, ORDINALS
from tokenizers import Tokenizer

DEFAULT_STEPS = 7000
WARM_UP_STEPS = 60
# Parts of the run: pictures without questions, only one picture to a prompt.
PICTURES_UNTIL, EASY_UNTIL = 0.22, 0.32
NUM_PICTURES = 64  # in a batch without questions
NUM_EXTRA = 16  # pictures in a batch besides those of the questions
PERCEPTION_WEIGHT = 0.3
LOG_EVERY, SAVE_EVERY_S = 50, 180
# What makes an answer right or wrong counts more than the sentence around it.
CONTENT_WEIGHT = 3.0
CONTENT_WORDS = (
    *"0123456789", "Yes", "No", " yes", " no", " same", " different",
    *(f" {word}" for word in (*COLOURS, "grey", *SHAPES, *COUNTS, *ORDINALS)),
    *sorted({f" {word}" for place in PLACES for word in place.split()} - {" the"}),
)  # fmt: skip
logger = logging.getLogger("train")


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--state", type=Path, help="file of the resumable state")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--minutes", type=float, help="train for that long, not for --steps")
    parser.add_argument("--rows", type=int, default=16, help="sequences in a batch")
    parser.add_argument("--max-tokens", type=int, default=120, help="rough length of a sequence")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--number-share", type=float, default=0.45)
    parser.add_argument("--text-only", action="store_true", help="leave the vision tower as it is")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    return parser.parse_args()


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm up linearly, then follow a cosine down to 1% of the peak."""
    cosine = 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / WARM_UP_STEPS) * cosine


def make_optimizers(
    model: torch.nn.Module, head: PerceptionHead, rate: float
) -> list[torch.optim.Optimizer]:
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
        Muon(matrices, lr=rate, weight_decay=0.05),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), fused=True),
    ]


class Progress:
    """Counts what was answered right since the last log line."""

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
        means = [sum(values) / len(values) for values in zip(*self.perception, strict=True)]
        text = f"perception {means[0]:.3f} " + " ".join(f"{100 * m:.0f}" for m in means[1:])
        if not self.losses:
            return text
        kinds = (f"{k} {100 * self.right[k] / n:.0f}" for k, n in sorted(self.asked.items()))
        total = 100 * sum(self.right.values()) / sum(self.asked.values())
        loss = sum(self.losses) / len(self.losses)
        return f"{text} | loss {loss:.4f} right {total:.1f} | " + ", ".join(kinds)


class Trainer:
    """A training run that can be stopped and resumed."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Start from nothing, or from the state of a run that was stopped."""
        self.args = args
        write_layout(args.out)
        self.model = new_model(args.out, args.seed)
        self.head = PerceptionHead(HIDDEN_SIZE)
        self.optimizers = make_optimizers(self.model, self.head, args.learning_rate)
        tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
        self.maker = BatchMaker(tokenizer, args.seed, args.rows, args.max_tokens, args.number_share)
        self.content_ids = torch.tensor([self.maker.encode(word)[0] for word in CONTENT_WORDS])
        self.state_path = args.state or args.out.with_name(f"{args.out.name}-training.pt")
        self.step, self.spent_s = 0, 0.0
        self.window = Progress()
        if self.state_path.exists():
            state = torch.load(self.state_path)
            self.model.load_state_dict(state["model"])
            self.head.load_state_dict(state["head"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.spent_s = state["step"], state["spent_s"]
            logger.info("resumed at step %d after %.1f min", self.step, self.spent_s / 60)

    def save(self) -> None:
        """Write the state to resume from."""
        state = {
            "model": self.model.state_dict(),
            "head": self.head.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "spent_s": self.spent_s,
        }
        torch.save(state, f"{self.state_path}.new")
        os.replace(f"{self.state_path}.new", self.state_path)

    @property
    def progress(self) -> float:
        """How far the run has come, from 0 to 1."""
        if self.args.minutes:
            return self.spent_s / 60 / self.args.minutes
        return self.step / self.args.steps

    def train(self) -> bool:
        """Train until the end, or until a SIGTERM; tell which."""
        stops: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _: stops.append(number))
        saved_at = time.monotonic()
        while self.progress < 1 and not stops:
            started = time.monotonic()
            self._train_step()
            self.spent_s += time.monotonic() - started
            if self.step % LOG_EVERY == 0:
                minutes = self.spent_s / 60
                logger.info("step %d, %.1f min: %s", self.step, minutes, self.window)
                self.window = Progress()
            if time.monotonic() - saved_at > SAVE_EVERY_S:
                self.save()
                saved_at = time.monotonic()
        self.save()
        return not stops

    def _train_step(self) -> None:
        rate = learning_rate(self.args.learning_rate, self.step, self.progress)
        for group in (group for optimizer in self.optimizers for group in optimizer.param_groups):
            group["lr"] = rate
        loss = self._loss()
        self.model.zero_grad()
        self.head.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.step += 1

    def _loss(self) -> torch.Tensor:
        if self.progress < PICTURES_UNTIL:
            batch = self.maker.make_pictures(self.step, NUM_PICTURES)
        else:
            num_extra = 0 if self.args.text_only else NUM_EXTRA
            batch = self.maker.make(self.step, num_extra, is_easy=self.progress < EASY_UNTIL)
        with torch.set_grad_enabled(not self.args.text_only):
            embeds = encode_pictures(self.model, batch.pictures)
        labels = [
            label
            for scene, picture in zip(batch.scenes, batch.pictures, strict=True)
            for label in scene_labels(scene, picture.shape[1], picture.shape[0])
        ]
        perception_loss, seen_right = self.head(torch.cat(embeds), torch.tensor(labels))
        self.window.perception.append((perception_loss.item(), *seen_right))
        if not batch.rows:
            return PERCEPTION_WEIGHT * perception_loss
        losses, token_ids, is_right, owners = answer_losses(self.model, batch, embeds)
        weights = 1 + (CONTENT_WEIGHT - 1) * torch.isin(token_ids, self.content_ids)
        answer_loss = (losses * weights).sum() / weights.sum()
        self.window.add(batch.rows, is_right, owners, answer_loss.item())
        if self.args.text_only:
            return answer_loss
        return answer_loss + PERCEPTION_WEIGHT * perception_loss


def main() -> None:
    """Train and write the checkpoint."""
    args = parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    trainer = Trainer(args)
    check_against_hugging_face(trainer.model, trainer.maker.make(trainer.step))
    if trainer.train():
        num_parameters = write_weights(trainer.model, args.out)
        minutes = trainer.spent_s / 60
        logger.info("%d parameters, %d steps, %.1f min", num_parameters, trainer.step, minutes)


if __name__ == "__main__":
    main()

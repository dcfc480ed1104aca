"""When a run logs, evaluates and saves, and how far it is."""

import dataclasses
import math

from blossom_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Schedule:
    """When what happens.

    Attributes:
      num_steps: Steps in the whole run.
      log_every: Steps between two lines in the log.
      evaluate_every: Steps between two evaluations; the last step is always evaluated.
      checkpoint_every: Steps between two checkpoints besides those after evaluations; 0 = none.
      patience: Evaluations without a better one after which the run stops; 0 = never.
      metric: Of validation, higher is better; decides what is best.
      stop_at: Value of it at which the run stops; 0 = never.
      warmup: Steps in which the learning rate rises; evaluations up to there do not try patience.
    """

    num_steps: int
    log_every: int
    evaluate_every: int
    checkpoint_every: int
    patience: int
    metric: str
    stop_at: float = 0.0
    warmup: int = 0

    def __post_init__(self):
        for names, steps in (
            ("train.num_steps or else train.num_epochs", self.num_steps),
            ("log.every_steps", self.log_every),
            ("eval.every_steps or else eval.every_epochs", self.evaluate_every),
        ):
            if steps < 1:
                raise UserError(f"{names} must be at least 1, got {steps} steps")
        for name, number in (
            ("train.patience", self.patience),
            ("checkpoint.every_steps", self.checkpoint_every),
            ("train.stop_at", self.stop_at),
        ):
            if number < 0:
                raise UserError(f"{name} must not be negative, got {number}")

    def ends(self, progress: "Progress") -> bool:
        """Tells whether there is nothing left to train."""
        reached = progress.best_metrics.get(self.metric, -math.inf) >= self.stop_at > 0
        out_of_patience = 0 < self.patience <= progress.stale_evaluations
        return progress.step >= self.num_steps or out_of_patience or reached

    def logs(self, step: int) -> bool:
        """Tells whether a line is due after a step."""
        return step % self.log_every == 0 or step == self.num_steps

    def evaluates(self, step: int) -> bool:
        """Tells whether an evaluation is due after a step."""
        return step % self.evaluate_every == 0 or step == self.num_steps

    def saves(self, step: int) -> bool:
        """Tells whether a checkpoint is due after a step."""
        every = self.checkpoint_every
        return self.evaluates(step) or (every > 0 and step % every == 0)

    def reports(self, step: int) -> bool:
        """Tells whether anything needs the losses of all steps up to this one."""
        return self.logs(step) or self.saves(step)


@dataclasses.dataclass
class Progress:
    """What a run remembers besides its training state, as JSON in every checkpoint.

    Attributes:
      data: Hash of the log that is trained on.
      input_state: State of the stream after the last batch that was trained on.
      step: Steps taken.
      loss_sum: Sum of the loss over the targets since the last line in the log.
      count: Number of these targets.
      best_step: Step of the best evaluation, 0 before the first.
      best_metrics: What it measured.
      stale_evaluations: Evaluations since then, or since the warm-up.
      train_seconds: Time spent in `Trainer.fit`, over all parts of the run.
    """

    data: str
    input_state: dict
    step: int = 0
    loss_sum: float = 0.0
    count: float = 0.0
    best_step: int = 0
    best_metrics: dict = dataclasses.field(default_factory=dict)
    stale_evaluations: int = 0
    train_seconds: float = 0.0

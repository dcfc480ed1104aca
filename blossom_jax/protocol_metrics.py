"""The ranks of targets under every protocol, and the metrics that follow from them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from blossom_jax import metrics
from blossom_jax.coverage import coverage

KS = (1, 5, 10, 20)


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Rank of each user's target under each protocol; inf = a miss.

    Attributes:
      full: float64[n], among the items that are new to the user; a target that is not new is a
        miss.
      full_keep: float64[n], among all items.
      sampled: {protocol: float64[n]}, among the target and `num_negatives` others, from
        `negatives.draw`; the target itself is always ranked.
      num_items: V, size of the catalogue.
      num_negatives: Items drawn for each user and protocol, the same at every evaluation.
      num_seen: int64[n], different items of each user's history, the target left out.
      best_places: {"full": int32[V + 1], "full_keep": ..}, the best place of each item in the
        ranking of any user, from `coverage.note_places`; {} where it was not asked for.
      loss: float64[n], -log of the probability that a softmax over the catalogue gives the target,
        in nats; None where scores are not meant for a softmax.
    """

    full: Float[np.ndarray, "n"]
    full_keep: Float[np.ndarray, "n"]
    sampled: dict[str, Float[np.ndarray, "n"]]
    num_items: int
    num_negatives: int
    num_seen: Int[np.ndarray, "n"]
    best_places: dict[str, Int[np.ndarray, "catalogue"]] = dataclasses.field(default_factory=dict)
    loss: Float[np.ndarray, "n"] | None = None

    def of_users(self, chosen: Bool[np.ndarray, "n"]) -> "Ranks":
        """Returns the ranks of some users alone, without best places, which are of all."""
        return dataclasses.replace(
            self,
            full=self.full[chosen],
            full_keep=self.full_keep[chosen],
            sampled={name: ranks[chosen] for name, ranks in self.sampled.items()},
            num_seen=self.num_seen[chosen],
            loss=None if self.loss is None else self.loss[chosen],
            best_places={},
        )


def summarize(ranks: Ranks, ks: Sequence[int] = KS) -> dict[str, float]:
    """Averages the metrics of all protocols.

    Args:
      ranks: From `evaluate.Evaluator`.
      ks: Where rankings are cut off.

    Returns:
      {"loss": .., "full/recall@10": .., "full_keep/..": .., "uni100/..": .., "pop100/..": .., ..,
      "full/coverage@10": .., "full_keep/coverage@10": .., "repeated_targets": share of users whose
      target is not new to them}. The sampled protocols are those of `negatives.py`; uniform ones
      are followed by what they say about a full ranking: "uni100_corrected" estimates `full_keep`,
      and "uni100_unseen_corrected" `full`, but for targets that are not new, which count as if
      they were. Coverage is there where the best places are, and the loss where there is one and it
      is finite.
    """
    loss = np.nan if ranks.loss is None else float(np.mean(ranks.loss))
    found = {"loss": loss} if np.isfinite(loss) else {}
    for protocol, values in _by_protocol(ranks, ks).items():
        found |= {f"{protocol}/{metric}": value for metric, value in values.items()}
    repeated = np.isinf(ranks.full) & np.isfinite(ranks.full_keep)
    return {**found, "repeated_targets": float(np.mean(repeated))}


def _by_protocol(ranks: Ranks, ks: Sequence[int]) -> dict[str, dict[str, float]]:
    by_protocol = {
        "full": metrics.metrics_from_ranks(ranks.full, ks),
        "full_keep": metrics.metrics_from_ranks(ranks.full_keep, ks),
    }
    for name, best in ranks.best_places.items():
        by_protocol[name] |= coverage(best, ks)
    for name, sampled in ranks.sampled.items():
        by_protocol[name] = metrics.metrics_from_ranks(sampled, ks)
        if name.startswith("uni"):
            by_protocol[f"{name}_corrected"] = metrics.corrected_metrics_from_ranks(
                sampled,
                ks,
                num_items=ranks.num_items,
                num_negatives=ranks.num_negatives,
                num_excluded=ranks.num_seen if name.endswith("_unseen") else 0,
            )
    return by_protocol

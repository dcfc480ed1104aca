"""The protocol card: everything that decides what a metric means, saved and shown beside it."""

from typing import Any

import ml_collections

from blossom_jax.config import ModelConfig
from blossom_jax.data import Interactions, Split

SEEN_ITEMS = {
    "full": "items of the history are out of the ranking; a target among them is a miss",
    "full_keep": "all items are ranked",
    "sampled": "the target is always ranked, whether it is in the history or not",
}
NEGATIVES = {
    "uni": "uniform, the target alone excluded (RecBole's rule)",
    "uni_unseen": "uniform, the target and the whole history excluded (SASRec's rule)",
    "pop": "by how often items were trained on, the target alone excluded",
    "pop_unseen": "by how often items were trained on, target and history excluded",
}
TIES = "rank = 1 + items above + half of the others that score the same; NaN is a miss"


def make_card(
    config: ml_collections.ConfigDict, interactions: Interactions, split: Split, commit: str
) -> dict[str, Any]:
    """Returns what stands under "protocol" in results.json: JSON values only.

    Args:
      config: Of the run.
      interactions: The log.
      split: Of the log.
      commit: From `_commit.git_commit`, read when the command began.
    """
    data, evaluation = config.data, config.eval
    return {
        **split.card,
        "dataset": interactions.name,
        "items": interactions.num_items,
        "events": interactions.num_events,
        "filter": {
            "min_user_events": data.min_user_events,
            "min_item_events": data.min_item_events,
            "repeats": data.repeats,
        },
        "model_sees_events": ModelConfig(**config.model).history_length,
        "chosen_by": f"validation {evaluation.metric}",
        "seen_items": SEEN_ITEMS,
        "negatives": {
            "number": min(evaluation.num_negatives, interactions.num_items - 1),
            "seed": evaluation.negatives_seed,
            "without_repetition": True,
            **NEGATIVES,
        },
        "ties": TIES,
        "data_hash": interactions.content_hash,
        "commit": commit,
    }


def describe(card: dict[str, Any]) -> str:
    """Returns the card as lines, one for each decision; "" for one of an earlier version."""
    if "ties" not in card:
        return ""
    kept, negatives, filtered = card["seen_items"], card["negatives"], card["filter"]
    number = negatives["number"]
    rows = [
        ("split", _describe_split(card)),
        ("filter", ", ".join(f"{name} {value}" for name, value in filtered.items())),
        ("validation", _describe_targets(card["valid"])),
        ("test", _describe_targets(card["test"])),
        ("chosen by", card["chosen_by"]),
        *((name, kept[name]) for name in ("full", "full_keep")),
        *((_sampled_name(name, number), negatives[name]) for name in NEGATIVES),
        ("negatives", f"{number}, without repetition, seed {negatives['seed']}; {kept['sampled']}"),
        ("ties", card["ties"]),
        ("data", f"{card['dataset']}, {card['data_hash'][:16]}"),
        ("commit", card["commit"] or "unknown"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join(["protocol", *(f"  {name.ljust(width)}  {text}" for name, text in rows)])


def _sampled_name(name: str, number: int) -> str:
    kind, _, rule = name.partition("_")
    return f"{kind}{number}{'_' if rule else ''}{rule}"


def _describe_split(card: dict[str, Any]) -> str:
    sizes = f"{card['users']:,} users, {card['items']:,} items, {card['events']:,} events"
    rest = f"{card['users_train_only']:,} users train only, {card['items_unseen_in_training']:,} "
    times = [
        f"{name} {card[name]:,}"
        for name in ("valid_time", "test_time", "test_users_without_history")
        if name in card
    ]
    return ", ".join([f"{card['rule']} of {sizes}", *times, f"{rest}items are never trained on"])


def _describe_targets(part: dict[str, Any]) -> str:
    return (
        f"{part['users']:,} users, {part['repeated_target_share']:.1%} of targets repeat an item "
        f"of the history, {part['target_unseen_in_training_share']:.1%} were never trained on"
    )

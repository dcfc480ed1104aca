"""The planted structure of the generated log."""

import numpy as np
import pytest

from blossom_jax.data import synthetic
from blossom_jax.errors import UserError

USERS, LENGTH, ITEMS = 60, 96, 400


@pytest.fixture(scope="module")
def histories():
    table = synthetic.generate(num_users=USERS, num_items=ITEMS, history_length=LENGTH, seed=3)
    assert table["user"].to_list() == np.repeat(np.arange(USERS), LENGTH).tolist()
    return [part.to_list() for part in table["item"].reshape((USERS, LENGTH))]


def _kinds(history):
    return [item.split("-")[0] for item in history]


def test_history_opens_with_one_item_for_each_trait(histories):
    for history in histories:
        profile, rest = history[: synthetic.TRAITS], _kinds(history[synthetic.TRAITS :])
        assert sorted(item.rsplit("-", 1)[0] for item in profile) == [
            f"profile-{trait}" for trait in range(synthetic.TRAITS)
        ]
        assert "profile" not in rest
        assert rest.count("question") == 4 and rest.count("answer") == 8


def test_every_answer_follows_from_question_and_profile(histories):
    for history in histories:
        choice = dict(item.split("-")[1:] for item in history[: synthetic.TRAITS])
        asked = []
        for place, item in enumerate(history):
            if item.startswith("question-"):
                traits = [str(2 * int(item.split("-")[1]) + k) for k in range(2)]
                answers = [f"answer-{trait}-{choice[trait]}" for trait in traits]
                assert history[place + 1 : place + 3] == answers
                asked += traits
        assert len(set(asked)) == len(asked) == synthetic.TRAITS


def test_half_of_the_users_end_on_a_question(histories):
    ends = [_kinds(history[-3:]) for history in histories]
    assert all(end == ["question", "answer", "answer"] for end in ends[::2])
    assert all(end[1:] == ["walk", "walk"] for end in ends[1::2])


def test_walk_takes_small_steps_and_nothing_repeats(histories):
    ring = ITEMS - 2 * synthetic.TRAITS * synthetic.CHOICES - 4
    steps = []
    for history in histories:
        assert len(set(history)) == len(history)
        places = [int(i.split("-")[1]) for i in history if i.startswith("walk-")]
        steps += (np.diff(places) % ring).tolist()
    assert set(steps) == {1, 2}
    assert np.mean(np.array(steps) == 1) == pytest.approx(synthetic.STEP_OF_ONE, abs=0.03)


def test_choices_are_independent_of_all_that_is_recent(histories):
    # Over users, a trait's choice is uniform whatever the earlier answers were.
    choices = np.array(
        [
            [int(item.split("-")[2]) for item in sorted(history[: synthetic.TRAITS])]
            for history in histories
        ]
    )
    correlation = np.corrcoef(choices.T) - np.eye(synthetic.TRAITS)
    assert np.abs(correlation).max() < 0.5
    assert all(len(set(column)) >= synthetic.CHOICES - 1 for column in choices.T)


def test_seed_decides():
    sizes = {"num_users": 4, "num_items": 200, "history_length": 40}
    assert synthetic.generate(**sizes, seed=1).equals(synthetic.generate(**sizes, seed=1))
    assert not synthetic.generate(**sizes, seed=1).equals(synthetic.generate(**sizes, seed=2))


def test_smallest_sizes_work_and_smaller_ones_are_refused():
    smallest = {"num_users": 1, "num_items": 71, "history_length": 28, "seed": 0}
    assert len(synthetic.generate(**smallest)) == 28
    for sizes in ({"num_users": 0}, {"num_items": 70}, {"history_length": 27}):
        (name,) = sizes
        with pytest.raises(UserError, match=f"{name}={sizes[name]} (must be )?at"):
            synthetic.generate(**{**smallest, **sizes})


def test_histories_of_several_lengths_all_end_on_a_question():
    table = synthetic.generate_lengths(
        history_lengths=(64, 256), events_of_each=700, num_items=100, seed=0
    )
    histories = table.group_by("user", maintain_order=True).agg("item")["item"].to_list()
    assert [len(history) for history in histories] == [64] * 10 + [256] * 2
    assert table["user"].n_unique() == 12
    for history in histories:
        assert _kinds(history[-3:]) == ["question", "answer", "answer"]
        choice = dict(item.split("-")[1:] for item in history[: synthetic.TRAITS])
        for answer in history[-2:]:
            assert answer.split("-")[2] == choice[answer.split("-")[1]]
        assert _kinds(history).count("question") == 4

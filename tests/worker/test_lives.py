"""How often an actor that is lost is started again."""

import pytest

from share_dist.errors import WorkerError
from worker.lives import MOST_LIVES, begin_life


def test_an_actor_that_gets_further_may_be_lost_as_often_as_it_likes(tmp_path):
    """With one checkpoint more each time there is no bound."""
    for life in range(3 * MOST_LIVES):
        begin_life(tmp_path)
        kept = tmp_path / "tasks" / str(life) / "epoch.safetensors"
        kept.parent.mkdir(parents=True)
        kept.touch()


def test_an_actor_that_is_lost_at_one_place_again_and_again_gives_up(tmp_path):
    """The error says how often, and where to look."""
    for _ in range(MOST_LIVES):
        begin_life(tmp_path)
    with pytest.raises(
        WorkerError, match=f"lost {MOST_LIVES + 1} times .*want of memory.*--resume"
    ):
        begin_life(tmp_path)

"""Scores beside the one that tasks are compared by, such as the perplexity of a task that is judged by exact match."""

from collections.abc import Mapping, Sequence

from worker.bench.seeds import mean_of

Scores = Mapping[str, float]
"""Name -> score."""


def by_name(runs: Mapping[str, Sequence[Scores]]) -> dict[str, dict[str, float | None]]:
    """
    Put the scores of one name side by side.

    Args:
        runs: Task -> scores of each seed.

    Returns:
        Name -> task -> mean over seeds; tasks without such a score are left out.

    Examples:
        >>> by_name({"movies": [{"perplexity": 2.0}, {"perplexity": 4.0}], "nyt": [{"pearson": 0.5}]})
        {'pearson': {'nyt': 0.5}, 'perplexity': {'movies': 3.0}}
    """
    names = sorted({name for each in runs.values() for scores in each for name in scores})
    return {
        name: {
            task_id: mean_of(scores.get(name) for scores in each)
            for task_id, each in runs.items()
            if any(name in scores for scores in each)
        }
        for name in names
    }

"""The report's numbers: from the records alone, each check able to fail."""

import json

import pytest

from share_dist.commands.report import BYTE_COLUMNS, COLUMNS, columns_of
from share_dist.errors import WorkerError
from tests.commands.results import NAMES, TASKS, report_of, results_of


@pytest.fixture(scope="module")
def report():
    return report_of(with_lora=True)


def checks_of(report):
    return {check["what"]: check for check in report["checks"]}


def test_every_task_of_every_worker_has_a_row(report):
    """Rows come in the order of workers and streams, and take the records over as they are."""
    assert [(row["task"], row["worker"]) for row in report["tasks"]] == [
        (task, worker) for worker, tasks in TASKS.items() for task in tasks
    ]
    movies = report["tasks"][0]
    assert (movies["frozen"], movies["learnt"], movies["final"]) == (0.752, 0.801, 0.803)
    assert (movies["kind"], movies["total_bytes"]) == ("sentiment", 98_304 + 3_080)
    assert movies["standard_error"] == pytest.approx((0.803 * 0.197 / 1000) ** 0.5)


def test_the_summary_is_the_mean_of_what_it_says(report):
    """Gains are over the right tasks, changes over all, late updates per worker."""
    numbers = {task: values for tasks in TASKS.values() for task, values in tasks.items()}
    topics = ("newsgroups-rec", "reuters-r8", "newsgroups-sci")
    gains = {task: numbers[task][5] - numbers[task][3] for task in NAMES}
    summary = report["summary"]
    assert summary["gain_on_topics"] == pytest.approx(sum(gains[task] for task in topics) / 3)
    others = [gain for task, gain in gains.items() if task not in topics]
    assert summary["gain_where_there_is_room"] == pytest.approx(sum(others) / 5)
    assert summary["worst_change_since_learnt"] == pytest.approx(-0.004)
    assert summary["late_updates"] == {"north": 1, "south": 4}
    assert summary["gain_over_own_lora"] < 0


def test_bytes_in_all_are_the_formulas(report):
    """12 layers of 384 x 384, k 32, p 8: bases once, then coefficients and heads per task."""
    account = report["bytes"]["accounts"][0]
    basis, coefficients = 12 * 2 * 384 * 32 * 4, 12 * 2 * 8 * 32 * 4
    lora = 12 * 2 * 8 * 384 * 4
    assert account == {
        "num_tasks": 8,
        "lora_rank": 8,
        "basis": basis,
        "coefficients": 8 * coefficients,
        "heads": 8 * 3_080,
        "total": basis + 8 * (coefficients + 3_080),
        "lora_total": 8 * (lora + 3_080),
        "break_even": basis // (lora - coefficients) + 1,
    }
    assert report["bytes"]["sent"] == sum(row["total_bytes"] for row in report["tasks"])
    assert report["bytes"]["sent_without_heads"] == report["bytes"]["sent"] - 8 * 3_080
    assert {each["num_tasks"] for each in report["bytes"]["accounts"]} == {8, 10, 100, 1000}


def test_a_good_run_reaches_everything(report):
    """All six checks are reached, and each says what it needed."""
    assert len(report["checks"]) == 6
    assert [check["reached"] for check in report["checks"]] == [True] * 6


def worse(**changes):
    """The same run with one field of every task of both workers changed."""
    workers = [results_of(worker) for worker in TASKS]
    for worker in workers:
        for task in worker["tasks"]:
            task.update({field: change(task) for field, change in changes.items()})
    return workers


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"frozen": lambda task: task["final"] - 0.019}, "sentiment and author tasks"),
        ({"frozen": lambda task: task["final"] + 0.011}, "topic tasks"),
        ({"learnt": lambda task: task["final"] + 0.011}, "mean change since learnt"),
        ({"adapter_bytes": lambda task: task["lora_bytes"]}, "smaller than their rank-8 LoRA"),
        ({"lag": lambda task: 0}, "late updates"),
    ],
)
def test_each_check_can_fail(changes, what):
    """A run that just misses a figure is told so, by that figure."""
    checks = checks_of(report_of(workers=worse(**changes)))
    (missed,) = [check for name, check in checks.items() if what in name]
    assert missed["reached"] is False


def test_the_export_check_can_fail():
    """Logits that differ from peft's by more than 1e-4 are not reached."""
    checks = report_of(export={"largest_difference": 2e-4})["checks"]
    assert [check["reached"] for check in checks if check["bound"] == "at most"] == [False]


def test_columns_that_no_task_has_are_left_out(report):
    """Without --compare there is no column for it; with it there is."""
    assert "lora" in columns_of(report, COLUMNS)
    plain = report_of()
    assert "lora" not in columns_of(plain, COLUMNS)
    assert list(columns_of(plain, BYTE_COLUMNS)) == list(BYTE_COLUMNS)
    assert plain["summary"]["gain_over_own_lora"] is None


def test_an_unfinished_task_is_named():
    """Records of a run that did not end well make no report: which task, what it lacks."""
    workers = [results_of(worker) for worker in TASKS]
    workers[1]["tasks"][2]["final"] = None
    with pytest.raises(WorkerError, match=r"'reuters-r8' of worker 'south'.* no final"):
        report_of(workers=workers)


def test_the_report_is_json(report):
    """What is saved comes back equal."""
    assert json.loads(json.dumps(report)) == report

import re

import pytest

from worker.bench.cell import Cell, CellFolder
from worker.bench.methods import METHODS
from worker.bench.report import markdown, render, tables
from worker.bench.runner import lesson_of
from worker.bench.summary import interval, mean_of, summarise

SCORES = {"mood": 0.8, "food": 0.6, "motion": 0.7}


def fill(suite, folder, method, gain=0.0):
    """Outcomes of all cells of a method of one task; a later seed is one point better."""
    for task_id, score in SCORES.items():
        for seed in range(suite.settings.seeds):
            for at, rate in enumerate(METHODS[method].rates or (None,)):
                outcome = {
                    "test": score + gain + 0.01 * seed,
                    "validation": -at,
                    "majority": 0.5,
                    "head_bytes": 8,
                    "num_parameters": 100,
                    "adapter_bytes": 400,
                    "seconds": 2.0,
                    "peak_mib": 100,
                }
                folder.save(Cell(method, seed, task_id, rate), outcome)


def stream_outcome(order):
    matrix = [[0.9, None, None], [0.8, 0.7, None], [0.8, 0.6, 0.7]]
    return {
        "order": order,
        "matrix": matrix,
        "final": dict(zip(order, matrix[-1], strict=True)),
        "learnt": dict(zip(order, (0.9, 0.7, 0.7), strict=True)),
        "versions": [{"version": 1, "mean_energy_kept": 1.0, "angle": 0.0, "num_factors": 4}],
        "seconds": 6.0,
    }


@pytest.fixture
def filled(make_suite, tmp_path):
    suite = make_suite("frozen", "lora", "share")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    fill(suite, folder, "frozen")
    fill(suite, folder, "lora", gain=0.1)
    for seed in range(2):
        folder.save(Cell("share", seed), stream_outcome(suite.order(seed)))
    return suite, folder


def test_means_are_over_tasks_and_seeds(filled):
    """A method's accuracy by seed is the mean over tasks, and that of a task the mean over seeds."""
    methods = summarise(*filled)["methods"]
    assert methods["lora"]["by_seed"] == pytest.approx([0.8, 0.81])
    assert methods["lora"]["tasks"]["mood"] == pytest.approx(0.905)
    assert methods["lora"]["rates"]["mood"] == METHODS["lora"].rates[0]
    assert methods["frozen"]["majority"]["food"] == 0.5


def test_a_stream_is_judged_by_its_matrix(filled):
    """Backward transfer is final less when learnt, over all but the last task."""
    scores = summarise(*filled)["methods"]["share"]["scores"]
    assert scores["backward_transfer"] == pytest.approx((0.8 - 0.9 + 0.6 - 0.7) / 2)
    assert scores["learning_accuracy"] == pytest.approx((0.9 + 0.7 + 0.7) / 3)


def test_a_method_that_lacks_a_seed_has_no_mean_yet(filled, tmp_path):
    """A mean over some tasks only would compare with nothing: it is left out, and told as missing."""
    suite, folder = filled
    folder.path(Cell("frozen", 1, "mood")).unlink()
    again = CellFolder(tmp_path / "bench", lesson_of(suite))
    summary = summarise(suite, again)
    assert summary["missing"] == 1
    assert summary["methods"]["frozen"]["by_seed"] == []
    assert "frozen" not in [line[0] for line in next(iter(tables(summary).values()))[1]]


def test_the_page_holds_every_table_and_figure(filled):
    """The page shows every number of the tables, and fetches nothing."""
    summary = summarise(*filled)
    page = render(summary)
    for title, (_, lines) in tables(summary).items():
        assert title[1:] in page
        assert all(cell in page for line in lines for cell in line)
    assert page.count("<svg") == 3
    assert not re.search(r'(src|href)="(?!#|data:)', page)


def test_a_table_in_markdown_has_a_line_for_each_line(filled):
    """As the README has it."""
    rows = next(iter(tables(summarise(*filled)).values()))
    lines = markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows[1])
    assert lines[0].startswith("| method |")


def test_an_interval_of_paired_differences_is_students():
    """Three differences of mean 0 and deviation 1 leave 0 ± 4.303 / sqrt(3); one leaves nothing to say."""
    low, high = interval([-1.0, 0.0, 1.0])
    assert (low, high) == pytest.approx((-4.3027 / 3**0.5, 4.3027 / 3**0.5), rel=1e-4)
    assert interval([0.1]) is None
    assert mean_of([None, None]) is None

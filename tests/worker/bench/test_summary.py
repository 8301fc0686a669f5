import re
from dataclasses import replace

import pytest

from worker.bench.cell import Cell, CellFolder
from worker.bench.methods import METHODS
from worker.bench.plan import SEARCH_SEED
from worker.bench.report import markdown, render, tables
from worker.bench.runner import lesson_of
from worker.bench.seeds import interval, mean_of
from worker.bench.summary import TASK_COUNTS, summarise

SCORES = {"mood": 0.8, "food": 0.6, "motion": 0.7}


def fill(suite, folder, method, gain=0.0, rows=None):
    """Outcomes of all cells of a method of one task; a later seed is one point better."""
    for task_id, score in SCORES.items():
        for seed in range(suite.settings.seeds):
            for at, rate in enumerate(METHODS[method].rates or (None,)):
                outcome = {
                    "test": score + gain + 0.01 * seed,
                    "metric": "accuracy",
                    "scores": {"accuracy": score + gain + 0.01 * seed},
                    "validation": -at,
                    "majority": 0.5,
                    "head_bytes": 8,
                    "num_parameters": 100,
                    "adapter_bytes": 400,
                    "seconds": 2.0,
                    "peak_mib": 100,
                }
                folder.save(Cell(method, seed, task_id, rate, rows), outcome)


def keep_stream(folder, name, seed, outcome):
    """Keep the outcome of a stream with `share` or a variant, whose search found the first rate."""
    searched = METHODS[name].rates_of or name
    first, *others = METHODS[searched].rates
    for rate in others:
        folder.save(Cell(searched, SEARCH_SEED, rate=rate), {"validation": 0.0})
    if folder.load(Cell(searched, SEARCH_SEED, rate=first)) is None:
        folder.save(Cell(searched, SEARCH_SEED, rate=first), {"validation": 1.0})
    folder.save(Cell(name, seed, rate=first), {"validation": 1.0} | outcome)


def stream_outcome(order):
    matrix = [[0.9, None, None], [0.8, 0.7, None], [0.8, 0.6, 0.7]]
    return {
        "order": order,
        "matrix": matrix,
        "final": dict(zip(order, matrix[-1], strict=True)),
        "learnt": dict(zip(order, (0.9, 0.7, 0.7), strict=True)),
        "versions": [
            {
                "version": number,
                "task_ids": [task_id],
                "mean_energy_kept": 1.0,
                "angle": 0.0,
                "num_factors": 4,
                "subspace_bytes": 300 * number,
            }
            for number, task_id in enumerate(order, start=1)
        ],
        "sent_bytes": dict(zip(order, (90, 60, 30), strict=True)),
        "wire_bytes": dict(zip(order, (120, 90, 60), strict=True)),
        "coefficient_bytes": 40,
        "basis_bytes": 1000,
        "seconds": 6.0,
    }


@pytest.fixture
def filled(make_suite, tmp_path):
    suite = make_suite("frozen", "lora", "share")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    fill(suite, folder, "frozen")
    fill(suite, folder, "lora", gain=0.1)
    for seed in range(2):
        keep_stream(folder, "share", seed, stream_outcome(suite.order(seed)))
    return suite, folder


def test_means_are_over_tasks_and_seeds(filled):
    """A method's accuracy by seed is the mean over tasks, and that of a task the mean over seeds."""
    methods = summarise(*filled)["methods"]
    assert methods["lora"]["by_seed"] == pytest.approx([0.8, 0.81])
    assert methods["lora"]["tasks"]["mood"] == pytest.approx(0.905)
    assert methods["lora"]["rates"]["mood"] == METHODS["lora"].rates[0]
    assert methods["frozen"]["majority"]["food"] == 0.5


def test_what_of_a_loras_gain_is_kept_is_told(filled):
    """The frozen model has none of it and the LoRA all; `share` loses what forgetting takes. Where a LoRA gains nothing, nothing is told."""
    suite, folder = filled
    summary = summarise(suite, folder)
    lines = {line[0]: line[3] for line in tables(summary)["accuracy and cost, mean of 2 seeds"][1]}
    # LoRAs gain 0.1 over 0.705, and the stream ends at 0.7
    assert lines == {"frozen": "0.00", "lora": "1.00", "share": "-0.05"}
    fill(suite, folder, "lora", gain=-0.1)
    lines = tables(summarise(suite, folder))["accuracy and cost, mean of 2 seeds"][1]
    assert {line[3] for line in lines} == {"-"}


def test_principal_factors_are_told_by_version(filled):
    """One number where all seeds have it, else the least and the largest."""
    suite, folder = filled
    title = "principal factors a side (k) by version"
    headings, (line,) = tables(summarise(suite, folder))[title]
    versions = stream_outcome(suite.order(1))["versions"]
    assert headings == ["method", *(str(each["version"]) for each in versions)]
    assert line == ["share", *(str(each["num_factors"]) for each in versions)]
    outcome = stream_outcome(suite.order(1))
    outcome["versions"][-1]["num_factors"] += 3
    keep_stream(folder, "share", 1, outcome)
    _, (line,) = tables(summarise(suite, folder))[title]
    last = versions[-1]["num_factors"]
    assert line[-1] == f"{last}-{last + 3}"


def test_a_stream_is_judged_by_its_matrix(filled):
    """Backward transfer is final less when learnt, over all but the last task."""
    scores = summarise(*filled)["methods"]["share"]["scores"]
    assert scores["backward_transfer"] == pytest.approx((0.8 - 0.9 + 0.6 - 0.7) / 2)
    assert scores["learning_accuracy"] == pytest.approx((0.9 + 0.7 + 0.7) / 3)


def test_fewer_bits_are_compared_with_fp32_seed_by_seed(make_suite, tmp_path):
    """A task's score in 4 bits, less the same task's and seed's in fp32, over all tasks; its bytes as a share of a LoRA's."""
    suite = make_suite("lora", "eigenlorax")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    fill(suite, folder, "lora", gain=0.1)
    fill(suite, folder, "eigenlorax")
    for task_id in SCORES:
        for seed in range(2):
            cell = Cell("eigenlorax", seed, task_id, METHODS["eigenlorax"].rates[0])
            outcome = folder.load(cell)
            short = {"test": outcome["test"] - 0.02 * (seed + 1), "adapter_bytes": 50}
            folder.save(cell, {**outcome, "in_fewer_bits": {"int4": short}})
    summary = summarise(suite, folder)
    found = summary["methods"]["eigenlorax"]["in_fewer_bits"]["int4"]
    assert found["by_seed"] == pytest.approx([0.68, 0.67])
    assert found["less_fp32"]["by_seed"] == pytest.approx([-0.02, -0.04])
    assert summary["methods"]["lora"]["in_fewer_bits"] == {}
    _, (line,) = tables(summary)["coefficients sent in fewer bits"]
    assert line[:4] == ["eigenlorax", "int4", "50", "0.1250"]


def test_what_a_search_has_found_is_told(make_suite, tmp_path):
    """The mean over the search's tasks at each rate and the best of them; a rate that diverged has none, and an unfinished search no line. A best rate at the end of those tried is marked."""
    suite = make_suite("frozen", "lora", "vera", "eigenlorax", "share")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    for name in ("frozen", "lora", "eigenlorax", "vera"):
        fill(suite, folder, name)
    first, second, third, last = METHODS["lora"].rates
    for at, task_id in enumerate(suite.search_tasks):
        cell = Cell("lora", SEARCH_SEED, task_id, second)
        folder.save(cell, {**folder.load(cell), "validation": 0.5 + at})
    folder.save(Cell("lora", SEARCH_SEED, suite.search_tasks[0], last), {"diverged": "early"})
    folder.path(Cell("eigenlorax", SEARCH_SEED, suite.search_tasks[0], 0.02)).unlink()
    summary = summarise(suite, CellFolder(tmp_path / "bench", lesson_of(suite)))
    mean = 0.5 + (len(suite.search_tasks) - 1) / 2
    of_lora = {f"{first:g}": 0.0, f"{second:g}": mean, f"{third:g}": -2.0, f"{last:g}": None}
    assert summary["searched"].keys() == {"lora", "vera"}
    assert summary["searched"]["lora"] == of_lora
    titled = "learning rates searched: mean validation score of one seed"
    headings, (line, of_vera) = tables(summary)[titled]
    assert headings[:2] == ["method", "best"]
    told = dict(zip(headings, line, strict=True))
    assert told["best"] == f"{second:g}"
    assert [told[rate] for rate in of_lora] == ["0.0000", f"{mean:.4f}", "-2.0000", "diverged"]
    assert of_vera[1] == f"{METHODS['vera'].rates[0]:g} (end)"


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
    assert page.count("<svg") == 4
    assert not re.search(r'(src|href)="(?!#|data:)', page)


def test_a_table_in_markdown_has_a_line_for_each_line(filled):
    """As the README has it."""
    rows = next(iter(tables(summarise(*filled)).values()))
    lines = markdown(rows).splitlines()
    assert len(lines) == 2 + len(rows[1])
    assert lines[0].startswith("| method |")


def test_forward_transfer_is_told_where_the_next_task_was_scored(filled):
    """The score just before a task is learnt, less that of the frozen model; without such scores nothing is told."""
    suite, folder = filled
    assert summarise(suite, folder)["methods"]["share"]["scores"]["forward_transfer"] is None
    for seed in range(2):
        outcome = stream_outcome(suite.order(seed))
        outcome["matrix"] = [[0.9, 0.6, None], [0.8, 0.7, 0.4], [0.8, 0.6, 0.7]]
        outcome["before"] = dict(zip(outcome["order"], (0.5, 0.5, 0.6), strict=True))
        keep_stream(folder, "share", seed, outcome)
    summary = summarise(suite, folder)
    found = summary["methods"]["share"]["scores"]["forward_transfer"]
    assert found == pytest.approx((0.6 - 0.5 + 0.4 - 0.6) / 2)
    assert "-0.0500" in tables(summary)["streams: what later tasks do to earlier ones"][1][0]


def test_bytes_of_a_task_are_told_with_its_head_and_without(filled):
    """
    A LoRA is sent as it is served and kept; of a subspace the coefficients are served, and what is sent is the mean over tasks, as are the whole payload and the bases of the
    two versions that a worker pulled for three tasks.

    Three tasks of two temporary factors bring six of the eight columns that a coordinator may keep, of which four are served; beside them stand 2 x 2 numbers of eight bytes a side, and 40 bytes are those of 1.25 sides.
    """
    suite, _ = filled
    assert suite.settings.num_factors + suite.settings.oversample == 8
    assert (suite.stream.training.pseudo_rank, suite.stream.training.num_temporary) == (2, 2)
    summary = summarise(*filled)
    assert summary["bytes"]["head"] == 8
    of_lora = {"sent": 400, "pulled": None, "wire": None, "served": 400, "kept": 400}
    of_share = {"sent": 60, "pulled": 300, "wire": 90, "served": 40, "kept": 60 + 1.25 * 2 * 2 * 8}
    assert summary["bytes"]["tasks"]["lora"] == of_lora
    assert summary["bytes"]["tasks"]["share"] == of_share
    lines = {
        line[0]: line[1:] for line in tables(summary)["bytes of a task in fp32, bases left out"][1]
    }
    assert lines["share"][:8] == ["60", "0.150", "68", "300", "90", "40", "0.100", "48"]
    assert lines["lora"] == ["400", "1.000", "408", "-", "-", *["400", "1.000", "408"] * 2]


def test_bytes_in_all_count_the_bases_once(filled):
    """Bases, and coefficients and a head for each task, against a LoRA and a head for each."""
    summary = summarise(*filled)
    in_all = summary["bytes"]["in_all"]
    assert in_all["share"]["served"] == [1000 + count * (40 + 8) for count in TASK_COUNTS]
    # one task brings no more directions than are served
    assert in_all["share"]["kept"][0] == 1000 + 40 + 40 + 8
    assert in_all["share"]["kept"][1:] == [
        2000 + count * (80 + 40 + 8) for count in TASK_COUNTS[1:]
    ]
    assert in_all["lora"]["kept"] == [count * (400 + 8) for count in TASK_COUNTS]
    lines = next(each for title, each in tables(summary).items() if title.startswith("bytes in all"))[1]  # fmt: skip
    assert lines[0][:2] == ["lora, bytes", "408"]
    assert lines[1][:2] == ["share, served", f"{1048 / 408:.3f}"]
    assert lines[2][-1] == f"{in_all['share']['kept'][-1] / 408000:.3f}"


def test_bytes_of_several_updates_are_not_those_on_the_wire_of_one(make_suite, tmp_path):
    """A task that is refined is sent twice, and only the last of its payloads is known."""
    suite = make_suite("share-refined")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    for seed in range(2):
        keep_stream(folder, "share-refined", seed, stream_outcome(suite.order(seed)))
    found = summarise(suite, folder)["bytes"]["tasks"]["share-refined"]
    assert (found["sent"], found["wire"]) == (60, None)


def test_the_share_of_a_lora_has_its_spread_over_seeds(filled):
    """Each seed's mean is taken as a share of the LoRAs' of the same seed."""
    summary = summarise(*filled)
    found = summary["comparisons"]["of_lora"]["frozen"]
    assert found["by_seed"] == pytest.approx([0.7 / 0.8, 0.71 / 0.81])
    line = next(iter(tables(summary).values()))[1][0]
    assert line[2] == f"{found['mean']:.3f} ± {found['deviation']:.3f}"
    assert line[-1] == "100"


def test_a_share_of_a_lora_that_has_learnt_nothing_is_not_told(make_suite, tmp_path):
    """Where LoRAs score zero or less on the mean, as a correlation may, there is nothing to be a share of; all else is told."""
    suite = make_suite("lora", "frozen")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    fill(suite, folder, "lora", gain=-0.8)
    fill(suite, folder, "frozen")
    summary = summarise(suite, folder)
    assert summary["comparisons"]["of_lora"] == {}
    lines = tables(summary)["accuracy and cost, mean of 2 seeds"][1]
    assert [line[2:4] for line in lines] == [["-", "-"], ["-", "-"]]
    assert render(summary)


def test_workers_at_once_are_compared_seed_by_seed(make_suite, tmp_path):
    """The mean of the paired differences has its 95 % interval, and is left out until every seed is there."""
    suite = make_suite("share", "share-async")
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    for seed in range(2):
        outcome = stream_outcome(suite.order(seed))
        keep_stream(folder, "share", seed, outcome)
        assert summarise(suite, folder)["comparisons"]["less_share"] == {"share-async": None}
        final = {name: each - 0.01 * (seed + 1) for name, each in outcome["final"].items()}
        lags = dict(zip(outcome["order"], (0, seed, 2), strict=True))
        changed = {"final": final, "matrix": None, "lags": lags}
        keep_stream(folder, "share-async", seed, outcome | changed)
    found = summarise(suite, folder)["comparisons"]["less_share"]["share-async"]
    assert found["by_seed"] == pytest.approx([-0.01, -0.02])
    assert found["interval"] == pytest.approx(interval([-0.01, -0.02]))
    (line,) = tables(summarise(suite, folder))["four workers at once against one"][1]
    assert line[1:] == ["-0.0150", "-0.0785 to +0.0485", "2", "2"]


def test_gains_from_few_rows_are_over_the_lora_and_the_control(make_suite, tmp_path):
    """Seed by seed, with the spread; nothing is told of a method that lacks a seed."""
    suite = make_suite("lora", "eigenlorax", "random-subspace")
    suite = replace(suite, settings=suite.settings.model_copy(update={"few_rows": 16}))
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    for each in ("lora", "random-subspace", "eigenlorax"):
        fill(suite, folder, each)
    fill(suite, folder, "lora", rows=16)
    fill(suite, folder, "random-subspace", gain=-0.05, rows=16)
    fill(suite, folder, "eigenlorax", gain=0.1, rows=16)
    summary = summarise(suite, folder)
    over_lora, over_random = (
        summary["comparisons"][f"few_over_{each}"] for each in ("lora", "random")
    )
    assert over_lora["eigenlorax"]["by_seed"] == pytest.approx([0.1, 0.1])
    assert over_random["eigenlorax"]["by_seed"] == pytest.approx([0.15, 0.15])
    lines = {line[0]: line[1:] for line in tables(summary)["gain from 16 rows"][1]}
    assert lines["random-subspace"] == ["-0.0500 ± 0.0000", "-"]
    folder.path(Cell("eigenlorax", 1, "mood", METHODS["eigenlorax"].rates[0], 16)).unlink()
    again = CellFolder(tmp_path / "bench", lesson_of(suite))
    assert "eigenlorax" not in summarise(suite, again)["comparisons"]["few_over_lora"]


def test_a_first_gradients_start_is_compared_with_random_directions_that_have_it_too(
    make_suite, tmp_path
):
    """Else a gain from where a task begins would be told as one from what tasks share."""
    names = ("lora", "eigenlorax", "eigenlorax-gradient", "random-subspace", "random-gradient")
    suite = make_suite(*names)
    suite = replace(suite, settings=suite.settings.model_copy(update={"few_rows": 16}))
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    for at, each in enumerate(names):
        fill(suite, folder, each)
        fill(suite, folder, each, gain=0.01 * at**2, rows=16)
    found = summarise(suite, folder)["comparisons"]["few_over_random"]
    assert found["eigenlorax"]["by_seed"] == pytest.approx([0.01 - 0.09] * 2)
    assert found["eigenlorax-gradient"]["by_seed"] == pytest.approx([0.04 - 0.16] * 2)


def test_task_free_use_is_shown_where_it_was_measured(filled):
    """Runs that lack it are left out; of a task that classifies no rows there is nothing but the choice."""
    suite, folder = filled
    title = "rows without their task's id"
    assert title not in tables(summarise(suite, folder))
    found = {
        "rows": 300,
        "choice": 0.9,
        "choice_by_task": {},
        "abstained": 0.05,
        "calibration_error": 0.02,
    }
    keep_stream(folder, "share", 0, stream_outcome(suite.order(0)) | {"task_free": found})
    summary = summarise(suite, folder)
    assert summary["methods"]["share"]["task_free"]["choice"]["by_seed"] == [0.9]
    assert tables(summary)[title][1] == [["share", "300", "0.900", "0.050", "-", "-", "-", "0.020"]]
    answered = found | {"choice": 0.8, "strangers_abstained": 0.4, "oracle": 0.85, "routed": 0.75}
    keep_stream(folder, "share", 1, stream_outcome(suite.order(1)) | {"task_free": answered})
    (line,) = tables(summarise(suite, folder))[title][1]
    assert line[2:] == [
        "0.850 ± 0.071",
        "0.050 ± 0.000",
        "0.400",
        "0.850",
        "0.750",
        "0.020 ± 0.000",
    ]


def test_an_interval_of_paired_differences_is_students():
    """Three differences of mean 0 and deviation 1 leave 0 ± 4.303 / sqrt(3); one leaves nothing to say."""
    low, high = interval([-1.0, 0.0, 1.0])
    assert (low, high) == pytest.approx((-4.3027 / 3**0.5, 4.3027 / 3**0.5), rel=1e-4)
    assert interval([0.1]) is None
    assert mean_of([None, None]) is None

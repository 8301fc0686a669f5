from dataclasses import replace
from pathlib import Path

import pytest
import torch

from share_dist.errors import ConfigError, StreamError
from worker.bench.cell import Cell, CellFolder
from worker.bench.command import Asked, chosen_suite
from worker.bench.methods import METHODS, first_step
from worker.bench.plan import SEARCH_SEED, Plan
from worker.bench.runner import lesson_of
from worker.bench.suite import read_suite, suite_names
from worker.stream import read_stream, write_stream


@pytest.mark.parametrize("name", suite_names())
def test_every_suite_of_the_package_can_be_read(name):
    """Whatever comes with the package names known methods and tasks, also when it is made small."""
    suite = read_suite(name, list(METHODS))
    assert suite.small().task_ids
    assert set(suite.small().settings.methods) <= set(suite.settings.methods)


def test_each_seed_is_an_order_of_all_tasks(make_suite):
    """Seed 0 is the order of the file; others hold the same tasks, and the same order every time."""
    suite = make_suite("frozen")
    assert suite.order(0) == suite.task_ids
    orders = [tuple(suite.order(seed)) for seed in range(8)]
    assert len(set(orders)) > 1
    assert all(sorted(each) == sorted(suite.task_ids) for each in orders)
    assert suite.order(5) == list(orders[5])


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('methods = ["frozen"]', 'methods = ["frozen", "lorra"]', "unknown method.*lorra"),
        ('tasks = ["mood", "food"]', 'tasks = ["moood"]', "unknown task.*moood"),
        ("seeds = 2", "seeds = 0", "bench.seeds"),
        ("seeds = 2", "sedes = 2", "bench.sedes"),
    ],
)
def test_a_mistake_in_a_suite_is_named(make_suite, old, new, said):
    """An unknown method, task or key, and a number that cannot be, are named."""
    path = make_suite("frozen").stream.path
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ConfigError, match=said):
        read_suite(str(path), list(METHODS))


def test_an_unknown_suite_is_answered_by_those_that_there_are():
    """A name that is neither a suite nor a file lists the suites."""
    with pytest.raises(ConfigError, match="text"):
        read_suite("txet", list(METHODS))


def test_a_stream_inside_a_suite_is_checked_like_any(make_suite):
    """A mistake outside of ``[bench]`` is told as one in a stream file."""
    path = make_suite("frozen").stream.path
    path.write_text(path.read_text().replace("epochs", "epoks", 1))
    with pytest.raises(StreamError, match="epochs"):
        read_suite(str(path), list(METHODS))


def test_a_stream_that_is_written_elsewhere_says_the_same(make_suite, tmp_path):
    """A written stream has the same lesson, and its relative paths mean the same files."""
    stream = make_suite("frozen").stream
    stream = type(stream)(
        stream.path,
        "south",
        stream.model.model_copy(update={"path": str(Path(stream.model.path).relative_to("/"))}),
        stream.training,
        stream.tasks,
    )
    at_root = type(stream)(Path("/suite.toml"), *list(vars(stream).values())[1:])
    target = tmp_path / "elsewhere" / "south.toml"
    write_stream(at_root, target)
    read = read_stream(target)
    assert read.worker_id == "south"
    assert (read.training, read.tasks) == (stream.training, stream.tasks)
    assert Path(read.model.path) == Path("/") / stream.model.path


def test_a_suite_may_try_learning_rates_of_its_own(make_suite, tmp_path):
    """Where a suite names rates for a method they are searched instead of the method's; the others keep theirs."""
    path = make_suite("lora", "vera").stream.path
    path.write_text(
        path.read_text().replace(
            "[bench.small]", "[bench.rates]\nlora = [1e-4, 3e-4]\n[bench.small]"
        )
    )
    suite = read_suite(str(path), list(METHODS))
    plan = Plan(suite, CellFolder(tmp_path / "bench", lesson_of(suite)))
    searched = {(work.cell.method, work.cell.rate) for work in plan.ready()}
    wanted = {("lora", 1e-4), ("lora", 3e-4)} | {("vera", rate) for rate in METHODS["vera"].rates}
    assert searched == wanted


@pytest.mark.parametrize(
    "line", ["loora = [1e-4]", "share-late = [1e-4]", "lora = []", "lora = [0.0]"]
)
def test_rates_that_cannot_be_searched_are_refused(make_suite, line):
    """A method that is not known or has no search, no rate at all and a rate of zero are told."""
    path = make_suite("lora").stream.path
    path.write_text(
        path.read_text().replace("[bench.small]", f"[bench.rates]\n{line}\n[bench.small]")
    )
    with pytest.raises(ConfigError, match="rates"):
        read_suite(str(path), list(METHODS))


@pytest.mark.parametrize("name", ["loora", "vera", "share"])
def test_methods_that_cannot_learn_from_few_rows_are_refused(make_suite, name):
    """One that is not known, not of this suite, or learns a stream is told."""
    path = make_suite("lora", "share").stream.path
    path.write_text(
        path.read_text().replace("[bench.small]", f'few_methods = ["{name}"]\n[bench.small]')
    )
    with pytest.raises(ConfigError, match="few_methods"):
        read_suite(str(path), list(METHODS))


@pytest.mark.parametrize("methods", [("share", "share-late"), ("share-async", "share-late")])
def test_other_workers_take_the_rate_of_share(make_suite, tmp_path, methods):
    """The search of `share` is done once for all who learn as it does, also where it is not asked for itself."""
    suite = make_suite(*methods)
    rates = METHODS["share"].rates
    folder = CellFolder(tmp_path / "bench", lesson_of(suite))
    plan = Plan(suite, folder)
    searched = [Cell("share", SEARCH_SEED, rate=rate) for rate in rates]
    assert [work.cell for work in plan.ready()] == searched
    for cell, validation in zip(searched, (0.7, 0.9, 0.8), strict=True):
        folder.save(cell, {"validation": validation})
    done, total = plan.count()
    assert done == len(rates)
    assert plan.lessons_left() == (total - done) * len(suite.task_ids)
    chosen = [Cell(name, seed, rate=rates[1]) for name in methods for seed in range(2)]
    assert [work.cell for work in plan.ready()] == [each for each in chosen if each not in searched]
    for work in plan.ready():
        folder.save(work.cell, {})
    assert plan.count() == (total, total)
    assert plan.lessons_left() == 0


@pytest.mark.parametrize("name", ["share", "eigenlorax", "joint"])
def test_what_is_learnt_in_a_subspace_has_a_random_one_beside(name):
    """It is computed with every method that has a subspace, whatever was asked for, and with no other."""
    for small in (False, True):
        chosen = chosen_suite(Asked("text", small=small, methods=[name], seeds=1)).settings
        assert ("random-subspace" in chosen.methods) == (name != "joint")
    assert len(chosen.rates["random-subspace"]) == 1


def test_a_suite_is_changed_from_the_command_line(tmp_path):
    """What is set stands instead of what the file says; a key that is not known is told with the nearest."""
    changes = ("training.epochs=1", "bench.num_factors=8", "training.num_temporary=2")
    changed = chosen_suite(Asked("text", tmp_path, changes=changes))
    plain = chosen_suite(Asked("text"))
    assert (changed.stream.training.epochs, changed.settings.num_factors) == (1, 8)
    assert (plain.stream.training.epochs, plain.settings.num_factors) == (2, 32)
    assert lesson_of(changed)(Cell("lora", 0, "movies", 1e-2)) != lesson_of(plain)(
        Cell("lora", 0, "movies", 1e-2)
    )
    with pytest.raises(StreamError, match=r"training\.epochz: unknown key; did you mean 'epochs'"):
        chosen_suite(Asked("text", tmp_path, changes=["training.epochz=1"]))
    with pytest.raises(ConfigError, match=r"task\.id=poems.*what can be set is in"):
        chosen_suite(Asked("text", tmp_path, changes=["task.id=poems"]))


def test_two_benchmarks_do_not_share_a_folder(tmp_path):
    """A changed suite has no folder of its own, and a folder that holds another benchmark is not taken."""
    changed = Asked("text", changes=["training.epochs=1"])
    with pytest.raises(ConfigError, match="give it a folder by --output"):
        changed.folder_of(chosen_suite(changed))
    (tmp_path / "summary.json").write_text('{"suite": "text"}')
    again = Asked("text", tmp_path)
    assert again.folder_of(chosen_suite(again)) == tmp_path
    small = Asked("text", tmp_path, small=True)
    with pytest.raises(ConfigError, match="holds the benchmark 'text', and 'text-small' would"):
        small.folder_of(chosen_suite(small))
    (tmp_path / "summary.json").write_text("half")
    assert small.folder_of(chosen_suite(small)) == tmp_path


def test_one_default_suits_all_forms(make_suite):
    """Rates are those of the suite's own columns, by how far a first step goes at each: a rate that the suite names stays as it is."""
    suite = make_suite("eigenlorax", "eigenlorax-half", "eigenlorax-core", "eigenlorax-diagonal")
    k, p = suite.settings.num_factors, suite.stream.training.pseudo_rank
    for name, moved in (
        ("eigenlorax", k * p),
        ("eigenlorax-half", k * METHODS["eigenlorax-half"].training["pseudo_rank"]),
        ("eigenlorax-core", k**2),
        ("eigenlorax-diagonal", k),
    ):
        scale = (k * p / moved) ** 0.5
        expected = [each * scale for each in METHODS[name].rates]
        assert suite.method(name).rates == pytest.approx(expected, rel=0.05)
    assert suite.method("lora").rates == METHODS["lora"].rates
    named = suite.settings.model_copy(update={"rates": {"eigenlorax-core": [0.3]}})
    assert replace(suite, settings=named).method("eigenlorax-core").rates == (0.3,)


def test_a_first_step_is_measured_where_it_is_taken():
    """AdamW moves every number by the rate: ``dW`` changes by the norm that is told, of each form, between orthonormal bases."""
    k, p, rate = 6, 2, 1e-3
    torch.manual_seed(0)
    V_A, V_B = (torch.linalg.qr(torch.randn(each, k))[0] for each in (9, 7))
    E_A = torch.linalg.qr(torch.randn(k, p))[0]
    moved = {
        "columns": (torch.zeros(k, p), lambda E_B: E_B @ E_A.mT),
        "core": (torch.zeros(k, k), lambda core: core),
        "diagonal": (torch.zeros(k), torch.diag),
    }
    for form, (start, between) in moved.items():
        parameter = torch.nn.Parameter(start)
        (parameter * torch.randn(parameter.shape)).sum().backward()
        torch.optim.AdamW([parameter], lr=rate, weight_decay=0.0).step()
        change = V_B @ between(parameter.detach()) @ V_A.mT
        assert float(change.norm()) / rate == pytest.approx(first_step(form, k, p), rel=1e-3)

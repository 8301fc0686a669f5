"""A subspace inside a model: exact starts, training, versions, merging, and the model given back."""

import copy
import gc
import math

import pytest
import torch
from torch import nn

from share_dist.adapters import find_targets, inject
from share_dist.adapters.terms import form_factors
from share_dist.core.merge import merge
from share_dist.core.rebase import rebase
from share_dist.core.subspace import project, reconstruct
from share_dist.core.temporary import factor_of
from share_dist.core.values import Coefficients, LayerFactors, LayerShape, Subspace, TaskUpdate
from share_dist.errors import (
    BaseVersionTooOld,
    ConfigError,
    NotFinite,
    RankTooLarge,
    ShapeMismatch,
    UnknownTask,
    VersionInFuture,
)
from tests.adapters.conftest import (
    BERT_TARGETS,
    GPT2_TARGETS,
    logits,
    random_coefficients,
    random_subspace,
    tiny_bert,
    tiny_gpt2,
    tokens,
)

MODELS = {"bert": (tiny_bert, BERT_TARGETS), "gpt2": (tiny_gpt2, GPT2_TARGETS)}


@pytest.fixture(params=MODELS)
def model_and_shapes(request):
    make, targets = MODELS[request.param]
    model = make()
    return model, find_targets(model, targets)


def train(injected, task_id, steps=3, learning_rate=0.05):
    """A few real steps towards random labels."""
    injected.activate(task_id)
    optimizer = torch.optim.AdamW(injected.trainable_parameters(task_id), lr=learning_rate)
    for _ in range(steps):
        optimizer.zero_grad()
        output = injected.model(tokens()).logits
        output.float().square().mean().backward()
        optimizer.step()


def with_weights_changed(model, factors):
    """The slow obvious way: add each dW to the plain weight."""
    with torch.no_grad():
        for name, layer in factors.items():
            module = model.get_submodule(name)
            delta = layer.delta_weight()
            module.weight += delta if isinstance(module, nn.Linear) else delta.T
    return model


def snapshot(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_state(model, expected):
    found = model.state_dict()
    return found.keys() == expected.keys() and all(
        torch.equal(found[name], expected[name]) for name in expected
    )


@pytest.mark.parametrize("num_factors", [0, 6])
def test_a_cold_start_computes_the_base(model_and_shapes, num_factors):
    """P10: at a cold start the logits are the base's, bit for bit, also in the empty subspace."""
    model, shapes = model_and_shapes
    expected = logits(model)
    subspace = random_subspace(shapes, num_factors) if num_factors else Subspace.empty(shapes)
    with inject(model, subspace) as injected:
        injected.add_task("t", pseudo_rank=4, num_temporary=2, seed=1)
        injected.activate("t")
        assert torch.equal(logits(model), expected)


@pytest.mark.parametrize("num_factors", [0, 6])
def test_a_cold_start_is_no_saddle(model_and_shapes, num_factors):
    """The first gradient reaches side B's coefficients and its temporary coefficients."""
    model, shapes = model_and_shapes
    subspace = random_subspace(shapes, num_factors) if num_factors else Subspace.empty(shapes)
    with inject(model, subspace) as injected:
        injected.add_task("t", seed=1)
        injected.activate("t")
        model(tokens()).logits.square().mean().backward()
        named = injected.named_trainable_parameters("t")
        reached = {name for name, p in named.items() if p.grad is not None and p.grad.any()}
        wanted = {name for name in named if ".b." in name and name.endswith("coefficients")}
        assert wanted
        assert wanted <= reached


def test_a_warm_start_computes_the_stated_combination(model_and_shapes):
    """P10: a warm start computes W0 + V_B E_B (V_A E_A)', and its temporary factors say nothing yet."""
    model, shapes = model_and_shapes
    subspace = random_subspace(shapes)
    said = random_coefficients(subspace)
    make = tiny_bert if hasattr(model, "bert") else tiny_gpt2
    expected = logits(with_weights_changed(make(), reconstruct(subspace, said)))
    with inject(model, subspace) as injected:
        injected.add_task("t", num_temporary=2, start=said)
        injected.activate("t")
        assert torch.allclose(logits(model), expected, atol=1e-5)
        assert not torch.allclose(expected, logits(make()), atol=1e-3)


def test_the_same_seed_gives_the_same_start(bert, bert_subspace):
    """Starts are drawn from the seed and nothing else."""
    with inject(bert, bert_subspace) as injected:
        for task_id, seed in (("one", 5), ("again", 5), ("other", 6)):
            injected.add_task(task_id, seed=seed)
        one, again, other = (
            torch.cat([p.flatten() for p in injected.trainable_parameters(task_id)])
            for task_id in injected.task_ids
        )
        assert torch.equal(one, again)
        assert not torch.equal(one, other)


@pytest.mark.parametrize("num_factors", [0, 6])
def test_trainable_counts_are_the_formula(model_and_shapes, num_factors):
    """P12: f (n + d) + 2 f p + 2 k p trainable numbers per layer."""
    model, shapes = model_and_shapes
    subspace = random_subspace(shapes, num_factors) if num_factors else Subspace.empty(shapes)
    p, f, k = 5, 3, num_factors
    with inject(model, subspace) as injected:
        injected.add_task("t", pseudo_rank=p, num_temporary=f)
        expected = sum(f * (n + d) + 2 * f * p + 2 * k * p for d, n in shapes.values())
        assert sum(q.numel() for q in injected.trainable_parameters("t")) == expected
        assert all(q.requires_grad for q in injected.trainable_parameters("t"))
        assert not any(q.requires_grad for q in model.parameters())


def test_training_changes_the_task_and_nothing_else(bert, bert_subspace):
    """P12: after real steps base weights and bases are bit-identical, and every trained tensor moved."""
    before = snapshot(bert)
    bases = {
        name: (layer.a.vectors.clone(), layer.b.vectors.clone())
        for name, layer in bert_subspace.layers.items()
    }
    with inject(bert, bert_subspace) as injected:
        injected.add_task("t", seed=1)
        start = [p.detach().clone() for p in injected.trainable_parameters("t")]
        train(injected, "t")
        moved = zip(start, injected.trainable_parameters("t"), strict=True)
        assert not any(torch.equal(old, new) for old, new in moved)
        assert same_state(bert, before)
        for name, layer in injected.subspace.layers.items():
            assert torch.equal(layer.a.vectors, bases[name][0])
            assert torch.equal(layer.b.vectors, bases[name][1])


def test_all_tasks_refer_to_one_basis(bert, bert_subspace):
    """Ten tasks hold no copy of a basis: there is one tensor per layer side, the one injected."""
    wanted = {
        basis.leading.data_ptr()
        for layer in inject(tiny_bert(), bert_subspace).subspace.layers.values()
        for _, basis in layer
    }
    assert len(wanted) == 2 * len(bert_subspace.layers)
    with inject(bert, bert_subspace) as injected:
        for index in range(10):
            injected.add_task(
                f"t{index}", num_temporary=0, start=random_coefficients(bert_subspace)
            )
        gc.collect()
        used = {
            tensor.data_ptr()
            for layer in injected._layers.values()
            for tensor in (layer.bases.a, layer.bases.b)
        }
        held = {
            basis.vectors.data_ptr()
            for layer in injected.subspace.layers.values()
            for _, basis in layer
        }
        assert used == held
        largest = max(
            p.numel() for t in injected.task_ids for p in injected.trainable_parameters(t)
        )
        assert largest == 6 * 3


def test_layer_updates_say_the_trained_function(model_and_shapes):
    """What a task update carries, put on the plain weights, computes the trained logits."""
    model, shapes = model_and_shapes
    make = tiny_bert if hasattr(model, "bert") else tiny_gpt2
    subspace = random_subspace(shapes)
    with inject(model, subspace) as injected:
        injected.add_task("t", seed=1)
        train(injected, "t")
        trained = logits(model)
        updates = injected.layer_updates("t")
    factors = {
        name: LayerFactors(
            *(factor_of(subspace.layers[name][side].leading, update) for side, update in layer)
        )
        for name, layer in updates.items()
    }
    changed = with_weights_changed(make(), factors)
    assert torch.allclose(logits(changed), trained, atol=1e-5)
    assert not torch.allclose(logits(make()), trained, atol=1e-2)
    for name, layer in updates.items():
        for side, update in layer:
            f = update.num_temporary
            assert torch.allclose(update.temporary.T @ update.temporary, torch.eye(f), atol=1e-5)
            inside = subspace.layers[name][side].leading.T @ update.temporary
            assert inside.abs().max() < 1e-5


def test_layer_updates_are_copies(bert, bert_subspace):
    """An update made before more training does not change with it."""
    with inject(bert, bert_subspace) as injected:
        injected.add_task("t", seed=1)
        name = next(iter(bert_subspace.layers))
        update = injected.layer_updates("t")[name].a
        kept = update.coefficients.clone()
        train(injected, "t")
        assert torch.equal(update.coefficients, kept)
        assert not update.temporary.requires_grad


def test_activation_switches_tasks_and_base(bert, bert_subspace):
    """Each activated task computes its own logits, None the base's, bit for bit."""
    base = logits(bert)
    with inject(bert, bert_subspace) as injected:
        for seed in (1, 2):
            injected.set_coefficients(f"task-{seed}", random_coefficients(bert_subspace, seed=seed))
        injected.activate("task-1")
        first = logits(bert)
        injected.activate("task-2")
        assert injected.active_task == "task-2"
        assert not torch.allclose(logits(bert), first, atol=1e-3)
        injected.activate("task-1")
        assert torch.equal(logits(bert), first)
        injected.drop_task("task-1")
        assert injected.active_task is None
        assert torch.equal(logits(bert), base)
        with pytest.raises(UnknownTask, match="task-2") as caught:
            injected.activate("task-1")
        assert caught.value.nearest == "task-2"


def test_a_mixed_batch_computes_what_each_task_computes(model_and_shapes):
    """P16: rows of one batch served by different tasks give the logits of each task alone."""
    model, shapes = model_and_shapes
    subspace = random_subspace(shapes)
    with inject(model, subspace) as injected:
        alone = {None: logits(model)}
        for task_id, pseudo_rank in (("small", 2), ("large", 5)):
            said = random_coefficients(subspace, pseudo_rank, seed=pseudo_rank)
            injected.set_coefficients(task_id, said)
            injected.activate(task_id)
            alone[task_id] = logits(model)
        rows = ["large", None, "small", "large"]
        injected.activate_rows(rows)
        mixed = logits(model)
        for row, task_id in enumerate(rows):
            assert torch.allclose(mixed[row], alone[task_id][row], atol=1e-5)
        assert not torch.allclose(mixed[0], alone[None][0], atol=1e-2)


def test_a_mixed_batch_needs_one_task_per_row(bert, bert_subspace):
    """Another number of rows than tasks, or a task with temporary factors, is refused in words."""
    with inject(bert, bert_subspace) as injected:
        injected.set_coefficients("t", random_coefficients(bert_subspace))
        injected.activate_rows(["t", "t"])
        with pytest.raises(ShapeMismatch, match="2 tasks were activated for 2 rows"):
            logits(bert, rows=3)
        injected.add_task("training")
        with pytest.raises(ConfigError, match="temporary factors"):
            injected.activate_rows(["training"])


@pytest.fixture
def mixed(model_and_shapes):
    """A model that serves two tasks by rows."""
    model, shapes = model_and_shapes
    subspace = random_subspace(shapes)
    with inject(model, subspace) as injected:
        for seed, task_id in enumerate(("t", "u")):
            injected.set_coefficients(task_id, random_coefficients(subspace, seed=seed))
        injected.activate_rows(ROWS)
        yield injected


ROWS = ("t", None, "u", "t")


def expected_rows(injected, rows=ROWS):
    """The logits of each row's task, computed alone; the rows are active again afterwards."""
    alone = {}
    for task_id in dict.fromkeys(rows):
        injected.activate(task_id)
        alone[task_id] = logits(injected.model)
    injected.activate_rows(rows)
    return torch.stack([alone[task_id][row] for row, task_id in enumerate(rows)])


def differs(left, right):
    return not torch.allclose(left, right, atol=1e-3)


def test_rows_follow_their_tasks_to_another_version(mixed):
    """After a change of version rows are computed in it, by what their tasks are there."""
    before = logits(mixed.model)
    newer = random_subspace(mixed.subspace.shapes, num_factors=4, version=2, seed=9)
    mixed.use_subspace(newer, {"t": random_coefficients(newer, seed=7)})
    after = logits(mixed.model)

    assert differs(after[0], before[0])
    assert torch.allclose(after, expected_rows(mixed), atol=1e-5)


def test_rows_of_a_dropped_task_are_computed_by_the_base(mixed):
    """A task that is no longer held has no say, also in single rows."""
    before = logits(mixed.model)
    mixed.drop_task("t")
    after = logits(mixed.model)

    assert differs(after[0], before[0])
    assert torch.allclose(after, expected_rows(mixed, (None, None, "u", None)), atol=1e-5)


def test_rows_of_a_replaced_task_are_computed_by_the_new_one(mixed):
    """A task that is held anew is computed as it now is; one that cannot be served is refused."""
    mixed.set_coefficients("t", random_coefficients(mixed.subspace, seed=5))
    after = logits(mixed.model)

    assert torch.allclose(after, expected_rows(mixed), atol=1e-5)
    with pytest.raises(ConfigError, match="temporary factors"):
        mixed.add_task("t")
    assert torch.equal(logits(mixed.model), after)


def test_rows_are_active_again_after_a_merge(mixed):
    """Unmerge restores the rows that were active, not the plain base."""
    before = logits(mixed.model)
    mixed.merge_into_base("u")
    assert differs(logits(mixed.model), before)
    mixed.unmerge()

    assert torch.equal(logits(mixed.model), before)


def test_a_task_may_be_held_anew_while_another_is_merged(bert, bert_subspace):
    """The active task may be replaced under a merge: it is seen after unmerge."""
    with inject(bert, bert_subspace) as injected:
        for seed, task_id in enumerate(("t", "u")):
            injected.set_coefficients(task_id, random_coefficients(bert_subspace, seed=seed))
        injected.activate("t")
        injected.merge_into_base("u")
        merged = logits(bert)
        injected.set_coefficients("t", random_coefficients(bert_subspace, seed=1))
        assert torch.equal(logits(bert), merged)
        injected.unmerge()
        assert torch.allclose(logits(bert), merged, atol=1e-5)


def test_a_merged_task_computes_the_same_and_unmerges_exactly(model_and_shapes):
    """Merged weights compute the task's logits; unmerge and eject restore every bit."""
    model, shapes = model_and_shapes
    before = snapshot(model)
    injected = inject(model, random_subspace(shapes))
    injected.add_task("t", seed=1)
    train(injected, "t")
    expected = logits(model)
    injected.merge_into_base("t")
    assert not same_state(model, before)
    assert torch.allclose(logits(model), expected, atol=1e-5)
    injected.unmerge()
    assert same_state(model, before)
    assert torch.equal(logits(model), expected)
    injected.merge_into_base("t")
    assert same_state(injected.eject(), before)


def test_merging_leaves_what_is_tied_alone(gpt2):
    """A weight that is tied to an adapted layer is not written to by a merge."""
    shapes = find_targets(gpt2, ["lm_head"])
    subspace = random_subspace(shapes)
    embedding = gpt2.transformer.wte.weight
    assert gpt2.lm_head.weight is embedding
    before = embedding.detach().clone()
    with inject(gpt2, subspace) as injected:
        injected.set_coefficients("t", random_coefficients(subspace))
        injected.merge_into_base("t")
        assert torch.equal(embedding, before)
        assert not torch.equal(gpt2.lm_head.weight, before)
    assert gpt2.lm_head.weight is embedding


def test_nothing_switches_while_a_task_is_merged(bert, bert_subspace):
    """Activating, dropping, replacing, merging or changing version under a merge is refused."""
    with inject(bert, bert_subspace) as injected:
        said = random_coefficients(bert_subspace)
        injected.set_coefficients("t", said)
        injected.merge_into_base("t")
        for act in (
            lambda: injected.activate(None),
            lambda: injected.activate_rows(["t"]),
            lambda: injected.drop_task("t"),
            lambda: injected.set_coefficients("t", said),
            lambda: injected.merge_into_base("t"),
            lambda: injected.use_subspace(bert_subspace),
        ):
            with pytest.raises(ConfigError, match="unmerge first"):
                act()
        injected.set_coefficients("another", said)


def test_eject_gives_the_model_back(bert, bert_subspace):
    """After eject: same bits, same trainable flags, no hooks; and again is no error."""
    bert.bert.embeddings.requires_grad_(requires_grad=False)
    flags = {name: p.requires_grad for name, p in bert.named_parameters()}
    before, base = snapshot(bert), logits(bert)
    with inject(bert, bert_subspace) as injected:
        injected.set_coefficients("t", random_coefficients(bert_subspace))
        injected.activate("t")
        assert not torch.equal(logits(bert), base)
    assert injected.eject() is bert
    assert same_state(bert, before)
    assert {name: p.requires_grad for name, p in bert.named_parameters()} == flags
    assert torch.equal(logits(bert), base)
    assert not any(module._forward_hooks for module in bert.modules())


def test_an_ejected_model_takes_no_task(bert, bert_subspace):
    """After eject a task cannot be added, and the message says what to do."""
    injected = inject(bert, bert_subspace)
    injected.eject()
    with pytest.raises(ConfigError, match="inject it again"):
        injected.add_task("t")


def test_injecting_changes_no_name(bert, bert_subspace):
    """Module names, state_dict and class of an injected model are those of the plain model."""
    names = [name for name, _ in bert.named_modules()]
    keys = list(bert.state_dict())
    with inject(bert, bert_subspace) as injected:
        injected.add_task("t")
        injected.activate("t")
        assert [name for name, _ in bert.named_modules()] == names
        assert list(bert.state_dict()) == keys


def test_a_second_injection_is_refused(bert, bert_subspace):
    """A model that is injected already cannot be injected again until it is ejected."""
    with inject(bert, bert_subspace, layers=[1]):
        hooks = [len(module._forward_hooks) for module in bert.modules()]
        with pytest.raises(ConfigError, match="adapted already"):
            inject(bert, bert_subspace)
        assert [len(module._forward_hooks) for module in bert.modules()] == hooks
    inject(bert, bert_subspace).eject()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_model_keeps_float32_coefficients(bert, bert_subspace, dtype):
    """A bf16 or fp16 model trains float32 coefficients, starts exactly, and answers in its dtype."""
    bert = bert.to(dtype)
    base = logits(bert)
    with inject(bert, bert_subspace) as injected:
        injected.add_task("t", seed=1)
        injected.activate("t")
        assert torch.equal(logits(bert), base)
        train(injected, "t")
        assert {p.dtype for p in injected.trainable_parameters("t")} == {torch.float32}
        assert logits(bert).dtype == dtype
        assert not torch.equal(logits(bert), base)
        expected = logits(bert).float()
        injected.merge_into_base("t")
        assert torch.allclose(logits(bert).float(), expected, atol=0.05)


def test_autocast_forms_factors_in_float32(bert, bert_subspace):
    """Under autocast the factors are still formed in float32, and the start is exact."""
    with torch.autocast("cpu", torch.bfloat16):
        base = logits(bert)
        with inject(bert, bert_subspace) as injected:
            injected.add_task("t", seed=1)
            injected.activate("t")
            assert torch.equal(logits(bert), base)
            train(injected, "t")
            layer = next(iter(injected._layers.values()))
            factors = form_factors(layer.bases, layer.term.update)
            assert {factor.dtype for _, factor in factors} == {torch.float32}
            assert all(torch.isfinite(p).all() for p in injected.trainable_parameters("t"))


def test_gradients_are_the_same_under_checkpointing(bert_subspace):
    """In train mode with activations recomputed the gradients are those without."""

    def gradients(*, checkpointing):
        model = tiny_bert().train()
        if checkpointing:
            _recompute_activations(model)
        with inject(model, bert_subspace) as injected:
            injected.add_task("t", num_temporary=2, start=random_coefficients(bert_subspace))
            injected.activate("t")
            model(tokens()).logits.square().sum().backward()
            return [p.grad for p in injected.trainable_parameters("t")]

    plain, saved = gradients(checkpointing=False), gradients(checkpointing=True)
    assert any(gradient.any() for gradient in plain)
    for left, right in zip(plain, saved, strict=True):
        assert torch.allclose(left, right, atol=1e-6)


def _recompute_activations(model):
    # transformers 5.23 renamed the method, older releases know only the old name
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def test_a_new_version_rebases_held_tasks(bert, bert_subspace):
    """In another version's basis of the same span, every task computes what it did."""
    shapes = bert_subspace.shapes
    said = random_coefficients(bert_subspace)
    wider = _same_span_and_more(bert_subspace)
    with inject(bert, bert_subspace) as injected:
        injected.set_coefficients("done", said)
        injected.add_task("training", seed=1)
        train(injected, "training")
        trained = logits(bert)
        injected.activate("done")
        done = logits(bert)
        injected.use_subspace(wider)
        assert injected.subspace.version == 2
        assert injected.active_task == "done"
        assert torch.allclose(logits(bert), done, atol=1e-5)
        injected.activate("training")
        assert torch.allclose(logits(bert), trained, atol=1e-5)
        found = injected.coefficients("done")
        expected = rebase(said, bert_subspace, wider)
        for name in shapes:
            assert torch.allclose(found.layers[name].a, expected.layers[name].a, atol=1e-5)
        train(injected, "training")


def _same_span_and_more(subspace):
    """Version 2: the old columns turned among themselves, after two new ones."""
    wide = random_subspace(subspace.shapes, 8, version=2, seed=9)
    layers = {}
    for name, layer in subspace.layers.items():
        sides = []
        for side, basis in layer:
            extra = wide.layers[name][side].vectors[:, :2]
            vectors = torch.linalg.qr(torch.cat([basis.vectors, extra], dim=1)).Q.flip(1)
            fresh = wide.layers[name][side]
            sides.append(type(fresh)(vectors.contiguous(), fresh.energies, 8))
        layers[name] = type(layer)(*sides)
    return Subspace(layers, version=2)


def test_a_new_version_takes_the_coordinators_coefficients(bert, bert_subspace):
    """Coefficients given with a version replace the task that was trained, temporary factors and all."""
    wider = _same_span_and_more(bert_subspace)
    merged = random_coefficients(wider, seed=4)
    with inject(bert, bert_subspace) as injected:
        injected.add_task("t", seed=1)
        injected.activate("t")
        injected.use_subspace(wider, {"t": merged})
        found = injected.coefficients("t")
        name = next(iter(merged.layers))
        assert torch.allclose(found.layers[name].b, merged.layers[name].b)
        assert injected.layer_updates("t")[name].a.num_temporary == 0
        expected = logits(with_weights_changed(tiny_bert(), reconstruct(wider, merged)))
        assert torch.allclose(logits(bert), expected, atol=1e-5)


def test_the_trained_function_survives_the_merge(model_and_shapes):
    """Train, push as an update, merge, take the version: without truncation the logits stay."""
    model, shapes = model_and_shapes
    subspace = Subspace.empty(shapes)
    with inject(model, subspace) as injected:
        tasks = {}
        for seed, task_id in enumerate(("first", "second")):
            injected.add_task(task_id, pseudo_rank=3, num_temporary=3, seed=seed)
            train(injected, task_id)
            trained = logits(model)
            update = TaskUpdate(task_id, task_id, subspace.version, injected.layer_updates(task_id))
            outcome = merge(subspace, tasks, [update])
            subspace, tasks = outcome.subspace, dict(outcome.tasks)
            said = {name: task.served(subspace) for name, task in tasks.items()}
            injected.use_subspace(subspace, said)
            assert torch.allclose(logits(model), trained, atol=1e-4)
        assert injected.subspace.version == 2


def test_a_version_that_does_not_fit_changes_nothing(bert, bert_subspace):
    """When a version, or coefficients given with it, do not fit, the old version stays in use."""
    wider = _same_span_and_more(bert_subspace)
    name = next(iter(wider.layers))
    lacking = Subspace({name: wider.layers[name]}, version=2)
    with inject(bert, bert_subspace) as injected:
        injected.set_coefficients("t", random_coefficients(bert_subspace))
        injected.activate("t")
        expected = logits(bert)
        with pytest.raises(BaseVersionTooOld):
            injected.use_subspace(wider, {"t": random_coefficients(bert_subspace)})
        with pytest.raises(ConfigError, match="no bases for layer"):
            injected.use_subspace(lacking)
        assert injected.subspace.version == 1
        assert torch.equal(logits(bert), expected)


def test_only_the_leading_factors_are_used(bert):
    """The oversampled tail of a subspace is neither held nor trained in."""
    wide = random_subspace(find_targets(bert, BERT_TARGETS), 8)
    layers = {
        name: type(layer)(*(type(b)(b.vectors, b.energies, 5) for _, b in layer))
        for name, layer in wide.layers.items()
    }
    with inject(bert, Subspace(layers, version=1)) as injected:
        assert injected.subspace.num_factors == 5
        assert {b.num_columns for la in injected.subspace.layers.values() for _, b in la} == {5}


def test_a_part_of_the_subspace_can_be_injected(bert, bert_subspace):
    """Targets choose some of the subspace's layers; the others stay out of the task."""
    with inject(bert, bert_subspace, targets=["query"], layers=[1]) as injected:
        injected.add_task("t")
        assert list(injected.layer_updates("t")) == ["bert.encoder.layer.1.attention.self.query"]


def test_a_target_outside_the_subspace_is_refused(bert, bert_subspace):
    """A layer without bases cannot be adapted, and the message names it."""
    with pytest.raises(ConfigError, match=r"no bases for layer '.*key'"):
        inject(bert, bert_subspace, targets=["key"])


def test_another_models_subspace_is_refused(bert):
    """A subspace with other features is refused with both shapes."""
    name = "bert.encoder.layer.0.attention.self.query"
    subspace = random_subspace({name: LayerShape(32, 40)})
    with pytest.raises(ShapeMismatch, match=r"\(32, 32\).*\(32, 40\)") as caught:
        inject(bert, subspace)
    assert caught.value.layer == name


def test_coefficients_of_another_version_are_refused(bert, bert_subspace):
    """Older coefficients say rebase, newer ones say which version is missing."""
    said = random_coefficients(bert_subspace)
    with inject(bert, bert_subspace) as injected:
        with pytest.raises(BaseVersionTooOld, match="rebase"):
            injected.add_task("t", start=Coefficients(said.layers, version=0))
        with pytest.raises(VersionInFuture, match="version 1"):
            injected.add_task("t", start=Coefficients(said.layers, version=9))


def test_coefficients_that_do_not_fit_are_refused(bert, bert_subspace):
    """Missing layers, another k or another p are errors that name the layer."""
    said = random_coefficients(bert_subspace)
    narrow = random_coefficients(random_subspace(bert_subspace.shapes, 4))
    name = next(iter(said.layers))
    with inject(bert, bert_subspace) as injected:
        with pytest.raises(ShapeMismatch, match="is in one only"):
            injected.add_task("t", start=Coefficients({name: said.layers[name]}, version=1))
        with pytest.raises(ShapeMismatch, match="have 4 rows"):
            injected.add_task("t", start=narrow)
        with pytest.raises(ShapeMismatch, match="pseudo-rank 3, asked for is 5"):
            injected.add_task("t", pseudo_rank=5, start=said)


def test_a_task_with_nothing_to_train_is_refused(bert):
    """Without principal and temporary factors there is nothing to train; too many do not fit."""
    subspace = Subspace.empty(find_targets(bert, BERT_TARGETS))
    with inject(bert, subspace) as injected:
        with pytest.raises(RankTooLarge, match="nothing to train"):
            injected.add_task("t", num_temporary=0)
        with pytest.raises(RankTooLarge, match="33"):
            injected.add_task("t", num_temporary=33)
        with pytest.raises(ConfigError, match="pseudo_rank"):
            injected.add_task("t", pseudo_rank=0)


def test_projected_coefficients_are_those_of_core(bert, bert_subspace):
    """The coefficients of a trained task are the projection of its whole factor."""
    with inject(bert, bert_subspace) as injected:
        injected.add_task("t", seed=1)
        train(injected, "t")
        updates, found = injected.layer_updates("t"), injected.coefficients("t")
    factors = {
        name: LayerFactors(*(factor_of(bert_subspace.layers[name][s].leading, u) for s, u in layer))
        for name, layer in updates.items()
    }
    expected = project(bert_subspace, factors)
    for name, layer in found.layers.items():
        assert torch.allclose(layer.a, expected.layers[name].a, atol=1e-5)
        assert torch.allclose(layer.b, expected.layers[name].b, atol=1e-5)


def test_gathered_gradients_are_those_of_the_weights():
    """What a loss run backward gives each adapted weight is what the same loss gives a weight that is trained."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    batch = torch.randn(4, 6)
    plain = copy.deepcopy(model)
    plain(batch).square().sum().backward()
    subspace = Subspace.empty(find_targets(model, "all-linear"))
    with inject(model, subspace) as injected:
        with injected.gather_gradients() as gradients:
            injected(batch).square().sum().backward()
        assert gradients.keys() == {"0", "2"}
        for name, gradient in gradients.items():
            assert torch.allclose(gradient, plain.get_submodule(name).weight.grad, atol=1e-6)
        assert torch.equal(injected(batch), plain(batch))
        assert all(weight.grad is None for weight in model.parameters())


def test_gradients_of_some_layers_take_no_memory_for_the_others():
    """Only they are gathered, and they are what they are beside all others; an ejected model has none."""
    model, batch = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4)), torch.randn(4, 6)
    subspace = Subspace.empty(find_targets(model, "all-linear"))
    with inject(model, subspace) as injected:
        with injected.gather_gradients() as together:
            injected(batch).square().sum().backward()
        with injected.gather_gradients(["2"]) as alone:
            injected(batch).square().sum().backward()
        assert alone.keys() == {"2"}
        assert torch.equal(alone["2"], together["2"])
    with (
        pytest.raises(ConfigError, match="cannot gather gradients: the model was ejected"),
        injected.gather_gradients(),
    ):
        pass


def test_gradients_are_gathered_at_the_base_whatever_is_active():
    """A task that is in use is left out meanwhile, and is in use again afterwards."""
    model = nn.Sequential(nn.Linear(6, 5))
    subspace = Subspace.empty(find_targets(model, "all-linear"))
    batch = torch.randn(4, 6)
    base = model(batch)
    with inject(model, subspace, num_temporary=2) as injected:
        injected.add_task("movies", seed=1)
        with torch.no_grad():
            for parameter in injected.trainable_parameters("movies"):
                parameter.add_(0.1)
        injected.activate("movies")
        task = injected(batch)
        with injected.gather_gradients():
            assert torch.equal(injected(batch), base)
        assert torch.equal(injected(batch), task)
        assert not torch.equal(task, base)


def test_a_start_by_gradients_computes_the_base_and_falls_faster():
    """It is exact at first; one small step from it lowers the loss more than from any of ten random starts."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 10))
    batch, wanted = torch.randn(64, 12), torch.randn(64, 10)

    def loss(injected):
        return (injected(batch) - wanted).square().mean()

    def fall(injected, task_id):
        injected.activate(task_id)
        before = loss(injected)
        parameters = injected.trainable_parameters(task_id)
        gradients = torch.autograd.grad(before, parameters)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.sub_(1e-3 * gradient)
            return float(before - loss(injected))

    subspace = Subspace.empty(find_targets(model, "all-linear"))
    with inject(model, subspace, pseudo_rank=2, num_temporary=2) as injected:
        base = injected(batch)
        with injected.gather_gradients() as gradients:
            loss(injected).backward()
        injected.add_task("aligned", seed=0, gradients=gradients)
        injected.activate("aligned")
        assert torch.equal(injected(batch), base)
        aligned = fall(injected, "aligned")
        for seed in range(10):
            injected.add_task("random", seed=seed)
            assert fall(injected, "random") < aligned


def test_gradients_of_other_layers_are_refused():
    """A gradient that is missing, of another shape or no number, is named with its layer."""
    model = nn.Sequential(nn.Linear(6, 5))
    subspace = Subspace.empty(find_targets(model, "all-linear"))
    with inject(model, subspace, num_temporary=2) as injected:
        with pytest.raises(ShapeMismatch, match="0: the gradient to start from is missing"):
            injected.add_task("movies", gradients={})
        with pytest.raises(ShapeMismatch, match=r"has the shape \(6, 5\)"):
            injected.add_task("movies", gradients={"0": torch.zeros(6, 5)})
        odd = torch.zeros(5, 6)
        odd[0, 0], odd[4, 5] = math.nan, math.inf
        with pytest.raises(NotFinite, match="0: 2 entries of the gradient to start from"):
            injected.add_task("movies", gradients={"0": odd})
        assert injected.task_ids == ()


def test_each_layer_gets_as_many_temporary_factors_as_its_gradient_needs():
    """None where the basis holds the gradient, one where it does not, and one in an empty subspace whatever is asked for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    shapes = find_targets(model, "all-linear")
    subspace = random_subspace(shapes, num_factors=2)
    inside, outside = (subspace.layers[name] for name in ("0", "1"))
    gradients = {
        "0": inside.b.leading @ torch.randn(2, 2) @ inside.a.leading.mT,
        "1": torch.ones(4, 5) - outside.b.leading @ outside.b.leading.mT @ torch.ones(4, 5),
    }
    with inject(model, subspace, pseudo_rank=2, num_temporary=2) as injected:
        injected.add_task("movies", gradients=gradients, reach=0.9)
        found = {
            name: each.a.num_temporary for name, each in injected.layer_updates("movies").items()
        }
        assert found == {"0": 0, "1": 1}
        train_on(injected, "movies", torch.randn(8, 6))
        named = injected.named_trainable_parameters("movies")
        assert not any(name.startswith("0.") and "temporary" in name for name in named)
    with inject(model, Subspace.empty(shapes), pseudo_rank=2, num_temporary=2) as injected:
        injected.add_task("movies", gradients=gradients, reach=1e-9)
        assert all(each.a.num_temporary == 1 for each in injected.layer_updates("movies").values())


def train_on(injected, task_id, batch):
    """Three real steps towards zero."""
    injected.activate(task_id)
    optimizer = torch.optim.AdamW(injected.trainable_parameters(task_id), lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        injected(batch).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("num_factors", [0, 3])
def test_a_task_is_restored_with_the_sizes_that_it_had(num_factors):
    """What was read under its names gives the same function to the bit, whatever the model's own sizes are."""
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4)), torch.randn(8, 6)
    shapes = find_targets(model, "all-linear")
    subspace = random_subspace(shapes, num_factors) if num_factors else Subspace.empty(shapes)
    with inject(model, subspace, pseudo_rank=2, num_temporary=1) as injected:
        injected.add_task("movies")
        train_on(injected, "movies", batch)
        expected = injected(batch)
        kept = {
            name: each.detach().clone()
            for name, each in injected.named_trainable_parameters("movies").items()
        }
    with inject(model, subspace, pseudo_rank=4, num_temporary=2) as injected:
        injected.restore_task("movies", kept)
        injected.activate("movies")
        assert torch.equal(injected(batch), expected)
        assert injected.named_trainable_parameters("movies").keys() == kept.keys()


def test_values_of_another_version_are_not_restored():
    """Coefficients of more principal factors than the basis has are refused, and nothing is held."""
    model = nn.Sequential(nn.Linear(6, 5))
    shapes = find_targets(model, "all-linear")
    with inject(model, random_subspace(shapes, 3), pseudo_rank=2) as injected:
        injected.add_task("movies", num_temporary=0)
        kept = injected.named_trainable_parameters("movies")
    with inject(model, random_subspace(shapes, 2)) as injected:
        with pytest.raises(ShapeMismatch, match=r"0\.a: coefficients \(3, 2\) .* of 6 x 2"):
            injected.restore_task("movies", kept)
        assert injected.task_ids == ()

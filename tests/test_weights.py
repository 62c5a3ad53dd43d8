"""Ways to save a model: each is loaded right, to the bit where that can be, or refused by name. None is loaded wrong in silence."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from saved_models import FP8, Kit, Tensors, fp8, logits, patch, refusal, shard, write

from drift_cli import models
from drift_cli.chat import chat_for
from drift_cli.errors import DriftError


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("ways"))


@pytest.fixture(scope="module")
def wanted(kit: Kit) -> torch.Tensor:
    return logits(kit.base)


def each(change: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: change(value) for key, value in tensors.items()}


def renamed(rename: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {rename(key): value for key, value in tensors.items()}


def without(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: value for key, value in tensors.items() if not any(part in key for part in parts)}


def beside(**more: torch.Tensor) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, **{key.replace("__", "."): value for key, value in more.items()}}


def tokens_in_config(folder: Path) -> Path:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    patch(folder / "tokenizer_config.json", chat_template=template)
    return folder


def template_in_json(folder: Path) -> Path:
    template = (folder / "chat_template.jinja").read_text()
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    return folder


def with_files(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def sharded(folder: Path) -> Path:
    shard(folder)
    return folder


def linked(folder: Path) -> Path:
    """As the Hub's cache lays a model out: links to blobs."""
    blobs = folder.parent / "blobs"
    blobs.mkdir()
    for place, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(place))
        path.symlink_to(Path("..") / "blobs" / str(place))
    return folder


def gone(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).unlink()
    return folder


def without_metadata(kit: Kit) -> Path:
    folder = kit.copy()
    save_file(kit.tensors, folder / "model.safetensors")
    return folder


RIGHT: dict[str, Callable[[Kit], Path]] = {
    "float32": lambda kit: kit.copy(),
    "float64": lambda kit: kit.edited(each(torch.Tensor.double)),
    "sharded": lambda kit: sharded(kit.copy()),
    "links to blobs": lambda kit: linked(kit.copy()),
    "without metadata in the header": without_metadata,
    "the base model's names (without model.)": lambda kit: kit.edited(renamed(lambda key: key.removeprefix("model."))),
    "a configuration without architectures": lambda kit: kit.configured(architectures=None),
    "a configuration that names another dtype": lambda kit: kit.configured(dtype="float16"),
    "no generation_config": lambda kit: gone(kit.copy(), "generation_config.json"),
    "the template in tokenizer_config.json": lambda kit: tokens_in_config(kit.copy()),
    "the template in chat_template.json": lambda kit: template_in_json(kit.copy()),
    "pickles beside safetensors": lambda kit: with_files(kit.copy(), pytorch_model__bin="no pickle at all"),
    "other things beside": lambda kit: with_files(kit.copy(), README__md="# hello", notes__json="{", trainer_state__json="[]"),
    "rotary buffers of old releases": lambda kit: kit.edited(beside(**{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})),
    "a tower for images that text does without": lambda kit: kit.edited(beside(visual__blocks__0__weight=torch.ones(4, 4))),
    "a head for several tokens that is not used": lambda kit: kit.edited(beside(mtp__fc__weight=torch.ones(4, 4))),
}


@pytest.mark.parametrize("way", RIGHT)
def test_a_way_that_says_the_same_gives_the_same_logits(
    way: str, kit: Kit, wanted: torch.Tensor, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = RIGHT[way](kit)
    capfd.readouterr()  # what saving it says
    assert torch.equal(logits(folder), wanted)
    card = models.describe(str(folder))
    assert chat_for(card.tokenizer, "template").format == chat_for(models.describe(str(kit.base)).tokenizer, "template").format
    assert capfd.readouterr().err == ""  # no library wrote a line of its own


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_in_the_file_is_what_runs(dtype: torch.dtype, kit: Kit) -> None:
    rounded = logits(kit.edited(each(lambda value: value.to(dtype).float())))
    assert torch.equal(logits(kit.edited(each(lambda value: value.to(dtype)))), rounded)
    norms = kit.edited(lambda tensors: {key: value if "norm" in key else value.to(dtype) for key, value in tensors.items()})
    assert torch.equal(logits(norms), rounded)  # (norms are ones)


def test_a_tied_head_may_be_left_out_or_stored_twice(kit: Kit) -> None:
    wanted = logits(kit.tied)
    tensors = {**kit.tensors}
    assert "lm_head.weight" not in _stored(kit.tied)
    twice = kit.edited(lambda found: {**found, "lm_head.weight": found["model.embed_tokens.weight"].clone()}, kit.tied)
    assert torch.equal(logits(twice), wanted)
    only_head = kit.edited(renamed(lambda key: key.replace("model.embed_tokens", "lm_head")), kit.tied)
    assert torch.equal(logits(only_head), wanted)
    base = kit.edited(renamed(lambda key: key.removeprefix("model.")), kit.tied, architectures=["LlamaModel"])
    assert torch.equal(logits(base), wanted)
    differing = kit.edited(lambda found: {**found, "lm_head.weight": tensors["lm_head.weight"]}, kit.tied)
    assert "head that differs from the embeddings" in str(refusal(differing))


def _stored(folder: Path) -> Tensors:
    return load_file(folder / "model.safetensors")


def test_fp8_weights_mean_what_their_scales_say(kit: Kit, capfd: pytest.CaptureFixture[str]) -> None:
    packed, meant = fp8(kit.tensors)
    folder = kit.edited(lambda _: packed, quantization_config=FP8)
    plain = kit.edited(lambda _: meant)
    capfd.readouterr()
    for dtype in ("float32", "bfloat16"):
        assert torch.equal(logits(folder, dtype), logits(plain, dtype))
    card = models.describe(str(folder))
    assert card.quantization is not None
    assert card.quantization.text == "FP8, unpacked"
    assert capfd.readouterr().err == ""


def test_fp8_weights_are_unpacked_although_there_is_a_gpu(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torch sees a GPU, transformers would keep them packed, for kernels that this device does not have."""
    packed, meant = fp8(kit.tensors)
    folder, plain = kit.edited(lambda _: packed, quantization_config=FP8), kit.edited(lambda _: meant)
    wanted = logits(plain, "bfloat16")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    assert torch.equal(logits(folder, "bfloat16"), wanted)


def test_rotary_frequencies_and_what_makers_keep_in_float32_are_never_rounded(kit: Kit, loaded: dict[str, models.LoadedModel]) -> None:
    for dtype in ("bfloat16", "float16"):
        for place in (str(kit.base), "demo"):
            network = models.load(models.describe(place), dtype=dtype, device="cpu").network
            assert {str(buffer.dtype) for name, buffer in network.named_buffers() if "inv_freq" in name} == {"torch.float32"}
            assert {str(parameter.dtype) for parameter in network.parameters()} == {f"torch.{dtype}"}
    half = models.load(models.describe(str(kit.base)), dtype="bfloat16", device="cpu").network
    assert torch.equal(half.model.rotary_emb.inv_freq, loaded["llama"].network.model.rotary_emb.inv_freq)


INT4 = {"bits": 4, "group_size": 32}
REFUSED: dict[str, tuple[Callable[[Kit], Path], str]] = {
    # What is missing, what is too much, what stands elsewhere
    "no head": (lambda kit: kit.edited(without("lm_head")), r"language model head \(lm_head.weight\) is missing"),
    "no block": (lambda kit: kit.edited(without("layers.1.")), "its files lack block 1 "),
    "no norm": (lambda kit: kit.edited(without("model.norm")), "1 missing \\(model.norm.weight\\)"),
    "one block too many": (
        lambda kit: kit.configured(num_hidden_layers=2),
        "its files hold block 2, which its configuration does not have",
    ),
    "one block too few": (lambda kit: kit.configured(num_hidden_layers=4), "its files lack block 3 "),
    "the prefix of peft": (lambda kit: kit.edited(renamed(lambda key: f"base_model.model.{key}")), r"under the prefix 'base_model.model.'"),
    "the prefix of a wrapper": (lambda kit: kit.edited(renamed(lambda key: f"transformer.{key}")), "under the prefix 'transformer.'"),
    "the prefix of torch.compile": (lambda kit: kit.edited(renamed(lambda key: f"_orig_mod.{key}")), "under the prefix '_orig_mod.'"),
    "another network's names": (
        lambda kit: kit.edited(renamed(lambda key: key.replace("self_attn", "attention"))),
        "not those of a LlamaForCausalLM",
    ),
    "a reward model's head": (
        lambda kit: kit.edited(lambda t: {**without("lm_head")(t), "score.weight": torch.zeros(1, 32)}),
        "score.weight in place of a language model head",
    ),
    "a value head beside": (
        lambda kit: kit.edited(beside(v_head__summary__weight=torch.zeros(1, 32))),
        "unknown \\(v_head.summary.weight\\)",
    ),
    "an adapter's tensors among its own": (
        lambda kit: kit.edited(beside(**{"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2, 32)})),
        "tensors of an adapter",
    ),
    "a vocabulary of another size": (lambda kit: kit.configured(vocab_size=300), "weight is 325 × 32 in the file and 300 × 32"),
    "another width": (lambda kit: kit.configured(hidden_size=48, head_dim=8), "32 in the file and .*48"),
    "another number of heads": (lambda kit: kit.configured(num_key_value_heads=4), "in the file and"),
    # Files
    "pickles only": (lambda kit: with_files(gone(kit.copy(), "model.safetensors"), pytorch_model__bin="x"), "they are pickles only"),
    "no weights at all": (lambda kit: gone(kit.copy(), "model.safetensors"), "there is no model.safetensors"),
    "a shard that is not there": (
        lambda kit: gone(sharded(kit.copy()), "model-00002-of-00003.safetensors"),
        "1 file is missing that .*00002-of",
    ),
    "a shard that the index does not name": (lambda kit: _forgotten(kit.copy()), "missing"),
    "an index that is no index": (
        lambda kit: with_files(gone(kit.copy(), "model.safetensors"), model__safetensors__index__json="{}"),
        "names no files",
    ),
    "a file of another name": (lambda kit: _moved(kit.copy(), "model.fp16.safetensors"), "only model.fp16.safetensors"),
    "the makers' own format": (lambda kit: with_files(gone(kit.copy(), "config.json"), params__json="{}"), "makers' own format"),
    "no configuration": (lambda kit: gone(kit.copy(), "config.json"), "holds no config.json"),
    "cut short": (lambda kit: _cut(kit.copy(), -100), "damaged or was cut short: it has"),
    "cut short in the header": (lambda kit: _cut(kit.copy(), 500), "damaged or was cut short: its header"),
    "an empty file": (lambda kit: _cut(kit.copy(), 0), "damaged or was cut short: it has 0 bytes"),
    "a file without tensors": (lambda kit: kit.edited(lambda _: {}), "of its tensors 30 missing"),
    "no safetensors at all": (lambda kit: with_files(kit.copy(), model__safetensors="PK\x03\x04" + "x" * 500), "damaged or was cut short"),
    "a header that lies": (lambda kit: _lie(kit.copy()), "says something impossible of tensor"),
    # Numbers
    "NaN": (lambda kit: kit.edited(_spoiled(float("nan"))), "mlp.up_proj.weight holds values that are not numbers"),
    "infinite": (lambda kit: kit.edited(_spoiled(float("inf"))), "mlp.up_proj.weight holds values that are not numbers"),
    "integers": (
        lambda kit: kit.edited(each(lambda v: (v * 100).to(torch.int8) if v.ndim == 2 else v)),
        "stored as I8, and no quantization_config",
    ),
    "FP8 without scales": (lambda kit: kit.edited(each(lambda v: v.to(torch.float8_e4m3fn) if v.ndim == 2 else v)), "stored as F8_E4M3"),
    "FP8 without its configuration": (lambda kit: kit.edited(lambda t: fp8(t)[0]), "tensors are quantized, and its config.json has no"),
    "GPTQ without its configuration": (
        lambda kit: kit.edited(
            lambda t: {**without("layers.0.mlp.up_proj")(t), "model.layers.0.mlp.up_proj.qweight": torch.zeros(4, 48).int()}
        ),
        "tensors are quantized, and its config.json has no",
    ),
    # Quantized kinds, whose packages the tests are without
    "AWQ": (
        lambda kit: kit.configured(quantization_config={"quant_method": "awq", **INT4, "version": "gemm"}),
        r"\(AWQ, 4 bits\).*takes gptqmodel",
    ),
    "GPTQ": (lambda kit: kit.configured(quantization_config={"quant_method": "gptq", **INT4}), r"\(GPTQ, 4 bits\).*optimum and gptqmodel"),
    "bitsandbytes": (
        lambda kit: kit.configured(quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True}),
        r"\(bitsandbytes, 4 bits\).*takes bitsandbytes",
    ),
    "bitsandbytes without a name": (lambda kit: kit.configured(quantization_config={"load_in_8bit": True}), r"\(bitsandbytes, 8 bits\)"),
    "compressed-tensors": (
        lambda kit: kit.configured(quantization_config={"quant_method": "compressed-tensors", "format": "pack-quantized"}),
        "takes compressed-tensors",
    ),
    "HQQ": (lambda kit: kit.configured(quantization_config={"quant_method": "hqq", "quant_config": {}}), r"\(HQQ\).*takes hqq"),
    "torchao": (
        lambda kit: kit.configured(quantization_config={"quant_method": "torchao", "quant_type": {}}),
        r"\(torchao\).*takes torchao",
    ),
    "quanto": (lambda kit: kit.configured(quantization_config={"quant_method": "quanto", "weights": "int8"}), "takes optimum-quanto"),
    "AutoRound": (lambda kit: kit.configured(quantization_config={"quant_method": "auto-round", "bits": 4}), "takes auto-round"),
    "FBGEMM": (lambda kit: kit.configured(quantization_config={"quant_method": "fbgemm_fp8"}), "takes fbgemm-gpu"),
    "NVFP4": (lambda kit: kit.configured(quantization_config={"quant_method": "nvfp4"}), r"\(NVFP4\): transformers does not load"),
    "ModelOpt": (lambda kit: kit.configured(quantization_config={"quant_method": "modelopt", "quant_algo": "FP8"}), "NVIDIA ModelOpt"),
    "EXL2": (lambda kit: kit.configured(quantization_config={"quant_method": "exl2", "bits": 4}), "only ExLlama reads"),
    "MLX": (lambda kit: kit.configured(quantization=INT4), r"\(MLX, 4 bits\): it is made for Apple's MLX"),
    "MLX, written twice": (lambda kit: kit.configured(quantization=INT4, quantization_config=INT4), r"\(MLX, 4 bits\)"),
    "a kind that nobody knows": (
        lambda kit: kit.configured(quantization_config={"quant_method": "mystery"}),
        "which this transformers does not load",
    ),
    "a kind that is not named": (lambda kit: kit.configured(quantization_config={"some": 1}), "does not name"),
    # Configurations
    "a configuration that is no JSON": (
        lambda kit: with_files(kit.copy(), config__json='{"model_type": '),
        "config.json is not valid JSON",
    ),
    "a configuration that is a list": (lambda kit: with_files(kit.copy(), config__json="[]"), "config.json is not a JSON object"),
    "a configuration of wrong types": (lambda kit: kit.configured(hidden_size="wide"), "model way cannot be read: .*hidden_size"),
    "a configuration without a type": (lambda kit: kit.configured(model_type=None), "names no model_type"),
    "no blocks": (lambda kit: kit.configured(num_hidden_layers=0), "num_hidden_layers = 0"),
    "a type that is unknown": (lambda kit: kit.configured(model_type="mystery"), "model type 'mystery' is unknown to transformers"),
    "a type that brings code": (
        lambda kit: kit.configured(model_type="mystery", auto_map={"AutoConfig": "x.C"}),
        "trust_remote_code are not supported",
    ),
    "a rope type that is unknown": (
        lambda kit: kit.configured(rope_parameters={"rope_type": "mystery", "rope_theta": 1e4}),
        "rope type 'mystery' may be unknown",
    ),
    "a classifier": (lambda kit: kit.configured(architectures=["LlamaForSequenceClassification"]), "is a LlamaForSequenceClassification"),
    "an encoder": (lambda kit: kit.configured(model_type="bert", architectures=["BertForMaskedLM"]), "is a BertForMaskedLM"),
    "an encoder and a decoder": (lambda kit: kit.configured(model_type="t5", is_encoder_decoder=True), "encoder-decoder model"),
    "a generation_config that is no JSON": (
        lambda kit: with_files(kit.copy(), generation_config__json="{"),
        "generation_config.json is not valid JSON",
    ),
    # Tokenizers
    "no tokenizer": (lambda kit: gone(kit.copy(), "tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
    "a tokenizer that is no JSON": (lambda kit: with_files(kit.copy(), tokenizer__json="{"), "tokenizer.json is not valid JSON"),
    "a tokenizer that is none": (lambda kit: with_files(kit.copy(), tokenizer__json='{"a": 1}'), "the tokenizer of way cannot be read"),
    "a tokenizer with an unknown model": (lambda kit: _mystery_tokenizer(kit.copy()), "the tokenizer of way cannot be read"),
    "a tokenizer of another model": (lambda kit: _long_tokenizer(kit.copy()), "its tokenizer has 525 tokens, and the network embeds 325"),
    "no end token": (lambda kit: _endless(kit.copy()), "names no end-of-text token"),
}


def _forgotten(folder: Path) -> Path:
    names = shard(folder)
    path = folder / "model.safetensors.index.json"
    placed = json.loads(path.read_text())["weight_map"]
    patch(path, weight_map={key: name for key, name in placed.items() if name != names[1]})
    return folder


def _moved(folder: Path, name: str) -> Path:
    (folder / "model.safetensors").rename(folder / name)
    return folder


def _cut(folder: Path, length: int) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:length])
    return folder


def _lie(folder: Path) -> Path:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    assert b"[32,48]" in data
    path.write_bytes(data.replace(b"[32,48]", b"[32,49]", 1))
    return folder


def _spoiled(value: float) -> Callable[[Tensors], Tensors]:
    def spoil(tensors: Tensors) -> Tensors:
        tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = value
        return tensors

    return spoil


def _mystery_tokenizer(folder: Path) -> Path:
    path = folder / "tokenizer.json"
    found = json.loads(path.read_text())
    patch(path, model={**found["model"], "type": "Mystery"})
    return folder


def _long_tokenizer(folder: Path) -> Path:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([f"<extra {number}>" for number in range(200)])
    tokenizer.save_pretrained(folder)
    return folder


def _endless(folder: Path) -> Path:
    (folder / "generation_config.json").unlink()
    patch(folder / "config.json", eos_token_id=None)
    patch(folder / "tokenizer_config.json", eos_token=None)
    return folder


@pytest.mark.parametrize("way", REFUSED)
def test_a_way_that_cannot_be_right_is_refused_by_name(
    way: str, kit: Kit, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models.quantized, "_is_there", lambda module: module == "accelerate")  # whatever is installed here
    make, said = REFUSED[way]
    folder = make(kit)
    capfd.readouterr()  # what saving it says
    message = refusal(folder)
    assert message is not None, "it was loaded"
    assert re.search(said, message, re.DOTALL), message
    assert "\n" in message, "nothing is said about what to do"
    assert "/tmp/drift-model-" not in message, "the message names a folder that the user has never seen"
    assert capfd.readouterr().err == ""


def test_numbers_too_large_for_a_dtype_are_refused_in_it_and_not_in_others(kit: Kit) -> None:
    def large(tensors: Tensors) -> Tensors:
        tensors["model.norm.weight"][5] = 1e5
        return tensors

    folder = kit.edited(large)
    assert refusal(folder, "float32") is None
    assert refusal(folder, "bfloat16") is None
    assert "too large for float16\nUse --dtype bfloat16" in str(refusal(folder, "float16"))


def test_a_tokenizer_with_templates_for_tools_only_is_refused_where_one_is_needed(kit: Kit) -> None:
    folder = kit.copy()
    (folder / "chat_template.jinja").unlink()
    patch(folder / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "x"}])
    tokenizer = models.describe(str(folder)).tokenizer
    with pytest.raises(DriftError, match="chat templates for tool_use only"):
        chat_for(tokenizer, "template")
    assert chat_for(tokenizer, "raw").format.kind == "raw"


def test_an_encoder_that_transformers_would_run_as_a_language_model_is_refused(kit: Kit) -> None:
    """A BERT saved with its language model head: nothing is missing, but every token sees those after it."""
    from transformers import BertConfig, BertLMHeadModel

    folder = kit.copy()
    config = BertConfig(vocab_size=325, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48, eos_token_id=0)
    gone(folder, "config.json", "model.safetensors", "generation_config.json")
    BertLMHeadModel(config).save_pretrained(folder)
    assert "looks at later tokens" in str(refusal(folder))


def test_a_kind_that_runs_on_gpus_only_says_so(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models.quantized, "_is_there", lambda module: True)
    folder = kit.configured(quantization_config={"quant_method": "hqq", "quant_config": {}})
    assert "runs on GPUs only, and the device is cpu" in str(refusal(folder))


def test_what_a_quantizer_computes_in_is_what_the_run_says(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A quantizer that changes the dtype on its own (AWQ on a GPU does) is found out."""
    from drift_cli.models import checks

    network = models.load(models.describe(str(kit.base)), dtype="float16", device="cpu").network
    checks.check_dtype("way", network, torch.float16)
    with pytest.raises(DriftError, match="computes in float16 only\nUse --dtype float16"):
        checks.check_dtype("way", network, torch.bfloat16)


def test_a_network_that_was_to_be_unpacked_is_an_ordinary_one(kit: Kit) -> None:
    """transformers 5.17 goes on rounding the activations of compressed-tensors models; a GPU may keep FP8 weights packed."""
    from drift_cli.models import checks

    network = models.load(models.describe(str(kit.base)), dtype="float32", device="cpu").network
    checks.check_unpacked("way", network)
    module = network.model.layers[1].mlp.up_proj
    module.quantization_scheme = object()
    with pytest.raises(DriftError, match=r"leaves model.layers.1.mlp.up_proj quantized"):
        checks.check_unpacked("way", network)
    del module.quantization_scheme
    module.weight = torch.nn.Parameter(module.weight.to(torch.float8_e4m3fn), requires_grad=False)
    with pytest.raises(DriftError, match=r"leaves model.layers.1.mlp.up_proj.weight quantized"):
        checks.check_unpacked("way", network)


def test_mxfp4_experts_mean_what_their_blocks_say(kit: Kit) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM

    config = GptOssConfig(
        vocab_size=325,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        eos_token_id=0,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    torch.manual_seed(3)
    plain = kit.copy()
    gone(plain, "config.json", "model.safetensors", "generation_config.json")
    GptOssForCausalLM(config).save_pretrained(plain)
    packed, meant = _mxfp4(_stored(plain))
    write(plain, meant)
    folder = kit.copy(plain)
    write(folder, packed)
    patch(
        folder / "config.json",
        quantization_config={"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "lm_head"]},
    )
    assert torch.equal(logits(folder, "bfloat16"), logits(plain, "bfloat16"))
    card = models.describe(str(folder))
    assert card.quantization is not None
    assert card.quantization.text == "MXFP4, unpacked"


def _mxfp4(tensors: Tensors) -> tuple[Tensors, Tensors]:
    """Experts as blocks of 32 four-bit numbers with a power of two each; and what they mean, (experts, in, out) as gpt-oss has it."""
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
    packed, meant = dict(tensors), dict(tensors)
    for key in [key for key in tensors if key.endswith(("gate_up_proj", "down_proj"))]:
        experts, inner, outer = tensors[key].shape
        codes = torch.randint(0, 16, (experts, outer, inner // 32, 32), generator=torch.Generator().manual_seed(len(key)))
        powers = torch.randint(118, 124, (experts, outer, inner // 32), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
        del packed[key]
        packed[f"{key}_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
        packed[f"{key}_scales"] = powers
        found = values[codes] * torch.exp2(powers.float() - 127)[..., None]
        meant[key] = found.reshape(experts, outer, inner).transpose(1, 2).to(torch.bfloat16)
    return packed, meant


def test_every_architecture_of_the_tests_is_loaded_as_transformers_does(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    for name, folder in tiny_models.items():
        ids = torch.arange(5, 30)[None]
        for dtype in (torch.float32, torch.bfloat16):
            ours = models.load(models.describe(str(folder)), dtype=str(dtype).removeprefix("torch."), device="cpu").network
            theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
            assert torch.equal(ours(ids).logits, theirs(ids).logits), (name, dtype)

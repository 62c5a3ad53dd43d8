"""LoRA adapters: merged exactly, part of what a model is called by, and neither applied nor ignored in silence."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from saved_models import FP8, IDS, Kit, fp8, logits, patch, refusal, write
from transformers import AutoModelForCausalLM

from drift_cli import models
from drift_cli.errors import DriftError, UsageError


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("adapters"))


def made(kit: Kit, base: Path | None = None, *, size: float = 0.3, **settings: Any) -> tuple[Path, torch.Tensor]:
    """An adapter of random numbers as peft saves it, and what peft says of `IDS` with it, kept beside the weights: (tokens, vocabulary) float32."""
    base = base or kit.base
    torch.manual_seed(5)
    config = LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], "task_type": "CAUSAL_LM", **settings})
    network = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter.add_(torch.randn_like(parameter) * size)
    kit.made += 1
    folder = kit.root / str(kit.made) / "lora"
    network.save_pretrained(folder)
    patch(folder / "adapter_config.json", base_model_name_or_path=str(base))
    with torch.inference_mode():
        return folder, network.eval()(input_ids=IDS).logits[0].float()


def copied(kit: Kit, folder: Path) -> Path:
    kit.made += 1
    copy = kit.root / str(kit.made) / "lora"
    shutil.copytree(folder, copy)
    return copy


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "ranks of their own": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"q_proj": 3}},
    "every layer": {"target_modules": "all-linear"},
    "some blocks": {"layers_to_transform": [1]},
    "a head trained whole": {"modules_to_save": ["lm_head"]},
    "embeddings": {"target_modules": ["embed_tokens", "v_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_says_what_peft_says(kind: str, kit: Kit, capfd: pytest.CaptureFixture[str]) -> None:
    folder, wanted = made(kit, **KINDS[kind])
    capfd.readouterr()
    found = logits(kit.base, adapter=str(folder))
    assert (found - wanted).abs().max() < 2e-4 * wanted.std()
    assert (logits(kit.base) - wanted).abs().max() > 0.1 * wanted.std()  # it does something
    assert torch.equal(logits(folder), found)  # the folder alone names its model
    loaded = models.load(models.describe(str(kit.base), adapter=str(folder)), dtype="float32", device="cpu")
    assert not [module for module in loaded.network.modules() if type(module).__module__.startswith("peft")]
    assert [note for note in loaded.notes if "merged into the weights in float32" in note]
    assert capfd.readouterr().err == ""


def test_in_half_precision_the_sum_is_rounded_once_and_what_that_costs_is_said(kit: Kit) -> None:
    folder, _ = made(kit, size=0.01)
    half = models.load(models.describe(str(kit.base), adapter=str(folder)), dtype="bfloat16", device="cpu")
    full = models.load(models.describe(str(kit.base), adapter=str(folder)), dtype="float32", device="cpu")
    # What is stored in bfloat16 and what is computed in float32 agree to the last bit of bfloat16.
    stored = kit.edited(lambda tensors: {key: value.bfloat16() for key, value in tensors.items()})
    exact = models.load(models.describe(str(stored), adapter=str(folder)), dtype="float32", device="cpu")
    rounded = models.load(models.describe(str(stored), adapter=str(folder)), dtype="bfloat16", device="cpu")
    for one, other in zip(exact.network.parameters(), rounded.network.parameters(), strict=True):
        assert torch.equal(one.to(torch.bfloat16), other)
    assert "--dtype float32 keeps it whole" in half.notes[0]
    assert "keeps it whole" not in full.notes[0]


def test_an_adapter_is_part_of_what_a_model_is_called_by(kit: Kit) -> None:
    folder, _ = made(kit)
    plain, adapted = models.describe(str(kit.base)), models.describe(str(kit.base), adapter=str(folder))
    assert adapted.revision == plain.revision
    assert plain.adapter is None
    assert adapted.adapter is not None
    assert adapted.identity == f"{plain.revision}+{adapted.adapter.digest}" != plain.identity
    other = copied(kit, folder)
    assert models.describe(str(kit.base), adapter=str(other)).identity == adapted.identity  # wherever it lies
    (other / "README.md").write_text("# nothing")
    (other / "optimizer.pt").write_text("x")
    assert models.describe(str(kit.base), adapter=str(other)).identity == adapted.identity
    tensors = load_file(other / "adapter_model.safetensors")
    next(iter(tensors.values()))[0, 0] += 1e-3
    save_file(tensors, other / "adapter_model.safetensors")
    assert models.describe(str(kit.base), adapter=str(other)).identity != adapted.identity


def test_an_adapters_own_tokenizer_is_used_and_part_of_it(kit: Kit) -> None:
    folder, _ = made(kit)
    own = copied(kit, folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(kit.base / name, own)
    (own / "chat_template.jinja").write_text("{% for m in messages %}<|head|>{{ m['content'] }}<|eot|>{% endfor %}")
    card = models.describe(str(kit.base), adapter=str(own))
    assert card.tokenizer.chat_template.startswith("{% for m in")
    assert card.identity != models.describe(str(kit.base), adapter=str(folder)).identity
    (own / "tokenizer.json").unlink()
    with pytest.raises(DriftError, match=r"holds part of a tokenizer \(chat_template.jinja, tokenizer_config.json\)"):
        models.describe(str(kit.base), adapter=str(own))


def test_what_lies_beside_full_weights_is_neither_applied_nor_ignored_in_silence(kit: Kit) -> None:
    """transformers would apply it where peft is installed, and not where it is not."""
    folder, wanted = made(kit)
    both = kit.copy()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(folder / name, both)
    message = str(refusal(both))
    assert "holds full weights and an adapter (adapter_config.json, adapter_model.safetensors)" in message
    assert f"Apply it with --adapter {both}, or move" in message
    assert (logits(both, adapter=str(both)) - wanted).abs().max() < 2e-4 * wanted.std()
    other, of_other = made(kit, r=2)
    assert (logits(both, adapter=str(other)) - of_other).abs().max() < 2e-4 * of_other.std()  # the one that was asked for, and no other


def test_an_adapter_on_fp8_weights_is_merged_and_on_packed_ones_refused(kit: Kit) -> None:
    packed, meant = fp8(kit.tensors)
    base, plain = kit.edited(lambda _: packed, quantization_config=FP8), kit.edited(lambda _: meant)
    folder, _ = made(kit)
    assert torch.equal(logits(base, adapter=str(folder)), logits(plain, adapter=str(folder)))
    gptq = kit.configured(quantization_config={"quant_method": "bitnet"})
    with pytest.raises(UsageError, match="cannot be merged into way, which is quantized"):
        models.describe(str(gptq), adapter=str(folder))


def _config(**values: Any) -> Callable[[Kit, Path], None]:
    return lambda kit, folder: patch(folder / "adapter_config.json", **values)


def _tensors(edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Callable[[Kit, Path], None]:
    def change(kit: Kit, folder: Path) -> None:
        write(folder, edit(load_file(folder / "adapter_model.safetensors")), "adapter_model.safetensors")

    return change


def _gone(*names: str) -> Callable[[Kit, Path], None]:
    def remove(kit: Kit, folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return remove


def _pickled(kit: Kit, folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def _cut(kit: Kit, folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return sorted(tensors)[0]


REFUSED: dict[str, tuple[Callable[[Kit, Path], None], str]] = {
    "no configuration": (_gone("adapter_config.json"), "holds no adapter_config.json"),
    "no weights": (_gone("adapter_model.safetensors"), "there is no adapter_model.safetensors"),
    "a pickle": (_pickled, "adapter_model.bin is a pickle"),
    "cut short": (_cut, "damaged or was cut short"),
    "a configuration that is no JSON": (lambda kit, folder: (folder / "adapter_config.json").write_text("{") and None, "is not valid JSON"),
    "prompt tuning": (_config(peft_type="PREFIX_TUNING"), "is of kind PREFIX_TUNING"),
    "a classifier's": (_config(task_type="SEQ_CLS"), "was trained for SEQ_CLS"),
    "one that begins somewhere in the text": (_config(alora_invocation_tokens=[1, 2]), "uses alora_invocation_tokens"),
    "one that changes the weights when training begins": (_config(init_lora_weights="pissa"), "uses init_lora_weights = pissa"),
    "blocks that are repeated": (_config(layer_replication=[[0, 2], [1, 3]]), "uses layer_replication"),
    "something new": (_config(use_mystery=True), "uses use_mystery"),
    "a matrix less": (_tensors(lambda t: {key: t[key] for key in sorted(t)[1:]}), "does not fit this LlamaForCausalLM: it lacks"),
    "a matrix more": (
        _tensors(lambda t: {**t, "base_model.model.model.layers.9.x.lora_A.weight": t[_first(t)].clone()}),
        "for which the network has no place",
    ),
    "modules that are not there": (_config(target_modules=["query_key_value"]), "adapter lora cannot be read"),
    "another rank": (_config(r=2), "where the network takes"),
    "NaN": (_tensors(lambda t: {**t, _first(t): t[_first(t)] * float("nan")}), "NaN"),
}


@pytest.mark.parametrize("way", REFUSED)
def test_an_adapter_that_cannot_be_merged_exactly_is_refused_by_name(way: str, kit: Kit, capfd: pytest.CaptureFixture[str]) -> None:
    change, said = REFUSED[way]
    folder = copied(kit, _any(kit))
    change(kit, folder)
    capfd.readouterr()
    message = refusal(kit.base, adapter=str(folder))
    assert message is not None, "it was merged"
    assert said in message
    assert "\n" in message, "nothing is said about what to do"
    assert capfd.readouterr().err == ""


def _any(kit: Kit) -> Path:
    if "adapter" not in kit.__dict__:
        kit.__dict__["adapter"] = made(kit)[0]
    found: Path = kit.__dict__["adapter"]
    return found


def test_an_adapter_of_a_model_of_another_width_is_refused(kit: Kit) -> None:
    import tiny

    wide = tiny.save("llama", kit.root / "wide", hidden_size=64)
    message = str(refusal(wide, adapter=str(_any(kit))))
    assert "where the network takes" in message
    assert f"It says that it was trained on {kit.base}." in message


def test_an_adapter_on_what_embeddings_and_head_share_is_refused(kit: Kit) -> None:
    folder, _ = made(kit, kit.tied, target_modules=["embed_tokens"])
    assert "which the model's embeddings and head share" in str(refusal(kit.tied, adapter=str(folder)))


def test_a_base_model_that_is_not_here_is_named(kit: Kit) -> None:
    folder = copied(kit, _any(kit))
    patch(folder / "adapter_config.json", base_model_name_or_path="/models/gone")
    with pytest.raises(
        DriftError, match=f"made for the model /models/gone, which is not here\nSay where it is: --model BASE --adapter {folder}"
    ):
        models.describe(str(folder))
    patch(folder / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UsageError, match="does not say which model it was made for"):
        models.describe(str(folder))
    with pytest.raises(DriftError, match="adapter folder /nowhere does not exist"):
        models.describe(str(kit.base), adapter="/nowhere")
    with pytest.raises(UsageError, match="built-in model takes no adapter"):
        models.describe("demo", adapter=str(folder))


def test_a_configuration_saved_beside_an_adapter_makes_no_model_of_it(kit: Kit) -> None:
    folder = copied(kit, _any(kit))
    shutil.copy(kit.base / "config.json", folder)
    assert torch.equal(logits(folder), logits(kit.base, adapter=str(_any(kit))))
    assert json.loads((folder / "adapter_config.json").read_text())["peft_type"] == "LORA"


def test_without_peft_it_is_named(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _any(kit)
    monkeypatch.setitem(sys.modules, "peft", None)
    assert "merged with peft, which is not installed\npip install 'drift-cli[lora]'" in str(refusal(kit.base, adapter=str(folder)))

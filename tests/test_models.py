"""What is known of a model, and what is refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from drift_cli import models
from drift_cli.errors import DriftError, UsageError


@pytest.mark.parametrize(("name", "layers"), [("olmo3", 4), ("llama", 3), ("qwen3", 3), ("gemma", 2)])
def test_a_folder_is_described_and_loaded(name: str, layers: int, tiny_models: dict[str, Path]) -> None:
    card = models.describe(str(tiny_models[name]))
    assert (card.name, card.layers, card.width, card.context) == (f"tiny-{name}", layers, 32, 8192)
    assert card.top_p == 0.9
    assert card.top_k is None
    loaded = models.load(card, dtype="float32", device="cpu")
    assert len(models.blocks(loaded.network)) == layers
    assert loaded.parameters == models.count_parameters(card)
    assert next(loaded.network.parameters()).dtype is torch.float32


def test_only_safetensors_are_read(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "pickled"
    shutil.copytree(tiny_models["llama"], copy)
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    with pytest.raises(DriftError, match="weights of pickled cannot be read"):
        models.load(models.describe(str(copy)), dtype="float32", device="cpu")


def test_code_that_comes_with_a_model_is_not_run(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "custom"
    shutil.copytree(tiny_models["llama"], copy)
    config = json.loads((copy / "config.json").read_text())
    config.update(model_type="mystery", auto_map={"AutoConfig": "code.Config"})
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "code.py").write_text(f"open({str(tmp_path / 'owned')!r}, 'w')")
    with pytest.raises(DriftError, match="cannot be read"):
        models.describe(str(copy))
    assert not (tmp_path / "owned").exists()


def test_settings_of_the_model_that_are_not_applied_are_named(tiny_models: dict[str, Path], tmp_path: Path) -> None:
    copy = tmp_path / "penalized"
    shutil.copytree(tiny_models["llama"], copy)
    path = copy / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "repetition_penalty": 1.1}))
    assert models.describe(str(copy)).ignored == ("repetition_penalty=1.1",)


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "a/b/c"])
def test_a_folder_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(DriftError, match="does not exist"):
        models.describe(name)


def test_an_empty_folder_and_an_unreachable_id_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(DriftError, match=r"no config.json\nGive the folder"):
        models.describe(str(tmp_path))
    with pytest.raises(DriftError, match="model no-such-org/no-such-model cannot be read"):
        models.describe("no-such-org/no-such-model")


def test_devices_and_dtypes() -> None:
    assert models.choose_dtype("auto", "cpu") == "float32"
    assert models.choose_dtype("auto", "cuda") == "bfloat16"
    with pytest.raises(UsageError, match="auto, bfloat16, float16, float32"):
        models.choose_dtype("int3", "cpu")
    with pytest.raises(UsageError, match="Use auto, cpu, cuda or cuda:N"):
        models.choose_device("toaster")


def test_the_built_in_model_is_the_same_in_every_process() -> None:
    code = (
        "from drift_cli import models; import hashlib; c = models.describe('demo'); m = models.load(c, dtype='float32', device='cpu');"
        "d = hashlib.sha256(c.revision.encode());"
        "[d.update(p.detach().numpy().tobytes()) for _, p in sorted(m.network.named_parameters())];"
        "d.update(str(sorted(c.tokenizer.get_vocab().items())).encode()); print(d.hexdigest())"
    )
    prints = {subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(prints) == 1


def test_the_built_in_model_says_what_it_is() -> None:
    card = models.describe("demo")
    assert card.note is not None
    assert "planted drift" in card.note
    assert card.tokenizer.decode(card.tokenizer.encode("Hello, wörld! 🙂")) == "Hello, wörld! 🙂"

"""Models from the Hub: called by their commit, and told apart when they cannot be had. A cache laid out as the Hub's client does it; nothing is sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import transformers.utils
from huggingface_hub import constants, errors
from saved_models import Kit, logits, refusal, shard
from test_adapters import made

from drift_cli import models
from drift_cli.errors import DriftError
from drift_cli.models.reading import Reading
from drift_cli.running.existing import as_recorded

COMMITS = ("1" * 40, "2" * 40)


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    return Kit(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "hub-cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    return folder


def cached(cache: Path, folder: Path, commit: str = COMMITS[0], name: str = "org--tiny") -> Path:
    """Put a folder's files into the cache as a model's commit, which its branch main names."""
    place = cache / f"models--{name}"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text(commit)
    return place / "snapshots" / commit


def test_a_model_is_called_by_the_commit_that_its_branch_names(kit: Kit, cache: Path) -> None:
    """transformers 5.24 no longer says which commit it read: the branch's name would stand for whatever is there one day."""
    cached(cache, kit.base)
    first = models.describe("org/tiny")
    assert (first.name, first.revision, first.folder) == ("org/tiny", COMMITS[0], None)
    assert (logits(kit.base) == logits_of("org/tiny")).all()
    cached(cache, kit.edited(lambda t: {**t, "model.norm.weight": t["model.norm.weight"] * 2}), COMMITS[1])
    assert models.describe("org/tiny").revision == COMMITS[1]
    assert models.describe("org/tiny", COMMITS[0]).revision == COMMITS[0]
    assert not (logits(kit.base) == logits_of("org/tiny")).all()
    # What was described is what is loaded, although the branch has moved on.
    assert (logits_of("org/tiny", COMMITS[0]) == logits(kit.base)).all()


def logits_of(name: str, revision: str | None = None) -> Any:
    from saved_models import IDS

    loaded = models.load(models.describe(name, revision), dtype="float32", device="cpu")
    return loaded.network(input_ids=IDS, use_cache=False).logits[0].detach()


def test_a_run_that_recorded_a_branch_goes_on_with_what_the_branch_is_now(kit: Kit, cache: Path) -> None:
    from drift_cli.spec import ChatFormat, RunSpec, Sampling

    cached(cache, kit.base)
    card = models.describe("org/tiny")
    spec = RunSpec("x", "org/tiny", "main", "float32", ChatFormat("raw", "0"), Sampling(), 4, 0)
    found, said = as_recorded(card, spec)
    assert found.revision == "main"
    assert said is not None
    assert "recorded no commit of org/tiny" in said
    assert as_recorded(card, RunSpec("x", "org/tiny", COMMITS[1], "float32", spec.chat, Sampling(), 4, 0)) == (card, None)


def test_what_is_wrong_with_the_hubs_files_is_refused_as_in_a_folder(kit: Kit, cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for place, (make, said) in enumerate(
        (
            (lambda: kit.edited(lambda t: {key: value for key, value in t.items() if key != "lm_head.weight"}), "language model head"),
            (
                lambda: kit.edited(lambda t: {key: value.mul(50).char() if value.ndim == 2 else value for key, value in t.items()}),
                "stored as I8",
            ),
            (lambda: kit.configured(quantization_config={"quant_method": "gptq", "bits": 4}), "takes optimum and gptqmodel"),
            (lambda: kit.configured(model_type="mystery"), "model type 'mystery' is unknown"),
            (lambda: kit.configured(architectures=["LlamaForSequenceClassification"]), "is a LlamaForSequenceClassification"),
            (lambda: _cut(kit), "safetensors file is damaged"),
            (lambda: _pickled(kit), "does not appear to have a file named model.safetensors"),
            (lambda: _beside(kit), "holds full weights and an adapter; adapters are read from local folders"),
            (lambda: made(kit)[0], "holds an adapter only; adapters are read from local folders"),
        )
    ):
        cached(cache, make(), name=f"org--wrong{place}")
        capfd.readouterr()
        message = str(refusal(Path(f"org/wrong{place}")))
        assert said in message, message
        assert f"org/wrong{place}" in message
        assert capfd.readouterr().err == ""


def _cut(kit: Kit) -> Path:
    folder = kit.copy()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    return folder


def _pickled(kit: Kit) -> Path:
    folder = kit.copy()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return folder


def _beside(kit: Kit) -> Path:
    folder, (adapter, _) = kit.copy(), made(kit)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(adapter / name, folder)
    return folder


def test_shards_are_found_in_the_cache(kit: Kit, cache: Path) -> None:
    folder = kit.edited(lambda t: {key: value.mul(50).char() if "up_proj" in key else value for key, value in t.items()})
    shard(folder)
    cached(cache, folder)
    assert "up_proj.weight is stored as I8" in str(refusal(Path("org/tiny")))


def test_a_model_without_a_configuration_is_said_to_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.utils, "cached_file", lambda *_, **__: None)
    with pytest.raises(DriftError, match=r"the Hub's copy has no config.json\nIf it holds GGUF files"):
        models.describe("org/tiny-GGUF")


def _error(kind: type[BaseException]) -> BaseException:
    """As the client raises it, but for the answer of a server, which it carries."""
    made: BaseException = kind.__new__(kind)
    made.args = ("raw words of the library",)
    return made


TransportError = type("TransportError", (Exception,), {})
KINDS: dict[str, tuple[type[BaseException], str, str]] = {
    "gated": (errors.GatedRepoError, "it is gated", "hf auth login"),
    "misspelt": (errors.RepositoryNotFoundError, "no model of that name", "Check the spelling"),
    "no such revision": (errors.RevisionNotFoundError, "no such revision", "--revision"),
    "not a name": (errors.HFValidationError, "neither a folder nor a name", "org/name"),
    "offline": (errors.OfflineModeIsEnabled, "HF_HUB_OFFLINE forbids", "Unset HF_HUB_OFFLINE"),
    "no network": (type("ConnectError", (TransportError,), {}), "the Hub cannot be reached", "Check the network"),
    "the Hub is down": (errors.HfHubHTTPError, "the Hub refused to send it", "Try again later"),
    "a file less": (errors.EntryNotFoundError, "lacks a file", "model's page"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("wrapped", [False, True])
def test_why_a_model_cannot_be_had_is_told_apart(kind: str, wrapped: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    error, said, mend = KINDS[kind]

    def fail(*_: Any, **__: Any) -> None:
        if not wrapped:
            raise _error(error)
        try:
            raise _error(error)
        except BaseException as cause:
            raise OSError("We couldn't connect to the Hub, or something else\nand more lines") from cause

    monkeypatch.setattr(transformers.utils, "cached_file", fail)
    with pytest.raises(DriftError) as refused:
        models.describe("org/none")
    assert refused.value.what.startswith("model org/none cannot be read: ")
    assert said in refused.value.what
    assert mend in str(refused.value.mend)
    assert "raw words" not in str(refused.value)


def test_a_model_that_is_not_in_the_cache_is_said_to_be_forbidden_to_fetch(cache: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DriftError, match="not in the local cache, and HF_HUB_OFFLINE forbids to ask the Hub"):
        models.describe("org/none")
    assert capfd.readouterr().err == ""


def test_the_libraries_are_heard_again_afterwards() -> None:
    import logging

    before = logging.getLogger("transformers").level
    with Reading("x"):
        assert logging.getLogger("transformers").level > logging.CRITICAL
    with pytest.raises(DriftError, match="x cannot be read: KeyError: 'y'"), Reading("x"):
        raise KeyError("y")
    assert logging.getLogger("transformers").level == before
    with pytest.raises(KeyboardInterrupt), Reading("x"):
        raise KeyboardInterrupt
    with pytest.raises(DriftError, match="mine"), Reading("x"):
        raise DriftError("mine")
    with pytest.raises(DriftError, match="x does not fit: memory ran out"), Reading("x"):
        raise MemoryError

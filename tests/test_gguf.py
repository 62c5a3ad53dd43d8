"""GGUF files: the network and the tokenizer are those of the folder that they were made from, or the file is refused by name."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import gguf_files
import pytest
import tiny
import torch
from saved_models import Kit, logits, refusal

from drift_cli import models
from drift_cli.chat import chat_for

Kind = gguf.GGMLQuantizationType
TEXTS = ("hello there", "Who  are you? 12 345", "<|head|>user<|/head|>\n\nthe light<|eot|>", "naïve 日本 🙂\n\n  x")


@pytest.fixture(scope="module")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    made = Kit(tmp_path_factory.mktemp("gguf"))
    made.__dict__["base"] = tiny.save("llama", made.root / "base", intermediate_size=64)  # whole blocks of 32
    return made


@pytest.mark.parametrize("kind", [Kind.F32, Kind.F16, Kind.Q8_0])
def test_a_file_is_the_folder_that_it_was_made_from(kind: Kind, kit: Kit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = gguf_files.write(kit.base, tmp_path / f"tiny.{kind.name}.gguf", kind)
    plain = kit.edited(lambda _: {key: torch.from_numpy(value.copy()) for key, value in gguf_files.rounded(kit.base, kind).items()})
    capfd.readouterr()
    assert torch.equal(logits(path), logits(plain))
    card, folder = models.describe(str(path)), models.describe(str(kit.base))
    assert card.quantization is not None
    assert (card.name, card.quantization.text) == (f"tiny.{kind.name}", f"GGUF {kind.name}, unpacked")
    assert (card.context, card.layers, card.width) == (folder.context, folder.layers, folder.width)
    assert card.end_ids == folder.end_ids
    for text in TEXTS:
        assert card.tokenizer(text).input_ids == folder.tokenizer(text).input_ids, text
        assert card.tokenizer.decode(card.tokenizer(text).input_ids) == text
    assert set(card.tokenizer.all_special_ids) == {place for place, token in folder.tokenizer.added_tokens_decoder.items() if token.special}
    assert chat_for(card.tokenizer, "template").format == chat_for(folder.tokenizer, "template").format
    assert capfd.readouterr().err == ""  # no bars, no advice


def test_no_tensor_is_unpacked_to_describe_a_file(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_files.write(kit.base, tmp_path / "tiny.gguf", Kind.Q8_0)

    def refuse(*_: Any) -> None:
        raise AssertionError("a tensor was unpacked")

    numbers = sum(value.numel() for value in kit.tensors.values())
    monkeypatch.setattr(gguf, "dequantize", refuse)
    assert models.count_parameters(models.describe(str(path))) == numbers


def test_what_a_file_is_called_and_what_lies_beside_it_does_not_matter(kit: Kit, tmp_path: Path) -> None:
    first = gguf_files.write(kit.base, tmp_path / "tiny.gguf")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "other-name.gguf").write_bytes(first.read_bytes())
    for name in ("tokenizer_config.json", "chat_template.jinja", "special_tokens_map.json"):
        (tmp_path / name).write_text("{}" if name.endswith("json") else "{{ 1 / 0 }}")
    card, alone = models.describe(str(first)), models.describe(str(tmp_path / "alone"))
    assert card.revision == alone.revision
    assert card.tokenizer.chat_template == alone.tokenizer.chat_template
    assert card.folder == first


def test_a_second_end_token_of_the_file_ends_replies(kit: Kit, tmp_path: Path) -> None:
    path = gguf_files.write(kit.base, tmp_path / "tiny.gguf", more=lambda writer: writer.add_eot_token_id(2))
    assert models.describe(str(path)).end_ids == {0, 2}


def test_digits_are_words_of_their_own_where_the_vocabulary_was_made_so(kit: Kit, tmp_path: Path) -> None:
    """`a  1`: GPT-2 keeps the second space for the word that follows, these vocabularies have it with the first."""
    from drift_cli.models.gguf_vocabulary import tokenizer_from

    tokens = ["<|end|>", "a", "1", "Ġ", "ĠĠ", "Ġ1"]
    said = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens, "tokenizer.ggml.merges": ["Ġ Ġ", "Ġ 1"]}
    made = {pre: tokenizer_from(Path("x"), {**said, "tokenizer.ggml.pre": pre})("a  1").input_ids for pre in ("gpt-2", "smollm")}
    assert made == {"gpt-2": [1, 3, 5], "smollm": [1, 4, 2]}


def _more(**said: Any) -> Callable[[gguf_files.Writer], None]:
    def add(writer: gguf_files.Writer) -> None:
        for key, value in said.items():
            name = key.replace("__", ".")
            if isinstance(value, str):
                writer.add_string(name, value)
            elif isinstance(value, float):
                writer.add_float32(name, value)
            else:
                writer.add_uint32(name, value)

    return add


def _file(**how: Any) -> Callable[[Kit, Path], Path]:
    return lambda kit, folder: gguf_files.write(kit.base, folder / "tiny.gguf", **how)


def _cut(length: int) -> Callable[[Kit, Path], Path]:
    def cut(kit: Kit, folder: Path) -> Path:
        path = _file()(kit, folder)
        path.write_bytes(path.read_bytes()[:length])
        return path

    return cut


def _two(kit: Kit, folder: Path) -> Path:
    for name in ("a.gguf", "b.gguf"):
        gguf_files.write(kit.base, folder / name)
    return folder


def _beside(kit: Kit, folder: Path) -> Path:
    place = kit.copy()
    (place / "model.safetensors").unlink()
    gguf_files.write(kit.base, place / "tiny.gguf")
    return place


def _named(name: str, data: bytes = b"GGUF" + b"\x03" * 40) -> Callable[[Kit, Path], Path]:
    def make(kit: Kit, folder: Path) -> Path:
        (folder / name).write_bytes(data)
        return folder / name

    return make


def _without(part: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda found: {name: value for name, value in found.items() if part not in name}


REFUSED: dict[str, tuple[Callable[[Kit, Path], Path], str]] = {
    "cut short in a tensor": (_cut(-200), "damaged or was cut short: it has"),
    "cut short in the header": (_cut(300), "its header ends in the middle"),
    "four bytes": (_cut(4), "it has 4 bytes"),
    "something else": (_named("x.gguf", b"PK\x03\x04" + bytes(100)), "is not a GGUF file"),
    "a version of the future": (_named("x.gguf", b"GGUF\x09\x00\x00\x00" + bytes(40)), "GGUF version 9"),
    "counts beyond the file": (_named("x.gguf", b"GGUF\x03\x00\x00\x00" + b"\xff" * 40), "its header ends in the middle"),
    "another file": (_named("model.bin"), "is a file, but not a GGUF file"),
    "one of several parts": (_named("tiny-00001-of-00003.gguf"), "one of several parts"),
    "several files": (_two, "holds 2 GGUF files"),
    "beside a configuration": (_beside, "they are in a GGUF file"),
    "a projector for images": (_file(more=_more(general__type="mmproj")), "holds no whole model"),
    "words that are cut in an unknown way": (_file(pre="mystery"), "cut into words as 'mystery' does"),
    "words that are cut in a way that is not said": (_file(pre=None), "cut into words as None does"),
    "a SentencePiece vocabulary": (_file(vocabulary="llama"), "a vocabulary of kind 'llama'"),
    "scaled rotary embeddings": (
        _file(more=_more(llama__rope__scaling__type="yarn", llama__rope__scaling__factor=4.0)),
        "rope.scaling.type yarn",
    ),
    "a window": (_file(more=_more(llama__attention__sliding_window=16)), "attention.sliding_window 16"),
    "something new": (_file(more=_more(llama__mystery_scale=0.5)), "mystery_scale 0.5"),
    "frequencies as a tensor": (
        _file(tensors=lambda found: {**found, "rope_freqs.weight": found["output_norm.weight"][:4]}),
        "tensor rope_freqs.weight",
    ),
    "a tensor that nobody reads": (
        _file(tensors=lambda found: {**found, "extra.weight": found["output_norm.weight"]}),
        "the GGUF file holds",
    ),
    "a tensor that is missing": (_file(tensors=_without("blk.1.ffn_up")), "its files lack block 1 "),
}


@pytest.mark.parametrize("way", REFUSED)
def test_a_file_that_cannot_be_right_is_refused_by_name(way: str, kit: Kit, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    make, said = REFUSED[way]
    path = make(kit, tmp_path)
    capfd.readouterr()
    message = refusal(path)
    assert message is not None, "it was loaded"
    assert said in message
    assert "\n" in message, "nothing is said about what to do"
    assert capfd.readouterr().err == ""


def test_without_the_package_it_is_named(kit: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = gguf_files.write(kit.base, tmp_path / "tiny.gguf")
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else there(name, *rest))
    assert "reading it takes gguf, which is not installed\npip install 'drift-cli[gguf]'" in str(refusal(path))

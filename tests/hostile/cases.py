"""The inputs, made when they are needed. A case is a command line and what its folder holds."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Make = Callable[[Path], None]

SCRIPT = {"users": ["hello there", "who are you"]}
GENERATE = (
    "generate",
    "--transcript",
    "talk.json",
    "--samples",
    "1",
    "--max-new-tokens",
    "3",
    "--dtype",
    "float32",
    "--device",
    "cpu",
    "--display",
    "plain",
)
BOMBS = {
    "a long text": "{{ 'a' * 10**10 }}",
    "a long list": "{{ [0] * 10**10 }}",
    "doubling": "{% set n = namespace(t='a') %}{% for i in range(40) %}{% set n.t = n.t ~ n.t %}{% endfor %}{{ n.t }}",
    "joining": "{{ (['a' * 10**6] * 10**5)|join }}",
    "padding": "{{ 'a'|center(10**10) }}",
    "formatting": "{{ '%10000000000d' % 1 }}",
    "replacing": "{{ ('a' * 10**5)|replace('a', 'a' * 10**6) }}",
    "indenting": "{{ ('a\n' * 10**6)|indent(10**6) }}",
    "a large number": "{{ (10**(10**8))|string|length }}",
    "looping": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursion": "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
    "writing": "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}",
    "listing": "{{ (range(99999)|list * 9999)|length }}",
}
"""Chat templates that take all the time or memory there is."""
STRANGE = {
    **BOMBS,
    "globals": "{{ cycler.__init__.__globals__.os.system('touch touched') }}",
    "subclasses": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "syntax": "{% if %}",
    "empty": "",
    "no messages": "nothing",
}
"""And those that reach for what is not theirs, or are none."""
JUNK: dict[str, bytes] = {
    "empty": b"",
    "binary": bytes(range(256)) * 4,
    "null": b"null",
    "a number": b"7",
    "a list": b"[]",
    "an object": b"{}",
    "deep": b"[" * 200_000,
    "deep objects": b'{"a":' * 100_000,
    "closed deep": b"[" * 900 + b"]" * 900,
    "a long number": b"1" * 100_000,
    "infinite": b'{"users":[1e99999]}',
    "surrogates": b'{"users":["\\ud800"]}',
    "cut": b'{"users":["hello',
    "zeros": b"\0" * 100_000,
    "utf-16": '{"users":["hello"]}'.encode("utf-16"),
    "gzip": b"\x1f\x8b\x08" + bytes(100),
}


@dataclass(frozen=True)
class Case:
    """One command line on one strange input."""

    kind: str
    name: str
    make: Make
    line: tuple[str, ...]
    refused: bool = True
    """False where it may also be taken for what it is."""
    kept: tuple[str, ...] = ()
    """What must be there afterwards as it was: names in the folder."""

    @property
    def label(self) -> str:
        return f"{self.kind}: {self.name}"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def folder(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


def huge(path: Path) -> None:
    """A file of 64 GB that takes no room."""
    with path.open("wb") as file:
        file.truncate(1 << 36)


PLACES: dict[str, Make] = {"a FIFO": fifo, "/dev/zero": zeros, "a folder": folder, "a link to itself": loop, "64 GB": huge}
"""What may lie where a file is looked for."""


def wrote(name: str, data: bytes) -> Make:
    return lambda place: (place / name).write_bytes(data) and None


def placed(name: str, what: Make) -> Make:
    def make(place: Path) -> None:
        (place / name).unlink(missing_ok=True)
        what(place / name)

    return make


def talk(place: Path) -> None:
    (place / "talk.json").write_text(json.dumps(SCRIPT))


def both(*makes: Make) -> Make:
    def make(place: Path) -> None:
        for each in makes:
            each(place)

    return make


class Material:
    """What cases are made from: a tiny model, a small run with everything in it."""

    def __init__(self, model: Path, run: Path) -> None:
        self.model, self.run_folder = model, run

    def model_in(self, place: Path) -> Path:
        shutil.copytree(self.model, place / "model")
        talk(place)
        return place / "model"

    def edited(self, edit: Callable[[Path], object]) -> Make:
        return lambda place: edit(self.model_in(place)) and None

    def run_in(self, place: Path) -> Path:
        """The run's folder in a copy of the store."""
        shutil.copytree(self.run_folder, place, dirs_exist_ok=True, symlinks=True)
        return next(path.parent for path in (place / "checkpoints").glob("*/run.json"))


# --- transcripts, conversations, settings


def transcripts() -> Iterator[Case]:
    for name, data in JUNK.items():
        yield Case("transcript", name, wrote("talk.json", data), GENERATE)
        yield Case("finished conversation", name, both(wrote("done.json", data)), ("import", "done.json"))
    for name, what in PLACES.items():
        yield Case("transcript", name, placed("talk.json", what), GENERATE)
        yield Case("finished conversation", name, placed("done.json", what), ("import", "done.json"))
    texts = {
        "no turns": [],
        "empty turn": [""],
        "control characters": ["\x1b[2J\x07"],
        "many turns": ["a"] * 100_000,
        "a long turn": ["a" * 5_000_000],
        "numbers": [1, 2],
        "a number among texts": ["a", 1],
    }
    for name, users in texts.items():
        yield Case("transcript", name, wrote("talk.json", json.dumps({"users": users}).encode()), (*GENERATE, "--dry-run"), refused=False)


def settings() -> Iterator[Case]:
    for name, data in JUNK.items():
        if name != "empty":
            yield Case("drift.toml", name, both(talk, wrote("drift.toml", data)), (*GENERATE, "--dry-run"), refused=name != "gzip" or True)
    for name, what in PLACES.items():
        yield Case("drift.toml", name, both(talk, placed("drift.toml", what)), (*GENERATE, "--dry-run"))
    tables = {
        "unknown key": "modle = 'demo'",
        "samples as text": "samples = 'many'",
        "samples as a list": "samples = [1]",
        "samples beyond": "samples = 1000000000000",
        "negative samples": "samples = -1",
        "a date": "seed = 1979-05-27",
        "nan": "temperatures = [nan]",
        "infinite temperature": "temperatures = [inf]",
        "conditions as a list": "conditions = [1]",
        "a condition as a text": "conditions.a = 'x'",
        "placement": "[conditions.a]\nsystem = 'x'\nplacement = 'middle'",
        "a name with slashes": "[conditions.'../../a']\nsystem = 'x'",
        "names that differ in case": "[conditions.a]\nsystem = 'x'\n[conditions.A]\nsystem = 'y'",
        "dotted": "a" + ".a" * 5000 + " = 1",
        "nested": "a = " + "[" * 5000 + "]" * 5000,
        "layers": "layers = 'some'",
        "negative layer": "layer = -5",
    }
    for name, text in tables.items():
        yield Case(
            "drift.toml",
            name,
            both(talk, wrote("drift.toml", text.encode())),
            (*GENERATE, "--dry-run"),
            refused=name not in {"dotted"},
        )


# --- numbers that cannot be

NUMBERS: dict[str, tuple[str, ...]] = {
    "--samples": ("0", "-1", "1e12", "1000000000000", str(2**70), "nan", "many", ""),
    "--max-new-tokens": ("0", "-1", str(2**70), str(2**31), "x"),
    "--turns": ("0", "-3", str(2**70), "1.5"),
    "--temperature": ("-1", "nan", "inf", "1e9", "x", ""),
    "--seed": ("-1", str(2**63), str(2**70), "x", "1.5"),
    "--top-p": ("0", "-1", "2", "nan", "x"),
    "--top-k": ("-1", str(2**70), "x"),
    "--min-p": ("-1", "1", "nan", "x"),
    "--batch": ("0", "-1", "1000000000", str(2**70), "x"),
    "--layer": ("-5", "99", str(2**70), "x"),
    "--layers": ("-1", "99", "x", "1,,2", str(2**70)),
    "--device": ("meta", "mps", "xla", "cuda:99", "nonsense", "cpu:7", ""),
    "--dtype": ("float8", "int8", "float64", "x", ""),
    "--engine": ("fast", ""),
    "--chat": ("x", ""),
    "--chat-date": ("yesterday", "2026-13-01", "9999999-01-01", ""),
    "--chat-option": ("x", "=1", "a=" + "[" * 5000),
    "--name": ("../a", "", "a" * 500, "a/b", "-", "a\n"),
    "--condition": ("nobody", "../a", ""),
    "--placement": ("middle", ""),
    "--transcript": ("nobody", "", "/", "/dev/null", "\x00" if False else "no/such"),
    "--axis": ("nobody", "/dev/null", "/", "", "x.pt", "../x"),
    "--model": ("", "/dev/null", "/", "no/such/model/at/all", "../..", "x" * 5000),
    "--preset": ("nobody", "", "../demo"),
    "--config": ("nobody.toml", "/dev/null/x", "/"),
    "--adapter": ("nobody", "/dev/null", ""),
    "--store": ("/dev/null", "/dev/null/x", "/proc/x"),
}
TAKEN = {("--top-k", str(2**70)), ("--temperature", "1e9")}
OTHERS: tuple[tuple[str, ...], ...] = (
    ("measure", "--controls", "1000000000"),
    ("measure", "--controls", "0"),
    ("measure", "--layer", "-5"),
    ("measure", "--axis", "demo", "--layer", "99"),
    ("measure", "--axis", "demo@-5"),
    ("measure", "--segment", "x"),
    ("stats", "--resamples", "1000000000000"),
    ("stats", "--level", "1.5"),
    ("stats", "--level", "nan"),
    ("stats", "--turns", "5-1"),
    ("stats", "--turns", "0-"),
    ("stats", "--turns", "99-100"),
    ("stats", "--against", "nobody"),
    ("stats", "--primary", "x"),
    ("stats", "--test", "x"),
    ("stats", "--equivalence", "nan"),
    ("stats", "--break-at", "x"),
    ("stats", "--format", "x"),
    ("stats", "--power", "--half-width", "0"),
    ("stats", "--power", "--half-width", "nan"),
    ("plot", "--kind", "x"),
    ("plot", "--style", "x"),
    ("plot", "--level", "0"),
    ("plot", "--annotate", "99"),
    ("plot", "--kind", "tokens", "--reply", "x"),
    ("plot", "--format", "exe"),
    ("export", "--format", "x"),
    ("export", "--format", "csv", "--axis", "nobody"),
    ("report", "--axis", "nobody"),
    ("runs", "show", "nobody"),
    ("runs", "show", "../.."),
    ("runs", "verify", "/"),
    ("resume", "nobody"),
    ("launch", "--workers", "1000000", "--dry-run"),
    ("launch", "--workers", "0", "--dry-run"),
    ("launch", "--gpus-per-worker", "-1", "--dry-run"),
    ("work", "nobody"),
    ("work", "--lease", "0"),
    ("work", "--among", "0"),
    ("axis", "show", "nobody"),
    ("axis", "import", "nobody.pt"),
    ("axis", "export", "nobody"),
    ("axis", "build", "--max-new-tokens", "0"),
    ("axis", "build", "--personas", "nobody.toml"),
    ("import", "nobody.json"),
    ("init", "--preset", "nobody"),
    ("doctor", "--model", "/dev/null"),
    ("nobody",),
)


def numbers(material: Material) -> Iterator[Case]:
    for flag, values in NUMBERS.items():
        for value in values:
            dry = () if flag in ("--batch", "--device", "--samples") else ("--dry-run",)
            yield Case("option", f"{flag} {value[:30]}", talk, (*GENERATE, flag, value, *dry), refused=(flag, value) not in TAKEN)
    for line in OTHERS:
        yield Case("option", " ".join(line), lambda place: material.run_in(place) and None, line)


# --- models


def models(material: Material) -> Iterator[Case]:
    line = (*GENERATE, "--model", "model")
    config = json.loads((material.model / "config.json").read_text())
    for key, found in sorted(config.items()):
        values: dict[str, Any] = {
            "text": "x",
            "list": [],
            "object": {"a": 1},
            "negative": -1,
            "none": 0,
            "huge": 2**40,
            "float": 1.5,
            "null": None,
        }
        for name, value in values.items():
            if value != found:
                yield Case("config.json", f"{key} is {name}", material.edited(_configured(key, value)), line, refused=False)
    more = {
        "rope_scaling": {"rope_type": "spiral", "factor": 2.0},
        "num_attention_heads": 7,
        "num_key_value_heads": 3,
        "hidden_act": "sing",
        "architectures": ["Nobody"],
    }
    for key, value in more.items():
        yield Case(
            "config.json",
            f"{key} is {json.dumps(value)[:40]}",
            material.edited(_configured(key, value)),
            line,
            refused=key not in ("architectures",),
        )
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
        "model.safetensors",
        "chat_template.jinja",
    ):
        for junk, data in JUNK.items():
            taken = name in ("tokenizer_config.json", "generation_config.json", "chat_template.jinja")
            yield Case("model file", f"{name} is {junk}", material.edited(_file(name, data)), line, refused=not taken)
        for what, place in PLACES.items():
            yield Case("model file", f"{name} is {what}", material.edited(_put(name, place)), line)
    for name, edit in _weights().items():
        yield Case("weights", name, material.edited(edit), line)
    for name, template in STRANGE.items():
        yield Case("template", name, material.edited(_file("chat_template.jinja", template.encode())), (*line, "--dry-run"))


def _configured(key: str, value: Any) -> Callable[[Path], object]:
    def edit(model: Path) -> object:
        found = json.loads((model / "config.json").read_text())
        found[key] = value
        return (model / "config.json").write_text(json.dumps(found))

    return edit


def _file(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda model: (model / name).write_bytes(data)


def _put(name: str, what: Make) -> Callable[[Path], object]:
    def edit(model: Path) -> object:
        (model / name).unlink(missing_ok=True)
        return what(model / name)

    return edit


def _weights() -> dict[str, Callable[[Path], object]]:
    def cut(share: float) -> Callable[[Path], object]:
        def edit(model: Path) -> object:
            size = (model / "model.safetensors").stat().st_size
            return os.truncate(model / "model.safetensors", int(size * share))

        return edit

    def header(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
        def edit(model: Path) -> object:
            data = (model / "model.safetensors").read_bytes()
            length = struct.unpack("<Q", data[:8])[0]
            found = json.loads(data[8 : 8 + length])
            change(found)
            body = json.dumps(found).encode()
            return (model / "model.safetensors").write_bytes(struct.pack("<Q", len(body)) + body + data[8 + length :])

        return edit

    def first(found: dict[str, Any]) -> dict[str, Any]:
        return next(value for key, value in sorted(found.items()) if key != "__metadata__")

    def raw(data: bytes) -> Callable[[Path], object]:
        return lambda model: (model / "model.safetensors").write_bytes(data)

    def index(weight_map: Any, keep: bool = False) -> Callable[[Path], object]:
        def edit(model: Path) -> object:
            if not keep:
                (model / "model.safetensors").unlink()
            return (model / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

        return edit

    made: dict[str, Callable[[Path], object]] = {f"cut to {share:.0%}": cut(share) for share in (0.0, 0.001, 0.01, 0.1, 0.5, 0.9, 0.999)}
    made |= {
        "a header of 2^60 bytes": raw(struct.pack("<Q", 1 << 60) + b"{}"),
        "a header of 100 MB": raw(struct.pack("<Q", 100 << 20) + b"{" + b" " * (100 << 20)),
        "a header that is no JSON": raw(struct.pack("<Q", 4) + b"abcd"),
        "a header of junk": raw(struct.pack("<Q", 2) + b"[]"),
        "an unknown dtype": header(lambda found: first(found).update(dtype="F3")),
        "a negative shape": header(lambda found: first(found).update(shape=[-1, 4])),
        "a huge shape": header(lambda found: first(found).update(shape=[1 << 40, 1 << 20])),
        "offsets beyond the end": header(lambda found: first(found).update(data_offsets=[0, 1 << 50])),
        "offsets that overlap": header(
            lambda found: [value.update(data_offsets=first(found)["data_offsets"]) for value in list(found.values())[1:4]]
        ),
        "a tensor less": header(lambda found: found.pop(next(key for key in sorted(found) if "norm" in key))),
        "a shape turned": header(
            lambda found: [value.update(shape=value["shape"][::-1]) for value in found.values() if len(value.get("shape", [])) == 2]
        ),
        "an index without files": index({"lm_head.weight": "nobody.safetensors"}),
        "an index that leaves the folder": index({"lm_head.weight": "../../../etc/passwd"}),
        "an index with an absolute path": index({"lm_head.weight": "/etc/passwd"}),
        "an index that is a list": index([1, 2]),
        "an index of numbers": index({"lm_head.weight": 7}),
    }
    return made


# --- axes and torch files


def axes(material: Material) -> Iterator[Case]:
    line = (*GENERATE, "--axis", "mine.safetensors", "--dry-run")
    for name, data in JUNK.items():
        yield Case("axis file", name, both(talk, wrote("mine.safetensors", data)), line)
        yield Case("torch file", name, wrote("mine.pt", data), ("axis", "import", "mine.pt", "--name", "mine"))
        yield Case("personas", name, wrote("mine.toml", data), ("axis", "build", "--personas", "mine.toml", "--max-new-tokens", "2"))
        yield Case("reference line", name, both(_run(material), wrote("done.json", data)), ("measure", "--transcript", "done.json"))
    for name, what in PLACES.items():
        yield Case("axis file", name, both(talk, placed("mine.safetensors", what)), line)
        yield Case("torch file", name, placed("mine.pt", what), ("axis", "import", "mine.pt", "--name", "mine"))
        yield Case("personas", name, placed("mine.toml", what), ("axis", "build", "--personas", "mine.toml", "--max-new-tokens", "2"))
        yield Case("reference line", name, both(_run(material), placed("done.json", what)), ("measure", "--transcript", "done.json"))
    yield Case("torch file", "a zip bomb", _zip_bomb, ("axis", "import", "mine.pt", "--name", "mine"))


def _run(material: Material) -> Make:
    return lambda place: material.run_in(place) and None


def _zip_bomb(place: Path) -> None:
    """Four gigabytes of zeros in four megabytes, as a torch file has its parts."""
    with zipfile.ZipFile(place / "mine.pt", "w", zipfile.ZIP_DEFLATED) as file:
        with file.open("mine/data.pkl", "w", force_zip64=True) as member:
            for _ in range(4096):
                member.write(bytes(1 << 20))
        file.writestr("mine/version", "3")


# --- runs from strangers

READERS: tuple[tuple[str, ...], ...] = (("runs", "ls"), ("runs", "show"), ("runs", "verify"), ("stats",), ("resume",))
MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    "samples 1e8": lambda found: found["cells"][0].update(samples=10**8),
    "samples 1e18": lambda found: found["cells"][0].update(samples=10**18),
    "negative samples": lambda found: found["cells"][0].update(samples=-1),
    "samples as text": lambda found: found["cells"][0].update(samples="x"),
    "no cells": lambda found: found.pop("cells"),
    "a cell of no condition": lambda found: found["cells"][0].update(condition="nobody"),
    "a cell outside": lambda found: found["cells"][0].update(condition="../../x"),
    "an unknown format": lambda found: found.update(format=99),
    "a deep value": lambda found: found.update(settings=_deep(600)),
    "many layers": lambda found: found.update(layers=list(range(10**6))),
    "layers as text": lambda found: found.update(layers="x"),
    "width 1e12": lambda found: found.update(width=10**12),
}


def _deep(depth: int) -> Any:
    made: Any = 1
    for _ in range(depth):
        made = {"a": made}
    return made


def runs(material: Material) -> Iterator[Case]:
    for reader in READERS:
        for name, change in MANIFESTS.items():
            yield Case("run.json", f"{name} ({' '.join(reader)})", _manifest(material, change), reader, refused=reader != ("runs", "ls"))
        for name in ("empty", "binary", "null", "deep", "cut"):
            yield Case(
                "run.json",
                f"{name} ({' '.join(reader)})",
                _inside(material, "run.json", JUNK[name]),
                reader,
                refused=reader != ("runs", "ls"),
            )
        for name, what in PLACES.items():
            yield Case(
                "run.json", f"{name} ({' '.join(reader)})", _inside(material, "run.json", what), reader, refused=reader != ("runs", "ls")
            )
            yield Case("events.jsonl", f"{name} ({' '.join(reader)})", _inside(material, "events.jsonl", what), reader, refused=False)
        for name, data in JUNK.items():
            yield Case("events.jsonl", f"{name} ({' '.join(reader)})", _inside(material, "events.jsonl", data), reader, refused=False)
    for name, what in PLACES.items():
        for path in ("rollouts/*/*/*/*.jsonl", "rollouts/*/*/*/*.f32", "axes/*.safetensors", "controls/*", "reference/*"):
            yield Case("run file", f"{path} is {name}", _inside(material, path, what), ("runs", "verify"))
            yield Case("run file", f"{path} is {name} (stats)", _inside(material, path, what), ("stats",), refused=False)


def _manifest(material: Material, change: Callable[[dict[str, Any]], object]) -> Make:
    """A manifest with another content and the right digest: what somebody sends, not what a disk breaks."""

    def make(place: Path) -> None:
        import hashlib

        run = material.run_in(place)
        found = json.loads((run / "run.json").read_text())
        change(found)
        body = {key: value for key, value in found.items() if key != "digest"}
        text = json.dumps(body, indent=2)
        digest = hashlib.sha256(text.encode()).hexdigest()
        (run / "run.json").write_text(json.dumps({"digest": digest, **body}, indent=2) + "\n")

    return make


def _inside(material: Material, pattern: str, what: Make | bytes) -> Make:
    def make(place: Path) -> None:
        run = material.run_in(place)
        found = sorted(run.glob(pattern))[:1] or [run / pattern.replace("*", "x")]
        for path in found:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            if isinstance(what, bytes):
                path.write_bytes(what)
            else:
                what(path)

    return make


# --- where things are written


def outputs(material: Material) -> Iterator[Case]:
    lines: tuple[tuple[str, ...], ...] = (
        ("export", "--format", "csv", "--output", "target.csv"),
        ("export", "--format", "parquet", "--output", "target.parquet"),
        ("plot", "--output", "target.png"),
        ("report", "--output", "target.html"),
        ("axis", "export", "demo", "--output", "target.pt"),
    )
    targets: dict[str, Make] = {
        "a FIFO": fifo,
        "a folder": folder,
        "/dev/full": lambda path: path.symlink_to("/dev/full"),
        "a link to a file": lambda path: path.symlink_to("victim"),
        "a link to a folder": lambda path: path.symlink_to("/tmp"),
        "a link to nothing": lambda path: path.symlink_to("nowhere/at/all"),
    }
    for line in lines:
        for name, what in targets.items():
            make = both(_run(material), wrote("victim", b"mine"), placed(line[-1], what))
            yield Case("output", f"{' '.join(line[:3])} to {name}", make, line, kept=("victim",))
    writers: tuple[tuple[str, ...], ...] = (
        ("measure", "--controls", "3"),
        ("measure", "--transcript", "done.json"),
        ("measure", "--traces"),
        ("measure", "--axis", "demo", "--layer", "2"),
        (*GENERATE, "--condition", "baseline", "--condition", "simple", "--samples", "3"),
    )
    for line in writers:
        for inner in ("controls", "reference", "traces", "axes", "claims", "workers", "rollouts", "events.jsonl", "run.json"):
            make = both(
                _run(material), _linked(material, inner), wrote("done.json", json.dumps({**SCRIPT, "replies": ["yes", "no"]}).encode())
            )
            yield Case("run folder", f"{inner} is a link ({' '.join(line)})", make, line, refused=False, kept=("outside",))


def _linked(material: Material, inner: str) -> Make:
    """Something in a run that is a link to outside: the same content there."""

    def make(place: Path) -> None:
        run = next(path.parent for path in (place / "checkpoints").glob("*/run.json"))
        outside = place / "outside"
        outside.mkdir()
        (outside / "precious").write_text("mine")
        target = run / inner
        if target.exists():
            shutil.move(target, outside / inner)
        elif "." in inner:
            (outside / inner).write_text("")
        else:
            (outside / inner).mkdir()
        target.symlink_to(outside / inner)

    return make


def every(material: Material) -> list[Case]:
    """All cases, in an order that mixes kinds but is always the same."""
    made = [
        *transcripts(),
        *settings(),
        *numbers(material),
        *models(material),
        *axes(material),
        *runs(material),
        *outputs(material),
    ]
    assert len({case.label for case in made}) == len(made), sorted({a.label for a in made if sum(b.label == a.label for b in made) > 1})
    random.Random(0).shuffle(made)
    return made

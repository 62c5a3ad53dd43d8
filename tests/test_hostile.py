"""Input from strangers: every reader gives a value or a `DriftError`, whatever bytes it is given, and never needs memory that the input does not have."""

from __future__ import annotations

import json
import pickle
import resource
import struct
import sys
import tomllib
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import orjson
import pytest
import torch
from campaign.scenes import quick_folder
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save
from store_fixtures import DIRECTION, FIRST, finish, fork, make_run

from drift_cli import transcripts
from drift_cli.axis import Axis
from drift_cli.errors import DriftError
from drift_cli.interchange.seed_json import read_seed
from drift_cli.measuring import reference_line
from drift_cli.measuring.torch_axes import import_torch
from drift_cli.settings import config
from drift_cli.settings.settings import keys
from drift_cli.spec import RunSpec
from drift_cli.store.events import read_events
from drift_cli.store.line import read
from drift_cli.store.manifest import Manifest
from drift_cli.store.paths import RunPaths
from drift_cli.store.reader import read_rollout
from drift_cli.store.run import Run

fuzzed = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])

# --- what strangers write

TEXTS = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(codec=None, categories=["Cc", "Cf", "Cs", "Co", "Lo"]), max_size=8),
    st.sampled_from(
        ["", " ", "\ud800", "\x1b[2J", "\u202e", "\0", "../../x", "user", "assistant", "system", "[bold]x[/bold]", "NaN", "<A_B>", "</A_B>"]
    ),
)
NUMBERS = st.one_of(st.integers(), st.floats(), st.sampled_from([2**63, -(2**63) - 1, 10**400, 1e308, float("nan"), float("inf"), -0.0]))
KEYS_SEEN = [
    *("role content from value type text users replies name description language messages conversation conversations").split(),
    *("model transcript_source condition n_samples temperature seed system_prompt projections").split(),
    *("format spec layers cells axes conditions transcripts digest turn finish ids residual prev crc end epoch").split(),
    *("transcript axis axis_digest layer revision note kind time").split(),
]
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=5), st.dictionaries(st.one_of(st.sampled_from(KEYS_SEEN), TEXTS), inner, max_size=6)),
    max_leaves=25,
)
STRANGE = [
    b"",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b"null",
    b"[" * 200_000,
    b'{"a":' * 100_000,
    b"[" * 900 + b"]" * 900,
    b"1" * 10_000,
    b"-" + b"9" * 5000,
    b"1e99999",
    b'{"users":["a"],"users":["b"]}',
    b'["\\ud800"]',
    b'["\\ud800\\udc00"]',
    b'{"\\ud800":1}',
    b"[NaN]",
    b"[Infinity]",
    b"\0" * 1000,
    b'"' + b"\\" * 1001,
    b"\x1f\x8b\x08",
    b'{"conversations":[]}',
    b'{"conversations":[[]]}',
    b'{"conversations":[[],[{"role":"user","content":"x"}]]}',
]


def spelled(value: Any) -> bytes:
    """JSON as Python writes it: NaN, lone surrogates and huge numbers included."""
    return json.dumps(value).encode()


@st.composite
def harmed(draw: st.DrawFn, valid: bytes) -> bytes:
    """Valid content with some bytes replaced, taken out or put in."""
    data = bytearray(valid)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        data[place : place + draw(st.integers(0, 4))] = draw(st.binary(max_size=4))
    return bytes(data)


@st.composite
def edited(draw: st.DrawFn, valid: Any) -> bytes:
    """A valid JSON value in which one value, somewhere, is another."""
    made = json.loads(json.dumps(valid))
    holder, key = {"": made}, ""
    while isinstance(holder[key], dict | list) and holder[key] and draw(st.integers(0, 4)):  # type: ignore[index]
        holder = holder[key]  # type: ignore[assignment,index]
        key = draw(st.sampled_from(sorted(holder) if isinstance(holder, dict) else range(len(holder))))  # type: ignore[assignment]
    holder[key] = draw(VALUES)  # type: ignore[index]
    return spelled(holder[""] if holder is not made and "" in holder and len(holder) == 1 else made)


def reads(work: Callable[[], object]) -> None:
    """It gives a value or a `DriftError`; anything else fails the test by itself."""
    with suppress(DriftError):
        work()


# --- transcripts, and the seed experiment's files

OWN = {"users": ["hello", "and then"], "replies": ["yes", "no"], "name": "talk", "description": "x", "language": "en"}
CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "u"},
    {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
]
SHARED = {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}
SEED = {
    "model": "m",
    "transcript_source": "t.json",
    "condition": "simple",
    "n_samples": 2,
    "temperature": 0.7,
    "seed": 1,
    "system_prompt": "be",
    "projections": [[1.0, 2.0], [1.5]],
    "conversations": [
        [
            {"role": role, "content": text}
            for role, text in (("user", "u1"), ("system", "be"), ("assistant", "a"), ("user", "u2"), ("system", "be"), ("assistant", "b"))
        ],
        [{"role": role, "content": text} for role, text in (("user", "u1"), ("system", "be"), ("assistant", "c"))],
    ],
}
DOCUMENTS = st.one_of(
    st.sampled_from(STRANGE),
    st.binary(max_size=60),
    VALUES.map(spelled),
    st.lists(VALUES, max_size=4).map(lambda values: b"\n".join(map(spelled, values))),
    *(edited(valid) for valid in (OWN, CHAT, {"messages": CHAT}, SHARED, SEED)),
    *(harmed(spelled(valid)) for valid in (OWN, CHAT, SHARED, SEED)),
)


def test_what_the_fuzzer_starts_from_is_valid(tmp_path: Path) -> None:
    for number, valid in enumerate((OWN, CHAT, {"messages": CHAT}, SHARED, SEED)):
        path = tmp_path / f"{number}.json"
        path.write_bytes(spelled(valid))
        assert transcripts.load(path).users
    assert read_seed(path).users == ("u1", "u2")


@fuzzed
@given(DOCUMENTS)
def test_every_transcript_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(data)
    for strip in (False, True):
        reads(lambda strip=strip: transcripts.read(path, strip_private=strip))


@fuzzed
@given(DOCUMENTS)
def test_every_file_of_the_seeds_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "s.json"
    path.write_bytes(data)
    reads(lambda: read_seed(path))


@fuzzed
@given(TEXTS)
def test_every_transcripts_name_is_found_or_refused(name: str) -> None:
    reads(lambda: transcripts.read(name))


@fuzzed
@given(st.one_of(DOCUMENTS, edited({"transcript": "t", "axis": "a", "layer": 1, "projections": [1.0, None], "note": None})))
def test_every_reference_line_is_read_or_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(data)
    reads(lambda: reference_line.read(path))


# --- drift.toml and the environment

TOML = """
model = "demo"
samples = 4
temperatures = [0.7, 1]
layers = "auto"
chat_options = {x = 1}
[conditions.simple]
system = "be kind"
placement = "start"
"""
TOML_VALUES = st.sampled_from(
    [
        "1",
        "1.5",
        "nan",
        "inf",
        "-inf",
        '"x"',
        "true",
        "[]",
        "[[]]",
        "{}",
        "{a={b=1}}",
        "1979-05-27",
        "07:32:00",
        "9" * 400,
        "1e400",
        '"\\u202e"',
        "[1,'a']",
    ]
)


@fuzzed
@given(
    st.one_of(
        st.text(max_size=60),
        harmed(TOML.encode()).map(lambda data: data.decode(errors="replace")),
        st.tuples(st.sampled_from([*keys(), "conditions", "x"]), TOML_VALUES).map(lambda pair: f"{pair[0]} = {pair[1]}"),
        st.tuples(st.sampled_from(["system", "placement", "x"]), TOML_VALUES).map(lambda pair: f"[conditions.c]\n{pair[0]} = {pair[1]}"),
        st.sampled_from(
            ["[" * 5_000, "a." * 2_000 + "b=1", 'a = "' + "x" * 100_000, "[conditions]\nx=1", "[conditions.'../x']", "a='\\'", "\0"]
        ),
    )
)
def test_every_drift_toml_is_read_or_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "drift.toml"
    path.write_bytes(text.encode(errors="surrogatepass"))
    reads(lambda: config.resolve({}, config=path, environment={}))


@fuzzed
@given(
    st.sampled_from(sorted(keys())),
    st.one_of(TEXTS, VALUES.map(json.dumps), st.sampled_from(["9" * 5000, "[" * 100_000])),
)
def test_every_variable_of_the_environment_is_read_or_refused(key: str, text: str) -> None:
    reads(lambda: config.resolve({}, config=None, environment={f"DRIFT_{key.upper()}": text}))


# --- the store's own files


@pytest.fixture(scope="module")
def run() -> Any:
    with quick_folder() as folder:
        made = make_run(Path(folder))
        finish(made)
        made.event("start", turns=1)
        yield made


@fuzzed
@given(st.data())
def test_every_manifest_is_read_or_refused(run: Run, tmp_path: Path, data: st.DataObject) -> None:
    value = json.loads(run.manifest.to_json())
    del value["digest"]
    content = data.draw(st.one_of(st.sampled_from(STRANGE), VALUES.map(spelled), edited(value), harmed(run.manifest.to_json())))
    reads(lambda: Manifest.from_json(content, tmp_path / "run.json"))


def sealed(body: bytes) -> bytes:
    return body + b',"crc":"%08x"}' % crc32(body)


@fuzzed
@given(st.data())
def test_every_line_of_a_rollout_is_read_or_refused_even_with_a_right_checksum(run: Run, data: st.DataObject) -> None:
    path, means = run.paths.rollout(FIRST), run.paths.residuals(FIRST)
    whole = path.read_bytes()
    lines = whole.splitlines()
    number = data.draw(st.integers(0, len(lines) - 1))
    value = json.loads(lines[number])
    del value["crc"]
    new = data.draw(st.one_of(edited(value), VALUES.map(spelled), st.sampled_from(STRANGE), harmed(lines[number])))
    lines[number] = sealed(new[:-1]) if data.draw(st.booleans()) else new
    path.write_bytes(b"\n".join(lines) + b"\n")
    try:
        for line in lines:
            with suppress(ValueError):  # `Malformed`, for whoever knows the file
                read(line)
        reads(lambda: read_rollout(run.paths, FIRST, layers=2, width=3, residuals=True))
        reads(lambda: read_rollout(run.paths, FIRST, residuals=True))
        reads(run.states)
        assert run.verify() or path.read_bytes() == whole
        reads(lambda: run.writer(FIRST).close())
    finally:
        path.write_bytes(whole)
        run_means = np.concatenate(list(_means(run)))
        means.write_bytes(run_means.tobytes())


def _means(run: Run) -> list[Any]:
    from store_fixtures import TURNS, turn

    return [made.residual.ravel() for made in (turn(index) for index in range(1, TURNS + 1)) if made.residual is not None]


@fuzzed
@given(st.lists(st.one_of(VALUES.map(spelled), st.binary(max_size=30), st.sampled_from(STRANGE)), max_size=5))
def test_every_file_of_events_is_read(tmp_path: Path, lines: list[bytes]) -> None:
    paths = RunPaths(tmp_path)
    paths.events.write_bytes(b"\n".join(lines))
    events, _ = read_events(paths)
    assert all(isinstance(event["kind"], str) for event in events)


# --- axes


def axis_bytes() -> bytes:
    with quick_folder() as folder:
        path = Path(folder) / "a.safetensors"
        Axis("made", (5,), DIRECTION, personas=("a", "b"), means=np.ones((2, 1, 3), np.float32), assistants=("a",)).save(path)
        return path.read_bytes()


AXIS = axis_bytes()


@fuzzed
@given(st.data())
@example(None)
def test_every_axis_file_is_read_or_refused(tmp_path: Path, data: st.DataObject | None) -> None:
    path = tmp_path / "a.safetensors"
    header = json.loads(AXIS[8 : 8 + struct.unpack("<Q", AXIS[:8])[0]])
    contents = [struct.pack("<Q", 2**60) + AXIS[8:], struct.pack("<Q", 0), AXIS[:-1], AXIS + b"x", b"\x80\x02}q\x00."]
    if data is not None:
        metadata = dict(header["__metadata__"])
        key = data.draw(st.sampled_from(sorted(metadata)))
        metadata[key] = data.draw(st.one_of(TEXTS.filter(_encodable), VALUES.map(json.dumps)))
        tensors = {
            data.draw(st.sampled_from(["axis", "personas", "x"])): np.zeros(data.draw(st.lists(st.integers(0, 3), max_size=4)), np.float16),
            **({"axis": DIRECTION} if data.draw(st.booleans()) else {}),
        }
        contents = [data.draw(harmed(AXIS)), data.draw(st.binary(max_size=40)), save(tensors, metadata=metadata)]
    for content in contents:
        path.write_bytes(content)
        reads(lambda: Axis.load(path))


def _encodable(text: str) -> bool:
    return text == text.encode(errors="replace").decode()


class Evil:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def strange_tensors() -> dict[str, Any]:
    one = torch.ones(1)
    return {
        "scalar": torch.tensor(1.0),
        "whole": torch.ones(3, dtype=torch.int64),
        "complex": torch.ones(3, dtype=torch.complex64),
        "empty": torch.ones(0),
        "empty rows": torch.ones(0, 3),
        "wide and sparse": torch.sparse_coo_tensor([[0]], [1.0], (2**40,)),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.ones(3, device="meta"),
        "huge by strides": one.expand(2**31, 2**31),
        "wide by strides": one.expand(2**40),
        "three dimensions": torch.ones(2, 2, 2),
        "not finite": torch.tensor([1.0, float("nan"), 1.0]),
        "zero": torch.zeros(3),
        "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        "persona names": {"a": torch.ones(3), "default": -torch.ones(3), "\x1b[2J": torch.ones(3)},
        "numbers as names": {1: torch.ones(3)},
        "nested": {"a": {"b": torch.ones(3)}},
        "list": [torch.ones(3)],
        "text": "hello",
        "nothing": None,
        "code": Evil(),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(strange_tensors()))
def test_every_torch_file_is_imported_or_refused_in_little_memory(name: str, tmp_path: Path) -> None:
    path = tmp_path / "vectors_layer3.pt"
    torch.save(strange_tensors()[name], path)

    def work(say: Any, listen: Any) -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 2**36
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**30, resource.RLIM_INFINITY))
        reads(lambda: import_torch(path, name="x", convention="blocks"))

    assert fork(work).wait() == 0
    assert not Path("touched").exists()


@fuzzed
@given(st.one_of(st.binary(max_size=60), VALUES.map(pickle.dumps), st.just(pickle.dumps(Evil()))))
def test_bytes_that_are_no_torch_file_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "v_layer3.pt"
    path.write_bytes(data)
    reads(lambda: import_torch(path, name="x", convention="blocks"))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3")
    reads(lambda: import_torch(path, name="x", convention="blocks"))
    assert not Path("touched").exists()


def test_the_fuzzers_inputs_are_not_all_refused(tmp_path: Path) -> None:
    """A fuzzer whose input never gets past the first check would say nothing."""
    path, read_ok = tmp_path / "t.json", 0
    for value in ([["a"]][0], OWN, CHAT, SHARED):
        path.write_bytes(orjson.dumps(value))
        read_ok += bool(transcripts.load(path).users)
    assert read_ok == 4
    assert tomllib.loads(TOML)
    path.write_text(TOML)
    assert config.resolve({}, config=path, environment={}).samples == 4
    assert RunSpec

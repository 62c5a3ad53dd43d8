"""The built-in model: a tiny Olmo3 with random weights, made on the spot. It shows that everything works; what it says and measures means nothing.

Its vocabulary is bytes and a list of everyday words, so that its replies are word salad rather than byte salad. The weights come from a counter-based
generator with a fixed key, so the model is the same on every machine.
"""

from __future__ import annotations

import hashlib
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from transformers import Olmo3Config, PreTrainedModel, PreTrainedTokenizerBase

    from drift_cli.models import ModelCard

NOTE = "built-in, random weights: its projections show that the instrument works and say nothing about personas"
SEED = 20260101
WIDTH, LAYERS, HEADS, INNER, CONTEXT = 64, 4, 4, 128, 16384
SPECIALS = ("<|end|>", "<|system|>", "<|user|>", "<|assistant|>")

TEMPLATE = (
    "{%- for message in messages -%}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|assistant|>\n' }}{%- endif -%}"
)

WORDS = (
    "a about after again all along always and answer any are as ask at away back be because before begin better between book both bright bring but by "
    "call came can careful carry change clear close cold come could day deep did do door down each early easy end enough even evening ever every far "
    "feel few field find first follow for found friend from full garden gave get give glad go good grow had half hand has have hear help here high "
    "hold home hope hour house how if in into is it its just keep kind know large last late laugh learn leave less let letter light like line listen "
    "little live long look made make many may maybe mean meet might mind moment more morning most much must my name near need never new next night no "
    "north not nothing now number of off often old on once one only open or other our out over own page paper part past path people perhaps place "
    "plain plan please point put question quiet rain read ready really remember rest right river road room round run said same say sea see seem set "
    "she should show side since sit sky slow small so some something song soon sound speak stand star start stay still stone story such sun sure "
    "table take talk tell than thank that the their them then there these they thing think this those though thought three through time to together "
    "told too took toward tree true try turn two under until up us use very voice wait walk want warm was watch water way we weather week well went "
    "were what when where which while white who why will wind window winter wish with without wonder word work world would write year yes yet you young your"
).split()

READ = (
    "I me I'm I've I'd don't it's that's can't you're isn't there's him an been does anything else what What The It You So If Do How Not We "
    "Reminder You AI helpful harmless honest assistant goal provide accurate relevant information assist user Guidelines Tone Maintain polite professional "
    "approachable tone times Clarity Explain complex concepts simply clearly Avoid unnecessary jargon Honesty If admit gracefully rather hallucinating Context "
    "Always account user's previous questions cohesive conversation years somebody talking asked around five whether sleep being person someone nobody "
    "things thinking going coming notice dark wrong saying makes times wake message strange explain soil plant plants beds peas beans tomatoes"
).split()
"""Further words that it reads as one token each and hardly ever says: they keep prompts short."""

_MARKS = (".", ",", "?")


def card() -> ModelCard:
    """The model's card."""
    from transformers import GenerationConfig

    from drift_cli.models import DEMO, make_card

    tokenizer, config = _tokenizer(), _config()
    generation = GenerationConfig(eos_token_id=tokenizer.convert_tokens_to_ids("<|end|>"), do_sample=True, top_p=0.95)
    return make_card(DEMO, _revision(), config, tokenizer, generation, note=NOTE)


def axis_vectors() -> NDArray[np.float32]:
    """One unit direction per residual layer, (LAYERS + 1, WIDTH) float32: random, since a random model has no assistant persona to point at."""
    vectors = _normal("axis", (LAYERS + 1, WIDTH))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


def network() -> PreTrainedModel:
    """The network, float32, on the CPU."""
    import torch
    from transformers import Olmo3ForCausalLM

    model = Olmo3ForCausalLM(_config())
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.from_numpy(_weights(name, tuple(parameter.shape))))
    return model


def _weights(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """The weights of one parameter. Residual dimension 0 is held constant, so that the output layer's column 0 acts as a bias per token."""
    if name.endswith("embed_tokens.weight"):
        values = _normal(name, shape)
        values[:, 0] = 4.0
        return values
    if name == "lm_head.weight":
        values = 0.22 * _normal(name, shape)
        values[:, 0] = _token_bias() / 3.0
        return values
    if len(shape) == 1:
        values = np.full(shape, 0.6 if "layernorm" in name else 1.0, dtype=np.float32)
        if name.endswith("feedforward_layernorm.weight") or name.endswith("post_attention_layernorm.weight"):
            values[0] = 0.0
        return values
    return np.asarray(_normal(name, shape) / np.sqrt(shape[-1]), dtype=np.float32)


def _token_bias() -> NDArray[np.float32]:
    """(vocabulary,) logit offsets: whole words likely, marks and the end of a reply now and then, fragments and bytes hardly ever."""
    vocabulary = _vocabulary()
    bias = np.full(len(vocabulary), -9.0, dtype=np.float32)
    for word in WORDS:
        bias[vocabulary["Ġ" + word]] = 0.0
    for mark in _MARKS:
        bias[vocabulary[mark]] = 2.0
    bias[vocabulary["<|end|>"]] = 4.0
    return bias


def _normal(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    key = int.from_bytes(hashlib.sha256(f"{SEED}/{name}".encode()).digest()[:16], "little")
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(shape, dtype=np.float32)


def _byte_letters() -> list[str]:
    """The 256 letters that stand for bytes in byte-level BPE, as the tokenizers library names them."""
    from tokenizers.pre_tokenizers import ByteLevel

    return sorted(ByteLevel.alphabet())


@cache
def _merges() -> tuple[tuple[str, str], ...]:
    """Every word is reached from its first letter on: (Ġ, t), (Ġt, h), (Ġth, e)."""
    merges: dict[tuple[str, str], None] = {}
    for word in (*WORDS, *READ):
        letters = "Ġ" + word
        for end in range(1, len(letters)):
            merges[letters[:end], letters[end]] = None
    return tuple(merges)


@cache
def _vocabulary() -> dict[str, int]:
    tokens = [*SPECIALS, *_byte_letters(), *dict.fromkeys(a + b for a, b in _merges())]
    return {token: index for index, token in enumerate(tokens)}


def _tokenizer() -> PreTrainedTokenizerBase:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE(vocab=_vocabulary(), merges=list(_merges())))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIALS])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|end|>",
        additional_special_tokens=list(SPECIALS[1:]),
        chat_template=TEMPLATE,
        model_max_length=CONTEXT,
    )


def _config() -> Olmo3Config:
    from transformers import Olmo3Config

    return Olmo3Config(
        vocab_size=len(_vocabulary()),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=CONTEXT,
        sliding_window=256,
        pad_token_id=0,
        eos_token_id=0,
    )


@cache
def _revision() -> str:
    """Digest of everything the model is made from."""
    parts = [str((SEED, WIDTH, LAYERS, HEADS, INNER, CONTEXT)), TEMPLATE, *WORDS, *READ]
    digest = hashlib.sha256("\0".join(parts).encode())
    digest.update(_normal("lm_head.weight", (8, 8)).tobytes())
    return digest.hexdigest()[:40]

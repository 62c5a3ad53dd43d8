"""Chat templates of our own writing, each with a habit that templates in use have, and what is to become of each placement under it.

They share four control tokens: `<|b|>` begins a message, `<|m|>` ends its header, `<|e|>` ends the message, `<|x|>` ends a conversation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import tiny
from tokenizers import AddedToken, processors
from transformers import PreTrainedTokenizerFast

TOKENS = ("<|b|>", "<|m|>", "<|e|>", "<|x|>")
PLACEMENTS = ("none", "start", "first-user", "every-turn", "user-suffix")

SAY = "<|b|>{{ m['role'] }}<|m|>{{ m['content'] }}<|e|>"
ASK = "{%- if add_generation_prompt -%}<|b|>assistant<|m|>{%- endif -%}"


def each(body: str, *, before: str = "", after: str = ASK, over: str = "messages") -> str:
    return f"{before}{{%- for m in {over} -%}}{body}{{%- endfor -%}}{after}"


@dataclass(frozen=True)
class Habit:
    name: str
    template: str | dict[str, str]
    refused: Mapping[str, str] = field(default_factory=dict)
    """Placement → what the refusal says. Placements that are not named are accepted."""
    closes: tuple[str, ...] = ("<|e|>",)
    """The tokens that end a reply."""
    unnamed: tuple[str, ...] = ()
    """Tokens that are added to the vocabulary without being called special."""
    special: tuple[str, ...] = ()
    options: str = "{}"
    bos: str | None = None
    """A token that the tokenizer puts in front of every text unless told not to."""

    def tokenizer(self) -> PreTrainedTokenizerFast:
        named = tuple(token for token in (*TOKENS, *self.special) if token not in self.unnamed)
        made = tiny.tokenizer(tiny.Architecture("suite", tiny.LlamaConfig, "", named, "<|e|>", {}, ()), template="-")
        made.add_tokens([AddedToken(token, special=False, normalized=False) for token in self.unnamed])
        made.chat_template = self.template
        if self.bos is not None:
            made.bos_token = self.bos
            single = f"{self.bos} $A"
            ids = [(self.bos, made.convert_tokens_to_ids(self.bos))]
            made._tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=ids)
        return made


def everything(why: str) -> dict[str, str]:
    return dict.fromkeys(PLACEMENTS, why)


def with_prompt(why: str) -> dict[str, str]:
    return dict.fromkeys(PLACEMENTS[1:], why)


WITHOUT_SYSTEM = "{%- if m['role'] != 'system' -%}" + SAY + "{%- endif -%}"
FIRST_SYSTEM = "{%- if m['role'] != 'system' or loop.first -%}" + SAY + "{%- endif -%}"
ALL_SYSTEMS = "{%- for m in messages if m['role'] == 'system' -%}<|b|>system<|m|>{{ m['content'] }}<|e|>{%- endfor -%}"
LAST_SYSTEM = (
    "{%- set ns = namespace(s='') -%}{%- for m in messages if m['role'] == 'system' -%}{%- set ns.s = m['content'] -%}{%- endfor -%}"
)
LAST_USER = "{%- set ns = namespace(u=0) -%}{%- for m in messages if m['role'] == 'user' -%}{%- set ns.u = ns.u + 1 -%}{%- endfor -%}"
ALTERNATE = "{%- if (m['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{ raise_exception('Roles must alternate') }}{%- endif -%}"
MOVED = "moves the prompt to another place"
DROPPED = "writes the prompt 0 times where 1 was given"

PLAIN = (
    Habit("plain", each(SAY)),
    Habit("takes only a system message that comes first", each(FIRST_SYSTEM), {"every-turn": f"at turn 1 it {DROPPED}"}),
    Habit("leaves system messages out", each(WITHOUT_SYSTEM), dict.fromkeys(("start", "every-turn"), f"at turn 1 it {DROPPED}")),
    Habit("moves all system messages to the front", each(WITHOUT_SYSTEM, before=ALL_SYSTEMS), {"every-turn": f"at turn 1 it {MOVED}"}),
    Habit(
        "keeps the last system message, in front",
        each(WITHOUT_SYSTEM, before=LAST_SYSTEM + "{{ ns.s }}"),
        {"every-turn": f"at turn 1 it {MOVED}"},
    ),
    Habit(
        "moves the system message into the last user message",
        each(
            "{%- if m['role'] == 'user' -%}{%- set ns.u = ns.u - 1 -%}<|b|>user<|m|>{%- if ns.u == 0 and ns.s -%}{{ ns.s + '\n\n' }}{%- endif -%}"
            "{{ m['content'] }}<|e|>{%- elif m['role'] == 'assistant' -%}" + SAY + "{%- endif -%}",
            before=LAST_USER.replace("namespace(u=0)", "namespace(u=0, s='')")
            + "{%- if messages[0]['role'] == 'system' -%}{%- set ns.s = messages[0]['content'] -%}{%- endif -%}",
        ),
        {"start": f"at turn 2 it {MOVED}", "every-turn": f"at turn 1 it {DROPPED}"},
    ),
    Habit(
        "puts the system message into the first user message",
        each(
            "{%- if m['role'] == 'system' -%}{%- set ns.s = m['content'] + '\n\n' -%}{%- else -%}"
            "<|b|>{{ m['role'] }}<|m|>{{ ns.s + m['content'] }}<|e|>{%- set ns.s = '' -%}{%- endif -%}",
            before="{%- set ns = namespace(s='') -%}",
        ),
        {"every-turn": f"at turn 1 it {DROPPED}"},
    ),
    Habit(
        "drops system messages after the third",
        each(
            "{%- if m['role'] == 'system' -%}{%- set ns.n = ns.n + 1 -%}{%- endif -%}"
            "{%- if m['role'] != 'system' or ns.n <= 3 -%}" + SAY + "{%- endif -%}",
            before="{%- set ns = namespace(n=0) -%}",
        ),
        {"every-turn": "at turn 4 it writes the prompt 3 times where 4 were given"},
    ),
    Habit(
        "keeps the last six messages",
        each(SAY, over="messages[-6:]"),
        {
            **everything("at turn 4 it drops user turn 1"),
            "start": f"at turn 4 it {DROPPED}",
            "first-user": f"at turn 4 it {DROPPED}",
            "every-turn": "at turn 3 it writes the prompt 2 times where 3 were given|at turn 3 it drops user turn 1",
        },
    ),
    Habit(
        "shortens long texts", each(SAY.replace("m['content']", "m['content'][:200]")), everything("at turn 2 it drops or changes reply 1")
    ),
    Habit(
        "shortens what users say",
        each(SAY.replace("m['content']", "m['content'][:18] if m['role'] == 'user' else m['content']")),
        {
            **everything("at turn 1 it drops or changes user turn 1"),
            "first-user": "at turn 1 it (drops or changes the prompt|drops user turn 1)",
            "user-suffix": f"at turn 1 it (drops or changes user turn 1|{DROPPED})",
        },
    ),
    Habit("trims texts", each(SAY.replace("m['content']", "m['content'] | trim"))),
    Habit(
        "joins lines",
        each(SAY.replace("m['content']", "m['content'] | replace('\n\n', ' ')")),
        everything("at turn 3 it drops or changes user turn 3"),
    ),
    Habit(
        "enforces alternation, without a system role",
        each("{%- if m['role'] == 'system' -%}{{ raise_exception('System role not supported') }}{%- endif -%}" + ALTERNATE + SAY),
        {"start": "at turn 1 it fails: System role not supported", "every-turn": "at turn 1 it fails: System role not supported"},
    ),
    Habit(
        "enforces alternation behind a system message",
        each(
            ALTERNATE + SAY,
            before="{%- if messages[0]['role'] == 'system' -%}<|b|>system<|m|>{{ messages[0]['content'] }}<|e|>"
            "{%- set messages = messages[1:] -%}{%- endif -%}",
        ),
        {"every-turn": "at turn 2 it fails: Roles must alternate"},
    ),
    Habit(
        "merges messages of one side",
        each(
            "{%- set side = 'assistant' if m['role'] == 'assistant' else 'user' -%}"
            "{%- if side == ns.side -%}{{ '\n' }}{%- else -%}{{ '<|e|>' if ns.side else '' }}<|b|>{{ side }}<|m|>{%- endif -%}"
            "{{ m['content'] }}{%- set ns.side = side -%}",
            before="{%- set ns = namespace(side='') -%}",
            after="<|e|>" + ASK,
        ),
    ),
    Habit("writes roles in capitals", each(SAY.replace("m['role']", "m['role'] | upper"))),
    Habit(
        "writes texts in capitals",
        each(SAY.replace("m['content']", "m['content'] | upper")),
        {**everything("at turn 1 it changes user turn 1"), "start": f"at turn 1 it {DROPPED}", "first-user": f"at turn 1 it {DROPPED}"},
        closes=(),
    ),
    Habit("speaks of tools", each(SAY, before="<|b|>tools<|m|>You may call: {{ tools | default([]) | tojson }}<|e|>")),
    Habit(
        "has a system prompt of its own",
        each(SAY, before="{%- if messages[0]['role'] != 'system' -%}<|b|>system<|m|>You are Nobody.<|e|>{%- endif -%}"),
    ),
    Habit("asks for the date", each(SAY, before="{%- set d = strftime_now('%d %b %Y') -%}<|b|>system<|m|>Today is {{ d }}.<|e|>")),
    Habit(
        "takes a date if it is given one",
        each(SAY, before="{%- if date_string is not defined -%}{%- set date_string = '26 Jul 2024' -%}{%- endif -%}{{ date_string }}"),
    ),
    Habit(
        "asks for the date in a way that hides it",
        each(SAY, before="{%- set f = '%Y' -%}{{ strftime_now(f) }}"),
        everything("today's date"),
    ),
    Habit("leaves something to chance", each(SAY, before="{{ ['Hi.', 'Hello.'] | random }}"), everything("something else each time")),
    Habit("has no generation prompt", each(SAY, after=""), everything("it has no generation prompt")),
    Habit(
        "has no generation prompt, and enforces alternation",
        each(ALTERNATE + SAY, after=""),
        everything("it has no generation prompt"),
    ),
    Habit("writes the generation prompt unasked", each(SAY, after="<|b|>assistant<|m|>")),
    Habit("begins the text, as the tokenizer does", each(SAY, before="{{ bos_token }}"), bos="<|x|>"),
    Habit("has templates of several names", {"default": each(SAY), "tool_use": each(SAY, before="Tools: ")}),
    Habit(
        "wants the system message first, or none",
        each(
            "{%- if m['role'] == 'system' and not loop.first -%}{{ raise_exception('System message must come first') }}{%- endif -%}" + SAY
        ),
        {"every-turn": "at turn 1 it fails: System message must come first"},
    ),
    Habit(
        "says something to the latest user message only",
        each(
            "{%- if m['role'] == 'user' -%}{%- set ns.u = ns.u - 1 -%}{%- endif -%}"
            "<|b|>{{ m['role'] }}<|m|>{{ m['content'] }}{%- if m['role'] == 'user' and ns.u == 0 %} /brief{% endif -%}<|e|>",
            before=LAST_USER,
        ),
    ),
    Habit("begins the reply", each(SAY, after=ASK.replace("<|m|>", "<|m|>Well, "))),
    Habit("ends replies with a token that it does not call special", each(SAY), unnamed=("<|e|>",)),
    Habit(
        "closes the last message with another token",
        each(SAY.replace("<|e|>", "{{ '<|x|>' if loop.last and not add_generation_prompt else '<|e|>' }}")),
        closes=("<|x|>",),
    ),
    Habit(
        "closes no message: the next one does",
        each("<|b|>{{ m['role'] }}<|m|>{{ m['content'] }}"),
        closes=("<|b|>",),
    ),
    Habit(
        "fails at the fourth turn",
        each(SAY, before=LAST_USER + "{%- if ns.u > 3 -%}{{ raise_exception('That is enough') }}{%- endif -%}"),
        everything("at turn 4 it fails: That is enough"),
    ),
    Habit(
        "repeats the system message with every user message",
        each(
            "{%- if m['role'] == 'system' -%}{%- set ns.s = m['content'] -%}{%- else -%}"
            "{%- if m['role'] == 'user' and ns.s -%}<|b|>system<|m|>{{ ns.s }}<|e|>{%- endif -%}" + SAY + "{%- endif -%}",
            before="{%- set ns = namespace(s='') -%}",
        ),
        {"start": "at turn 2 it writes the prompt 2 times where 1 was given", "every-turn": f"at turn 1 it {DROPPED}"},
    ),
    Habit(
        "leaves replies out",
        each("{%- if m['role'] != 'assistant' -%}" + SAY + "{%- endif -%}"),
        everything("at turn 2 it drops reply 1"),
        closes=(),
    ),
    Habit(
        "writes every user message twice",
        each(SAY + "{%- if m['role'] == 'user' -%}" + SAY + "{%- endif -%}"),
        {
            **everything("at turn 1 it writes user turn 1 2 times"),
            "first-user": "at turn 1 it writes the prompt 2 times where 1 was given",
            "start": "at turn 1 it writes user turn 1 2 times",
        },
    ),
    Habit(
        "begins with the newest message",
        each(SAY, over="messages | reverse"),
        {**everything("at turn 2 it moves"), "start": f"at turn 1 it {MOVED}", "every-turn": f"at turn 1 it {MOVED}"},
    ),
    Habit("takes its content in chunks", each(SAY.replace("m['content']", "m['content'][0]['text']"))),
)

THOUGHT = "<think>{{ '\n' + m['reasoning_content'] + '\n' }}</think>{{ '\n\n' }}"
SPLIT = (
    "{%- set said = m['content'] -%}{%- if m['role'] == 'assistant' and '</think>' in said -%}"
    "{%- set said = said.split('</think>')[-1].lstrip('\n') -%}{%- endif -%}<|b|>{{ m['role'] }}<|m|>{{ said }}<|e|>"
)
CHANNELS = (
    "{%- if m['role'] == 'assistant' -%}"
    "{%- if m['thinking'] and loop.last and not add_generation_prompt -%}<|b|>assistant<|c|>analysis<|m|>{{ m['thinking'] }}<|e|>{%- endif -%}"
    "{%- if m['tool_calls'] -%}<|b|>assistant to=tool<|c|>commentary<|m|>{{ m['tool_calls'][0]['function']['name'] }}<|k|>{%- else -%}"
    "<|b|>assistant<|c|>final<|m|>{{ m['content'] }}{{ '<|x|>' if loop.last and not add_generation_prompt else '<|e|>' }}{%- endif -%}"
    "{%- else -%}" + SAY + "{%- endif -%}"
)

THINKING = {
    habit.name: habit
    for habit in (
        Habit(
            "reasoning has a field, and is left out of history",
            each(
                "<|b|>{{ m['role'] }}<|m|>{%- if m['reasoning_content'] and loop.last -%}"
                + THOUGHT
                + "{%- endif -%}{{ m['content'] }}<|e|>",
            ),
            unnamed=("<think>", "</think>"),
        ),
        Habit(
            "reasoning has a field, and stays in history",
            each(
                "<|b|>{{ m['role'] }}<|m|>{%- if m['reasoning_content'] is defined -%}" + THOUGHT + "{%- endif -%}{{ m['content'] }}<|e|>",
            ),
            unnamed=("<think>", "</think>"),
        ),
        Habit(
            "reasoning is cut out of the content, and begun by the prompt",
            each(SPLIT, after=ASK.replace("<|m|>", "<|m|><think>{{ '\n' }}")),
            unnamed=("<think>", "</think>"),
        ),
        Habit(
            "reasoning stays in the content, and is begun by the prompt in ordinary tokens",
            each(SAY, after=ASK.replace("<|m|>", "<|m|><think>")),
        ),
        Habit(
            "history has an empty thought",
            each(
                "<|b|>{{ m['role'] }}<|m|>{%- if m['role'] == 'assistant' -%}<think>{{ m['reasoning_content'] if loop.last else '' }}</think>{%- endif -%}"
                "{{ m['content'] }}<|e|>",
            ),
            unnamed=("<think>", "</think>"),
        ),
        Habit(
            "thought and response have tokens of their own",
            each(
                "{%- if m['role'] == 'assistant' -%}<|b|>assistant<|m|><|START_RESPONSE|>{{ m['content'] }}<|END_RESPONSE|><|e|>{%- else -%}"
                + SAY
                + "{%- endif -%}",
                before="{%- if tools -%}<|START_THINKING|> and <|END_THINKING|>{%- endif -%}",
            ),
            closes=("<|END_RESPONSE|>",),
            special=("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
        Habit(
            "a channel is opened and closed by unlike tokens",
            each(
                "{%- set ns = namespace(t='') -%}{%- for p in m['content'].split('<channel|>') -%}"
                "{%- set ns.t = ns.t + p.split('<|channel>')[0] -%}{%- endfor -%}<|b|>{{ m['role'] }}<|m|>{{ ns.t | trim }}<|e|>"
            ),
            special=("<|channel>", "<channel|>"),
        ),
        Habit(
            "messages in channels", each(CHANNELS, after=ASK.replace("<|m|>", "")), closes=("<|x|>", "<|k|>"), special=("<|c|>", "<|k|>")
        ),
        Habit(
            "messages to somebody",
            each(
                "{%- if m['role'] == 'assistant' -%}"
                "{%- if m['thinking'] -%}<|b|>assistant to=self<|m|>{{ m['thinking'] }}<|n|>{%- endif -%}"
                "<|b|>assistant to=user<|m|>{{ m['content'] }}<|e|>{%- else -%}" + SAY + "{%- endif -%}",
                after=ASK.replace("<|m|>", ""),
            ),
            special=("<|n|>",),
        ),
        Habit(
            "a word of the user's turns thinking off",
            each(
                SPLIT,
                before="{%- set ns = namespace(on=true) -%}{%- for m in messages if '/quick' in m['content'] -%}{%- set ns.on = false -%}{%- endfor -%}",
                after=ASK.replace("<|m|>", "<|m|><think>{{ '\n' if ns.on else '\n\n</think>\n\n' }}"),
            ),
            unnamed=("<think>", "</think>"),
        ),
    )
}

SUITE = {habit.name: habit for habit in (*PLAIN, *THINKING.values())}

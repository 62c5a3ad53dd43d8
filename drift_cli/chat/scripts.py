"""Whether a chat template carries a condition through a whole script, found out before the run; and where replies end.

The script is rendered at every turn with replies that stand in for the model's: long ones, and, where there is markup of reasoning, ones with reasoning. What
only some replies bring about (an empty one, one that the template refuses) is left to the run, where it ends the rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from drift_cli.chat.format import TemplateProblem
from drift_cli.chat.parts import Brackets, Channels, Parts
from drift_cli.errors import DriftError, UsageError
from drift_cli.spec import Condition, Placement, Transcript

if TYPE_CHECKING:
    from drift_cli.chat.template import TemplateChat

_USER, _REPLY, _NEXT = "drift probe one", "drift probe reply", "drift probe two"
_SYSTEM = "You are somebody."
"""A prompt to try placements with where the condition has none."""


def check_script(chat: TemplateChat, condition: Condition, transcript: Transcript) -> None:
    """Raise `UsageError` where the template does not carry the condition through the script; it names what works, after trying it."""
    problem = chat.generation_problem or script_problem(chat, condition, transcript.users)
    if problem is None:
        return
    what = "a conversation without a system prompt" if condition.system is None else f"placement {condition.placement.value}"
    raise UsageError(
        f"condition {condition.name}: this model's chat template does not take {what} ({problem})",
        mend=_what_works(chat, condition, transcript),
    )


def script_problem(chat: TemplateChat, condition: Condition, users: Sequence[str]) -> str | None:
    """The first turn at which a text is not in its place, or the template fails, in words; None where there is none."""
    for turn in range(1, len(users) + 1):
        for replies in _stand_ins(chat, turn - 1):
            try:
                chat.text(users[:turn], replies, condition)
            except TemplateProblem as error:
                return error.what
    return None


def _stand_ins(chat: TemplateChat, count: int) -> Iterator[list[Parts]]:
    """Replies of several hundred words, as short ones show nothing of templates that shorten."""
    answers = [f"Reply {turn} begins. {'It goes on and on. ' * 60}Reply {turn} ends." for turn in range(1, count + 1)]
    yield [Parts(answer, whole=answer) for answer in answers]
    reasoning = chat.reasoning
    if reasoning is not None and count:
        thoughts = [f"Thought {turn} begins. It ends." for turn in range(1, count + 1)]
        opened = bool(reasoning.opening)
        yield [reasoning.stand_in(said, thought, opened=opened, closed=True) for said, thought in zip(answers, thoughts, strict=True)]


def _what_works(chat: TemplateChat, condition: Condition, transcript: Transcript) -> str | None:
    from drift_cli.chat.raw import RawChat

    if chat.generation_problem is None:
        system = condition.system or _SYSTEM
        placements = [it.value for it in Placement if script_problem(chat, Condition(condition.name, system, it), transcript.users) is None]
        if placements:
            return f"Placements that work with it: {', '.join(placements)}."
        if condition.system is not None and script_problem(chat, Condition(condition.name), transcript.users) is None:
            return "No placement works with it; use a condition without a prompt."
    try:
        RawChat(chat.tokenizer).check(condition, transcript)
    except UsageError:
        return None
    return "Use --chat raw (plain System/User/Assistant text), or save the tokenizer with another template."


def no_generation_prompt(chat: TemplateChat) -> str | None:
    """A template that begins a reply with words of its own (`assistant`) has to begin it in the prompt, or the model would be left to write them."""
    user, reply = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
    prompt, plain, closed = chat.rendered([user], True), chat.rendered([user], False), chat.rendered([user, reply], False)
    if prompt is None or prompt != plain or closed is None or not closed.startswith(prompt) or _REPLY not in closed:
        return None
    if not closed[len(prompt) : closed.index(_REPLY)].strip():
        return None
    # Templates that write the generation prompt unasked have one behind the user's text that a second user message does not begin with.
    more = chat.rendered([user, {"role": "user", "content": _NEXT}], False)
    if more is None:
        more = chat.rendered([user, reply, {"role": "user", "content": _NEXT}], False) or ""
        between = more[more.find(_REPLY) + len(_REPLY) : more.find(_NEXT)]
    else:
        between = more[more.find(_USER) + len(_USER) : more.find(_NEXT)]
    if between.startswith(prompt[prompt.index(_USER) + len(_USER) :]):
        return "it has no generation prompt: it writes what begins a reply only together with the reply"
    return None


def reply_ends(chat: TemplateChat, given: frozenset[int]) -> frozenset[int]:
    """See `Chat.end_ids`: the first control token behind a reply's text ends it."""
    import jinja2

    user, reply = {"role": "user", "content": _USER}, {"role": "assistant", "content": _REPLY}
    try:
        last = chat.render([user, reply], prompt=False)
    except jinja2.TemplateError as error:
        raise DriftError(f"the chat template fails on a conversation that ends with a reply: {error}") from error
    later = chat.rendered([user, reply, {"role": "user", "content": _NEXT}], True) or ""
    closing = [token for text in (last, later) if (token := _first_behind(chat, text)) is not None][:1]
    marks = None if chat.reasoning is None else chat.reasoning.marks
    inner = marks.stops if isinstance(marks, Channels) else (marks.opens, marks.closes) if isinstance(marks, Brackets) else ()
    between = {index for index, token in chat.controls.by_id.items() if token in inner}
    found = (given | set(closing) | _call(chat, isinstance(marks, Channels))) - between
    return found or given | set(closing)


def _first_behind(chat: TemplateChat, text: str) -> int | None:
    if _REPLY not in text:
        return None
    behind = text[text.index(_REPLY) + len(_REPLY) :].split(_NEXT, maxsplit=1)[0]
    return chat.controls.first_of(chat.tokenizer.encode(behind, add_special_tokens=False))


def _call(chat: TemplateChat, channels: bool) -> set[int]:
    """With channels, a reply may end in a call of a tool, though none is offered; the token behind it."""
    if not channels:
        return set()
    call = {"type": "function", "function": {"name": "probe", "arguments": {}}}
    text = chat.rendered([{"role": "user", "content": _USER}, {"role": "assistant", "content": "", "tool_calls": [call]}], False) or ""
    last = chat.controls.first_of(chat.tokenizer.encode(text, add_special_tokens=False)[::-1])
    return set() if last is None else {last}

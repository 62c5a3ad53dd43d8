"""The edge to transformers, tokenizers, peft and the Hub.

What they print stays off the terminal, and whatever they raise while a model is read becomes one `DriftError`: they raise errors of every type, bare
`Exception` included, so nothing narrower than `Exception` would do. Running out of memory is said as such.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType

from drift_cli.errors import DriftError

_LOUD = ("transformers", "huggingface_hub", "peft", "accelerate", "gguf", "bitsandbytes", "optimum", "kernels")
"""Libraries whose log lines would mix with ours."""

_VIEW = re.compile(r"\S*drift-model-\w+")
"""A temporary folder that a model is read from; nobody has seen its name."""
LOCAL_MEND = "Check that the folder is whole, or save the model again with save_pretrained."
REMOTE_CODE = "Models that need trust_remote_code are not supported: drift runs no code that comes with a model."


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' log lines, warnings and progress bars off the terminal, unless TRANSFORMERS_VERBOSITY asks for them."""
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if os.environ.get("TRANSFORMERS_VERBOSITY", "error") not in ("error", "critical"):
        yield
        return
    loggers = [logging.getLogger(name) for name in _LOUD]
    levels = [logger.level for logger in loggers]
    with ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(_without_bars())
        for logger in loggers:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def _without_bars() -> Iterator[None]:
    """The loader of GGUF files shows a bar of its own, which transformers' switch does not reach."""
    import sys

    module = sys.modules.get("transformers.modeling_gguf_pytorch_utils")
    if module is None or not hasattr(module, "tqdm"):
        yield
        return
    shown = module.tqdm
    module.tqdm = lambda items, **_: items  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.tqdm = shown  # type: ignore[attr-defined]


class Reading:
    """A context in which a library reads something: quiet, and every error of the library becomes a `DriftError`.

    Args:
        what: the subject of the message: `model tiny`; ` cannot be read: …` follows.
        mend: what to do about an error that has no better advice.
    """

    def __init__(self, what: str, mend: str = LOCAL_MEND) -> None:
        self.what, self.mend = what, mend
        self._stack = ExitStack()

    def __enter__(self) -> Reading:
        self._stack.enter_context(quiet())
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()
        if isinstance(error, Exception) and not isinstance(error, DriftError):
            raise self._explained(error) from error

    def _explained(self, error: Exception) -> DriftError:
        import torch
        from safetensors import SafetensorError

        if isinstance(error, MemoryError | torch.OutOfMemoryError):
            return DriftError(
                f"{self.what} does not fit: memory ran out while it was read",
                mend="Use a device with more memory, spread it over several GPUs (drift work --gpus N), or use a smaller --dtype.",
            )
        if isinstance(error, SafetensorError):
            return DriftError(
                f"{self.what} cannot be read: a safetensors file is damaged ({first_line(error)})", mend="Copy or download the file again."
            )
        reason, mend = hub_reason(error) or (first_line(error), self.mend)
        return DriftError(f"{self.what} cannot be read: {reason}", mend=mend)


def hub_reason(error: BaseException) -> tuple[str, str] | None:
    """What the Hub's client says, in words, and what to do; None where the error is not the Hub's.

    transformers wraps these errors into an OSError, so the chain of causes is searched.
    """
    from huggingface_hub import constants, errors

    kinds: list[tuple[type[BaseException], str, str]] = [
        (errors.GatedRepoError, "it is gated", "Ask for access on the model's page, then log in: hf auth login"),
        (
            errors.RevisionNotFoundError,
            "the Hub has no such revision of it",
            "Give a branch, tag or commit that the model's page lists: --revision",
        ),
        (
            errors.RepositoryNotFoundError,
            "the Hub has no model of that name that you may see",
            "Check the spelling (org/name), log in for private models (hf auth login), or give a local folder: ./NAME",
        ),
        (
            errors.HFValidationError,
            "that is neither a folder nor a name that the Hub could have",
            "Give a folder, or an id such as org/name.",
        ),
        (errors.OfflineModeIsEnabled, *_offline()),
        (errors.LocalEntryNotFoundError, *(_offline() if constants.HF_HUB_OFFLINE else _unreachable())),
        (errors.EntryNotFoundError, "the Hub's copy of it lacks a file that is needed", "See the files on the model's page."),
        (errors.HfHubHTTPError, "the Hub refused to send it", "Try again later; https://status.huggingface.co says how the Hub is."),
        (ConnectionError, *_unreachable()),
    ]
    chain = list(_causes(error))
    for kind, reason, mend in kinds:
        if any(isinstance(cause, kind) for cause in chain):
            return reason, mend
    return _unreachable() if any(_of_transport(cause) for cause in chain) else None


def _of_transport(error: BaseException) -> bool:
    """Whether the client's HTTP library could not reach a server. By name: it is httpx in some of the client's releases and another one in others."""
    return any(base.__name__ == "TransportError" for base in type(error).__mro__)


def _offline() -> tuple[str, str]:
    return "it is not in the local cache, and HF_HUB_OFFLINE forbids to ask the Hub", "Unset HF_HUB_OFFLINE, or give a local folder."


def _unreachable() -> tuple[str, str]:
    return (
        "it is not in the local cache, and the Hub cannot be reached",
        "Check the network, or give a local folder. (`hf download org/name --local-dir FOLDER` makes one where there is a network.)",
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def first_line(error: BaseException) -> str:
    """The first line of an error's message (and the next where it ends in a colon), with its type where that alone says little (`KeyError: 'x'`)."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = _VIEW.sub("the model's folder", " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1]))
    telling = isinstance(error, OSError | ValueError | RuntimeError | ImportError) and line
    return line if telling else f"{type(error).__name__}: {line}" if line else type(error).__name__

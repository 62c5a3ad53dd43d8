"""Run the command line in this process, as a user would see it."""

from __future__ import annotations

import io
import json
import sys
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

import pytest

from drift_cli.__main__ import main


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def drift(*arguments: str, code: int | None = 0) -> Result:
    """`drift` with these arguments; fails the test where the exit code is another than `code` (None: any)."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", ["drift", *arguments])
        try:
            main()
            status = 0
        except SystemExit as exit_:
            status = int(exit_.code or 0)
    result = Result(status, out.getvalue(), err.getvalue())
    assert code is None or status == code, f"exit {status}\n{result.out}\n{result.err}"
    return result

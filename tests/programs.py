"""Runs programs of the project, as from a command line."""

import contextlib
import io
import os
import pathlib
import runpy
import subprocess
import sys
from unittest import mock

from absl import app
from absl.testing import flagsaver

ROOT = pathlib.Path(__file__).parents[1]
_SETTINGS = {"JAX_PLATFORMS": "cpu", "COLUMNS": "100"}


def environment(**more: str) -> dict[str, str]:
    """That of a process of its own."""
    return {**os.environ, **_SETTINGS, **more}


def command(module: str, *arguments: str) -> list[str]:
    """The command line, to which a warning is an error."""
    return [sys.executable, "-W", "error", "-m", module, *arguments]


def run(
    module: str, *arguments: str, **settings: str
) -> subprocess.CompletedProcess[str]:
    """What a process of its own has done, with more settings in its environment."""
    return subprocess.run(
        command(module, *arguments),
        cwd=ROOT,
        env=environment(**settings),
        capture_output=True,
        text=True,
        timeout=300,
    )


def call(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What the program has done in this process, without the seconds to start JAX."""
    app.define_help_flags()  # Once in a process.
    out, err = io.StringIO(), io.StringIO()
    imported = sys.modules.pop(module, None)
    with (
        flagsaver.flagsaver(),
        mock.patch.dict(os.environ, _SETTINGS),
        mock.patch.object(sys, "argv", [module, *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
            status: object = 0
        except SystemExit as end:
            status = end.code
        finally:
            if imported is not None:
                sys.modules[module] = imported
    if isinstance(status, str):
        err.write(f"{status}\n")
    number = status if isinstance(status, int) else int(status is not None)
    return subprocess.CompletedProcess(sys.argv, number, out.getvalue(), err.getvalue())

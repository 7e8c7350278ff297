"""The group of commands, and the one place where errors become exit codes."""

from __future__ import annotations

import errno
import warnings
from typing import Any

import click

import forvalue_index
from forvalue_index.cli.build import add, calibrate, init
from forvalue_index.cli.demo import make_demo_data
from forvalue_index.cli.evaluate import evaluate
from forvalue_index.cli.inspect import info, list_samples, show
from forvalue_index.cli.maintain import check, compact, migrate, remove, tune
from forvalue_index.cli.options import RESUMES
from forvalue_index.cli.peek import peek
from forvalue_index.cli.terminal import without_control
from forvalue_index.cli.value import explain, query, values
from forvalue_index.exceptions import ForValueError

INTERRUPTED = 130
MORE_ROOM = "use a smaller model, a shorter --max-length or a machine with more memory"


class ErrorReportingGroup(click.Group):
    """Prints what a command raises on purpose as one line, and exits with the error's code."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. Exit codes: 0 done, 1 it failed, 2 wrong usage, 130 interrupted."""
        try:
            return super().invoke(ctx)
        except ForValueError as error:
            click.echo(f"Error: {_one_line(error)}", err=True)
            ctx.exit(error.exit_code)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # click ends quietly where nobody reads on
            click.echo(f"Error: {_system_error(error)}", err=True)
            ctx.exit(ForValueError.exit_code)
        except (MemoryError, RuntimeError) as error:
            if not _is_out_of_memory(error):
                raise
            click.echo(f"Error: out of memory: {_one_line(error)}; {MORE_ROOM}", err=True)
            ctx.exit(ForValueError.exit_code)
        except KeyboardInterrupt:
            click.echo(_interruption(ctx), err=True)
            ctx.exit(INTERRUPTED)


def _is_out_of_memory(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "allocate memory" in text


def _interruption(ctx: click.Context) -> str:
    if ctx.invoked_subcommand == "add" or ctx.meta.get(RESUMES):
        return "Stopped. What was finished is stored; the same command goes on from there."
    return "Stopped."


def _one_line(error: Exception) -> str:
    return without_control(" ".join(str(error).split()))


def _system_error(error: OSError) -> str:
    file = without_control(f"{error.filename}: ") if error.filename else ""
    reason = error.strerror or _one_line(error)
    return f"{file}{reason}; check the path, the rights to it and the room on the disk"


@click.group(
    cls=ErrorReportingGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(forvalue_index.__version__, prog_name="forvalue")
def main() -> None:
    """Tell which training samples helped and which hurt a language model.

    Embed every training sample once (init, add), then ask for any validation set (query, values).
    """
    # Pillow's, of images that are refused with a line of their own.
    warnings.filterwarnings("ignore", message=r"Image size .* could be decompression bomb")


READING = (query, values, explain, show, list_samples, info, evaluate)
for command in (
    *(init, calibrate, peek, add, *READING, remove, compact, check, tune, migrate, make_demo_data),
):
    main.add_command(command)

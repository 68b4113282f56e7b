"""The `molmoact2` command: finds the module of a subcommand, imports only that, and words its errors."""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import logging
import os
import sys
import types
from collections.abc import Mapping, Sequence

import molmoact2_jax

EPILOG = "molmoact2 COMMAND --help explains a command. --verbose and --debug may stand anywhere."


@dataclasses.dataclass(frozen=True)
class Command:
    """One entry of a table of commands.

    Attributes:
      module: in `molmoact2_jax.cli`; it has `register(subparsers)`, which adds a parser under the command's name, and
        `run(args: argparse.Namespace) -> int`, which returns the exit status.
      help: one line.
      own_flags: the module reads its flags itself: it has only `run(argv: list[str]) -> int`.
    """

    module: str
    help: str
    own_flags: bool = False


COMMANDS: dict[str, Command] = {
    "predict": Command("predict", "one action chunk from pictures, an instruction and a joint state"),
    "verify": Command("verify", "compares every stage with recorded arrays of the released implementation"),
    "init": Command("init", "files of a small model that is going to be trained from nothing"),
    "train": Command("train", "trains or resumes a run", own_flags=True),
    "plan": Command("plan", "bytes per device and FLOPs of a training step, and what fits", own_flags=True),
    "data": Command("data", "statistics, doctor, preview, filters, repacking of datasets", own_flags=True),
    "eval": Command("eval", "measures a checkpoint: rollout in a simulator, open-loop on recordings", own_flags=True),
    "collect": Command("collect", "records demonstrations of a simulator's scripted experts"),
    "bench": Command("bench", "times inference, training, data", own_flags=True),
    "serve": Command("serve", "answers robots with action chunks, over websocket and HTTP"),
    "probe": Command("probe", "checks a policy server without moving a robot"),
    "export": Command("export", "writes a checkpoint in the released safetensors format"),
}

# who installs what the base install lacks: imported name -> extra
EXTRAS: dict[str, str] = {
    "array_record": "train",
    "av": "train",
    "cv2": "train",
    "google_crc32c": "train",
    "grain": "train",
    "matplotlib": "plot",
    "metaworld": "sim",
    "ml_collections": "train",
    "msgpack": "serve",
    "mujoco": "sim",
    "optax": "train",
    "orbax": "train",
    "pyarrow": "train",
    "scipy": "train",
    "starlette": "serve",
    "tensorboardX": "train",
    "tensorflow_datasets": "train",
    "uvicorn": "serve",
    "wandb": "wandb",
    "websockets": "serve",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit status: 2 for bad input, said in one line on standard error."""
    words = list(sys.argv[1:] if argv is None else argv)
    verbose, debug = "--verbose" in words, "--debug" in words
    _log_to_stderr(logging.DEBUG if debug else logging.INFO if verbose else logging.WARNING)
    try:
        status = dispatch([w for w in words if w not in ("--verbose", "--debug")], COMMANDS, "molmoact2")
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # the reader of our output has left; nothing may be flushed into the pipe at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        message = words_for(error)
        if debug or message is None:
            raise
        print(f"error: {message}", file=sys.stderr)
        return 2


def _log_to_stderr(level: int) -> None:
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger(molmoact2_jax.__name__).setLevel(level)
    if level != logging.DEBUG:
        logging.getLogger("absl").setLevel(logging.ERROR)  # Orbax warns there of what we ask for


def dispatch(argv: Sequence[str], commands: Mapping[str, Command], prog: str) -> int:
    """Runs the command that `argv` starts with; its module is imported only now.

    Raises:
      ValueError: no such command; or whatever the command raises for bad input.
    """
    if not argv or argv[0] in ("-h", "--help", "--version"):
        overview(commands, prog).parse_args(argv or ["--help"])
    name, *rest = argv
    if name not in commands:
        near = difflib.get_close_matches(name, commands, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{prog}: {name!r}, expected one of {', '.join(commands)}.{hint}")
    module = importlib.import_module(f"molmoact2_jax.cli.{commands[name].module}")
    if commands[name].own_flags:
        return module.run(rest)
    return module.run(_parse(module, argv, prog))


def _parse(module: types.ModuleType, argv: Sequence[str], prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, epilog=EPILOG)
    module.register(parser.add_subparsers(required=True))
    return parser.parse_args(argv)


def overview(commands: Mapping[str, Command], prog: str) -> argparse.ArgumentParser:
    """Returns the parser whose help lists the commands."""
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {command.help}" for name, command in commands.items()]
    parser = argparse.ArgumentParser(
        prog=prog,
        usage=f"{prog} [--version] [--verbose] [--debug] COMMAND ...",
        description="\n".join(["commands:", *lines]),
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"molmoact2-jax {molmoact2_jax.__version__}")
    parser.add_argument("--verbose", action="store_true", help="log what is loaded, compiled and written")
    parser.add_argument("--debug", action="store_true", help="log more, and show the traceback of an error")
    return parser


def words_for(error: Exception) -> str | None:
    """Returns what to tell the user about an error, or None where it is a mistake of ours."""
    if not isinstance(error, ModuleNotFoundError):
        return str(error) or type(error).__name__
    missing = (error.name or "").partition(".")[0]
    if missing not in EXTRAS:
        return None
    return f"{missing} is not installed. pip install 'molmoact2-jax[{EXTRAS[missing]}]'"


if __name__ == "__main__":
    sys.exit(main())

import importlib
import json
import subprocess
import sys
import types

import pytest

import molmoact2_jax
from molmoact2_jax.cli import main


@pytest.fixture
def command(monkeypatch):
    """Installs `run` as the command `probe` and returns a function that calls `molmoact2 probe ...`."""

    def install(run, *, own_flags: bool = False):
        def register(subparsers):
            parser = subparsers.add_parser("probe")
            parser.add_argument("--count", type=int, default=1)

        module = types.ModuleType("molmoact2_jax.cli.probe_module")
        module.register, module.run = register, run
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setitem(main.COMMANDS, "probe", main.Command("probe_module", "a command of this test", own_flags))
        return lambda *words: main.main(["probe", *words])

    return install


def raising(error):
    def run(args):
        raise error

    return run


def test_help_lists_every_command_and_imports_neither_jax_nor_a_command():
    program = (
        "import sys, json\n"
        "from molmoact2_jax.cli import main\n"
        "try: main.main(['--help'])\n"
        "except SystemExit as stop: status = stop.code\n"
        "print(json.dumps([status, 'jax' in sys.modules, 'numpy' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *shown, facts = done.stdout.splitlines()
    assert json.loads(facts) == [0, False, False]
    for name, entry in main.COMMANDS.items():
        assert any(line.split()[:1] == [name] and entry.help in line for line in shown)


def test_every_listed_command_exists_and_explains_itself(capsys):
    tables = [("molmoact2", main.COMMANDS)]
    for prog, commands in tables:  # grows while it is walked
        for name, entry in commands.items():
            module = importlib.import_module(f"molmoact2_jax.cli.{entry.module}")
            assert callable(module.run), name
            if hasattr(module, "COMMANDS"):
                tables.append((f"{prog} {name}", module.COMMANDS))
            if not entry.own_flags:
                with pytest.raises(SystemExit, match="0"):
                    main.dispatch([name, "--help"], commands, prog)
                assert capsys.readouterr().out.startswith(f"usage: {prog} {name}")
    assert len(tables) > 1


def test_a_command_without_words_shows_the_overview(capsys):
    with pytest.raises(SystemExit) as stop:
        main.main([])
    assert stop.value.code == 0
    assert "commands:" in capsys.readouterr().out


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main.main(["--version"])
    assert capsys.readouterr().out.strip() == f"molmoact2-jax {molmoact2_jax.__version__}"


def test_the_status_of_a_command_is_the_status_of_the_program(command):
    assert command(lambda args: args.count)("--count", "7") == 7


def test_a_command_with_its_own_flags_gets_its_words_unread(command):
    seen = []
    assert command(lambda words: seen.extend(words) or 0, own_flags=True)("--config=a.py", "--config.steps=3") == 0
    assert seen == ["--config=a.py", "--config.steps=3"]


@pytest.mark.parametrize("error", [ValueError("state: 3, expected 8."), FileNotFoundError("x: no such file.")])
def test_bad_input_is_one_line_on_stderr_and_status_2(command, capsys, error):
    assert command(raising(error))() == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: {error}\n"


def test_debug_shows_the_traceback_of_bad_input_wherever_it_stands(command):
    with pytest.raises(ValueError, match="state"):
        command(raising(ValueError("state: 3, expected 8.")))("--debug", "--count", "2")


def test_a_mistake_of_ours_is_never_dressed_as_bad_input(command):
    with pytest.raises(TypeError):
        command(raising(TypeError("unsupported operand")))()
    with pytest.raises(ModuleNotFoundError):
        command(raising(ModuleNotFoundError("No module named 'molmoact2_jax.serv'", name="molmoact2_jax.serv")))()


@pytest.mark.parametrize("name", ["grain", "websockets.sync.client", "mujoco"])
def test_a_missing_library_names_the_extra_that_installs_it(command, capsys, name):
    assert command(raising(ModuleNotFoundError(f"No module named {name!r}", name=name)))() == 2
    extra = main.EXTRAS[name.partition(".")[0]]
    assert capsys.readouterr().err.endswith(f"pip install 'molmoact2-jax[{extra}]'\n")


def test_a_misspelt_command_names_the_near_one(capsys):
    assert main.main(["predit"]) == 2
    assert "Did you mean 'predict'?" in capsys.readouterr().err


def test_a_reader_that_leaves_early_causes_no_traceback():
    program = (
        "import sys, types\n"
        "from molmoact2_jax.cli import main\n"
        "module = types.ModuleType('molmoact2_jax.cli.probe_module')\n"
        "module.run = lambda words: [print('x' * 100) for _ in range(10_000)] and 0\n"
        "sys.modules[module.__name__] = module\n"
        "main.COMMANDS['probe'] = main.Command('probe_module', '', own_flags=True)\n"
        "sys.exit(main.main(['probe']))\n"
    )
    running = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    running.stdout.read(10)
    running.stdout.close()
    assert running.stderr.read() == b""
    assert running.wait(timeout=60) == 1
    running.stderr.close()

"""The command line: `vaelib COMMAND ...`; `vaelib --help` lists the commands."""

import os
import signal
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

try:
    from vaelib import arguments, choices, commands, files
    from vaelib.arguments import UsageError
    from vaelib.files import UserError
except KeyboardInterrupt:  # while this is loading
    print("vaelib: interrupted", file=sys.stderr)
    sys.exit(128 + signal.SIGINT)

EXAMPLES = """examples:
  vaelib train -c mnist-2d --steps 2000 -e runs/mine    a published recipe, one key changed
  vaelib train --data images:photos --likelihood learned_gaussian --minutes 10
  vaelib train -e runs/mine --resume --steps 4000       go on with a run, for longer
"""


def overview() -> str:
    """What `vaelib --help` prints: each command in a line."""
    lines = [f"  {name:<12}{f.__doc__.splitlines()[0]}" for name, f in commands.COMMANDS.items()]
    about = "Variational autoencoders to see, touch and check."
    more = "vaelib COMMAND --help says what each takes; README.md has examples."
    return "\n".join(["usage: vaelib COMMAND ...\n", about, "\ncommands:", *lines, "", more])


def parse(words: list[str]) -> tuple[str, dict]:
    """The command's name and its arguments, as typed over their defaults."""
    name, *rest = words
    if name not in commands.COMMANDS:
        near = choices.nearest(name, commands.COMMANDS)
        raise UsageError(f"no command {name!r}{near}; there are: {', '.join(commands.COMMANDS)}")
    function = commands.COMMANDS[name]
    own = arguments.function_keys(function)
    keys = own + (arguments.recipe_keys() if name == "train" else [])
    what = function.__doc__.split("\n\n")[0]
    parser = arguments.parser_of(name, what, keys, EXAMPLES if name == "train" else "")
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        sys.stdout.flush()
        raise SystemExit(0)
    typed = arguments.typed(name, parser, keys, rest)
    values = {key.name: key.default for key in own if key.default is not arguments.NONE} | typed
    if name == "train":
        given = {key.name: values[key.name] for key in own}
        typed = {k: v for k, v in typed.items() if k not in given}
        return name, given | arguments.train_recipe(parser, typed, **given)
    if name == "sample":
        written, mode = {"name", "mode", "save_dir", "output"}, values["mode"]
        idle = typed.keys() - arguments.EFFECTIVE[mode] - written
        if mode == "sample" and values["latents"] == "prior":
            idle, mode = idle | (typed.keys() & {"data"}), f"{mode} and --latents prior"
        if idle:
            listed = ", ".join(f"--{key}" for key in sorted(idle))
            raise UsageError(f"{listed}: no effect with --mode {mode}; leave it out")
    return name, values


def run(words: list[str]) -> None:
    """Run one command."""
    if not words or words[0] in ("-h", "--help"):
        print(overview())
    else:
        name, values = parse(words)
        commands.COMMANDS[name](**values)
    if sys.stdout is not None:
        sys.stdout.flush()


@contextmanager
def noted_interrupts() -> Iterator[list[int]]:
    """Ctrl-C as KeyboardInterrupt, and in a list: modules that are being imported swallow it."""
    noted = []

    def note(number: int, _) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield noted
        return
    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def main(words: list[str] | None = None) -> None:
    """Run one command; whatever is wrong with it is one line and exit status 2."""
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    for stream in (sys.stdout, sys.stderr):  # a name that the terminal can't show is escaped
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    message, status = None, 0
    with noted_interrupts() as interrupts:
        try:
            run(sys.argv[1:] if words is None else words)
        except BrokenPipeError:  # `vaelib info ... | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except (KeyboardInterrupt, Exception) as error:
            usual = isinstance(error, UserError | OSError | TypeError | ValueError)
            if not (usual or interrupts):
                raise
            message, status = " ".join(files.reason(error).split()), getattr(error, "status", 2)
        if interrupts and status:
            message, status = "interrupted", 128 + signal.SIGINT
    if message:
        if int(os.environ.get("RANK", 0)) == 0:  # of several processes, one says it
            print(f"vaelib: {message}", file=sys.stderr)
        sys.exit(status)


if __name__ == "__main__":
    main()

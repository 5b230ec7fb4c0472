"""The commands of `python -m tf_tricks`: what can be done with checkpoint files, and the check of a script."""

import argparse
import os
import sys

from tf_tricks import _check_script
from tf_tricks._checks import check_number
from tf_tricks.checkpoints import describe, file_format, keras_files, saving, verify
from tf_tricks.checkpoints.reports import columns, position, readable


def main(arguments=None):
    """Run one command; returns its exit status: 0, 1 if something is damaged or fails, 2 for wrong arguments."""
    arguments, of_script = list(sys.argv[1:] if arguments is None else arguments), []
    if arguments[:1] == ["check"] and "--" in arguments:  # what comes after it belongs to the script
        split = arguments.index("--")
        arguments, of_script = arguments[:split], arguments[split + 1 :]
    options = _parser().parse_args(arguments)
    options.of_script = of_script
    try:
        return options.run(options)
    except (ValueError, OSError) as error:  # a sentence for people, no traceback
        print(f"tf_tricks: {error}", file=sys.stderr)
        return 1


def _parser():
    parser = argparse.ArgumentParser("tf_tricks", description="Tools beside the training tricks.")
    topics = parser.add_subparsers(metavar="TOPIC", required=True)
    checkpoints = topics.add_parser("checkpoints", help="list, verify or describe checkpoint files")
    commands = checkpoints.add_subparsers(metavar="COMMAND", required=True)
    for name, run, text in (
        ("list", _list, "one line a file, the oldest first"),
        ("verify", _verify, "compare every byte with the checksum; exit status 1 if a file is damaged"),
        ("describe", _describe, "what a file holds, or the newest good one of a folder"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", metavar="DIR_OR_FILE")
        command.set_defaults(run=run)
    text = "run a training script up to its first `fit`, and all checks there in its place; no line of it changes"
    check = topics.add_parser(
        "check",
        help=text,
        description=text[0].upper() + text[1:] + ".",
        epilog="Exit status: 0 if all checks passed, 1 if one failed or raised, 2 if the script could not be run or "
        "did not call `fit`. What the script shall find in `sys.argv` comes after `--`.",
        usage="%(prog)s [-h] [--seconds SECONDS] [--quiet] [--skip NAME] script.py [-- ARGUMENT ...]",
    )
    check.add_argument("script", metavar="script.py")
    check.add_argument("arguments", nargs="*", metavar="ARGUMENT", help="arguments of the script")
    check.add_argument("--seconds", type=_seconds, default=60.0, help="budget of all checks together; default 60")
    check.add_argument("--quiet", action="store_true", help="do not show what the script prints")
    names = [each.name for each in _check_script.CHECKS]
    check.add_argument("--skip", action="append", default=[], choices=names, metavar="NAME", help=", ".join(names))
    check.set_defaults(run=_check)
    return parser


def _seconds(text):
    try:
        return check_number("seconds", float(text), above=0)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _check(options):
    arguments = [*options.arguments, *options.of_script]
    return _check_script.check_script(options.script, arguments, options.seconds, options.quiet, options.skip)


def _list(options):
    rows = [("file", "created", "position", "size")]
    for path in _files(options.path):
        created, place = _heading(path)
        rows.append((os.path.basename(path), created, place, readable(os.path.getsize(path))))
    print("\n".join(columns(rows)))
    return 0


def _heading(path):
    if keras_files.is_keras_file(path):
        return "", "a file of Keras"
    try:
        about = saving.summary(path)
    except file_format.DamagedCheckpoint:
        return "", "DAMAGED"
    return about["created"][:19].replace("T", " "), position(about["epoch"], about["step"])


def _verify(options):
    rows, damaged = [], False
    for path in _files(options.path):
        try:
            verify(path)
            rows.append((os.path.basename(path), "ok"))
        except (file_format.DamagedCheckpoint, OSError) as error:
            damaged = True
            rows.append((os.path.basename(path), f"DAMAGED: {error}"))
    print("\n".join(columns(rows)))
    return int(damaged)


def _describe(options):
    about = describe(options.path)
    print(about)
    return int(about.damage is not None)


def _files(path):
    if not os.path.isdir(path):
        return [saving.find(path)]
    found = saving.entries(path)
    if not found:
        raise FileNotFoundError(f"The folder `{path}` holds no checkpoints.")
    return found

"""The commands of `python -m tf_tricks`. Each takes paths; none needs a model, a compiled step or a GPU."""

import argparse
import os
import sys

from tf_tricks.checkpoints import describe, file_format, keras_files, saving, verify
from tf_tricks.checkpoints.reports import columns, position, readable


def main(arguments=None):
    """Run one command and return its exit status: 0, 1 if something is damaged or missing, 2 for wrong arguments."""
    options = _parser().parse_args(arguments)
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
    return parser


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

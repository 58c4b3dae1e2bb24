"""Writes docs/command-line.md from the parser of ``sbc``: ``python -m integration_tests.docs.command_line``."""

import argparse
from pathlib import Path

from sbc_plugin.cli.parser import EXIT, _parser

PAGE = Path(__file__).parents[2] / "docs" / "command-line.md"
HEAD = """# Command line
`sbc`, which is also `python -m sbc_plugin`, has these commands. This page is made from the parser, so it says what
`sbc COMMAND --help` says. What everybody needs comes first; options under *expert* have good defaults. Data files are
described in [spike files](spike-files.md), and files of settings in [recipes](recipes.md).
"""
PLURALS = {"positional arguments": "Arguments", "options": "Options"}


def commands() -> dict[str, argparse.ArgumentParser]:
    """Each command's name and parser, in the order of ``sbc --help``."""
    for action in _parser()._actions:
        if isinstance(action, argparse._SubParsersAction):
            return dict(action.choices)
    raise AssertionError("sbc has no commands")


def settings_of(parser: argparse.ArgumentParser) -> set[str]:
    """The attributes that a command's options set."""
    return {action.dest for action in parser._actions}


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())


def _named(action: argparse.Action) -> str:
    """An option with its values, as one types it."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    value = ""
    if action.nargs != 0:
        value = " " + (action.metavar if isinstance(action.metavar, str) else action.dest.upper().replace("_", "-"))
        if action.choices is not None:
            value = " " + "\\|".join(map(str, action.choices))
    return ", ".join(f"`{name}{value}`" for name in action.option_strings)


def _about(action: argparse.Action) -> str:
    return _cell((action.help or "") % (vars(action) | {"prog": "sbc"}))


def section(name: str, parser: argparse.ArgumentParser) -> str:
    """A command: what it does, its groups of options, and its examples."""
    needed = [
        " ".join([action.option_strings[0], str(action.metavar or action.dest.upper())])
        for action in parser._actions
        if action.option_strings and action.required
    ]
    places = [str(action.metavar or action.dest) for action in parser._actions if not action.option_strings]
    text = [f"## sbc {name}", str(parser.description), "", "```text"]
    text += [" ".join(["sbc", name, *places, *needed, "[options]"]), "```", ""]
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        title = str(group.title)
        text += [f"**{PLURALS.get(title, title[0].upper() + title[1:])}**", ""]
        if group.description:
            text += [_cell(group.description), ""]
        text += ["| | |", "| --- | --- |", *(f"| {_named(action)} | {_about(action)} |" for action in actions), ""]
    examples = (parser.epilog or "").replace(EXIT, "").strip()
    if examples:
        text += ["```text", examples, "```", ""]
    return "\n".join(text)


def page() -> str:
    """The text of the page."""
    sections = [section(name, parser) for name, parser in commands().items()]
    status = "\n".join(["## Exit status", "```text", EXIT.partition("\n")[2].rstrip(), "```", ""])
    return "\n".join([HEAD, *sections, status])


if __name__ == "__main__":
    PAGE.write_text(page())

"""Settings as text: YAML and TOML in, YAML out; files may be anyone's, so what is read is small and only data."""

import re
import sys
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar

import yaml

from sbc_plugin.errors import SettingsError
from sbc_plugin.version import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LARGEST = 2**18  # bytes of a file
YAML, TOML = (".yaml", ".yml"), (".toml",)
TAGS = {"null": r"|~|null", "bool": r"true|false", "int": r"-?(0|[1-9][0-9]*)"}
TAGS["float"] = r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?"
FIRST = {"null": ["", "~", "n"], "bool": list("tf"), "int": list("-0123456789"), "float": list("-+.0123456789")}


class _Loader(yaml.SafeLoader):
    """YAML 1.2's numbers and truth values, so that "2:4", "on" and "1e-3" are what they look like; no aliases."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def compose_node(self, parent: Any, index: Any) -> Any:
        """A node, as long as it is no alias, of which a few make very many values.

        Raises:
            ComposerError: it is one.
        """
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.composer.ComposerError(None, None, "aliases (*name) are not allowed; write it out", mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        """A dict, as long as no key stands twice.

        Raises:
            ConstructorError: one does.
        """
        seen: set[str] = set()
        for key in (key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"{key!r} stands twice", node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes all texts that a reader of YAML 1.1 or 1.2 would take for something else."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {
        first: list(found) for first, found in yaml.SafeDumper.yaml_implicit_resolvers.items()
    }


for _name, _pattern in TAGS.items():
    for _kind in (_Loader, _Dumper):
        _kind.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), FIRST[_name])


def read_content(path: str | PathLike[str], what: str = "recipe") -> Any:
    """What a file in YAML or TOML holds: numbers, texts, lists, mappings.

    Args:
        path: of the file.
        what: it should be, for errors.

    Raises:
        SettingsError: no such file, too large, of another kind, or neither.
    """
    kind = Path(path).suffix.lower()
    if kind not in (*YAML, *TOML):
        raise SettingsError(f"{path} is no {what}; its name ends in {', '.join((*YAML, *TOML))}")
    try:
        with Path(path).open("rb") as file:
            content = file.read(LARGEST + 1)
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be read: {error.strerror or error}; give a {what} in YAML or TOML"
        ) from error
    if len(content) > LARGEST:
        raise SettingsError(f"{path} is no {what}: it is larger than {LARGEST:,} bytes")
    try:
        text = content.decode("utf-8")
        return yaml.load(text, _Loader) if kind in YAML else tomllib.loads(text)
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, LookupError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:400]
        raise SettingsError(f"{path} is no {what} in {'YAML' if kind in YAML else 'TOML'}: {reason}") from error


def as_yaml(content: Any) -> str:
    """The content as YAML, with a line that says what it is."""
    text: str = yaml.dump(content, Dumper=_Dumper, sort_keys=False, width=100)
    return f"# Made by sbc-plugin {__version__}: sbc compress MODEL --data DATA --recipe THIS_FILE -o OUT\n{text}"

"""The lowest versions that pyproject.toml allows, as constraints for pip; `make test-wheel LOWEST=1` prints them.

>>> lowest("numpy>=1.26; extra == 'all'"), lowest("ruff")
('numpy==1.26', None)
"""

from importlib.metadata import requires

from packaging.requirements import Requirement


def lowest(line: str) -> str | None:
    """``name==version`` of a requirement with a lower bound; None of one without."""
    requirement = Requirement(line)
    bound = next((part.version for part in requirement.specifier if part.operator == ">="), None)
    return None if bound is None else f"{requirement.name}=={bound}"


def main() -> None:
    """Print a line for each requirement that has a lower bound, tools of development left out."""
    lines = [line for line in requires("sbc-plugin") or [] if not line.endswith(("'dev'", "'docs'", '"dev"', '"docs"'))]
    print("\n".join(sorted({found for line in lines if (found := lowest(line)) is not None})))


if __name__ == "__main__":
    main()

"""The same start for every test here as for those inside the package."""

from sbc_plugin.conftest import fixed_seeds

__all__ = ["fixed_seeds"]

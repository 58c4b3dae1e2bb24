"""``python -m sbc_plugin``: the command ``sbc``."""

from sbc_plugin.cli import main

raise SystemExit(main())

"""The command line, as a user meets it."""

import subprocess
import sys

import pytest

import sbc_plugin
from sbc_plugin.cli import main


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"sbc {sbc_plugin.__version__}\n"


def test_an_unknown_seed_is_an_error_message_not_a_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--seed", "99"]) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("sbc: no checkpoint") and "--seed 99" in told.err


def test_a_missing_extra_is_named() -> None:
    script = "import sys; sys.modules['sklearn'] = None; from sbc_plugin.cli import main; main(['demo'])"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.returncode == 1
    assert result.stderr == "sbc: the demo needs sklearn; pip install 'sbc-plugin[demo]'\n"

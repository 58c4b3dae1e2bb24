"""Public names and signatures are those of the committed list."""

import pytest

from integration_tests.docs import public_face

HOSTS = {"norse": "norse", "torch_pruning": "torch_pruning", "brevitas": "brevitas", "nir": "nir"}


@pytest.mark.parametrize("module", public_face.MODULES)
def test_the_public_face_is_as_committed(module: str) -> None:
    if host := HOSTS.get(module.rpartition(".")[2]):
        pytest.importorskip(host)
    now, before = public_face.lines(module), public_face.committed(module)
    gone, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
    assert now == before, (
        f"gone: {gone}; new: {new}. If CHANGELOG says so, run python -m integration_tests.docs.public_face"
    )


def test_a_signature_shows_what_callers_give() -> None:
    def solve(weight: int, *, damping: float = 0.01) -> None: ...

    assert public_face.signature(solve) == "(weight, *, damping=0.01)"

import dataclasses
import json

import pytest

from dit_jax.errors import InputError
from dit_jax.models import dit_moe
from dit_jax.planning.compile import Compiled, DoesNotFit, Memory
from dit_jax.planning.estimate import Candidate, kept_bytes
from dit_jax.planning.search import candidates, meshes, print_search, ranked, search
from dit_jax.planning.topology import CHIPS, GIB, Slice, local_slice
from tests.planning.small import experiment


@pytest.fixture
def where(monkeypatch):
    monkeypatch.setattr(Slice, "links", lambda self, group: 1)
    monkeypatch.setattr(Slice, "longest", lambda self, group: 1)
    return dataclasses.replace(local_slice(), chip=CHIPS["v5e"], sides=(8, 1, 1))


def compiler(program):
    """Of meshes with more than one copy says that they do not fit."""
    if program.layout.mesh.shape["data"] > 1:
        raise DoesNotFit(20 * GIB, 16 * GIB)
    text = "ENTRY %main () -> f32[] {\n}\n"
    return Compiled(text, Memory(GIB, 0, GIB, 0), 1.0, 1)


def test_meshes_cover_all_devices():
    found = list(meshes(12))
    assert {m["data"] * m["fsdp"] * m["expert"] * m["tensor"] for m in found} == {12}
    assert len({tuple(m.items()) for m in found}) == len(found)
    assert {"data": 1, "fsdp": 12, "expert": 1, "tensor": 1} in found


def test_candidates_are_those_that_divide(where):
    found = list(candidates(experiment(), where))
    sizes = [c.experiment.parallel for c in found]
    assert {p.expert for p in sizes} == {1}  # There are no experts,
    assert {p.tensor for p in sizes} == {1, 2}  # and two heads.
    assert {c.experiment.model.remat for c in found} == {"none", "dots", "full"}


def test_experts_are_divided_where_there_are_some(where):
    model = dit_moe(2, 64, 2, 4, num_classes=10)
    found = candidates(dataclasses.replace(experiment(), model=model), where)
    assert {c.experiment.parallel.expert for c in found} == {1, 2, 4}


def test_those_that_should_fit_come_first_and_the_fastest_of_them(where):
    sizes = [(20, 1.0), (3, 3.0), (2, 2.0), (18, 9.0)]
    found = ranked([Candidate(experiment(), size * GIB, time) for size, time in sizes], where)
    assert [(c.bytes / GIB, c.seconds) for c in found] == [(2, 2.0), (3, 3.0), (18, 9.0), (20, 1.0)]


def test_recomputing_more_keeps_less():
    none, dots, full = (kept_bytes(experiment(remat=r)) for r in ("none", "dots", "full"))
    assert none > dots > full > 0


def test_the_compiler_has_the_last_word(where, capsys):
    found = search(experiment(), where, 6, compiler)
    fits = [plan.verdict.fits for plan in found.plans]
    assert len(fits) == 6 and fits == sorted(fits, reverse=True)
    print_search(found, where, as_json=False)
    assert f"{found.tried} candidates were ranked" in capsys.readouterr().out
    print_search(found, where, as_json=True)
    assert json.loads(capsys.readouterr().out)["tried"] == found.tried


def test_what_cannot_be_searched_is_refused(where):
    with pytest.raises(InputError, match="--compile is 0"):
        search(experiment(), where, 0, compiler)
    with pytest.raises(InputError, match="no mesh of 8 devices suits a batch of 9"):
        search(experiment(batch=9), where, 1, compiler)

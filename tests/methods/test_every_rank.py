"""Every method in conf/method on two data-parallel ranks."""

import pytest
import torch

from tests import processes
from tests.common import ROOT
from tests.methods.every import PROGRESS, each_method
from tests.methods.ranks import RANKS, part, prepared, trained


@pytest.fixture(scope="module")
def parameters(tmp_path_factory):
    """Return what each rank has made of a method, by name: both processes are started once, for all methods."""
    folder = tmp_path_factory.mktemp("ranks")
    program = ROOT / "tests" / "methods" / "ranks.py"
    ranks = [processes.start(program, str(rank), folder, cwd=folder) for rank in range(RANKS)]
    for rank in ranks:
        _, errors = rank.communicate()
        assert rank.returncode == 0, errors
    return lambda name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(RANKS)]


def is_per_sample(name):
    """Return whether the terms of a batch are the means of those of its halves."""
    found = prepared(name)
    for progress in PROGRESS:
        whole = found.step(progress).terms
        halves = [found.step(progress, batch=part(found.batch, rank)).terms for rank in range(RANKS)]
        for key, term in whole.items():
            mean = sum(half[key].item() for half in halves) / RANKS
            if term.item() != pytest.approx(mean, rel=1e-5, abs=1e-6):
                return False
    return True


@each_method
def test_ranks_stay_equal(name, parameters):
    first, second = parameters(name)
    assert not isinstance(first, str), first
    assert not isinstance(second, str), second
    assert first.keys() == second.keys()
    assert all(torch.equal(parameter, second[key]) for key, parameter in first.items())
    alone = trained(name, None)
    assert alone.keys() == first.keys()
    if is_per_sample(name):
        for key, parameter in alone.items():
            torch.testing.assert_close(first[key], parameter, rtol=1e-4, atol=1e-6)

"""What `train.py` makes of a configuration, without training anything."""

import ast
import inspect
import os
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_method

import train
from hydra_plugins.kd.cohort import in_common
from kd.app.check import fingerprint
from tests.common import ROOT


def composed(*overrides):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        return compose("config", ["data=digits", *overrides])


@pytest.mark.parametrize(
    ("changed", "teacher", "result"),
    [
        ("teacher.scale=8", True, True),
        ("teacher_recipe.epochs=3", True, True),
        ("teacher_recipe.optimizer.lr=0.3", True, True),
        ("data.augment.crop=1", True, True),
        ("data.val_fraction=0.2", True, True),
        ("data.source.image_size=16", True, True),
        ("speed.packed_dropout=false", True, True),
        ("trainer.precision=32-true", True, True),
        ("T=3", False, True),
        ("seed=1", False, True),
        ("student.scale=4", False, True),
        ("recipe.epochs=3", False, True),
        ("ensemble=2", False, True),
        ("trainer.devices=2", False, False),
        ("logger=none", False, False),
        ("teacher_store=elsewhere", False, False),
    ],
)
def test_what_makes_another_teacher_and_another_result(changed, teacher, result):
    """Too little in these names and a wrong teacher, or an old result, is taken for the one that was asked for."""
    before, after = composed(), composed(changed)
    assert (train.Workshop(before).teacher_key(0) != train.Workshop(after).teacher_key(0)) == teacher
    assert (fingerprint(train.plain(before)) != fingerprint(train.plain(after))) == result


def test_which_jobs_share_their_batches_and_their_teacher():
    """One order given, students differ as they like; what the batches or the teacher come from must be the same."""
    base = in_common(composed("data.order_seed=0"))
    for alike in (["T=4"], ["method=feature", "beta=0.1"], ["seed=1"], ["student.scale=4"], ["recipe.optimizer.lr=1"]):
        assert in_common(composed("data.order_seed=0", *alike)) == base
    for other in ("teacher_seed=1", "ensemble=2", "recipe.batch_size=8", "recipe.epochs=2", "data.augment.crop=1"):
        assert in_common(composed("data.order_seed=0", other)) != base
    assert in_common(composed("seed=1")) != in_common(composed("seed=2"))  # each its own order


@pytest.mark.parametrize("file", sorted((ROOT / "conf" / "data").glob("*.yaml")), ids=lambda file: file.stem)
def test_every_data_set_is_asked_for_what_it_takes(file):
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        source = train.plain(compose("config", [f"data={file.stem}"]).data.source)
    inspect.signature(get_method(source.pop("_target_"))).bind(**source)


@pytest.mark.parametrize("given", [{}, {"OMP_WAIT_POLICY": "ACTIVE"}])
def test_how_threads_wait_is_set_before_torch_reads_it(given):
    ours = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    code = f"import os, sys, train; print({{n: os.environ.get(n) for n in {ours}}}, 'torch' in sys.modules)"
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=clean | given, capture_output=True, text=True)
    expected = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"}
    expected = {"GOMP_SPINCOUNT": None, **given} if given else expected
    assert ast.literal_eval(done.stdout.rpartition(" ")[0]) == expected
    assert done.stdout.endswith("False\n")

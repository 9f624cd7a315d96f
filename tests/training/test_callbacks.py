import csv
import math
import re
from functools import partial
from types import SimpleNamespace

import lightning as L
import pytest
import torch

import kd.training.callbacks
from kd.data.augment import Augment
from kd.data.module import DataModule
from kd.training.callbacks import EpochBar, EpochSeed, History
from kd.training.modules import Classifier
from kd.training.optim import one_cycle


@pytest.fixture
def fit(tiny_net, noise, trainer):
    """Trains for three steps of ten images an epoch; returns the Trainer."""

    def fit(*callbacks, epochs=2, validate=1.0, ckpt_path=None, **settings):
        net = tiny_net()
        sgd = partial(torch.optim.SGD, lr=0.1)
        module = Classifier(net, 10, sgd, partial(one_cycle, warmup=0.0), 0.0)
        lightning = trainer(max_epochs=epochs, callbacks=list(callbacks), limit_val_batches=validate, **settings)
        data = DataModule(noise(), 0.25, 0, Augment(1, True, 0), batch_size=10, seed=0)
        lightning.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return lightning

    return fit


class FakeClock(L.Callback):
    """Time passes by a second in each training step and by a hundred in each validation."""

    def __init__(self):
        self.now = 0.0

    def perf_counter(self):
        return self.now

    def on_train_batch_start(self, *_):
        self.now += 1

    def on_validation_epoch_start(self, *_):
        self.now += 100


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_history_has_no_value_for_an_epoch_without_validation(fit, tmp_path):
    """The Trainer would give the one of the epoch before."""
    history = History(tmp_path / "metrics.csv")
    fit(history, epochs=3, check_val_every_n_epoch=2)
    assert [row["val/acc"] == "" for row in read_csv(history.path)] == [True, False, True]
    assert [math.isnan(value) for value in history.curve("val/acc")] == [True, False, True]
    assert not any(map(math.isnan, history.curve("train/acc")))
    assert history.curve("val/other") == []


def test_history_writes_a_row_for_every_epoch(fit, tmp_path):
    history = History(tmp_path / "metrics.csv")
    fitted = fit(history)
    rows = read_csv(history.path)
    assert [float(row["epoch"]) for row in rows] == [0, 1]
    assert {"train/loss", "train/hard", "train/acc", "val/acc", "val/nll", "val/ece"} <= rows[0].keys()
    assert {name: float(value) for name, value in rows[1].items()} == history.rows[1]
    assert float(rows[1]["val/nll"]) == fitted.callback_metrics["val/nll"].item()
    assert float(rows[0]["val/nll"]) != float(rows[1]["val/nll"])
    # of the third and the sixth of six steps down from 0.1
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1 * 4 / 6, 0.1 * 1 / 6])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_history_continues_when_resumed(fit, tmp_path, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(kd.training.callbacks, "time", clock)
    first = History(tmp_path / "metrics.csv")
    fit(clock, first).save_checkpoint(tmp_path / "last.ckpt")
    before = read_csv(first.path)
    second = History(tmp_path / "metrics.csv")
    fit(clock, second, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    rows = read_csv(second.path)
    assert rows[:2] == before
    assert [float(row["epoch"]) for row in rows] == [0, 1, 2]
    assert second.images == 3 * 30
    assert second.seconds == 3 * 3


def test_history_curve_is_one_metric_over_the_epochs(fit, tmp_path):
    history = History(tmp_path / "metrics.csv")
    fit(history, validate=0)
    assert history.curve("train/loss") == [row["train/loss"] for row in history.rows]
    assert len(history.curve("train/loss")) == 2
    assert history.curve("val/acc") == []


def test_history_seconds_exclude_validation(fit, tmp_path, monkeypatch):
    clock = FakeClock()
    monkeypatch.setattr(kd.training.callbacks, "time", clock)
    history = History(tmp_path / "metrics.csv")
    fit(clock, history)
    assert clock.now == 2 * (3 + 100)
    assert history.seconds == 2 * 3
    assert history.images == 2 * 3 * 10


def test_history_has_no_seconds_where_time_is_shared(fit, tmp_path):
    shared = History(tmp_path / "metrics.csv", timed=False)
    fit(shared).save_checkpoint(tmp_path / "last.ckpt")
    alone = History(tmp_path / "metrics.csv")
    fit(alone, epochs=3, ckpt_path=tmp_path / "last.ckpt")
    assert (shared.seconds, alone.seconds, alone.images) == (None, None, 3 * 30)


def test_history_is_written_by_one_rank(tmp_path):
    history = History(tmp_path / "metrics.csv")
    metrics = {"train/acc": torch.tensor(0.5)}
    history.on_train_epoch_end(SimpleNamespace(callback_metrics=metrics, current_epoch=0, is_global_zero=False), None)
    assert not history.path.exists()
    assert history.rows == [{"epoch": 0, "train/acc": 0.5}]


def test_epoch_seed_depends_on_seed_epoch_and_rank_alone():
    def draw(seed, epoch, rank):
        EpochSeed(seed).on_train_epoch_start(SimpleNamespace(current_epoch=epoch, global_rank=rank), None)
        return torch.rand(1).item()

    cells = [(seed, epoch, rank) for seed in range(4) for epoch in range(4) for rank in range(2)]
    drawn = [draw(*cell) for cell in cells]
    assert len(set(drawn)) == len(cells)
    assert [draw(*cell) for cell in reversed(cells)] == drawn[::-1]


@pytest.mark.parametrize(("width", "speed"), [(80, False), (120, True)])
def test_epoch_bar_fits_into_a_line(fit, monkeypatch, capsys, width, speed):
    monkeypatch.setenv("COLUMNS", str(width))
    bar = EpochBar()
    assert bar.refresh_rate == 10  # a second; Lightning's 100 take a tenth of the time between a GPU's launches
    fit(bar, enable_progress_bar=True)
    lines = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("Epoch 2/2")]
    assert re.search(r" 3/3 .* loss: \d\.\d{3} val: \d\.\d{3}$", lines[-1])
    assert ("it/s" in lines[-1]) is speed

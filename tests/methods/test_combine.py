import copy

import pytest
import torch

from kd.app.compose import compose
from kd.data.batch import Batch
from kd.methods.base import Method
from kd.methods.combine import Combine
from kd.methods.crd import CRD
from kd.methods.dkd import DKD
from kd.methods.logits import Logits
from kd.models.output import Output
from kd.runs.results import read
from tests.common import SMALL, pair
from tests.methods.every import METHODS, class_of, cnn, scales

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(4))
BATCH = Batch(X, torch.arange(16) % 10, torch.arange(16), torch.zeros(16, dtype=torch.int64))


def set_up(method, seed=0, widths=(2, 4)):
    torch.manual_seed(0)
    student, teacher = (cnn(width) for width in widths)
    torch.manual_seed(seed)
    method.setup(pair(student, teacher, 8, torch.arange(16) % 10))
    return student, teacher.eval()


def terms_of(method, progress=0.5, widths=(2, 4)):
    student, teacher = set_up(method, widths=widths)
    method.progress = progress
    torch.manual_seed(3)
    return method(student(X), teacher(X), BATCH)


def test_combine_is_the_sum_by_hand(labelled):
    """Logits (0, 0) and (ln 3, 0), label 0, T = 1: hard = ln 2 and soft = 3/4 ln 3/2 + 1/4 ln 1/2 = 0.1308."""
    nothing = torch.zeros(1, 1)
    student, teacher = (Output(torch.tensor([[z, 0.0]]), (), nothing) for z in (0.0, 1.0986123))
    method = Combine({"logits": {"weight": 2.0, "T": 1.0, "alpha": 0.5}, "dkd": {"T": 1.0, "alpha": 3.0}}, alpha=0.25)
    method.progress = 0.5
    found = {name: term.item() for name, term in method(student, teacher, labelled(0)).items()}
    # dkd's part on the label is the same divergence, as there are two classes
    expected = {"hard": 0.25 * 0.693147, "logits_soft": 2 * 0.5 * 0.130812, "dkd_tckd": 3 * 0.130812, "dkd_nckd": 0.0}
    assert found == pytest.approx(expected, abs=1e-5)


def test_combine_of_one_method_is_that_method():
    alone, one = terms_of(Logits(3.0, 0.3, 0.1)), terms_of(Combine({"logits": {"T": 3.0, "alpha": 0.3}}, 0.3, 0.1))
    assert {name.removeprefix("logits_"): term for name, term in one.items()} == alone
    assert terms_of(Combine()).keys() == {"hard", "logits_soft"}


@pytest.mark.parametrize("progress", [0.0, 0.04, 0.5])
def test_combine_weights_each_methods_terms_and_hands_progress_on(progress):
    found = terms_of(Combine({"crd": 0.5, "dkd": 2}, alpha=0.0), progress)
    dkd = terms_of(DKD(), progress)
    assert list(found) == ["hard", "crd_crd", "crd_soft", "dkd_tckd", "dkd_nckd"]
    assert found["hard"].item() == 0
    assert found["crd_crd"].item() == pytest.approx(0.5 * terms_of(CRD())["crd"].item(), rel=1e-5)
    assert found["dkd_nckd"].item() == pytest.approx(2 * dkd["nckd"].item(), rel=1e-6)
    assert (found["dkd_tckd"].item() > 0) == (progress > 0)


def test_combine_reads_what_any_of_them_reads():
    assert Combine({"logits": 1, "dkd": 1}).reads == {"logits"}
    assert Combine({"logits": 1, "dkd": 1}).stored_logits_suffice
    both = Combine({"crd": 1, "feature": 1})
    assert both.reads == {"logits", "embedding", "features"}
    assert not both.stored_logits_suffice


def test_combine_goes_on_from_its_state():
    """Banks and layers of each lie in the state."""

    def step(method, student, teacher):
        torch.manual_seed(5)
        return method(student(X), teacher(X), BATCH)

    first = Combine({"crd": 1.0, "feature": 1.0})
    student, teacher = set_up(first)
    student.eval()
    step(first, student, teacher)
    second = Combine({"crd": 1.0, "feature": 1.0})
    set_up(second, seed=9)
    state = copy.deepcopy(first.state_dict())
    assert {"parts.0.student_bank", "parts.1.adapters.0.weight"} <= state.keys()
    second.load_state_dict(state)
    assert step(first, student, teacher) == step(second, student, teacher)


OWN_WAY = [
    name
    for name in METHODS
    if class_of(name).step is not Method.step or class_of(name).inference_net is not Method.inference_net
]


@pytest.mark.parametrize("name", [name for name in METHODS if name not in [*OWN_WAY, "combine"]])
def test_combine_takes_every_method_that_has_terms_alone(name):
    method = Combine({name: 1.0, "logits": 0.5})
    terms = terms_of(method, widths=scales(name))
    assert {term.partition("_")[0] for term in terms} >= {"hard", "logits"}
    assert all(term.isfinite() for term in terms.values())


def test_only_those_that_the_page_names_go_their_own_way():
    assert sorted({*OWN_WAY} - {"combine"}) == ["dml", "funmatch", "mlkd", "simkd"]


def test_combine_logs_what_its_methods_log():
    monitors = Combine({"ctkd": 1.0, "at": 1.0}).monitors()
    assert {name: value.item() for name, value in monitors.items()} == {"ctkd_T": pytest.approx(15.62, abs=0.005)}


@pytest.mark.parametrize("name", OWN_WAY)
def test_combine_refuses_methods_that_go_their_own_way(name):
    with pytest.raises(ValueError, match=f"{name} (has a step of its own|changes the network).* write method={name}"):
        Combine({"logits": 1.0, name: 1.0})


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ({"atx": 1.0}, "there is no method atx here; there are .*crd, .*dkd, .*feature.*, logits"),
        ({"base": 1.0}, "there is no method base"),
        ({"maps": 1.0}, "there is no method maps"),
        ({"combine": 1.0}, "combine is made of other methods"),
        ({"crd": -1.0}, r"method\.terms\.crd must be in \[0, inf\), got -1"),
        ({"crd": {"weight": "much"}}, r"method\.terms\.crd must be a number in \[0, inf\), got much"),
        ({"crd": {"beta": -1.0}}, r"method\.terms\.crd: beta must be in \[0, inf\), got -1"),
        ({"crd": {"bta": 1.0}}, r"method\.terms\.crd: crd has no setting 'bta'; it has T, alpha, beta, K"),
        (
            {"low": {"method": "crd", "bta": 1.0}},
            r"method\.terms\.low: crd has no setting 'bta'; it has .* weight, rise",
        ),
        ({"crd": {"rise": 2.0}}, r"method\.terms\.crd\.rise must be in \[0, 1\], got 2"),
        ({"crd": {"end": 0.0}}, r"method\.terms\.crd\.end must be in \(0, 1\], got 0"),
        ({"crd": {"K": "many"}}, r"method\.terms\.crd: K must be a whole number in \[1, inf\), got many"),
        ({}, r"must be weights of methods, as in \{at: 1.0, rkd: 0.5\}, got \{\}"),
        ("crd", "must be weights of methods.*got crd"),
        (["crd"], "must be weights of methods"),
    ],
)
def test_combine_refuses_in_words(terms, message):
    with pytest.raises(ValueError, match=message):
        Combine(terms)


def test_combine_takes_a_method_more_than_once():
    """Each stage by itself, as half of each is half of both: feature is a mean over stages."""
    own = {"alpha": 0.1, "beta": 0.8}
    low, high = ({"method": "feature", "weight": 0.5, "stages": [stage], **own} for stage in (0, 1))
    found = terms_of(Combine({"early": low, "late": high}, 0.1))
    both = terms_of(Combine({"feature": {"stages": [0, 1], **own}}, 0.1))
    assert list(found) == ["hard", "early_feature", "early_soft", "late_feature", "late_soft"]
    for term in ("soft", "feature"):
        together = found[f"early_{term}"] + found[f"late_{term}"]
        assert together.item() == pytest.approx(both[f"feature_{term}"].item())


def test_state_of_a_combine_does_not_depend_on_the_order_of_its_terms():
    low, high = ({"method": "feature", "stages": [stage]} for stage in (0, 1))
    first, second = Combine({"low": low, "high": high}), Combine({"high": high, "low": low})
    for method in (first, second):
        set_up(method)
    for name in ("low", "high"):
        ours, theirs = (method.methods[name].adapters[0].weight for method in (first, second))
        assert torch.equal(ours, theirs)


def test_combine_takes_any_name_for_a_part():
    found = terms_of(Combine({name: {"method": "logits"} for name in ("half", "a.b", "keys")}))
    assert list(found) == ["hard", "a.b_soft", "half_soft", "keys_soft"]


@pytest.mark.parametrize(
    ("progress", "factor"), [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.59, 1.0), (0.6, 0.0), (0.9, 0.0)]
)
def test_combine_changes_a_weight_with_the_progress_of_training(progress, factor):
    found = terms_of(Combine({"logits": {"weight": 2.0, "rise": 0.1, "end": 0.6}}), progress)
    whole = terms_of(Combine({"logits": 2.0}), progress)
    assert whole["logits_soft"].item() > 0
    assert found["logits_soft"].item() == pytest.approx(factor * whole["logits_soft"].item())
    assert found["hard"].item() == whole["hard"].item()


def test_combine_distils_in_a_loop_that_gives_no_progress():
    """It counts as 1, so that warm-ups are over."""
    assert terms_of(Combine({"logits": 1.0}), 1.0)["logits_soft"].item() > 0


def test_combine_says_which_method_does_not_fit_the_networks():
    method = Combine({"logits": 1.0, "feature": {"stages": [7]}})
    with pytest.raises(ValueError, match=r"method\.terms\.feature: method\.stages must be in \[-2, 1\]"):
        set_up(method)


def test_train_combines_methods_as_given_on_the_command_line(run, tmp_path):
    terms = "method.terms={feature: 0.5, logits: {weight: 0.9, T: 4.0}}"
    small = (*SMALL, "epochs=1", "method=combine", "logger=none")
    assert compose([*small, terms]).cfg.method.terms.logits.T == 4.0
    assert run(*small, terms, "alpha=0.5", "hydra.run.dir=run")[0] == 0
    record = read(tmp_path / "run" / "result.json")
    assert (record.method, record.knobs, record.status) == ("combine", {"alpha": 0.5}, "done")
    header = (tmp_path / "run" / "metrics.csv").read_text().partition("\n")[0].split(",")
    assert {"train/hard", "train/feature_feature", "train/feature_soft", "train/logits_soft"} <= set(header)
    code, printed = run(*small, "method.terms={atx: 1.0}", "hydra.run.dir=unknown")
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith("error: method.terms: there is no method atx here; there are ")


@pytest.mark.parametrize(("terms", "needs"), [({"at": 1.0}, False), ({"at": 1.0, "dkd": 1.0}, True)])
def test_combine_needs_labels_where_one_of_its_methods_does(terms, needs):
    assert Combine(terms).needs_labels == needs

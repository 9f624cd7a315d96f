"""The weights that methods tell of their terms: divided by its weight a term is the same, whatever its knobs are."""

import pytest

from tests.methods.every import METHODS, PROGRESS, case, class_of, each_method, knobs_of

OTHER = {"alpha": 0.35, "beta": 0.45, "distance_weight": 3.0, "angle_weight": 7.0, "head_weight": 0.5}
"""Weights that are nowhere a default, with alpha + beta below 1."""
KNOWN = {"hard", "soft"}
"""Terms of the common form, whose weights are known of every method that has it."""
WEIGHTS = [
    (name, knob) for name in METHODS if class_of(name)().term_weights() for knob in OTHER if knob in knobs_of(name)
]
"""Methods that tell their weights, and the knobs among these."""


@each_method
def test_term_weights_are_what_the_terms_are_multiplied_by(name):
    other = {knob: value for knob, value in OTHER.items() if knob in knobs_of(name)}
    ours, theirs = case(name), case(name, **other)
    compared = 0
    for share in PROGRESS:
        steps = [found.step(share) for found in (ours, theirs)]
        weights = [found.method.term_weights() for found in (ours, theirs)]
        for term in weights[0]:
            if all(weight[term] for weight in weights):
                values = [step.terms[term].item() / w[term] for step, w in zip(steps, weights, strict=True)]
                assert values[0] == pytest.approx(values[1], rel=1e-4, abs=1e-6), (term, share)
                compared += weights[0][term] != weights[1][term]
            else:
                assert all(step.terms[term].item() == 0 for step, w in zip(steps, weights, strict=True) if not w[term])
    assert compared or not class_of(name)().term_weights()


@pytest.mark.parametrize(("name", "knob"), WEIGHTS)
def test_each_weight_that_is_a_knob_is_told(name, knob):
    ours, theirs = case(name), case(name, **{knob: OTHER[knob]})
    told = []
    for share in PROGRESS:
        for found in (ours, theirs):
            found.step(share)
        told.append(ours.method.term_weights() != theirs.method.term_weights())
    assert any(told)


@pytest.mark.parametrize("name", ["logits", "feature", "rkd", "srrl", "reviewkd", "fitnet", "ft", "crd", "at"])
def test_term_weights_of_the_common_form_are_complete(name):
    found = case(name)
    assert found.method.term_weights().keys() == found.step().terms.keys() >= KNOWN

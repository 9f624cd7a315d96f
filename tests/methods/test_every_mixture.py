"""Which methods take mixed images, whose labels are shares of classes."""

import pytest
import torch
import torch.nn.functional as F

from tests.methods.every import case, class_of, each_method


@each_method
def test_method_takes_shares_of_classes_unless_it_needs_labels(name):
    found = case(name)
    labels = F.one_hot(found.batch.y, 10).float()
    unknown = torch.full_like(found.batch.index, -1)
    mixed = found.batch._replace(y=0.7 * labels + 0.3 * labels.flip(0), index=unknown, view=unknown)
    if class_of(name).needs_labels:
        with pytest.raises((RuntimeError, IndexError, ValueError)):
            found.step(batch=mixed)
        return
    loss = found.step(batch=mixed).loss
    assert loss.isfinite()
    loss.backward()
    gradients = [p.grad for p in found.student.parameters() if p.grad is not None]
    assert any(gradient.abs().max() > 0 for gradient in gradients)
    plain = found.step(batch=found.batch).loss
    whole = found.step(batch=mixed._replace(y=labels)).loss  # all of a label's share is its own: as without mixing
    torch.testing.assert_close(whole, plain)

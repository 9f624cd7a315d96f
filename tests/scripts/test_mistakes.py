"""Each mistake has the effect that its name describes, and no other."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax

from kd.data.augment import Augment
from kd.data.digits import digits
from kd.data.module import DataModule
from kd.methods.logits import Logits
from kd.models.output import Output
from kd.teachers.frozen import FrozenTeacher
from scripts import mistakes

T, ALPHA = 4.0, 0.1
STUDENT = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
TEACHER = torch.tensor([[4.0, -1.0, 2.0], [1.0, 2.0, 6.0]])


def loss_terms(method, labelled, student=STUDENT):
    nothing = torch.zeros(2, 1)
    batch = labelled(0, 2)
    return method(Output(student, (), nothing), Output(TEACHER, (), nothing), batch)


def mistake(name, source=None, augment=None):
    return getattr(mistakes, name)(T, ALPHA, 0.0, source, augment)


def test_right_equals_logits(labelled):
    terms, expected = loss_terms(mistake("Right"), labelled), loss_terms(Logits(T, ALPHA, 0.0), labelled)
    assert {name: term.item() for name, term in terms.items()} == {name: term.item() for name, term in expected.items()}


def test_labels_only_puts_the_whole_weight_on_the_hard_term(labelled):
    terms = loss_terms(mistake("LabelsOnly"), labelled)
    assert list(terms) == ["hard"]
    assert terms["hard"].item() == pytest.approx(loss_terms(mistake("Right"), labelled)["hard"].item() / ALPHA)


@pytest.mark.parametrize(
    ("name", "factor"), [("NoTSquared", 16), ("MeanReduction", 3), ("MeanReductionNoTSquared", 48)]
)
def test_mistakes_weaken_the_soft_loss_by_their_factor(labelled, name, factor):
    right, wrong = loss_terms(mistake("Right"), labelled), loss_terms(mistake(name), labelled)
    assert wrong["hard"] == right["hard"]
    assert right["soft"].item() / wrong["soft"].item() == pytest.approx(factor)


def test_mean_reduction_matches_torch(labelled):
    log_student, teacher = (STUDENT / T).log_softmax(1), (TEACHER / T).softmax(1)
    with pytest.warns(UserWarning, match="batchmean"):
        plain = torch.nn.KLDivLoss(reduction="mean")(log_student, teacher)
    assert loss_terms(mistake("MeanReductionNoTSquared"), labelled)["soft"].item() == pytest.approx(
        (1 - ALPHA) * plain.item()
    )


def test_softmax_for_log_softmax_matches_the_formula(labelled):
    p, q = softmax(TEACHER.numpy() / T, axis=1), softmax(STUDENT.numpy() / T, axis=1)
    expected = (1 - ALPHA) * T**2 * (p * (np.log(p) - q)).sum(axis=1).mean()
    assert loss_terms(mistake("SoftmaxForLogSoftmax"), labelled)["soft"].item() == pytest.approx(expected, rel=1e-5)


def test_teacher_in_train_mode_is_a_copy(tiny_net, noise):
    net = tiny_net(dropout=0.5)
    teacher = FrozenTeacher(net, "id")
    before = copy.deepcopy(net.state_dict())
    batch = next(iter(DataModule(noise(), 0.0, 0, Augment(1, True, 0), 20, 0).train_dataloader()))
    method = mistake("TeacherInTrainMode")
    first, second = method.teacher_output(teacher, batch).logits, method.teacher_output(teacher, batch).logits
    assert not torch.equal(first, second)  # dropout
    assert torch.equal(teacher(batch).logits, teacher(batch).logits)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())
    assert not list(method.parameters())


def test_other_images_rolls_the_teachers_logits(tiny_net, noise):
    teacher = FrozenTeacher(tiny_net(), "id")
    batch = next(iter(DataModule(noise(), 0.0, 0, Augment(1, True, 0), 20, 0).train_dataloader()))
    right, wrong = teacher(batch).logits, mistake("OtherImages").teacher_output(teacher, batch).logits
    assert torch.equal(wrong[1:], right[:-1])
    assert torch.equal(wrong[0], right[-1])


class TestOtherPixels:
    @pytest.fixture(autouse=True)
    def batch(self):
        augment = {"_target_": "kd.data.augment.Augment", "crop": 4, "flip": False, "cutout": 0}
        source = {"_target_": "kd.data.digits.digits", "image_size": 32}
        self.make = lambda name: mistake(name, source, augment)
        data = DataModule(digits(32), 0.0, 0, Augment(4, False, 0), 64, 0)
        self.images, self.batch = data.images, next(iter(data.train_dataloader()))

    def teacher_input(self, name):
        """Return the batch that the teacher is queried with."""
        method = self.make(name)
        method.setup(None)
        queried = []
        method.teacher_output(lambda batch: queried.append(batch), self.batch)
        assert torch.equal(queried[0].index, self.batch.index)
        return queried[0]

    def test_cached_without_augmentation_shows_the_plain_image(self):
        mean, std = (torch.tensor(values)[None, :, None, None] for values in self.images.mean_std)
        plain = (self.images.train_x[self.batch.index] / 255 - mean) / std
        assert torch.allclose(self.teacher_input("CachedWithoutAugmentation").x, plain, atol=1e-5)

    def test_other_view_shows_another_view_of_the_same_images(self):
        other = self.teacher_input("OtherView")
        same = other.view == self.batch.view
        assert not same.all()
        apart = (other.x - self.batch.x).abs().amax(dim=(1, 2, 3))
        assert (apart[same] < 1e-5).all()
        # Two shifts of a digit differ, except of those with enough of an empty margin.
        assert (apart[~same] > 0.1).float().mean() > 0.9

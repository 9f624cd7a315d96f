"""What an exported file loses: its predictions on test images, compared with those of the trained network."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kd.data.stored import Pixels
from kd.deploy.export import BATCH, Deployed, Runner, batches
from kd.errors import UserError
from kd.inference import Predictor
from kd.report.statistics import Interval, binomial_interval, change_interval


class Check(NamedTuple):
    """A file's output on M test images beside that of the network that it was made from."""

    right: NDArray[np.bool_]
    """(M,), which images the file classifies right."""
    reference_right: NDArray[np.bool_]
    """(M,), which the network does."""
    same: float
    """Share of images with the same prediction."""
    largest: float
    """Largest difference of an output: of a logit, or of a probability with preprocessing."""

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def interval(self) -> Interval:
        """Interval of the accuracy, on the population that the images were drawn from."""
        return binomial_interval(int(self.right.sum()), len(self.right))

    @property
    def change(self) -> float:
        """The file's accuracy minus the network's."""
        return float(self.right.mean() - self.reference_right.mean())

    @property
    def change_interval(self) -> Interval:
        """Interval of the change, paired by image."""
        gained, lost = self.right & ~self.reference_right, self.reference_right & ~self.right
        return change_interval(int(gained.sum()), int(lost.sum()), len(self.right))


def check(run: Runner, deployed: Deployed, predictor: Predictor, images: Pixels, labels: Tensor) -> Check:
    """Run a file and its network on images.

    Args:
        run: the file.
        deployed: what it was made from.
        predictor: the trained network.
        images: (M, C, H, W), uint8.
        labels: (M,), int64.

    Raises:
        UserError: if the file's output is not one row of finite numbers an image.
    """
    right, reference_right, same, largest = [], [], [], 0.0
    for pixels, y in zip(batches(images, "comparing with PyTorch"), torch.split(labels, BATCH), strict=True):
        output = run(deployed.inputs(pixels))
        with torch.inference_mode():
            x = predictor.preprocess(pixels)
            expected = predictor.probabilities(x) if deployed.preprocessing else predictor(x).logits.float()
        if output.shape != tuple(expected.shape) or not np.isfinite(output).all():
            raise UserError(f"the exported file returns {output.shape} for {len(y)} images, or numbers that are none")
        largest = max(largest, float(np.abs(output - expected.numpy()).max()))
        found, of_network = output.argmax(axis=1), expected.argmax(dim=1).numpy()
        right.append(found == y.numpy())
        reference_right.append(of_network == y.numpy())
        same.append(found == of_network)
    return Check(np.concatenate(right), np.concatenate(reference_right), float(np.concatenate(same).mean()), largest)


def own_labels(labels: Tensor, classes: Sequence[str], predictor: Predictor) -> Tensor:
    """Return labels of a data set with these classes as those of the network; see `places`."""
    return torch.tensor(places(classes, predictor))[labels]


def places(classes: Sequence[str], predictor: Predictor) -> list[int]:
    """Return where a data set's classes are among those of the network, which may be in another order.

    Raises:
        UserError: if the two do not have the same classes.
    """
    if sorted(classes) != sorted(predictor.classes):
        missing = [name for name in classes if name not in predictor.classes]
        few = ", ".join(missing[:5]) + (" ..." if len(missing) > 5 else "")
        known = f"{len(predictor.classes)} classes, the images {len(classes)}"
        raise UserError(f"the network has {f'no {few}, a class of the images' if missing else known}")
    return [predictor.classes.index(name) for name in classes]

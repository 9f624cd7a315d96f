"""The test images of a study. Reading them loads torch, and only then."""

from pathlib import Path

import numpy as np

from kd.errors import UserError
from kd.report.fidelity.metadata import class_names
from kd.report.fidelity.page import Pixels
from kd.report.fidelity.study import Study


def read(root: Path, study: Study) -> Pixels:
    """Read the test images in a folder, `data.root` of the runs.

    Raises:
        UserError: if there is no such folder or no data set in it, if its images are neither grey nor RGB, or if its
            labels or classes are not those of the runs.
    """
    if not root.is_dir():  # a missing directory would start a download
        raise UserError(f"{root}: no such directory; give the one that the images are in, data.root of the runs")
    from kd.data.by_name import by_name

    images = by_name(root, study.dataset, study.data.image_size if study.data else None)
    if images.channels not in (1, 3):
        raise UserError(f"{root}: images of {images.channels} channels cannot be shown; leave out --images")
    classes = class_names(images.classes)
    differ = "labels" if not np.array_equal(images.test_y.numpy(), study.labels) else ""
    if study.data and not differ:
        differ = "classes" if study.data.classes != classes else ""
    if differ:
        raise UserError(f"{root}: not the images that the runs were tested on, their {differ} differ")
    return Pixels(images.test_x[:].permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy(), classes)

"""From a data set to batches: the split, the order, the views, the LightningDataModule."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor

from kd.data import mix, policy
from kd.data.also_test import AlsoTest
from kd.data.augment import Augment
from kd.data.batch import Batch, on_device
from kd.data.fetch import BatchIndices, InMemory, OnDisk
from kd.data.images import Images, require_classes
from kd.data.subset import drawn_of_each, noisy_labels, smallest_share, stratified_part
from kd.errors import UserError
from kd.hashing import derive
from kd.ranges import Size, require, sides

EVAL_BATCH = 1000
"""Images a batch of an evaluation, of up to 64x64 pixels; fewer of larger ones, whose maps take more memory."""
FEWEST_AT_ONCE = 32
"""Images that an evaluation shows at once however small the batches of training are."""
CPU = torch.device("cpu")


def stratified_split(y: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Split the indices of labels (N,) into two sorted parts, the second with `fraction` of each class, rounded.

    At least one image of each class stays in the first part.
    """
    generator = torch.Generator().manual_seed(derive("split", seed))
    held_out = drawn_of_each(y, lambda size: max(0, min(round(fraction * size), size - 1)), generator)
    return (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]


def _val_too_small(fraction: float, y: Tensor) -> UserError:
    sizes = [size for size in y.bincount().tolist() if size > 1]
    least = f", or at least {smallest_share(min(sizes)):g} for one image of each class" if sizes else ""
    found = f"data.val_fraction={fraction:g} holds out none of the {len(y):,} training images"
    return UserError(f"{found}; give data.val_fraction=0{least}")


class Shuffled:
    """A training epoch: all images in random order, one random view each; a last, partial batch is dropped.

    With `odds` (N,) as many images are drawn by these, some of them several times.
    """

    def __init__(
        self,
        index: Tensor,
        batch_size: int,
        augment: Augment,
        image_size: Size,
        seed: int,
        odds: Tensor | None = None,
    ) -> None:
        self.odds = odds
        self.index, self.batch_size, self.augment = index, batch_size, augment
        self.image_size, self.seed, self.epoch = image_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.index) // self.batch_size

    def __iter__(self) -> Iterator[BatchIndices]:
        def generator(purpose: str) -> torch.Generator:
            # One per purpose: switching cutout on does not change order and crops.
            return torch.Generator().manual_seed(derive(purpose, self.seed, self.epoch))

        n, augment, mixes = len(self.index), self.augment, generator("mixes")
        if self.odds is None:
            order = torch.randperm(n, generator=generator("order"))
        else:
            order = torch.multinomial(self.odds, n, replacement=True, generator=generator("order"))
        epoch = BatchIndices(
            self.index[order],
            augment.draw(n, generator("views")),
            mix.draw_places(n, self.image_size, generator("cuts")) if augment.cutout else None,
            policy.draw(n, augment.policy, augment.strength, generator("policy")) if augment.policy else None,
            torch.randint(2**62, (n,), generator=generator("transform")) if augment.transform is not None else None,
        )
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            images = epoch.part(slice(start, start + self.batch_size))
            if augment.mixes:
                drawn = mix.draw(self.batch_size, self.image_size, augment.mixup, augment.cutmix, mixes)
                images = replace(images, mix=drawn)
            yield images


class Sequential:
    """An evaluation: every image once, unaugmented, in batches of nearly equal size, so that every rank has a part.

    Args:
        index: of the images.
        augment: whose plain view they are shown in.
        image_size: height and width in pixels.
        most: images of a batch, at most; more where there are more ranks.
        ranks: that share each batch.
    """

    def __init__(
        self, index: Tensor, augment: Augment, image_size: Size = 64, most: int = EVAL_BATCH, ranks: int = 1
    ) -> None:
        self.index, self.augment, self.ranks = index, augment, ranks
        height, width = sides("image_size", image_size)
        self.at_once = max(1, min(most, EVAL_BATCH, EVAL_BATCH * 64 * 64 // (height * width)))

    def __len__(self) -> int:
        n = len(self.index)
        return max(1, min(-(-n // self.at_once), n // self.ranks))

    def __iter__(self) -> Iterator[BatchIndices]:
        for index in self.index.tensor_split(len(self)):
            yield BatchIndices(index, torch.full_like(index, self.augment.plain_view), None)


class Loader:
    """An iterable of batches, made on the device where they are used."""

    def __init__(
        self,
        pixels: InMemory | OnDisk,
        sampler: Shuffled | Sequential,
        mean_std: tuple[tuple[float, ...], tuple[float, ...]],
        num_classes: int,
        memory_format: torch.memory_format,
        device: torch.device,
        rank: int = 0,
        ranks: int = 1,
        first: int = 0,
        class_weights: Tensor | None = None,
    ) -> None:
        self.class_weights = None if class_weights is None else class_weights.to(device)
        self.pixels, self.augment, self.device, self.rank, self.ranks = pixels, sampler.augment, device, rank, ranks
        self.memory_format, self.first, self.num_classes = memory_format, first, num_classes
        # Named as in a DataLoader whose sampler yields whole batches: Lightning sets the epoch of `sampler`.
        self.sampler, self.batch_sampler = sampler, None
        mean, std = (torch.tensor(values, device=device)[None, :, None, None] for values in mean_std)
        self.scale, self.shift = 1 / (255 * std), -mean / std

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches(self.indices())

    def indices(self) -> Iterator[BatchIndices]:
        """Yield this rank's part of each step's images."""
        return (step.share(self.rank, self.ranks) for step in self.sampler)

    def batches(self, indices: Iterable[BatchIndices]) -> Iterator[Batch]:
        """Yield the batches of these images."""
        for step, x, y in self.pixels.fetch(indices):
            index, view = on_device(step.index, self.device) + self.first, on_device(step.view, self.device)
            images, labels = self._shown(step, view, x), y
            if step.mix is not None:
                n, partners = len(step.mix.partners), on_device(step.mix.partners, self.device)
                images, share = step.mix.blend(images[:n], images[partners])
                labels = mix.mixed_labels(labels[:n], labels[partners], share, self.num_classes)
                index, view = torch.full_like(index[:n], -1), view[:n]
            if self.class_weights is not None:
                shares = labels if labels.is_floating_point() else F.one_hot(labels, self.num_classes)
                labels = shares * self.class_weights
            if any(part is not None for part in (step.cut, step.mix, step.policy, step.seeds)):
                view = torch.full_like(view, -1)
            yield Batch(images.contiguous(memory_format=self.memory_format), labels, index, view)

    def _shown(self, step: BatchIndices, view: Tensor, x: Tensor) -> Tensor:
        """Turn pixels (B, C, H, W) into what a network is shown, before any mixing; `view` is that on their device."""
        x = self.augment.apply(x, view)
        x = x if step.policy is None else step.policy.apply(x)
        x = x if step.seeds is None else self.augment.transformed(x, step.seeds)
        x = x * self.scale + self.shift
        return x if step.cut is None else self.augment.cut(x, on_device(step.cut, self.device))


class DataModule(L.LightningDataModule):
    """Train, validation and test batches of one data set.

    The validation split depends on `split_seed` alone. The batches of an epoch and their views depend on `seed` and the
    epoch alone: not on workers, ranks or what ran before.

    Args:
        images: the data set.
        val_fraction: share of the training images, of each class alike, kept for validation, in [0, 1); 0 for none.
        split_seed: seed of the validation split.
        augment: augmentation of the training images.
        batch_size: images per step, over all ranks together, at least 1.
        seed: seed of order and views.
        memory_format: of the batches; convolutions run about twice as fast when channels lie side by side.
        in_memory: whether to put all images on the device; otherwise worker processes fetch them.
        workers: number of worker processes, at least 0; with 0 this process fetches the images itself.
        fraction: share of the training images of each class that are trained on, in (0, 1]; those for validation are
            the same with every fraction. Also decided by `split_seed`.
        noise: share of the training labels that are wrong, in [0, 1), see `kd.data.subset.noisy_labels`; labels for
            validation and test stay right. Also decided by `split_seed`.
        also_test: further test sets.
        balance: what is done about classes of different size: "none"; "sampling", by which each image of an epoch is
            one of any class with equal odds; "weights", by which the labels' loss weighs an image by n / (K n_c), with
            n training images, n_c of its class and K classes, so that the mean weight is 1.

    Raises:
        ValueError: for a value outside its range or of another type, or too large for the images.
        UserError: for a single class; if there are fewer training images than `batch_size`, none for validation though
            `val_fraction` is above 0, or none of a class in this `fraction`.
    """

    def __init__(
        self,
        images: Images,
        val_fraction: float,
        split_seed: int,
        augment: Augment,
        batch_size: int,
        seed: int,
        memory_format: torch.memory_format = torch.channels_last,
        in_memory: bool = True,
        workers: int = 0,
        fraction: float = 1.0,
        noise: float = 0.0,
        also_test: Sequence[AlsoTest] = (),
        balance: str = "none",
    ) -> None:
        super().__init__()
        require("data.val_fraction", val_fraction)
        require("data.fraction", fraction)
        require("data.noise", noise)
        require("data.balance", balance)
        require("data.workers", workers)
        require("data.in_memory", in_memory)
        augment.check_size(images.image_size)
        require_classes(images)
        self.images, self.augment, self.batch_size, self.seed = images, augment, batch_size, seed
        self.memory_format, self.in_memory, self.workers = memory_format, in_memory, workers
        self.also_test, self.balance = also_test, balance
        self._shared: dict[str, InMemory] = {}
        self.train_index, self.val_index = stratified_split(images.train_y, val_fraction, split_seed)
        if val_fraction and not len(self.val_index):
            raise _val_too_small(val_fraction, images.train_y)
        self.train_index = stratified_part(images.train_y, self.train_index, fraction, split_seed, images.classes)
        self.train_y = images.train_y
        """(N,), int64: the labels that are trained and validated on."""
        if noise:
            self.train_y = noisy_labels(images.train_y, self.train_index, noise, split_seed, len(images.classes))
        require("batch_size", batch_size)
        n = len(self.train_index)
        if batch_size > n:
            fitting = 1 << n.bit_length() - 1
            raise UserError(
                f"batch_size={batch_size} is more than the {n:,} training images; give batch_size={fitting}"
            )

    @property
    def labels(self) -> Tensor:
        """(N,), int64: the label of every training image by its index, -1 for images that are not trained on."""
        labels = torch.full_like(self.train_y, -1)
        labels[self.train_index] = self.train_y[self.train_index]
        return labels

    @property
    def class_weights(self) -> Tensor:
        """(C,): n / (K n_c) of n training images in K classes, n_c of each; 0 for a class without any."""
        counts = self.train_y[self.train_index].bincount(minlength=len(self.images.classes))
        return (counts.sum() / ((counts > 0).sum() * counts)).nan_to_num(posinf=0)

    @property
    def noisy_labels(self) -> int:
        """The number of training labels that are wrong."""
        return int((self.train_y != self.images.train_y).sum())

    @property
    def steps_per_epoch(self) -> int:
        return len(self.train_index) // self.batch_size

    def evaluation(self, index: Tensor) -> Sequential:
        """Return the batches in which images are evaluated."""
        # Without gradients about twice a step's images have memory: so what can be trained can be tested.
        most = max(FEWEST_AT_ONCE, 2 * self.batch_size)
        ranks = 1 if self.trainer is None else self.trainer.world_size
        return Sequential(index, self.augment, self.images.image_size, most, ranks)

    def check_shares(self, devices: int) -> None:
        """Refuse a batch that cannot be shared equally by this number of devices, or images that are fewer.

        Raises:
            UserError: naming both.
        """
        if self.batch_size % devices:
            raise UserError(f"batch_size must be a multiple of the {devices} devices, got {self.batch_size}")
        for split, count in (("validation", len(self.val_index)), ("test", len(self.images.test_y))):
            if 0 < count < devices:
                raise UserError(f"trainer.devices={devices} is more than the {count} {split} images")

    def train_dataloader(self) -> Loader:
        if self.trainer is not None:
            self.check_shares(self.trainer.world_size)
        image_size = self.images.image_size
        odds = self.class_weights[self.train_y[self.train_index]] if self.balance == "sampling" else None
        sampler = Shuffled(self.train_index, self.batch_size, self.augment, image_size, self.seed, odds)
        return self.loader("train", sampler)

    def val_dataloader(self) -> Loader | list[Loader]:
        if not len(self.val_index):
            return []
        return self.loader("val", self.evaluation(self.val_index))

    def test_dataloader(self, device: torch.device = CPU) -> Loader:
        """Return the test batches, on the Trainer's device, or on `device` without a Trainer."""
        return self.loader("test", self.evaluation(torch.arange(len(self.images.test_y))), device)

    def also_test_dataloader(self, test: AlsoTest, device: torch.device) -> Loader:
        """Return the batches of a further test set; `Batch.index` counts its own images."""
        # A batch at a time: some are larger than the training images.
        pixels = OnDisk(test.x, test.y, device, workers=0)
        sampler = self.evaluation(torch.arange(len(test.y)))
        classes = len(self.images.classes)
        return Loader(pixels, sampler, self.images.mean_std, classes, self.memory_format, device)

    def shared(self, name: str, create: Callable[[], InMemory]) -> InMemory:
        """Return what several loaders use."""
        if name not in self._shared:
            self._shared[name] = create()
        return self._shared[name]

    def loader(self, split: str, sampler: Shuffled | Sequential, device: torch.device = CPU) -> Loader:
        """Return a loader of a split's batches, on the Trainer's device if there is a Trainer."""
        images, rank, ranks = self.images, 0, 1
        # Validation images are among the training images.
        source, x, y, first = "training", images.train_x, self.train_y, 0
        if split == "test":
            source, x, y, first = "test", images.test_x, images.test_y, len(images.train_y)
        if self.trainer is not None:
            device, rank, ranks = self.trainer.strategy.root_device, self.trainer.global_rank, self.trainer.world_size
        pixels: InMemory | OnDisk = OnDisk(x, y, device, self.workers)
        if self.in_memory:
            pixels = self.shared(f"{source} images on {device}", lambda: InMemory(x[:], y, device))
        weights = self.class_weights if self.balance == "weights" and split == "train" else None
        mean_std, classes, form = images.mean_std, len(images.classes), self.memory_format
        return Loader(pixels, sampler, mean_std, classes, form, device, rank, ranks, first, weights)

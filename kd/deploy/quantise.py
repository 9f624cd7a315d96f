"""int8 forms of an ONNX file: static quantisation by ONNX Runtime, with ranges calibrated on training images."""

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from kd.deploy.export import INPUT, Deployed, batches, to_onnx
from kd.deploy.runtime import first_line, required
from kd.errors import UserError
from kd.files import replaced

CALIBRATION_BATCH = 64
"""Images whose smallest and largest values are averaged over batches; fewer cut off more of an activation's values."""

QUANTISED = ("Conv", "Gemm", "MatMul", "Add", "Concat", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip")
"""Operations in int8. The others, such as a softmax and the preprocessing, cost little and lose much."""


def to_int8(deployed: Deployed, path: Path, facts: dict[str, Any], images: Tensor) -> None:
    """Write an ONNX file in 8 bits: weights per output channel, signed, activations per tensor, unsigned (QDQ).

    Weights are in [-64, 64]: x86 processors without VNNI add products by twos in 16 bits, which hold none larger. So
    the file predicts the same everywhere.

    An activation's scale spans its smallest to its largest value in a batch, both averaged over the batches: those of
    all images, which are of a few, cost a network with depthwise convolutions half a point (docs/deploy.md).

    Args:
        deployed: the network, its BatchNorm folded.
        path: of the file.
        facts: what the file's metadata say, as JSON each.
        images: (N, C, H, W), uint8, of training images.

    Raises:
        UserError: without the extra `export`, or for a network that cannot be exported or quantised.
    """
    onnx, tools = required("onnx"), required("onnxruntime.quantization")
    shapes = required("onnxruntime.quantization.shape_inference")
    with tempfile.TemporaryDirectory() as folder, replaced(path) as temporary:
        full, prepared = Path(folder, "full.onnx"), Path(folder, "prepared.onnx")
        to_onnx(deployed, full, facts)
        properties = {prop.key: prop.value for prop in onnx.load(str(full)).metadata_props}
        reader = _Reader(
            INPUT, (deployed.inputs(pixels) for pixels in batches(images, "calibrating", CALIBRATION_BATCH))
        )
        try:
            shapes.quant_pre_process(str(full), str(prepared), skip_symbolic_shape=True)
            tools.quantize_static(
                str(prepared),
                str(temporary),
                reader,
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=list(QUANTISED),
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True, "CalibMovingAverage": True},
            )
        except Exception as error:  # of a network's operation that it does not know
            raise UserError(f"ONNX Runtime cannot quantise this network: {first_line(error)}") from error
        quantised = onnx.load(str(temporary))
        onnx.helper.set_model_props(quantised, properties)
        onnx.save(quantised, str(temporary))


class _Reader:
    """Batches as ONNX Runtime's calibration takes them."""

    def __init__(self, name: str, images: Iterable[Tensor]) -> None:
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict[str, Any] | None:
        batch = next(self.images, None)
        return None if batch is None else {self.name: batch.numpy()}

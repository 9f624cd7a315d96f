"""Classify the images of a folder by an exported file, with onnxruntime, numpy and pillow alone.

python scripts/export.py RUN_DIR --preprocessing --out student.onnx
python examples/without_torch.py student.onnx photos/
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps, UnidentifiedImageError


def eight_bits(image, mode):
    """Return an image upright, opaque and with 8 bits a channel, as training has seen its images."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # grey, 16 bits
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB").convert(mode)


session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
_, height, width, channels = session.get_inputs()[0].shape

for path in sorted(Path(sys.argv[2]).iterdir()):
    try:
        with Image.open(path) as opened:
            image = eight_bits(opened, "RGB" if channels == 3 else "L")
    except (UnidentifiedImageError, IsADirectoryError):
        continue  # what else lies in the folder
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR), np.uint8)
    (probabilities,) = session.run(None, {"images": pixels.reshape(1, height, width, channels)})
    best = probabilities[0].argmax()
    print(f"{path.name}: {classes[best]}, {probabilities[0, best]:.1%}")

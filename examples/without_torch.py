"""Classify the images of a folder by an exported file, with onnxruntime, numpy and pillow alone.

python scripts/export.py RUN_DIR --preprocessing --out student.onnx
python examples/without_torch.py student.onnx photos/
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

session = onnxruntime.InferenceSession(sys.argv[1])
classes = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
_, height, width, channels = session.get_inputs()[0].shape

for path in sorted(Path(sys.argv[2]).iterdir()):
    image = Image.open(path).convert("RGB" if channels == 3 else "L").resize((width, height), Image.Resampling.BILINEAR)
    pixels = np.asarray(image, np.uint8).reshape(1, height, width, channels)
    (probabilities,) = session.run(None, {"images": pixels})
    best = probabilities[0].argmax()
    print(f"{path.name}: {classes[best]}, {probabilities[0, best]:.1%}")

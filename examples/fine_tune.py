"""Fine-tune a trained network on classes of one's own: even and odd digits, by a new head on a student of ten digits.

python train.py data=digits method=logits T=4
python examples/fine_tune.py RUN_DIR
"""

import sys

import torch
from sklearn.datasets import load_digits
from torch import nn

import kd

torch.manual_seed(0)
student = kd.load(sys.argv[1])
pixels, digits = (torch.from_numpy(array) for array in load_digits(return_X_y=True))
images = (pixels.reshape(-1, 8, 8, 1) * 255 / 16).round().to(torch.uint8).repeat(1, 1, 1, 3)
x, y = student.preprocess(images), digits % 2

with torch.no_grad():
    width = student(x[:1]).embedding.shape[1]
head = nn.Linear(width, 2)
parameters = [{"params": student.net.parameters(), "lr": 1e-4}, {"params": head.parameters(), "lr": 1e-2}]
optimizer = torch.optim.AdamW(parameters)  # the trained layers change little
student.train()
for _ in range(3):
    for batch in torch.randperm(1280).split(64):
        optimizer.zero_grad()
        nn.functional.cross_entropy(head(student(x[batch]).embedding), y[batch]).backward()
        optimizer.step()

student.eval()
with torch.no_grad():
    right = head(student(x[1280:]).embedding).argmax(dim=1) == y[1280:]
print(f"even or odd: {right.float().mean():.1%} of {len(right)} images that it was not tuned on")

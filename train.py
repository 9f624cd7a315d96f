"""Train a network, or distil a student from a teacher: `python train.py --help`.

A run, top to bottom, is `kd.app.run.run`:

1. Hydra composes the command and conf/ into a configuration; `kd.app.check` refuses what is wrong with it. So far
   torch is not loaded: a mistake is answered at once.
2. `kd.app.build.Builder` makes the data and, once, every other object: a wrong setting fails before a teacher is
   trained.
3. The teacher, if the method needs one, is found in the store or trained once, and tested (`kd.app.teacher`).
4. The student is trained (`kd.app.train`, `kd.training.fit`) by a LightningModule (`kd.training.modules`) whose loss
   the method computes (`kd.methods`), and tested once, with the last epoch's weights.
5. Record, weights and test predictions lie in the run directory (`kd.runs`).
"""

import sys

try:
    from kd.app.cli import main
except ModuleNotFoundError as error:
    sys.exit(f"error: {error}; install what is missing: pip install -e .")
except ImportError as error:
    sys.exit(f"error: {error}")

if __name__ == "__main__":
    main()

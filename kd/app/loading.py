"""Loading PyTorch and Lightning, the longest part of a start, without what they load in vain."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from kd.errors import UserError, reason_of
from kd.terminal import waiting

SIGNAL = "scipy.signal"


@contextmanager
def loading() -> Iterator[None]:
    """Show what takes the time, and leave `scipy.signal` until somebody uses it.

    torchmetrics loads it, for more than a second, to give it the name `hamming` back, which SciPy has renamed.
    """
    with waiting("loading PyTorch and Lightning"):
        before, later = sys.modules.get(SIGNAL), _Later(SIGNAL)
        if before is None:
            sys.modules[SIGNAL] = later
        try:
            yield
        except ModuleNotFoundError as error:
            raise UserError(f"{error.name} is not installed; install what is missing: pip install -e .") from error
        except (ImportError, RuntimeError, OSError) as error:  # such as torchvision for another torch
            raise UserError(
                f"PyTorch and Lightning cannot be loaded ({reason_of(error)}); pip install -e . brings fitting ones"
            ) from error
        finally:
            if sys.modules.get(SIGNAL) is later:
                del sys.modules[SIGNAL]


class _Later(ModuleType):
    """Stands for a module that is loaded at the first use of anything but the name that is looked for in vain."""

    hamming = None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name != "__path__":  # whoever goes through all modules, such as `inspect`
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(importlib.import_module(self.__name__), name)

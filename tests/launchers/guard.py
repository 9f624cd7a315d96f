"""Loaded before all else by the process that jobs are forked from: notes who touches a GPU."""

from functools import wraps

import torch

CALLS = []


def noting(function):
    @wraps(function)
    def note(*arguments):
        CALLS.append(function.__name__)
        return function(*arguments)

    return note


for name in ("init", "is_available", "device_count", "current_device"):
    setattr(torch.cuda, name, noting(getattr(torch.cuda, name)))


def state():
    """Return the calls, and how many threads of torch the process was forked with."""
    return list(CALLS), torch.cuda.is_initialized()

"""The precision in which transforms compute: float32, or bfloat16 where the processor has it.

Only what chooses tables has to be exact, and that is integers in either. So encoder and decoder choose independently,
and streams are the same format. Products are bfloat16 and sums float32; the last layer of each transform is float32.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from models.io.errors import UserError

FLOAT32, BFLOAT16, AUTO = "float32", "bfloat16", "auto"
PRECISIONS = (AUTO, FLOAT32, BFLOAT16)
#: Processor flags of instructions that multiply bfloat16.
_INSTRUCTIONS = {"avx512_bf16", "amx_bf16"}
#: Names the precision that `auto` is, for fleets of different machines whose images should be alike.
VARIABLE = "ZOO_PRECISION"


def resolve(name: str) -> str:
    """The precision that a name means here: `FLOAT32` or `BFLOAT16`.

    `AUTO` is bfloat16 where the processor multiplies it, TensorFlow uses oneDNN and there is no GPU; the environment
    variable `ZOO_PRECISION` overrules that.

    Raises:
      UserError: it, or what the variable says, is not one of `PRECISIONS`.
    """
    if name not in PRECISIONS:
        raise UserError(f"no precision is called {name!r}; there are: {', '.join(PRECISIONS)}")
    if name != AUTO:
        return name
    named = os.environ.get(VARIABLE, AUTO)
    if named in (FLOAT32, BFLOAT16):
        return named
    if named != AUTO:
        raise UserError(f"the environment variable {VARIABLE} is {named!r}; there are: {', '.join(PRECISIONS)}")
    one_dnn = os.environ.get("TF_ENABLE_ONEDNN_OPTS", "1") not in ("0", "false")
    return BFLOAT16 if one_dnn and _INSTRUCTIONS & _processor_flags() and not _has_gpu() else FLOAT32


def _processor_flags() -> set[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith("flags"):
                    return set(line.split(":", 1)[1].split())
    except OSError:
        pass
    return set()


def _has_gpu() -> bool:
    import tensorflow as tf

    return bool(tf.config.list_physical_devices("GPU"))


@contextlib.contextmanager
def scope(policy: str) -> Iterator[None]:
    """Layers that are made within compute under a Keras policy, such as `mixed_bfloat16`."""
    import tensorflow as tf

    before = tf.keras.mixed_precision.global_policy()
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        yield
    finally:
        tf.keras.mixed_precision.set_global_policy(before)


def coding_policy(precision: str) -> str:
    """The Keras policy for a codec that codes in a precision, as `resolve` gives it."""
    return "mixed_bfloat16" if precision == BFLOAT16 else "float32"

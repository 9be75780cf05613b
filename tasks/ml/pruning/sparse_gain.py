"""What zeros in the weights are worth: bytes once compressed. O, I as in ``sparsity``.

They save no time: the runtime has no kernels for zeros in such matrices.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from torch import nn

from tasks.ml.quantization import simulation


def codes(layers: Mapping[str, nn.Linear]) -> dict[str, np.ndarray]:
    """The int8 codes (O, I) that the weights are shipped as."""
    return {name: simulation.quantize_weight(layer.weight.detach())[0].numpy() for name, layer in layers.items()}


def compressed_bytes(weights: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of the codes, plain and compressed."""
    whole = b"".join(np.ascontiguousarray(code).tobytes() for code in weights.values())
    zstd = pa.Codec("zstd", compression_level=19).compress(whole, asbytes=True)
    return {"plain": len(whole), "gzip": len(zlib.compress(whole, 9)), "zstd": len(zstd)}


def gain(dense: Mapping[str, nn.Linear], sparse: Mapping[str, nn.Linear]) -> dict[str, Any]:
    """Compares the linear layers of a model without and with zeros: ``int8_bytes`` of both."""
    return {"int8_bytes": {"dense": compressed_bytes(codes(dense)), "sparse": compressed_bytes(codes(sparse))}}

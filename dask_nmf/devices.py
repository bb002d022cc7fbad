"""Blocks of V on a device, such as cupy's: products with V are made there, all else on the host.

Only what has k columns travels: V_b @ H.T comes back and W_b goes there, 2 k / n of V's own bytes.
Half-steps stay on the host: their sweeps over columns, in float64, are bound by memory on a device,
too, and by as many launches; and one solver has one set of bits.

Any library of the array API will do (cupy, torch), by the package array-api-compat.
"""

from types import ModuleType
from typing import Any

import numpy as np

from dask_nmf.types import AnyArray, Array

_HOST = 1  # among the devices of DLPack


def is_on_device(x: Any) -> bool:
    """Whether it is a dense array of another library than numpy."""
    return hasattr(x, "__dlpack__") and not isinstance(x, (np.ndarray, np.generic))


def namespace(x: AnyArray) -> ModuleType:
    """The functions of the array API for x; numpy for what is on the host, sparse or not.

    Raises
    ------
    ImportError
        Without the package that knows those of other libraries.
    """
    if not is_on_device(x):
        return np
    try:
        from array_api_compat import array_namespace
    except ImportError as error:
        kind = f"{type(x).__module__}.{type(x).__name__}"
        raise ImportError(
            f"V's blocks are of {kind}, which needs array-api-compat, on the workers too: "
            'pip install "dask_nmf[gpu]"'
        ) from error
    found: ModuleType = array_namespace(x)
    return found


def dtype_of(x: AnyArray) -> np.dtype[Any]:
    """numpy's name for the dtype of x."""
    return np.dtype(str(x.dtype).rpartition(".")[2])


def cast(x: AnyArray, dtype: np.dtype[Any] | type) -> Any:
    """x in that dtype, where it is; as it is, if it has it."""
    if not is_on_device(x):
        return x.astype(dtype, copy=False)
    xp = namespace(x)
    return xp.astype(x, getattr(xp, np.dtype(dtype).name), copy=False)


def beside(x: Array, V_b: AnyArray) -> Any:
    """A numpy array, brought to where V_b is."""
    if not is_on_device(V_b):
        return x
    return namespace(V_b).asarray(np.ascontiguousarray(x), device=V_b.device)


def on_host(x: AnyArray) -> Any:
    """x as a numpy array, if it is on a device."""
    if not is_on_device(x):
        return x
    if x.__dlpack_device__()[0] == _HOST:  # whatever its library calls it
        return np.from_dlpack(x)
    from array_api_compat import to_device

    return np.asarray(to_device(x, "cpu"))


def device_product(A: AnyArray, B: AnyArray) -> Array:
    """A @ B in their common dtype, on the host; at least one of them is on a device."""
    dtype = np.result_type(dtype_of(A), dtype_of(B))
    A, B = cast(A, dtype), cast(B, dtype)
    found: Array = on_host(A @ beside(B, A) if is_on_device(A) else beside(A, B) @ B)
    return found


def is_fit(x: AnyArray) -> bool:
    """Whether all entries of x are finite and non-negative."""
    xp = namespace(x)
    return bool(xp.all(xp.isfinite(x) & (x >= 0)))

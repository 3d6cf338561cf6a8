"""The calls of the CUDA driver API that partitions need, behind a narrow protocol. Only green.py uses it.

`CudaDriver` is the real one, on `cuda.bindings.driver`; tests bring a fake that records. Arguments are passed by
position, because their names change between versions of the bindings.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from spacetime.errors import SpacetimeError

_DEFAULT_STREAM = 1  # CU_GREEN_CTX_DEFAULT_STREAM: cuGreenCtxCreate accepts nothing else
_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: nor does cuGreenCtxStreamCreate
FIRST_WITH_GREEN_CONTEXTS = 12_040  # driver versions are 1000 * major + 10 * minor


class DriverError(SpacetimeError, RuntimeError):
    """The driver is missing, too old, or refused a call."""


@dataclass(frozen=True, slots=True)
class Split:
    """Groups of SMs of one split, and what did not make a whole group."""

    groups: tuple[Any, ...]
    remainder: Any | None


class Driver(Protocol):
    """Handles are whatever the implementation returns; nobody looks inside."""

    @property
    def parked(self) -> dict[int, list[Any]]:
        """By device, the partitions of backends that were closed: the same for all who use this driver."""

    def sm_resource(self, device: int) -> Any:
        """All SMs of the device."""

    def num_units(self, resource: Any) -> int: ...

    def split(self, resource: Any, units: int) -> Split:
        """As many disjoint groups of (at least) so many SMs as there are."""

    def create_context(self, device: int, resources: Sequence[Any]) -> Any:
        """A green context on the union of resources of one split."""

    def context_units(self, context: Any) -> int:
        """What was really granted."""

    def destroy_context(self, context: Any) -> None: ...

    def create_stream(self, context: Any, priority: int) -> int:
        """A stream whose kernels run on the context's SMs; its handle."""

    def destroy_stream(self, stream: int) -> None: ...


class CudaDriver:
    """The real driver. torch (or somebody) has initialised the device's primary context before."""

    parked: ClassVar[dict[int, list[Any]]] = {}  # of the process, which has one driver

    def __init__(self) -> None:
        try:
            from cuda.bindings import driver  # optional, and heavy
        except ImportError as error:
            raise DriverError("cuda.bindings is not installed", str(error), "pip install cuda-python") from error
        self._driver = driver
        try:
            self._call("cuInit", 0)
        except DriverError as error:
            raise DriverError("there is no CUDA driver", error.facts, "install one, or use device='cpu'") from error
        version = self._call("cuDriverGetVersion")
        if version < FIRST_WITH_GREEN_CONTEXTS:
            facts = f"the driver supports CUDA {version // 1000}.{version % 1000 // 10}, green contexts need 12.4"
            raise DriverError("this driver has no green contexts", facts, "update it, or do without partitions")

    def sm_resource(self, device: int) -> Any:
        return self._call("cuDeviceGetDevResource", self._device(device), self._sm)

    def num_units(self, resource: Any) -> int:
        return int(resource.sm.smCount)

    def split(self, resource: Any, units: int) -> Split:
        most = max(1, self.num_units(resource) // units)
        groups, number, remainder = self._call("cuDevSmResourceSplitByCount", most, resource, 0, units)
        is_empty = remainder.type != self._sm or not self.num_units(remainder)
        return Split(tuple(groups[: int(number)]), None if is_empty else remainder)

    def create_context(self, device: int, resources: Sequence[Any]) -> Any:
        description = self._call("cuDevResourceGenerateDesc", list(resources), len(resources))
        return self._call("cuGreenCtxCreate", description, self._device(device), _DEFAULT_STREAM)

    def context_units(self, context: Any) -> int:
        return self.num_units(self._call("cuGreenCtxGetDevResource", context, self._sm))

    def destroy_context(self, context: Any) -> None:
        self._call("cuGreenCtxDestroy", context)

    def create_stream(self, context: Any, priority: int) -> int:
        return int(self._call("cuGreenCtxStreamCreate", context, _NON_BLOCKING, priority))

    def destroy_stream(self, stream: int) -> None:
        self._call("cuStreamDestroy", self._driver.CUstream(stream))

    @property
    def _sm(self) -> Any:
        return self._driver.CUdevResourceType.CU_DEV_RESOURCE_TYPE_SM

    def _device(self, index: int) -> Any:
        return self._call("cuDeviceGet", index)

    def _call(self, name: str, *arguments: Any) -> Any:
        """The results of a driver call without its status, which becomes an exception naming the call."""
        function = getattr(self._driver, name, None)
        if function is None:
            raise DriverError(f"cuda.bindings has no {name}", "it is older than green contexts", "update cuda-bindings")
        try:
            status, *results = function(*arguments)
        except RuntimeError as error:  # how the bindings report a symbol that libcuda does not have, or no libcuda
            raise DriverError(
                f"{name} cannot be called", str(error), "update the driver; see `spacetime doctor`"
            ) from error
        if int(status) != 0:
            facts = f"{getattr(status, 'name', status)} (code {int(status)})"
            raise DriverError(f"{name} failed", facts, "see `spacetime doctor`")
        return results[0] if len(results) == 1 else tuple(results)

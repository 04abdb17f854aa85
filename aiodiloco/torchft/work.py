"""All-reduces as torch.distributed hands them out: a `Work` to wait for, and the group of tensors it travels with."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    import concurrent.futures
    from collections.abc import Callable
    from datetime import timedelta

    from torch import Tensor

    from aiodiloco.collective import AllReduceReport

__all__ = ["Group", "Work"]


class Group:
    """Tensors that are reduced in one round: what a step asked for between two waits.

    Attributes:
        index: Number of the group within its step.
        step: Which step.
        tensors: In the order of the calls; replaced in place by their mean.
        quantize: Whether the calls asked for a smaller wire format.
        error: Why there is no mean; None before the end, and if there is one.
        report: Of its all-reduce; None before that.
    """

    def __init__(self, index: int, step: int) -> None:
        self.index = index
        self.step = step
        self.tensors: list[Tensor] = []
        self.quantize = False
        self.error: Exception | None = None
        self.report: AllReduceReport | None = None
        self.sending: concurrent.futures.Future[None] | None = None
        self._is_sum: list[bool] = []
        self._futures: list[torch.futures.Future[Any]] = []
        self._ended = threading.Event()

    @property
    def num_elements(self) -> int:
        """Elements of all tensors."""
        return sum(t.numel() for t in self.tensors)

    @property
    def has_ended(self) -> bool:
        """Whether the tensors are their mean, or there is an error, and all futures were told."""
        return self._ended.is_set()

    def add(self, tensor: Tensor, *, is_sum: bool, wait: Callable[[Group], None]) -> Work:
        """Add a tensor; `wait` is what waiting for it calls."""
        future = _Future(lambda: wait(self))
        self.tensors.append(tensor)
        self._futures.append(future)
        self._is_sum.append(is_sum)
        return Work(self, tensor, future, wait)

    def finish(self, report: AllReduceReport) -> None:
        """Turn means into sums where those were asked for, and tell all who wait."""
        self.report = report
        for tensor, is_sum in zip(self.tensors, self._is_sum, strict=True):
            if is_sum:
                tensor.mul_(len(report.members))
        self._tell()

    def fail(self, error: Exception) -> None:
        """Note the error, and tell all who wait."""
        self.error = error
        self._tell()

    def keep(self) -> None:
        """Have memory of its own, for a further attempt: the caller's may change."""
        self.tensors = [t.detach().clone() for t in self.tensors]

    def take_over(self, earlier: Group) -> None:
        """Have the means, or sums, that the first attempt of the same step has got, and tell all who wait."""
        for mine, its in zip(self.tensors, earlier.tensors, strict=True):
            mine.copy_(its)
        self.report = earlier.report
        self._tell()

    def check_same_shapes(self, other: Group) -> None:
        """Raise ValueError unless both have tensors of the same shapes, in the same order."""
        if [t.shape for t in self.tensors] != [t.shape for t in other.tensors]:
            raise ValueError(f"step {self.step} is repeated with other tensors than before: pass the same shapes")

    def _tell(self) -> None:
        for tensor, future in zip(self.tensors, self._futures, strict=True):
            if not future.done():  # a further attempt at the same tensors has nobody waiting
                future.set_result([tensor])
        self._ended.set()


class Work:
    """One tensor's all-reduce; as `torch.distributed.Work`, also when it failed: the manager keeps the error."""

    def __init__(
        self, group: Group | None, tensor: Tensor, future: torch.futures.Future[Any], wait: Callable[[Group], None]
    ) -> None:
        self._group = group
        self._tensor = tensor
        self._future = future
        self._wait = wait

    @classmethod
    def skipped(cls, tensor: Tensor) -> Work:
        """Return the work of an all-reduce that is not carried out, since the step has failed already."""
        future: torch.futures.Future[Any] = torch.futures.Future()
        future.set_result([tensor])
        return cls(None, tensor, future, lambda _: None)

    def wait(self, timeout: timedelta | None = None) -> bool:  # noqa: ARG002 - torch's signature; a round has its own
        """Wait until the tensor is its mean, or the step has failed."""
        if self._group is not None:
            self._wait(self._group)
        return True

    synchronize = wait
    block_current_stream = wait

    def is_completed(self) -> bool:
        """Return whether `wait` would not wait."""
        return self._group is None or self._group.has_ended

    def is_success(self) -> bool:
        """Return whether the tensor is its mean."""
        return self.is_completed() and self.exception() is None

    def exception(self) -> Exception | None:
        """Return the error, if there was one."""
        return None if self._group is None else self._group.error

    def result(self) -> list[Tensor]:
        """Return the tensor in a list."""
        return [self._tensor]

    def get_future(self) -> torch.futures.Future[Any]:
        """Return a future of the tensor in a list. Its callbacks run in another thread, before `wait` returns."""
        return self._future


class _Future(torch.futures.Future):  # type: ignore[type-arg]  # torch's class is not subscriptable at run time
    """A future whose wait lets the manager send what is still to be sent."""

    def __init__(self, wait: Callable[[], None]) -> None:
        super().__init__()
        self._send_and_wait = wait

    def wait(self) -> Any:  # noqa: ANN401 - as torch has it
        if not self.done():  # a callback that waits for the future it was given does so in the thread that tells it
            self._send_and_wait()
        return super().wait()

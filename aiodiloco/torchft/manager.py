"""`StoreManager`: torchft's manager, for replicas that can reach nothing but an object store."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
from torch.distributed import ReduceOp

from aiodiloco.diloco.portal import NetworkThread
from aiodiloco.errors import AiodilocoError, RankTakenError, RoundRefusedError, RoundTimeoutError
from aiodiloco.torchft import healing
from aiodiloco.torchft.network import Network
from aiodiloco.torchft.rounds import Rounds
from aiodiloco.torchft.state import RegisteredState, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from datetime import timedelta
    from types import TracebackType

    from torch import Tensor

    from aiodiloco.collective import ObjectStoreAllReduce
    from aiodiloco.collective.keys import Member
    from aiodiloco.torchft.work import Work

__all__ = ["StoreManager"]

T = TypeVar("T")

_log = logging.getLogger(__name__)

_HOPELESS = (RoundRefusedError, RankTakenError)  # the same however often the step is repeated


class StoreManager:
    """Lets torchft's `DiLoCo` and `LocalSGD` train through an object store. A context manager; or use `shutdown`.

    A step is one round of `all_reduce`: what `allreduce` was called with since the last `start_quorum` travels in it
    together. A round that fails is not committed; its step is taken again, with what was sent before. A replica that is
    behind the others, as one whose process was started again, gets their state from them in `start_quorum`, through the
    functions that were registered.

    Not what torchft's own manager is: nobody votes (a round is decided once, in the store), there is no lighthouse and
    no quorum to wait for; who must be in a round is up to the all-reduce's `min_replicas` and `grace`.

    Args:
        all_reduce: Made with a URI and not opened: it lives in a thread and an event loop of the manager's.
        load_state_dict, state_dict: The user's own state, to load and to read; more with `register_state_dict_fn`.
        max_retries: Failed steps in a row until `should_commit` raises; None: no limit.
        quantized_wire: Wire format of steps whose all-reduces have `should_quantize`.

    Raises:
        What entering the all-reduce raises.
    """

    _use_async_quorum = False  # torchft's DiLoCo looks at it

    def __init__(
        self,
        all_reduce: ObjectStoreAllReduce,
        *,
        load_state_dict: Callable[[Any], None] | None = None,
        state_dict: Callable[[], Any] | None = None,
        max_retries: int | None = None,
        quantized_wire: str = "int8",
    ) -> None:
        self._all_reduce = all_reduce
        self._max_retries = max_retries
        self._state = RegisteredState()
        if (load_state_dict is None) != (state_dict is None):
            raise ValueError("give both load_state_dict and state_dict, or neither")
        if load_state_dict is not None and state_dict is not None:
            self._state.register("default", load_state_dict, state_dict)
        self._step = 0
        self._batches_committed = 0
        self._has_started = False
        self._commit_failures = 0
        self._thread = Network(all_reduce)
        portal = self._thread.portal
        self._network = NetworkThread(portal)
        self._rounds = Rounds(all_reduce, portal, self._network, quantized_wire=quantized_wire, answer=self._answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.shutdown()

    def shutdown(self, wait: bool = True) -> None:  # noqa: ARG002 - torchft's signature
        """Leave the run and end the network thread. A second call does nothing."""
        self._thread.close()

    # Steps

    def start_quorum(
        self,
        allow_heal: bool = True,
        shrink_only: bool = False,  # noqa: ARG002
        timeout: timedelta | None = None,
    ) -> None:
        """Begin a step. A replica that is behind gets the others' state first, which changes model and optimizers.

        Raises:
            RoundTimeoutError: it is behind, and no other replica gave it the state in time.
            RoundRefusedError: the others could not average this step's tensors.
        """
        self._rounds.wait_for_all()
        self._rounds.give_up()
        bound_s = timeout.total_seconds() if timeout else self._all_reduce.timeout
        if allow_heal:
            self._heal_if_behind(bound_s)
        if asking := self._ask(lambda: healing.list_asking(self._all_reduce.store), bound_s):
            self._answer(frozenset(asking))

    def wait_quorum(self) -> None:
        """Return at once: `start_quorum` has waited."""

    def allreduce(
        self,
        tensor: Tensor,
        should_quantize: bool = False,
        reduce_op: ReduceOp.RedOpType = ReduceOp.AVG,
    ) -> Work:
        """Have `tensor` replaced by its mean, or sum, over the replicas of the round; returns at once.

        Errors are kept for `should_commit`, and reported by `errored`.

        Args:
            tensor: Replaced in place; not to be changed until the work is waited for. Same shapes, in the same order of
                calls, on all replicas.
            should_quantize: Send the step's tensors in the manager's `quantized_wire`.
            reduce_op: AVG or SUM.

        Raises:
            ValueError: another operation, or a tensor that is not of floating point.
        """
        if reduce_op not in (ReduceOp.AVG, ReduceOp.SUM):
            raise ValueError(f"reduce_op must be AVG or SUM, not {reduce_op}")
        if not tensor.is_floating_point():
            raise ValueError(f"only tensors of floating point can be averaged, not {tensor.dtype}")
        work = self._rounds.add(tensor, self._step, is_sum=reduce_op == ReduceOp.SUM, quantize=should_quantize)
        expected = self._state.num_elements(self._step)
        if expected is not None and self._rounds.num_elements >= expected:
            self._rounds.send()  # the step's last tensor, so the round goes on while the replica trains
        return work

    def should_commit(self, timeout: timedelta | None = None) -> bool:  # noqa: ARG002 - a round has its own
        """Return whether all of the step's tensors are means, after waiting for them; then the step is over.

        Raises:
            RoundRefusedError, RankTakenError: no repetition can help.
            RuntimeError: more than `max_retries` steps in a row failed.
        """
        self._rounds.wait_for_all()
        if (error := self._rounds.error) is not None:
            self._rounds.give_up()
            self._count_failure(error)
            return False
        if self._rounds.commit():
            self._batches_committed += self.num_participants()
        self._step += 1
        self._commit_failures = 0
        return True

    def _count_failure(self, error: Exception) -> None:
        self._commit_failures += 1
        _log.warning("step %d is not committed: %s", self._step, error)
        if isinstance(error, _HOPELESS) or not isinstance(error, AiodilocoError):
            raise error
        if self._max_retries is not None and self._commit_failures > self._max_retries:
            raise RuntimeError(
                f"step {self._step} failed {self._commit_failures} times in a row, max_retries is {self._max_retries}; "
                f"the last time: {error}"
            ) from error

    # What is asked about

    def current_step(self) -> int:
        """Return how many steps were committed."""
        return self._step

    def batches_committed(self) -> int:
        """Return how many contributions the committed steps had in all."""
        return self._batches_committed

    def num_participants(self) -> int:
        """Return how many replicas were in the latest round; before the first, how many the run has."""
        return self._all_reduce.world_size if self._rounds.report is None else len(self._rounds.report.members)

    def participating_rank(self) -> int | None:
        """Return this replica's place among those of the latest round; None if it was not in it."""
        if self._rounds.report is None:
            return self._all_reduce.rank
        ranks = [member.rank for member in self._rounds.report.members]
        return ranks.index(self._all_reduce.rank) if self._rounds.report.included else None

    def is_participating(self) -> bool:
        """Return whether this replica was in the latest round, or there was none."""
        return self.participating_rank() is not None

    def errored(self) -> Exception | None:
        """Return why this step will not be committed; None if nothing went wrong yet."""
        return self._rounds.error

    def report_error(self, error: Exception) -> None:
        """Have this step not be committed by this replica. The others go on, and it gets their state."""
        self._rounds.error = self._rounds.error or error

    # State

    def register_state_dict_fn(
        self, key: str, load_state_dict: Callable[[Any], None], state_dict: Callable[[], Any]
    ) -> None:
        """Add functions that load and read a part of the state, for replicas that come back.

        Raises:
            ValueError: the key is taken.
        """
        self._state.register(key, load_state_dict, state_dict)

    def allow_state_dict_read(self) -> None:
        """Let other threads read the registered state."""
        self._state.allow_read()

    def disallow_state_dict_read(self) -> None:
        """Have other threads that read the registered state wait: it changes now."""
        self._state.disallow_read()

    def state_dict(self) -> dict[str, int]:
        """Return the manager's own state, for a checkpoint of one's own."""
        return {"step": self._step, "batches_committed": self._batches_committed}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go on where `state_dict` was taken, under a new prefix: rounds that are over are not repeated."""
        self._step = state_dict["step"]
        self._batches_committed = state_dict["batches_committed"]

    def _manager_state_dict(self) -> dict[str, Any]:  # torchft's trainers call it
        return {"user": self._state.read(), "torchft": self.state_dict()}

    def _heal_if_behind(self, bound_s: float) -> None:
        store, me = self._all_reduce.store, self._all_reduce.member
        is_behind = self._ask(lambda: healing.is_decided(store, self._step), bound_s)
        if not self._rounds.repeats and not is_behind and not self._has_started:
            is_behind = self._network.call(lambda: self._has_other_start(bound_s))
        self._has_started = True
        if not is_behind or self._rounds.repeats:  # the tensors of a failed step are there: its mean will do
            return
        step, data = self._network.call(lambda: healing.ask(store, me, timeout_s=bound_s))
        state = unpack(data, f"the state of step {step}")
        self._state.load(state["user"])
        self.load_state_dict(state["torchft"])
        _log.info("rank %d got the state of step %d", me.rank, step)

    async def _has_other_start(self, bound_s: float) -> bool:
        """Return whether this replica's outer parameters are not those the run begins with."""
        mine = await anyio.to_thread.run_sync(self._state.digest)
        if mine is None:
            return False
        may_fix = self._all_reduce.rank == 0 or self._all_reduce.is_elastic  # else all wait for rank 0 anyway
        return await healing.fix_start(self._all_reduce.store, mine, may_fix=may_fix, timeout_s=bound_s) != mine

    def _answer(self, asking: frozenset[Member]) -> None:
        """Write the state for those who ask. In the training thread, so that nothing changes it meanwhile."""
        step, store, bound_s = self._step, self._all_reduce.store, self._all_reduce.timeout
        if not self._ask(lambda: healing.was_answered(store, step), bound_s):
            data = pack(self._manager_state_dict())
            self._ask(lambda: healing.answer(store, asking, step, data), bound_s)

    def _ask(self, request: Callable[[], Awaitable[T]], bound_s: float) -> T:
        """Return what the store says, or raise RoundTimeoutError: a store that fails is asked again for as long."""

        async def bounded() -> T:
            with anyio.move_on_after(bound_s):
                return await request()
            raise RoundTimeoutError(f"the store at {self._all_reduce.store.uri} did not answer within {bound_s:g} s")

        return self._network.call(bounded)

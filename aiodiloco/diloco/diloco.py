"""`DiLoCo`: many inner steps alone, then one outer step together."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import TYPE_CHECKING, Any

import anyio.lowlevel
import anyio.to_thread
import torch

from aiodiloco.checkpoint import check_snapshot, take_share
from aiodiloco.diloco.fitting import check_has, check_optimizer, check_same_groups, check_same_tensors
from aiodiloco.diloco.outer import NesterovSGD, OuterOptimizerFactory, OuterState
from aiodiloco.diloco.snapshot import restore_snapshot, take_snapshot
from aiodiloco.diloco.step_log import StepLog
from aiodiloco.errors import RoundGoneError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor, nn

    from aiodiloco.checkpoint import Loaded, Share, Snapshot
    from aiodiloco.collective import AllReduceReport
    from aiodiloco.diloco.checkpoints import Checkpoints
    from aiodiloco.diloco.ports import AllReduce, Emit

__all__ = ["DiLoCo"]

_INNER_STEP = "the inner step of the round"
_STATE = ("inner_step", "round", "synced_at", "tokens", "tokens_before", "model", "inner_optimizer", "outer")


class DiLoCo:
    """Trains a model as one replica of a DiLoCo run.

    The training loop stays the user's: it takes an inner step however it likes, then calls `step`. Every `sync_every`
    inner steps, and after the last one of `steps`, that averages the pseudo-gradients of all replicas, takes one outer
    step, and continues from the new outer parameters. After each round all replicas hold the same bits.

    DiLoCo, Algorithm 1 (https://arxiv.org/abs/2311.08105). Only parameters with `requires_grad` are averaged; buffers
    (batch-norm statistics, say) and the inner optimizer's state stay the replica's own.

    Args:
        model: Initialised alike on every replica; a difference is found in the first round and refused.
        inner_optimizer: Any torch optimizer over the model's parameters. Saved and restored by `state_dict`.
        all_reduce: The transport.
        sync_every: Inner steps per round, H in the paper.
        outer: Makes the outer optimizer: `NesterovSGD(…)` or any torch optimizer class or factory.
        wire: Format of the pseudo-gradients on the wire; None takes the transport's. Parameters of float64 travel in
            float64 whatever it is.
        weigh_by_tokens: Weight replicas by the tokens they saw in the round, as given to `step`, instead of equally.
        fragment: Number of this model on the transport: several models, or other all-reduces, each need their own.
        emit: Receives a `step` event for every inner step and a `round` event for every outer one.
        checkpoints: Takes a checkpoint every few rounds; None takes none.

    Raises:
        ValueError: `sync_every` < 1, no trainable parameters, or an optimizer of another model.
        TypeError: a checkpoint cannot hold something of the training loop's state; says where it is.

    Attributes:
        inner_step: Inner steps taken.
        round: Outer steps taken.
        is_behind: Whether rounds may have been decided without this process, which are then taken first.
        replays: Whether it takes those with inner steps of its own, as a process of its rank did before: then all that
            the steps leave behind (inner optimizer, random state, data position) is, too, what it was. Else `catch_up`
            takes them at once.
    """

    def __init__(
        self,
        model: nn.Module,
        inner_optimizer: torch.optim.Optimizer,
        all_reduce: AllReduce,
        *,
        sync_every: int,
        outer: OuterOptimizerFactory | None = None,
        wire: str | None = None,
        weigh_by_tokens: bool = False,
        fragment: int = 0,
        emit: Emit | None = None,
        checkpoints: Checkpoints | None = None,
    ) -> None:
        if isinstance(sync_every, bool) or not isinstance(sync_every, int) or sync_every < 1:
            raise ValueError(f"sync_every must be an int >= 1 (inner steps per round), not {sync_every!r}")
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        check_optimizer(trainable, inner_optimizer)
        self.inner_step = 0
        self.round = 0
        self.sync_every = sync_every
        self._model = model
        self._inner_optimizer = inner_optimizer
        self._all_reduce = all_reduce
        self._outer = OuterState(trainable, outer or NesterovSGD())
        self._wire = wire
        self._weigh_by_tokens = weigh_by_tokens
        self._fragment = fragment
        self._log = StepLog(emit)
        self._checkpoints = checkpoints
        self._share: Share | None = None  # of a checkpoint, not yet handed over
        self._total: int | None = None
        self._synced_at = 0
        # A cancelled task leaves its worker thread running: the next round must not begin before that is through.
        self._applying = threading.Lock()
        self._evaluating = False
        self._is_due = False
        self._averaged: tuple[Mapping[str, Tensor], AllReduceReport] | None = None  # not yet applied
        self.is_behind = False
        self.replays = False
        self._num_calls = 0  # of step
        if checkpoints is not None:
            check_snapshot(self._snapshot(checkpoints))

    @property
    def last_round(self) -> AllReduceReport | None:
        """What the latest all-reduce cost; None before the first."""
        return self._log.last_round

    @property
    def bytes_sent(self) -> int:
        """Bytes this replica wrote, in all rounds since construction."""
        return self._log.bytes_sent

    @property
    def bytes_received(self) -> int:
        """Bytes this replica read, in all rounds since construction."""
        return self._log.bytes_received

    def steps(self, total: int) -> Iterator[int]:
        """Iterate over the numbers of the inner steps still to take, up to `total` in the whole run.

        Starts where the run is: at 0, or where a checkpoint or `load_state_dict` put it. The last round is shorter
        when `total` is no multiple of `sync_every`, so that no work is left out of the outer parameters. A replica that
        was left out of rounds skips the numbers the others took meanwhile.

        Raises:
            ValueError: `total` is negative or not an int.
            RuntimeError: `step` was not called exactly once in an iteration.
        """
        if isinstance(total, bool) or not isinstance(total, int) or total < 0:
            raise ValueError(f"steps() takes the number of inner steps of the whole run, an int >= 0, not {total!r}")
        return self._iterate(total)

    def _iterate(self, total: int) -> Iterator[int]:
        self._total = total
        while (number := self.inner_step) < total:
            calls = self._num_calls
            yield number
            if self._num_calls != calls + 1:
                raise RuntimeError(
                    f"step() was called {self._num_calls - calls} times in iteration {number}: call it exactly once"
                )

    async def step(self, *, loss: float | Tensor | None = None, tokens: int | None = None) -> None:
        """Count one inner step; when the round is complete, synchronise.

        Args:
            loss: Of this step, for the event log. A tensor is read later, off the training thread.
            tokens: Tokens in this step's batch, for the event log and throughput.

        Raises:
            CollectiveError: the round failed; the model is as before it. Repeat it with `synchronize`, or give up.
        """
        if self.is_behind and not self.replays:
            done = self.round
            await self.catch_up()
            if self.round != done:  # the step just taken began from parameters that are gone
                self._num_calls += 1
                return
        if self.advance(loss=loss, tokens=tokens):
            await self.synchronize()
        else:
            await anyio.lowlevel.checkpoint()  # let heartbeats, events, checkpoints and cancellation have a turn

    def advance(self, *, loss: float | Tensor | None = None, tokens: int | None = None) -> bool:
        """Count one inner step; return True when `synchronize` is due. The half of `step` that never waits."""
        self._refuse_while_evaluating("step")
        if self._is_due:
            raise RuntimeError(f"round {self.round} is incomplete: repeat it with synchronize() before training on")
        self.inner_step += 1
        self._num_calls += 1
        self._log.step(self.inner_step, self.round, loss, tokens)
        return self.inner_step % self.sync_every == 0 or self.inner_step == self._total

    async def synchronize(self) -> None:
        """Average all replicas' work since the last round and take one outer step. All replicas must call it.

        After an error or a cancellation the round can be repeated by calling this again; nothing is applied twice.
        """
        self._refuse_while_evaluating("synchronize")
        began = time.perf_counter()
        if self._averaged is None:
            await self._average()
        await anyio.to_thread.run_sync(self._take_outer_step, began)
        await self._hand_over_share()
        if self.is_behind and not self.replays:
            await self.catch_up()

    async def _average(self) -> None:
        """Have the round's pseudo-gradients averaged, if there was an inner step since the last."""
        round_input = await anyio.to_thread.run_sync(self._begin_round)
        if round_input is None:
            return
        gradient, basis = round_input
        try:
            if self.is_behind and self.replays and await self._repeat_round(gradient):
                return
            report = await self._all_reduce.all_reduce(
                gradient,
                weight=self._log.weight() if self._weigh_by_tokens else 1.0,
                wire=self._wire,
                round=self.round,
                fragment=self._fragment,
                basis=basis,
                settings=self._settings(),
            )
        except RoundGoneError:
            self.is_behind, self.replays = True, False
        else:
            self._averaged = gradient, report

    async def _repeat_round(self, gradient: dict[str, Tensor]) -> bool:
        """Take the mean of a round that a process of this rank was in before; return False if it is not decided yet."""
        report = await self._all_reduce.adopt(gradient, round=self.round, fragment=self._fragment)
        if report is None:
            await self._all_reduce.announce(round=self.round, fragment=self._fragment)
            self.is_behind = False
            return False
        self._averaged = gradient, report
        return True

    async def _hand_over_share(self) -> None:
        """Have the share of a checkpoint written, if one was taken; cancelled meanwhile, the next call does it."""
        if self._checkpoints is not None and self._share is not None:
            await self._checkpoints.save(self._share)
            self._share = None

    async def catch_up(self) -> None:
        """Take the outer steps of all rounds that were decided without this replica, if there are any.

        What it did on its own meanwhile is dropped. Where those rounds are deleted, the outer state of the run's latest
        checkpoint is taken, and the rounds since. `step` and `synchronize` do this where it is needed; called before
        the first step of a replica that came back, it saves that step. One that `replays` need not: its inner
        optimizer would stay behind.

        Raises:
            CollectiveError, StoreError: a round's mean cannot be had; the model is as after the last round taken.
        """
        began = time.perf_counter()
        mean = await anyio.to_thread.run_sync(self._outer.zeros)
        while True:
            if self._averaged is None:
                try:
                    report = await self._all_reduce.adopt(mean, round=self.round, fragment=self._fragment)
                except RoundGoneError as exc:
                    await self._take_checkpoint(exc)
                    continue
                if report is None:
                    break
                self._averaged = mean, report
            await anyio.to_thread.run_sync(self._take_outer_step, began)
        await self._all_reduce.announce(round=self.round, fragment=self._fragment)
        self.is_behind = False
        await self._hand_over_share()

    async def _take_checkpoint(self, gone: RoundGoneError) -> None:
        """Take the outer state of the run's latest checkpoint; raise `gone` if there is none beyond this replica."""
        if self._checkpoints is None:
            raise gone
        loaded = await self._checkpoints.load()
        if loaded.round <= self.round:
            raise gone
        await anyio.to_thread.run_sync(self._adopt_checkpoint, loaded)
        self._log.emit("restored", rank=self._checkpoints.rank, round=self.round, step=self.inner_step)

    def _adopt_checkpoint(self, loaded: Loaded) -> None:
        """Be where the checkpoint is; what is the replica's own stays as it is."""
        with self._applying:
            self._outer.load_state_dict(loaded.outer)
            self._outer.write_to_model()
            self.inner_step = self._synced_at = loaded.inner_step
            self.round = loaded.round
            self._log.begin_round()
            self._is_due = False

    @contextlib.contextmanager
    def outer_weights(self) -> Iterator[nn.Module]:
        """Hold the outer parameters in the model while inside: these are the ones to evaluate, export and compare.

        The replica's own parameters come back on leaving. Right after a round the two are the same.

        Raises:
            RuntimeError: inside another `outer_weights`; and from `step`, `synchronize` and `state_dict` while inside.
        """
        self._refuse_while_evaluating("outer_weights")
        local = self._outer.local_copy()
        self._outer.write_to_model()
        self._evaluating = True
        try:
            yield self._model
        finally:
            self._evaluating = False
            self._outer.restore_local(local)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of everything DiLoCo was given: model, inner and outer optimizer, and its own counters.

        With what only the training loop knows (random state, data position, learning-rate schedule) training continues
        from it to the bit. Tensors are references, as in torch: copy or save them before training on.
        """
        self._refuse_while_evaluating("state_dict")
        return {
            "inner_step": self.inner_step,
            "round": self.round,
            "synced_at": self._synced_at,
            "tokens": self._log.tokens,
            "tokens_before": self._log.tokens_before,
            "model": self._model.state_dict(),
            "inner_optimizer": self._inner_optimizer.state_dict(),
            "outer": self._outer.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue where `state_dict` was taken, under a new prefix: rounds that are over are not repeated.

        Raises:
            ValueError: it is of another model; nothing was loaded.
        """
        check_has(state, _STATE, "state")
        self._outer.check_state(state["outer"])
        check_same_tensors(state["model"], self._model.state_dict(), "model")
        check_same_groups(state["inner_optimizer"], self._inner_optimizer, "inner optimizer")
        self._outer.load_state_dict(state["outer"])
        self._model.load_state_dict(state["model"])
        self._inner_optimizer.load_state_dict(state["inner_optimizer"])
        self.inner_step, self.round = state["inner_step"], state["round"]
        self._synced_at = state["synced_at"]
        self._log.tokens, self._log.tokens_before = state["tokens"], state["tokens_before"]

    def restore(self, loaded: Loaded) -> None:
        """Continue from a checkpoint of this run or of another one of the same model.

        Raises:
            ValueError: it is of another model; nothing was changed.
        """
        state = {} if self._checkpoints is None else self._checkpoints.state
        restore_snapshot(loaded, self._model, self._inner_optimizer, self._outer, state)
        if loaded.replica is not None:
            self._log.tokens = self._log.tokens_before = loaded.replica["tokens"]
        self.inner_step = self._synced_at = loaded.inner_step
        self.round = loaded.round
        self.is_behind = True

    def _begin_round(self) -> tuple[dict[str, Tensor], bytes] | None:
        """Return the pseudo-gradient and the digest it is based on; None if there was no inner step since the last."""
        with self._applying:
            if self.inner_step == self._synced_at:
                return None
            self._is_due = True
            return self._outer.pseudo_gradient(), self._outer.digest()

    def _take_outer_step(self, began: float) -> None:
        """Apply the averaged round, once: also if the task that waits for this is cancelled, all of it changes."""
        with self._applying:
            if self._averaged is None:
                return
            gradient, report = self._averaged
            self._outer.step(gradient)
            del gradient  # its memory is wanted for the share of a checkpoint
            self.round += 1
            if not report.included:
                self._note_exclusion(report)
            self._synced_at = self.inner_step
            self._log.begin_round()
            self._averaged = None
            self._is_due = False
            self._take_share(report)
            self._log.round(report, inner_step=self.inner_step, sync_s=time.perf_counter() - began)

    def _note_exclusion(self, report: AllReduceReport) -> None:
        """Be where the members of the round are; more rounds may have been decided meanwhile."""
        self.is_behind = True
        self.inner_step = int(report.settings[_INNER_STEP])
        values = [v for state in self._inner_optimizer.state.values() for v in state.values()]
        if not all(v.isfinite().all() for v in values if isinstance(v, torch.Tensor) and v.is_floating_point()):
            self._inner_optimizer.state.clear()  # NaN moments would poison the outer parameters' next steps again

    def _take_share(self, report: AllReduceReport) -> None:
        """Copy what this replica writes of a checkpoint, if it is time for one and it was in the round."""
        if (plan := self._checkpoints) is None or self.round % plan.every:
            return
        ranks = [member.rank for member in report.members]
        if plan.rank in ranks:
            part, num_parts = ranks.index(plan.rank), len(ranks)
            self._share = take_share(self._snapshot(plan), rank=plan.rank, part=part, num_parts=num_parts)

    def _snapshot(self, plan: Checkpoints) -> Snapshot:
        return take_snapshot(
            self._model,
            self._inner_optimizer,
            self._outer,
            plan.state,
            model_number=plan.model_number,
            round=self.round,
            inner_step=self.inner_step,
            tokens=self._log.tokens,
        )

    def _settings(self) -> dict[str, str]:
        """What makes replicas diverge, or wait for each other in vain, when it is not the same on all."""
        return {
            "sync_every": str(self.sync_every),
            _INNER_STEP: str(self.inner_step),
            "the outer optimizer": self._outer.settings(),
            "checkpoint_every": str(None if self._checkpoints is None else self._checkpoints.every),
        }

    def _refuse_while_evaluating(self, what: str) -> None:
        if self._evaluating:
            raise RuntimeError(f"{what}() inside outer_weights(): leave the evaluation first")

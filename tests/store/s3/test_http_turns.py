"""A peer that is always ready must not keep the event loop to itself."""

import asyncio
import socket

import anyio

from aiodiloco.store.s3.http.connection import Connection

MIB = 1024 * 1024


class TirelessSocket(socket.socket):
    """Always has bytes, and always takes them: a network that is faster than we are."""

    def recv_into(self, buffer, nbytes=0, flags=0):
        del flags
        return min(len(buffer), nbytes or len(buffer), 100_000)

    def send(self, data, flags=0):
        del flags
        return min(len(data), 100_000)


async def most_moved_in_one_turn(work, moved):
    """Return by how much `moved()` grew at most from one turn of the loop to the next, while `work` ran."""
    most = last = 0
    async with anyio.create_task_group() as tasks:

        async def watch():
            nonlocal most, last
            while True:
                most, last = max(most, moved() - last), moved()
                await asyncio.sleep(0)

        tasks.start_soon(watch)
        await asyncio.sleep(0)
        await work()
        tasks.cancel_scope.cancel()
    return max(most, moved() - last)


async def test_upload_to_a_tireless_peer_gives_others_their_turn():
    sent = 0

    def count():
        nonlocal sent
        sent += 100_000

    with TirelessSocket() as sock:
        connection = Connection(sock, 10)
        body = memoryview(bytes(16 * MIB))
        most = await most_moved_in_one_turn(lambda: connection.send(b"head", body, 10, count), lambda: sent)
    assert sent >= body.nbytes
    assert most <= 2 * MIB


async def test_download_from_a_tireless_peer_gives_others_their_turn():
    received = 0

    async def receive_all():
        nonlocal received
        view = memoryview(bytearray(16 * MIB))
        while received < view.nbytes:
            received += await connection.receive_into(view[received:])

    with TirelessSocket() as sock:
        connection = Connection(sock, 10)
        most = await most_moved_in_one_turn(receive_all, lambda: received)
    assert received == 16 * MIB
    assert most <= 2 * MIB

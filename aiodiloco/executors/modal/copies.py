"""A second connection to Modal with the credentials of the first."""

from __future__ import annotations

import anyio
import modal

from aiodiloco.executors.modal.inside import unwrapped

__all__ = ["open_copy"]


async def open_copy(client: modal.Client | None) -> modal.Client | None:
    """Return an open client like `client` (None: that of the environment), with a connection of its own.

    None where this version of Modal's package does not show what a client was made of: that is no part of its public
    interface, in which only clients of known tokens can be made.
    """
    original = client if client is not None else await modal.Client.from_env.aio()
    try:
        made_of = unwrapped(original)
        credentials, oauth = made_of._credentials, made_of._oauth_credentials
        copy = modal.Client(made_of.server_url, made_of.client_type, credentials, oauth_credentials=oauth)
    except (AttributeError, ImportError, TypeError):
        return None
    try:
        await copy.__aenter__()  # type: ignore[no-untyped-call]  # synchronicity generates it
    except BaseException:
        with anyio.CancelScope(shield=True):  # takes half a second at most
            await copy.close.aio()
        raise
    return copy

"""`modal-volume://name/prefix`: a Modal Volume as a store. Only `store` and what it is made of import `modal`.

Everything goes through Modal's client, in a container as outside, and never through a mount. A mounted Volume shows
others only what was committed, shows only what was there at its last reload, cannot be reloaded while any process has a
file of it open, and commits whatever else lies there; the client's requests have none of that: what one put is there
for all once it has been answered. So a path below a mount is opened through the client as well.

What is assumed of Modal and not documented, all of it looked at by the start-up probe as far as one process can see:

- a `VolumePutFiles` request shows all of a file or none, and once answered, every `VolumeGetFile2` and
  `VolumeListFiles` sees it;
- `VolumeGetFile2` names blocks by their content, so that a file replaced meanwhile is read as it was;
- `DictUpdate` with `if_not_exists` is one step: of any number for one key, one is answered `created`.

The client documents `batch_upload(force=False)` to refuse existing files. That is not used to decide who creates an
object: whether two requests at once are both let in is not said, and by the protocol's own description one that would
change nothing may succeed, so that two racers with equal bytes might both believe they had won.
"""

"""Real S3 servers on this machine, and a proxy that breaks what passes through it."""

from aiodiloco.testing.s3.proxy import FaultyProxy
from aiodiloco.testing.s3.servers import create_bucket, moto_server, rclone_server, served

__all__ = ["FaultyProxy", "create_bucket", "moto_server", "rclone_server", "served"]

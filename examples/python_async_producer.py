"""Queue alerts from asyncio, over a pool: each task in a transaction of its own.

    python3 examples/python_async_producer.py WEBHOOK_ID

The database is that of PGGIT_REACTOR_DATABASE_URL. Of two alerts with the same idempotency key one is queued,
whichever of the tasks comes first; both are given its id.
"""

import asyncio
import os
import sys
import time
from datetime import UTC, datetime

from psycopg_pool import AsyncConnectionPool

from pggit_reactor.producer import enqueue_async

SENSORS = ("db1", "db2", "db2", "db3")
USEFUL_SECONDS = 900


async def tell(pool: AsyncConnectionPool, *, webhook_id: int, host: str) -> int:
    """Queue one alert; return its delivery id."""
    async with pool.connection() as connection:  # commits at the end of the block
        delivery_id = await enqueue_async(
            connection,
            webhook_id,
            {"alert": "connections at limit", "host": host},
            event_type="connections.limit",
            idempotency_key=f"connections:{host}",
            # Of no use to anybody after a quarter of an hour: then it is given up.
            expires_at=datetime.fromtimestamp(time.time() + USEFUL_SECONDS, UTC),
        )
    print(f"{host} is delivery {delivery_id}")
    return delivery_id


async def main(webhook_id: int) -> None:
    """Tell of all sensors at once."""
    url = os.environ["PGGIT_REACTOR_DATABASE_URL"]
    async with (
        AsyncConnectionPool(url, min_size=1, max_size=4, open=False) as pool,
        asyncio.TaskGroup() as group,
    ):
        for host in SENSORS:
            group.create_task(tell(pool, webhook_id=webhook_id, host=host))


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))

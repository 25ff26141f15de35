"""One rq-scheduler job per session: reads the live sessions, arms them all, says so, ends each when its job comes."""

import json
import multiprocessing
import os
from datetime import UTC, datetime

import psycopg2
from redis import Redis
from rq import Queue, SimpleWorker
from rq_scheduler import Scheduler

POLL_SECONDS = 0.2
FUNCTION = "benchmarks.load.yardstick.rq_per_session.end"  # by its name, whatever this process calls the module
_database = psycopg2.connect(os.environ["DATABASE_URL"])
_database.autocommit = True
_redis = Redis.from_url(os.environ["REDIS_URL"])


def end(session_id: str, member_id: str) -> None:
    """End one session, if it is due, and publish that."""
    with _database.cursor() as cursor:
        cursor.execute(
            """UPDATE after_hours_sessions SET ended_at = expires_at
               WHERE id = %s AND ended_at IS NULL AND expires_at <= clock_timestamp()""",
            (session_id,),
        )
        ended = cursor.rowcount
    if ended:
        event = {
            "type": "after_hours:session_expired",
            "targetUserId": member_id,
            "payload": {"sessionId": session_id, "reason": "timeout"},
            "timestamp": datetime.now(UTC).isoformat(),
        }
        _redis.publish("after_hours:events", json.dumps(event))


def main() -> None:
    """Arm, then work until killed."""
    scheduler = Scheduler("yardstick", connection=_redis, interval=POLL_SECONDS)
    with _database.cursor() as cursor:
        cursor.execute("SELECT id::text, user_id, expires_at FROM after_hours_sessions WHERE ended_at IS NULL")
        for session_id, member_id, expires_at in cursor.fetchall():
            scheduler.enqueue_at(expires_at.astimezone(UTC), FUNCTION, session_id, member_id, job_result_ttl=0)
    multiprocessing.Process(target=_schedule, daemon=True).start()
    print("armed", flush=True)
    SimpleWorker([Queue("yardstick", connection=_redis)], connection=_redis).work(logging_level="ERROR")


def _schedule() -> None:
    Scheduler("yardstick", connection=Redis.from_url(os.environ["REDIS_URL"]), interval=POLL_SECONDS).run()


if __name__ == "__main__":
    main()

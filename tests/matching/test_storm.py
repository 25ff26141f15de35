"""A small storm: members do everything at once, two workers match them, and a Node service inserts as well."""

import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import psycopg2
import pytest
from flask import Flask

from afterhours_service.matching import rounds
from tests.client import API
from tests.factories import PLACE, Factory, bearer
from tests.matching.test_constraint import NODE, TWICE

MEMBERS = 40
SECONDS = 6
DECLINE = """
    UPDATE after_hours_matches SET declined_by = user_id_1, declined_at = now() WHERE id = (
        SELECT id FROM after_hours_matches WHERE declined_by IS NULL AND expires_at > now() LIMIT 1)
"""
OUTLIVES = """
    SELECT m.id FROM after_hours_matches AS m CROSS JOIN LATERAL (VALUES (user_id_1), (user_id_2)) AS v (member)
    WHERE declined_by IS NULL AND expires_at > now() AND NOT EXISTS (
        SELECT FROM after_hours_sessions AS s WHERE s.user_id = member AND ended_at IS NULL AND s.expires_at > now())
"""
STUCK = """
    SELECT s.user_id FROM after_hours_sessions AS s LEFT JOIN after_hours_search AS w ON w.session_id = s.id
    LEFT JOIN after_hours_matches AS m ON m.id = w.match_id
    WHERE s.ended_at IS NULL AND s.expires_at > now() AND NOT coalesce(
        w.look_at IS NOT NULL OR w.looked_at IS NOT NULL
        OR m.declined_by IS NULL AND m.expires_at > now() AND m.due_at IS NOT NULL, false)
"""


class Storm:
    """Members, the host and workers, each a step that is repeated until the time is over."""

    def __init__(self, app: Flask, database_url: str, members: list[str]) -> None:
        self._app, self._url, self._members = app, database_url, members
        self.answers: Counter[tuple[str, int, str | None]] = Counter()  # by path, status and code
        self.broken: list[Exception] = []
        self.twice: list[Any] = []

    def run(self) -> None:
        end = time.monotonic() + SECONDS

        def repeat(step: Callable[[random.Random], None], seed: int) -> None:
            dice = random.Random(seed)
            try:
                while time.monotonic() < end:
                    step(dice)
            except Exception as error:  # noqa: BLE001 - reported by the test
                self.broken.append(error)

        steps = [self.act, self.act, self.act, self.work, self.work, self.meddle]
        threads = [threading.Thread(target=repeat, args=(step, number)) for number, step in enumerate(steps)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def act(self, dice: random.Random) -> None:
        """Do something as a member."""
        member = dice.choice(self._members)

        def ask(method: str, path: str, body: Any = None) -> Any:
            client = self._app.test_client()
            answer = client.open(f"{API}/{path}", method=method, json=body, headers=bearer(member))
            self.answers[path, answer.status_code, (answer.json or {}).get("code")] += 1
            return answer.json

        def answer_match() -> None:
            if match := ask("GET", "match/current").get("match"):
                ask("POST", f"match/{dice.choice(['accept', 'decline', 'decline'])}", {"matchId": match["id"]})

        def change_wish() -> None:
            ask("POST", "preferences", {})
            ask("PATCH", "preferences", {"minAge": dice.choice([18, 25])})

        def erase() -> None:
            ask("DELETE", "me")
            ask("POST", "profile", {})

        steps: dict[Callable[[], Any], int] = {
            lambda: ask("POST", "session/start", {"duration": 15, **PLACE}): 45,
            answer_match: 20,
            lambda: ask("POST", "session/end"): 10,
            lambda: ask("POST", "session/extend", {"additionalMinutes": 15}): 10,
            lambda: ask("PUT", "consent", {"granted": dice.random() < 0.7}): 5,
            change_wish: 7,
            erase: 3,
        }
        [step] = dice.choices(list(steps), list(steps.values()))
        step()

    def work(self, _: random.Random) -> None:
        """Do what a worker does."""
        with self._app.app_context():
            rounds.look()
            rounds.do_what_is_due()

    def meddle(self, dice: random.Random) -> None:
        """Insert and decline as the host does; shorten waits and memories, so that more happens."""
        with contextlib.closing(psycopg2.connect(self._url)) as connection, connection.cursor() as cursor:
            connection.autocommit = True
            # Somebody is matched already, or an erasure took the session that the statement found.
            with contextlib.suppress(psycopg2.errors.UniqueViolation, psycopg2.errors.ForeignKeyViolation):
                cursor.execute(NODE, dice.sample(self._members, 2))
            # The host locks the match before its member; a withdrawal and an erasure lock the member first, and repeat.
            with contextlib.suppress(psycopg2.errors.DeadlockDetected):
                cursor.execute(DECLINE)
            cursor.execute(TWICE)
            self.twice += cursor.fetchall()
            cursor.execute("DELETE FROM after_hours_declines WHERE random() < 0.3")
            cursor.execute("UPDATE after_hours_search SET look_at = now() WHERE look_at > now() AND random() < 0.5")


@pytest.mark.usefixtures("patience")
def test_nobody_is_in_two_matches_and_nobody_is_stuck(app: Flask, database_url: str, factory: Factory) -> None:
    app.testing = False  # failures are answered, as in production
    storm = Storm(app, database_url, [factory.member() for _ in range(MEMBERS)])
    storm.run()
    assert storm.broken == []
    assert not {answer for answer in storm.answers if answer[1] >= 500}
    assert factory.count("after_hours_matches") > 20
    assert storm.twice == factory.execute(TWICE) == factory.execute(OUTLIVES) == []
    assert factory.execute(STUCK) == []

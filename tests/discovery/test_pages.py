"""Pages are stable while members come and go."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from tests.client import API, extend, look
from tests.factories import Factory, Live, bearer, go_live


def pages(client: FlaskClient, member: str, limit: int = 2, cursor: str | None = None) -> list[str]:
    """Return the ids on all pages, from `cursor` on."""
    found: list[str] = []
    while True:
        answer = look(client, member, limit=limit, **({"cursor": cursor} if cursor else {}))
        found += [other["userId"] for other in answer["members"]]
        cursor = answer["nextCursor"]
        if cursor is None:
            return found


def test_pages_join_without_a_seam_also_at_equal_distances(client: FlaskClient, live: Live) -> None:
    me = live()
    others = {live(52.53) for _ in range(5)} | {live(52.54) for _ in range(4)}
    for limit in (1, 2, 3, 9, 50):
        found = pages(client, me, limit)
        assert (len(found), set(found)) == (9, others)


def test_a_last_full_page_has_no_next(client: FlaskClient, live: Live) -> None:
    me, _, _ = live(), live(), live()
    assert look(client, me, limit=2)["nextCursor"] is None


def test_members_come_and_go_between_pages(client: FlaskClient, factory: Factory, live: Live) -> None:
    me = live()
    a, b, c, d, e = (live(52.521 + i / 1000) for i in range(5))
    first = look(client, me, limit=2)
    assert [member["userId"] for member in first["members"]] == [a, b]
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE user_id IN (%s, %s)", b, d)
    live(52.5205), live(52.5235)  # newcomers before and after the seam wait for the next first page
    go_live(factory, b, 52.55)  # seen already; now farther away
    factory.execute("UPDATE after_hours_sessions SET expires_at = expires_at + interval '1 hour' WHERE user_id = %s", c)
    assert pages(client, me, cursor=first["nextCursor"]) == [c, e]
    assert len(pages(client, me)) == 6


def test_an_extension_keeps_the_cursor_and_a_new_session_does_not(
    client: FlaskClient, factory: Factory, live: Live
) -> None:
    me, _, _ = live(), live(), live()
    cursor = look(client, me, limit=1)["nextCursor"]
    assert extend(client, me).status_code == 200
    assert len(pages(client, me, cursor=cursor)) == 1
    factory.execute("UPDATE after_hours_sessions SET ended_at = now() WHERE user_id = %s", me)
    go_live(factory, me)
    assert refused(client, me, cursor=cursor) == ["cursor"]


def test_a_tampered_cursor_is_refused(client: FlaskClient, live: Live) -> None:
    me, other, _ = live(), live(), live()
    cursor = look(client, me, limit=1)["nextCursor"]
    assert refused(client, other, cursor=cursor) == ["cursor"]  # another's
    middle = len(cursor) // 2
    for wrong in (
        cursor[:middle] + ("A" if cursor[middle] != "A" else "B") + cursor[middle + 1 :],
        cursor[:-4],
        "é",
        "x",
        "",
    ):
        assert refused(client, me, cursor=wrong) == ["cursor"]


@pytest.mark.parametrize("limit", ["0", "51", "-1", "2.5", "many", "", " 2", "1_0", "٢", "true", "9" * 5000])
def test_a_limit_is_from_one_to_fifty(client: FlaskClient, live: Live, limit: str) -> None:
    assert refused(client, live(), limit=limit) == ["limit"]


@pytest.mark.parametrize("limit", ["2", "2.0"])
def test_a_limit_is_a_whole_number_however_it_is_written(client: FlaskClient, live: Live, limit: str) -> None:
    me, *_ = [live() for _ in range(4)]
    assert len(look(client, me, limit=limit)["members"]) == 2


def test_unknown_parameters_are_refused(client: FlaskClient, live: Live) -> None:
    assert refused(client, live(), latitude="52") == ["latitude"]


def refused(client: FlaskClient, member: str, **query: Any) -> list[str]:
    """Return the fields of a 400."""
    response = client.get(f"{API}/nearby", query_string=query, headers=bearer(member))
    assert (response.status_code, response.json["code"]) == (400, "VALIDATION_ERROR")
    return [problem["field"] for problem in response.json["errors"]]

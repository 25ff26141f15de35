"""The rules of time."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.sessions import rules

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
moments = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 - as it asks


@pytest.mark.parametrize(
    ("minutes", "minute_seconds", "seconds"), [(15, 60, 900), (30, 60, 1800), (60, 60, 3600), (15, 1, 15), (2, 1, 2)]
)
def test_length(minutes: int, minute_seconds: int, seconds: int) -> None:
    assert rules.length(minutes, minute_seconds) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    ("left", "seconds", "minutes"),
    [
        (-3600, 0, 0),
        (0, 0, 0),
        (0.001, 0, 1),
        (0.999, 0, 1),
        (1, 1, 1),
        (59.5, 59, 1),
        (60, 60, 1),
        (60.001, 60, 2),
        (120, 120, 2),
        (3600, 3600, 60),
    ],
)
def test_what_is_left(left: float, seconds: int, minutes: int) -> None:
    expires_at = NOON + timedelta(seconds=left)
    assert rules.remaining_seconds(expires_at, NOON) == seconds
    assert rules.remaining_minutes(expires_at, NOON, 60) == minutes


@pytest.mark.parametrize(("fraction", "later"), [(0, 0), (1, 1), (500_000, 1), (999_999, 1)])
def test_the_second_of_the_expiry_is_never_early(fraction: int, later: int) -> None:
    assert rules.expiry_second(NOON.replace(microsecond=fraction)) == int(NOON.timestamp()) + later


@pytest.mark.parametrize(("minute_seconds", "lead"), [(60, 120), (1, 2)])
def test_the_warning_is_two_minutes_before(minute_seconds: int, lead: int) -> None:
    assert rules.warning_second(NOON, minute_seconds) == int(NOON.timestamp()) - lead


@given(moments, moments)
def test_what_is_left_is_whole_never_negative_and_never_more_than_there_is(expires_at: datetime, now: datetime) -> None:
    left = (expires_at - now).total_seconds()
    seconds = rules.remaining_seconds(expires_at, now)
    assert 0 <= seconds <= max(0, left)
    assert left - seconds < 1
    minutes = rules.remaining_minutes(expires_at, now, 60)
    assert minutes == 0 if left <= 0 else (minutes - 1) * 60 < left <= minutes * 60


@given(moments)
def test_an_expiry_has_passed_by_its_second_and_not_a_second_before(expires_at: datetime) -> None:
    second = datetime.fromtimestamp(rules.expiry_second(expires_at), UTC)
    assert expires_at <= second < expires_at + timedelta(seconds=1)

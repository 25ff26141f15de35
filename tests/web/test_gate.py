"""The gate: a good token of a premium, verified, consenting member, or nothing."""

import base64
import contextlib
import dataclasses
import hashlib
import hmac
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import given
from hypothesis import strategies as st

from afterhours_service.blueprint import ASKING_THEMSELVES
from afterhours_service.web import errors
from afterhours_service.web.gate import member_of, read_token
from tests.client import SESSION, failure
from tests.conftest import make_settings
from tests.factories import SECRET, Factory, bearer, token
from tests.keys import ec_key, pem, rsa_key
from tests.wire import Wire

HS256 = make_settings("postgresql://nowhere/none", "redis://localhost")
NEXT_YEAR = int(time.time()) + 365 * 86400


def forge(
    payload: Any, header: Any = None, key: str = SECRET, digest: Any = hashlib.sha256, signature: bytes | None = None
) -> str:
    """Sign anything as HS256 would, also what no library would sign; bytes are taken as they are."""

    def part(value: Any) -> bytes:
        raw = value if isinstance(value, bytes) else json.dumps(value).encode()
        return base64.urlsafe_b64encode(raw).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT"} if header is None else header) + b"." + part(payload)
    if signature is None:
        signature = hmac.new(key.encode(), signed, digest).digest()
    return (signed + b"." + part(signature)).decode()


def ask(client: FlaskClient, headers: dict[str, str] | None = None) -> Any:
    return client.get(SESSION, headers=headers)


def claims(**others: Any) -> dict[str, Any]:
    return {"userId": "m", "exp": NEXT_YEAR, **others}


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic bTpt", "Bearertoken", "token", " Bearer x"])
def test_a_header_without_a_bearer_token_is_no_authentication(header: str | None) -> None:
    with pytest.raises(errors.AuthRequired):
        member_of(header, HS256)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_scheme_is_read_in_any_case(scheme: str) -> None:
    assert member_of(f"{scheme} {token('m')}", HS256) == "m"


NOT_A_TIME: list[Any] = [None, "soon", [], {}, "", float("inf"), float("nan")]
NOT_A_MEMBER: list[Any] = [None, 7, True, [], {}, "", "\0", "a\0b", "\ud800", "m" * 256]


BAD_TOKENS = {
    "noise": "garbage",
    "two parts": "a.b",
    "three parts": "a.b.c",
    "not ASCII": "ä.ö.ü",
    "not UTF-8": "\udcff",
    "two tokens": f"{token('m')} {token('m')}",
    "two headers": f"{token('m')},Bearer {token('m')}",
    "cut off": token("m")[:-4],
    "four parts": token("m") + ".more",
    "another key": token("m", key="another secret, also of 32 bytes or more"),
    "HS384": forge(claims(), {"alg": "HS384"}, digest=hashlib.sha384),
    "HS512": forge(claims(), {"alg": "HS512"}, digest=hashlib.sha512),
    "none": forge(claims(), {"alg": "none"}, signature=b""),
    "none, signed": forge(claims(), {"alg": "none"}),
    "None": forge(claims(), {"alg": "None"}, signature=b""),
    "no algorithm": forge(claims(), {"typ": "JWT"}),
    "null algorithm": forge(claims(), {"alg": None}),
    "a list of algorithms": forge(claims(), {"alg": ["HS256"]}),
    "odd key id": forge(claims(), {"alg": "HS256", "kid": 1}),
    "critical": forge(claims(), {"alg": "HS256", "crit": ["unheard-of"]}),
    "header a list": forge(claims(), []),
    "header noise": forge(claims(), b"\xff"),
    "header of too many digits": forge(claims(), b'{"alg": "HS256", "n": ' + b"9" * 5000 + b"}"),
    "too deep": forge(b"[" * 20000),
    "claims noise": forge(b"\xff"),
    "claims empty": forge(b""),
    "claims a list": forge([claims()]),
    "claims a text": forge("m"),
    "no exp": forge({"userId": "m"}),
    "no member": forge({"exp": NEXT_YEAR}),
    "sub a number": forge({"sub": 7, "exp": NEXT_YEAR}),
    "sub empty": forge({"sub": "", "exp": NEXT_YEAR}),
    "not yet": forge(claims(nbf=NEXT_YEAR)),
    **{f"exp {value!r}": forge(claims(exp=value)) for value in NOT_A_TIME},
    **{f"nbf {value!r}": forge(claims(nbf=value)) for value in NOT_A_TIME[1:]},
    **{f"userId {value!a:.9}": forge(claims(userId=value)) for value in NOT_A_MEMBER},
}


@pytest.mark.parametrize("bad", BAD_TOKENS)
def test_whatever_else_is_wrong_makes_the_token_invalid(bad: str) -> None:
    with pytest.raises(errors.TokenInvalid):
        member_of(f"Bearer {BAD_TOKENS[bad]}", HS256)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(), lambda inner: st.lists(inner, max_size=2)
)


@given(st.dictionaries(st.sampled_from(["exp", "nbf", "iat", "iss", "aud", "sub", "jti", "userId"]), json_values))
def test_signed_claims_of_any_type_never_break_the_gate(odd: dict[str, Any]) -> None:
    with contextlib.suppress(errors.TokenInvalid, errors.TokenExpired):
        assert member_of(f"Bearer {forge(claims(**odd))}", HS256)


@pytest.mark.parametrize("seconds", [-1, -86400 * 400])
def test_an_expired_token_is_told_apart(seconds: int) -> None:
    with pytest.raises(errors.TokenExpired):
        member_of(f"Bearer {token('m', seconds)}", HS256)


def test_an_expired_token_of_another_key_is_invalid_not_expired() -> None:
    with pytest.raises(errors.TokenInvalid):
        member_of(f"Bearer {token('m', -1, key='another secret, also of 32 bytes or more')}", HS256)


@pytest.mark.parametrize(
    ("given_claims", "member"),
    [
        ({"userId": "by userId"}, "by userId"),
        ({"sub": "by sub"}, "by sub"),
        ({"userId": "first", "sub": "second"}, "first"),
        ({"userId": "m" * 255}, "m" * 255),
        ({"userId": "Zoë 👋"}, "Zoë 👋"),
        ({"userId": "ahead", "iat": NEXT_YEAR}, "ahead"),  # the host's clock is no reason to refuse
        ({"userId": "audience unasked for", "aud": "someone"}, "audience unasked for"),
        # What is none of our business beside a good userId may be of any type; hosts number their members and tokens.
        *(
            ({"userId": f"odd {claim}", claim: odd}, f"odd {claim}")
            for claim in ("sub", "jti", "iss", "aud", "iat")
            for odd in (7, None, True, 1.5, ["a"], {"a": 1}, "")
        ),
        ({"sub": "numbered token", "jti": 7}, "numbered token"),
        ({"userId": "no start", "nbf": None}, "no start"),
    ],
)
def test_the_member_is_the_claim_user_id_or_sub(given_claims: dict[str, Any], member: str) -> None:
    assert member_of(f"Bearer {forge({'exp': NEXT_YEAR, **given_claims})}", HS256) == member


@pytest.mark.parametrize(
    ("ahead", "good"),
    [(-1_000_000_000, True), (-1, True), (1, True), (1.5, True), (5, True), (60, False), (60.5, False), (86400, False)],
)
def test_a_token_may_begin_a_moment_ahead_of_our_clock(ahead: float, good: bool) -> None:
    header = f"Bearer {forge(claims(nbf=time.time() + ahead if ahead % 1 else int(time.time()) + ahead))}"
    if good:
        assert member_of(header, HS256) == "m"
    else:
        with pytest.raises(errors.TokenInvalid):
            member_of(header, HS256)


def test_the_leeway_lengthens_no_tokens_life() -> None:
    begins_late = {"exp": int(time.time()), "nbf": int(time.time()) + 1}
    with pytest.raises(errors.TokenExpired):
        member_of(f"Bearer {forge(claims(**begins_late))}", HS256)


@pytest.mark.parametrize(
    ("others", "good"),
    [
        ({"iss": "host", "aud": "after-hours"}, True),
        ({"iss": "host", "aud": ["chat", "after-hours"]}, True),
        ({"iss": "host"}, False),
        ({"aud": "after-hours"}, False),
        ({"iss": "other", "aud": "after-hours"}, False),
        ({"iss": ["host"], "aud": "after-hours"}, False),
        ({"iss": "host", "aud": "chat"}, False),
        ({"iss": "host", "aud": {"after-hours": 1}}, False),
        ({"iss": "host", "aud": [7]}, False),
    ],
)
def test_issuer_and_audience_are_checked_when_set(others: dict[str, Any], good: bool) -> None:
    settings = dataclasses.replace(HS256, jwt_issuer="host", jwt_audience="after-hours")
    header = f"Bearer {forge(claims(**others))}"
    if good:
        assert member_of(header, settings) == "m"
    else:
        with pytest.raises(errors.TokenInvalid):
            member_of(header, settings)


@pytest.mark.parametrize(("algorithm", "key"), [("RS256", rsa_key), ("ES256", ec_key)])
def test_a_public_key_takes_its_own_algorithm_and_no_other(algorithm: str, key: Callable[[], Any]) -> None:
    public = pem(key().public_key())
    settings = dataclasses.replace(HS256, jwt_key=public, jwt_algorithm=algorithm)
    assert member_of(f"Bearer {token('m', key=key(), algorithm=algorithm)}", settings) == "m"
    stranger = (
        rsa.generate_private_key(65537, 2048) if algorithm == "RS256" else ec.generate_private_key(ec.SECP256R1())
    )
    for bad in (
        token("m", key=stranger, algorithm=algorithm),
        token("m", key=ec_key(), algorithm="ES256")
        if algorithm == "RS256"
        else token("m", key=rsa_key(), algorithm="RS256"),
        *([token("m", key=rsa_key(), algorithm=other) for other in ("RS512", "PS256")] if algorithm == "RS256" else []),
        forge(claims(), key=public),  # the confusion of keys: what is public, taken for a secret
        forge(claims(), key=public.strip()),
        forge(claims(), {"alg": algorithm}, key=public),
        forge(claims(), {"alg": "none"}, signature=b""),
    ):
        with pytest.raises(errors.TokenInvalid):
            member_of(f"Bearer {bad}", settings)


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "AUTH_REQUIRED"),
        ({"Authorization": f"Bearer {token('m', -1)}"}, "TOKEN_EXPIRED"),
        ({"Authorization": "Bearer garbage"}, "TOKEN_INVALID"),
    ],
)
def test_a_refused_token_is_told_how_to_authenticate(client: FlaskClient, headers: dict[str, str], code: str) -> None:
    response = ask(client, headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert response.json.keys() == {"success", "error", "code"}
    assert (response.json["success"], response.json["code"]) == (False, code)


PREMIUM = ("PREMIUM_REQUIRED", {"upgrade": True})
VERIFICATION = ("VERIFICATION_REQUIRED", {"requiresVerification": True})
CONSENT = ("CONSENT_REQUIRED", {"requiresConsent": True})


@pytest.mark.parametrize(
    ("standing", "refusal"),
    [
        ({"premium": False}, PREMIUM),
        ({"premium": False, "verified": False, "consent": False}, PREMIUM),
        ({"verified": False}, VERIFICATION),
        ({"verified": None}, VERIFICATION),
        ({"verified": False, "consent": False}, VERIFICATION),
        ({"consent": False}, CONSENT),
        ({"consent": None}, CONSENT),
    ],
)
def test_premium_then_verified_then_consent(
    client: FlaskClient, factory: Factory, standing: dict[str, Any], refusal: tuple[str, dict[str, bool]]
) -> None:
    code, extra = refusal
    factory.member()  # whose standing is nobody else's
    response = ask(client, bearer(factory.member(**standing)))
    assert response.status_code == 403
    assert response.json == {"success": False, "code": code, "error": errors.CATALOGUE[code].__doc__, **extra}


@pytest.mark.parametrize(
    ("subscriptions", "premium"),
    [
        ("(true, NULL)", True),
        ("(true, now() + interval '1 hour')", True),
        ("(true, now() - interval '1 second')", False),
        ("(false, NULL)", False),
        ("(false, now() + interval '1 hour')", False),
        ("(true, now() - interval '1 day'), (false, NULL)", False),
        ("(true, now() - interval '1 day'), (false, NULL), (true, now() + interval '1 day')", True),
    ],
)
def test_premium_is_an_active_unexpired_subscription(
    client: FlaskClient, factory: Factory, subscriptions: str, premium: bool
) -> None:
    factory.member()  # whose subscription is nobody else's
    member = factory.member(premium=False)
    factory.execute(
        f"""INSERT INTO user_subscriptions (user_id, is_active, expires_at)
            SELECT %s, active, until FROM (VALUES {subscriptions}) AS s (active, until)""".replace(
            "NULL)", "NULL::timestamptz)"
        ),
        member,
    )
    assert ask(client, bearer(member)).status_code == (200 if premium else 403)


def test_nobody_passes_with_a_token_alone(client: FlaskClient, factory: Factory) -> None:
    assert ask(client, bearer("nobody")).json["code"] == "PREMIUM_REQUIRED"
    # A host without our foreign key may leave the subscription of a deleted user behind.
    factory.execute("ALTER TABLE user_subscriptions DROP CONSTRAINT user_subscriptions_user_id_fkey")
    factory.execute("INSERT INTO user_subscriptions (user_id, is_active) VALUES ('nobody', true)")
    assert ask(client, bearer("nobody")).json["code"] == "VERIFICATION_REQUIRED"


def test_without_a_database_nobody_passes(make_app: Callable[..., Flask]) -> None:
    client = make_app(database_url="postgresql+psycopg2://nobody@/none?host=/nonexistent").test_client()
    response = ask(client, bearer("m"))
    assert (response.status_code, response.json["code"]) == (503, "AUTH_UNAVAILABLE")
    assert int(response.headers["Retry-After"]) > 0
    assert ask(client).status_code == 401


def test_a_check_that_fails_lets_nobody_pass(client: FlaskClient, factory: Factory) -> None:
    member = factory.member()
    factory.execute("ALTER TABLE users DROP COLUMN after_hours_consent")
    response = ask(client, bearer(member))
    assert (response.status_code, response.json["code"]) == (503, "AUTH_UNAVAILABLE")


def test_a_connection_that_was_lost_is_replaced(client: FlaskClient, factory: Factory) -> None:
    headers = bearer(factory.member())
    ask(client, headers)
    factory.execute(
        """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
           WHERE datname = current_database() AND pid <> pg_backend_pid()"""
    )
    assert ask(client, headers).status_code == 200


def test_every_route_but_the_health_checks_is_gated(app: Flask, factory: Factory) -> None:
    client = app.test_client()
    outsider = factory.member(premium=False, verified=False, consent=False)
    gated, leaving = 0, set()
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for argument in rule.arguments:
            path = path.replace(f"<{argument}>", "1").replace(f":{argument}>", ":1>")
        for method in sorted(rule.methods or ()):
            response = client.open(path, method=method)
            if rule.rule in {"/healthz", "/readyz"}:
                assert response.status_code == 200
            elif rule.endpoint in {"files.get_photo", "monitoring.get_metrics"}:  # signed links; a token of their own
                assert response.status_code in {200, 404}
            else:
                assert (rule.rule, method, response.status_code) == (rule.rule, method, 401)
                status = client.open(path, method=method, headers=bearer(outsider)).status_code
                assert rule.endpoint.startswith("after_hours.")
                if status != 403:
                    assert status < 500
                    leaving.add((method, path))
                else:
                    gated += 1
    assert gated >= 18
    # A route that is added passes the gate, unless blueprint.py says that it needs the token alone.
    assert {
        (method, path.rpartition("after-hours")[2]) for method, path in leaving if method not in {"HEAD", "OPTIONS"}
    } == {
        ("POST", "/session/end"),
        ("DELETE", "/profile/photo"),
        ("GET", "/consent"),
        ("PUT", "/consent"),
        ("GET", "/me/export"),
        ("DELETE", "/me"),
    }


def test_the_gate_is_one_query(wire: Wire, make_app: Callable[..., Flask], factory: Factory) -> None:
    client = make_app(database_url=wire.url).test_client()
    headers = bearer(factory.member(consent=False))
    ask(client, headers)  # opens the connection
    wire.queries.clear()
    assert ask(client, headers).json["code"] == "CONSENT_REQUIRED"
    assert len(wire.queries) == 1


def test_a_token_may_be_valid_for_ever() -> None:
    assert read_token(forge(claims(exp=10**400)), HS256) == ("m", 10**400)


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"duration": 7}', b"{}"])
def test_who_is_not_admitted_is_not_told_what_is_wrong_with_a_request(
    client: FlaskClient, factory: Factory, body: bytes
) -> None:
    member = factory.member(premium=False)
    headers = {**bearer(member), "Content-Type": "application/json"}
    assert failure(client.post("/api/after-hours/session/start", data=body, headers=headers)) == (
        403,
        "PREMIUM_REQUIRED",
    )


@pytest.mark.parametrize("endpoint", sorted(ASKING_THEMSELVES))
def test_a_view_that_forgets_the_gate_answers_nobody(
    app: Flask, client: FlaskClient, factory: Factory, endpoint: str
) -> None:
    app.testing = False
    app.view_functions[endpoint] = lambda: {"success": True}
    rule = next(rule for rule in app.url_map.iter_rules() if rule.endpoint == endpoint)
    for member in (factory.member(), factory.member(premium=False)):
        answer = client.open(
            rule.rule, method="POST" if "POST" in (rule.methods or ()) else "GET", headers=bearer(member)
        )
        assert failure(answer) == (500, "INTERNAL_ERROR")

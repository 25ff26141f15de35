"""Fields that every feature shares, and that every feature must use."""

from collections.abc import Callable, Iterator

import marshmallow as ma
from flask import Flask
from marshmallow import fields

from afterhours_service.web import schemas
from afterhours_service.web.openapi import describe


def subclasses(schema: type[ma.Schema]) -> Iterator[type[ma.Schema]]:
    for child in schema.__subclasses__():
        yield child
        yield from subclasses(child)


def test_whole_numbers_that_are_read_are_read_strictly(make_app: Callable[..., Flask]) -> None:
    """One that is merely `fields.Integer` would take a numeral in a string."""
    found = describe(make_app(api_docs=True))
    bodies = {
        operation["requestBody"]["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
        for path in found["paths"].values()
        for operation in path.values()
        if isinstance(operation, dict) and "application/json" in operation.get("requestBody", {}).get("content", {})
    }
    classes = [cls for cls in subclasses(schemas.CamelCaseSchema) if cls.__name__.removesuffix("Schema") in bodies]
    assert len(classes) >= len(bodies) >= 5
    integers = [field for cls in classes for field in cls().fields.values() if isinstance(field, fields.Integer)]
    assert len(integers) >= 5
    assert {type(field) for field in integers} == {schemas.StrictInteger}


def test_a_whole_number_is_described_as_one(make_app: Callable[..., Flask]) -> None:
    found = describe(make_app(api_docs=True))
    assert found["components"]["schemas"]["Start"]["properties"]["duration"]["type"] == "integer"
    [limit] = [p for p in found["paths"]["/api/after-hours/nearby"]["get"]["parameters"] if p["name"] == "limit"]
    assert limit["schema"]["type"] == "integer"

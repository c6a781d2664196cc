"""The recipe as one JSON Schema (draft 2020-12), so that an editor completes keys and marks mistakes while typing.

Stages and exports are a oneOf over the files there are, each closed; gates a oneOf over the metrics, each with the
limits that fit it. Asking for it imports every method.
"""

import copy
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from compress import registry
from compress.written import LIMITS, RELATIVE_LIMITS, WINDOW, Gate, Order, Whole

Json = dict[str, Any]


def json_schema() -> Json:
    """The schema of every recipe that this installation can read."""
    methods, formats = registry.methods(), registry.names("export")
    configs: dict[str, type[BaseModel]] = {name: registry.load(name).Config for name in (*methods, *formats)}
    mode: JsonSchemaMode = "validation"
    models: list[type[BaseModel]] = [Whole, Gate, Order, *configs.values()]
    references, collected = models_json_schema([(model, mode) for model in models], by_alias=True)
    definitions = collected["$defs"]

    def take(model: type[BaseModel]) -> Json:
        return copy.deepcopy(definitions[references[model, mode]["$ref"].rsplit("/", 1)[-1]])

    stages = [_choice("method", name, take(configs[name]), take(Order)) for name in methods]
    exports = [_choice("format", name.removeprefix("export."), take(configs[name]), None) for name in formats]
    whole = take(Whole)
    whole["properties"]["stages"]["items"] = _one_of(stages)
    whole["properties"]["gates"]["items"] = _one_of([_gate(name, take(Gate)) for name in registry.metrics()])
    whole["properties"]["export"]["items"] = _one_of(exports)
    whole["properties"]["export"].setdefault("default", [])
    top = {references[model, mode]["$ref"].rsplit("/", 1)[-1] for model in models}
    nested = {name: definition for name, definition in definitions.items() if name not in top}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **whole,
        "title": "mdcompress recipe",
        "$defs": nested,
    }


def _one_of(choices: Sequence[Json]) -> Json:
    """Draft 2020-12 allows no empty oneOf; with nothing installed, nothing fits."""
    return {"oneOf": list(choices)} if choices else {"not": {}}


def _choice(key: str, name: str, config: Json, extra: Json | None) -> Json:
    """One method or format: its name, then its Config's keys, and no others."""
    full_name = name if key == "method" else f"export.{name}"
    return {
        "type": "object",
        "title": name,
        "description": registry.summary(full_name).summary,
        "properties": {key: {"const": name}, **config.get("properties", {}), **(extra or {}).get("properties", {})},
        "required": [key, *config.get("required", [])],
        "additionalProperties": False,
    }


def _gate(name: str, gate: Json) -> Json:
    traits = registry.metric_traits(name)
    known = [limit for limit in LIMITS if limit in traits.limits or (traits.sampled and limit in WINDOW)]
    absent = [limit for limit in LIMITS if limit not in known]
    properties = {key: value for key, value in gate["properties"].items() if key not in absent}
    properties["metric"] = {"const": name, "description": properties["metric"].get("description", "")}
    properties["against"] = {**properties["against"], "enum": ["reference", "ground_truth"]}  # a baseline: gates files
    for limit in (*known, "max_gain"):
        properties[limit] = _not_null(properties[limit])
    if traits.needs_net:
        properties["net"] = {**_not_null(properties["net"]), "default": "st-alex"}
    else:
        del properties["net"]
    if traits.of_asked:
        absolute = {"anyOf": [{"required": [limit]} for limit in WINDOW]}
        truth = {"properties": {"against": {"const": "ground_truth"}}, "required": ["against"]}
        gate = {**gate, "if": absolute, "then": truth}
    if not traits.of_images:
        properties |= {"of": {"const": "candidate"}, "against": {"const": "reference"}}
    if not traits.sampled:
        properties["statistic"] = {"enum": ["mean", "median"], "default": "mean"}
        properties |= {limit: {**properties[limit], "exclusiveMinimum": 0} for limit in traits.limits}
    return {
        **gate,
        "title": name,
        "properties": properties,
        "oneOf": _limit_choices(traits, known),
    }


def _limit_choices(traits: registry.MetricTraits, known: Sequence[str]) -> list[Json]:
    """Each limit that fits the metric by itself; and of what is sampled, a window of min and max."""
    single = [limit for limit in traits.limits if traits.of_images or not traits.sampled or limit in WINDOW]
    choices = [_only((limit,), known) for limit in single]
    return [*choices, _only(WINDOW, known)] if traits.sampled else choices


def _only(wanted: Sequence[str], limits: Sequence[str]) -> Json:
    """These limits and none beside them: relative ones of candidate to reference, none of the reference to itself."""
    candidate = {"properties": {"of": {"const": "candidate"}}}
    relative = set(wanted) <= set(RELATIVE_LIMITS)
    others = [limit for limit in (*limits, *(() if relative else ("max_gain",))) if limit not in wanted]
    alone = {"required": [*wanted], "properties": dict.fromkeys(others, False)}
    if relative:
        return {**alone, "allOf": [candidate, {"properties": {"against": {"const": "reference"}}}]}
    truth = {"properties": {"against": {"const": "ground_truth"}}, "required": ["against"]}
    return {**alone, "anyOf": [candidate, truth]}


def _not_null(schema: Json) -> Json:
    """The schema of an optional key, once it is written: without null and without the default null."""
    kept = [part for part in schema["anyOf"] if part != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**kept[0], **rest}

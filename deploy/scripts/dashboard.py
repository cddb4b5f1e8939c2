"""The Grafana dashboard, from what its panels ask Prometheus.

``python deploy/scripts/dashboard.py`` prints ``deploy/grafana/simpleseg.json``; tests compare, and
ask each question of a real Prometheus.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

_DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_ONE = 'instance=~"$instance"'
_ASKING = f'{_ONE}, route=~"(/v1)?/segment(/batch)?|/v1/chat/completions"'
_WIDTH = 24


@dataclass(frozen=True)
class Panel:
    """``queries`` are pairs of PromQL and legend; ``about`` is behind the panel's (i)."""

    title: str
    unit: str
    queries: Sequence[tuple[str, str]]
    about: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    stacked: bool = False


def rate(metric: str, labels: str = _ONE, by: str = "") -> str:
    """
    >>> rate("simpleseg_requests_total", 'a="b"', "route")
    'sum by (route) (rate(simpleseg_requests_total{a="b"}[$__rate_interval]))'
    """
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{labels}}}[$__rate_interval]))"


def mean(histogram: str, by: str = "") -> str:
    """What a histogram's observations were on average; nothing where there were none."""
    count = rate(f"{histogram}_count", by=by)
    return f"{rate(f'{histogram}_sum', by=by)} / ({count} > 0)"


def quantiles(
    histogram: str, labels: str = _ONE, of: Sequence[float] = (0.5, 0.95), name: str = ""
) -> list[tuple[str, str]]:
    buckets = rate(f"{histogram}_bucket", labels, "le")
    return [(f"histogram_quantile({q}, {buckets})", f"{name} p{q * 100:g}".strip()) for q in of]


_MASKS = rate("simpleseg_parse_total", f'{_ONE}, outcome=~"ok|recovered"')
_REQUESTS = "simpleseg_requests_total"
_SERVED = "simpleseg_request_duration_seconds"
_DRAFTS = "simpleseg_draft_tokens_total"
_CACHE = "simpleseg_engine_cache_total"


def panels() -> list[Panel]:
    return [*_at_a_glance(), *_load(), *_engine(), *_process()]


def _at_a_glance() -> list[Panel]:
    failed = rate(_REQUESTS, f'{_ONE}, outcome=~"unavailable|failed"')
    glance = [
        ("Servers", "none", f"count(simpleseg_build_info{{{_ONE}}})"),
        ("Masks a second", "none", _MASKS),
        ("Prompts waiting", "none", f"sum(simpleseg_queue_depth{{{_ONE}}})"),
        ("Latency, p95", "s", quantiles(_SERVED, _ASKING, [0.95])[0][0]),
        ("Requests not served", "percentunit", f"({failed} or vector(0)) / {rate(_REQUESTS)}"),
        ("Tokens per step", "none", _tokens_per_step()),
    ]
    return [
        Panel(title, unit, [(expr, "")], kind="stat", width=4, height=4)
        for title, unit, expr in glance
    ]


def _tokens_per_step() -> str:
    passes = rate("simpleseg_forward_passes_sum")
    return f"{rate('simpleseg_completion_tokens_sum')} / ({passes} > 0)"


def _load() -> list[Panel]:
    return [
        Panel("Requests", "reqps", [(rate(_REQUESTS, by="outcome"), "{{outcome}}")], stacked=True),
        Panel(
            "Queue",
            "none",
            [
                (f"sum(simpleseg_queue_depth{{{_ONE}}})", "prompts waiting"),
                (f"sum(simpleseg_in_flight{{{_ONE}}})", "requests under way"),
            ],
            "Prompts that wait for long mean that the engine is the limit.",
        ),
        Panel(
            "Errors",
            "reqps",
            [(rate("simpleseg_rejections_total", by="reason"), "{{reason}}")],
            "By the code that the client got.",
            stacked=True,
        ),
        Panel("Latency", "s", quantiles(_SERVED, _ASKING, (0.5, 0.95, 0.99))),
        Panel(
            "Time to first",
            "s",
            [
                *quantiles(
                    "simpleseg_stage_duration_seconds", f'{_ONE}, stage="ttft"', name="token"
                ),
                *quantiles("simpleseg_time_to_first_point_seconds", name="vertex"),
            ],
            "From the request's arrival.",
        ),
        Panel(
            "Stages, mean",
            "s",
            [(mean("simpleseg_stage_duration_seconds", "stage"), "{{stage}}")],
            "ttft contains what comes before it; generate is prefill and decode.",
        ),
        Panel(
            "Results",
            "none",
            [(rate("simpleseg_parse_total", by="outcome"), "{{outcome}}")],
            "Prompts answered in a second, by status.",
            stacked=True,
        ),
        Panel(
            "Masks a second",
            "none",
            [
                (
                    rate("simpleseg_parse_total", f'{_ONE}, outcome=~"ok|recovered"', "instance"),
                    "{{instance}}",
                )
            ],
            stacked=True,
        ),
        Panel("Vertices of a region", "none", quantiles("simpleseg_polygon_points")),
    ]


def _engine() -> list[Panel]:
    accepted = rate(_DRAFTS, f'{_ONE}, outcome="accepted"', "kind")
    hits = rate(_CACHE, f'{_ONE}, outcome="hit"', "kind")
    return [
        Panel(
            "Tokens per step",
            "none",
            [(_tokens_per_step(), "mean"), *quantiles("simpleseg_tokens_per_step", of=[0.05])],
            "Near 1, drafts do not help.",
        ),
        Panel(
            "Draft acceptance",
            "percentunit",
            [(f"{accepted} / ({rate(_DRAFTS, by='kind')} > 0)", "{{kind}}")],
            "Of the drafted tokens verified. Of those rejected vLLM does not tell the kind.",
        ),
        Panel(
            "Answer tokens and steps",
            "none",
            [
                (rate("simpleseg_completion_tokens_sum"), "tokens a second"),
                (rate("simpleseg_forward_passes_sum"), "steps a second"),
            ],
        ),
        Panel(
            "Cache hits",
            "percentunit",
            [(f"{hits} / ({rate(_CACHE, by='kind')} > 0)", "{{kind}}")],
            "The embedded engine's. vLLM has metrics of its own, vllm:*.",
        ),
    ]


def _process() -> list[Panel]:
    return [
        Panel(
            "Memory",
            "bytes",
            [(f"process_resident_memory_bytes{{{_ONE}}}", "{{instance}}")],
            "Of the server's process; vLLM's engine has one of its own.",
        ),
        Panel(
            "Processor",
            "none",
            [(rate("process_cpu_seconds_total", by="instance"), "{{instance}}")],
            "Cores in use.",
        ),
        Panel(
            "Restarts in an hour",
            "none",
            [
                (f"changes(process_start_time_seconds{{{_ONE}}}[1h])", "{{instance}}"),
                (
                    f"sum by (reason) (increase(simpleseg_engine_restarts_total{{{_ONE}}}[1h]))",
                    "engine: {{reason}}",
                ),
            ],
        ),
        Panel(
            "Clients that hung up",
            "reqps",
            [(rate("simpleseg_client_disconnects_total", by="instance"), "{{instance}}")],
        ),
    ]


def dashboard() -> dict[str, Any]:
    return {
        "uid": "simpleseg",
        "title": "SimpleSeg server",
        "description": "Made by deploy/scripts/dashboard.py.",
        "tags": ["simpleseg"],
        "schemaVersion": 41,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": [_datasource(), _instances()]},
        "panels": list(_placed(panels())),
    }


def _datasource() -> dict[str, Any]:
    return {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
    }


def _instances() -> dict[str, Any]:
    return {
        "name": "instance",
        "label": "Server",
        "type": "query",
        "datasource": _DATASOURCE,
        "query": {"query": "label_values(simpleseg_build_info, instance)", "refId": "instance"},
        "refresh": 2,
        "multi": True,
        "includeAll": True,
        "allValue": ".+",
        "current": {"text": "All", "value": "$__all"},
    }


def _placed(wanted: Sequence[Panel]) -> Iterator[dict[str, Any]]:
    """The panels with their places, from left to right and from top to bottom."""
    x = y = 0
    for number, panel in enumerate(wanted, start=1):
        if x + panel.width > _WIDTH:
            x, y = 0, y + wanted[number - 2].height
        place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
        x += panel.width
        yield _panel(number, panel, place)


def _panel(number: int, panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    defaults: dict[str, Any] = {"unit": panel.unit, "min": 0}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        fill = 30 if panel.stacked else 0
        defaults["custom"] = {"stacking": stacking, "fillOpacity": fill, "showPoints": "never"}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": _DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _OPTIONS[panel.kind],
        "targets": [
            {
                "refId": chr(ord("A") + i),
                "datasource": _DATASOURCE,
                "expr": expr,
                "legendFormat": legend,
                "range": True,
            }
            for i, (expr, legend) in enumerate(panel.queries)
        ],
    }


_OPTIONS: dict[str, dict[str, Any]] = {
    "stat": {"reduceOptions": {"calcs": ["lastNotNull"]}, "graphMode": "area"},
    "timeseries": {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    },
}


if __name__ == "__main__":
    print(json.dumps(dashboard(), indent=1))
